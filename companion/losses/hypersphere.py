"""Alignment and uniformity on the hypersphere (Wang & Isola 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import positive
from companion.losses._inputs import loss


@loss
def align(u: Tensor, v: Tensor, *, alpha: float = 2) -> Tensor:
    """Alignment (Wang & Isola 2020, Eq. 4): mean of ‖u_i - v_i‖₂^α over positive pairs, embeddings L2-normalised.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        alpha: exponent > 0.

    Returns:
        Scalar in [0, 2^α]; 0 is perfect alignment.

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views, or α is not positive.
    """
    positive(alpha, "alpha")
    return (F.normalize(u, dim=1) - F.normalize(v, dim=1)).norm(dim=1).pow(alpha).mean()


@loss
def uniform(z: Tensor, *, t: float = 2) -> Tensor:
    """Uniformity (Wang & Isola 2020, Eq. 5): log of the mean of exp(-t‖z_i - z_j‖²) over pairs i < j, L2-normalised.

    Args:
        z: (n, d) embeddings.
        t: > 0, the inverse width of the Gaussian potential.

    Returns:
        Scalar in [-4t, 0]; lower is more uniform, 0 is collapse.

    Raises:
        CompanionError: if ``z`` is not (n, d), finite, with n >= 2, or t is not positive.
    """
    positive(t, "t")
    squared = torch.pdist(F.normalize(z, dim=1)).square()  # (n(n-1)/2,)
    return (-t * squared).logsumexp(dim=0) - math.log(len(squared))
