"""Alignment and uniformity on the hypersphere (Wang & Isola 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import positive
from companion.losses import tiled
from companion.losses._inputs import loss, not_negative
from companion.losses._pairs import SameInstance, log_sum_exp
from companion.similarity import cosine

HUNGRY = ("cuda",)  # kinds of device on which the backward pass of torch.pdist holds n · n · d numbers


@loss(alpha=positive)
def align(u: Tensor, v: Tensor, *, alpha: float = 2) -> Tensor:
    """Alignment (Wang & Isola 2020, Section 4.1.1): mean of ‖u_i - v_i‖₂^α over positive pairs, of embeddings
    L2-normalised.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        alpha: exponent > 0.

    Returns:
        Scalar in [0, 2^α]; 0 is perfect alignment.

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n ≥ 2, or α is not positive.
    """
    distance = (F.normalize(u, dim=1) - F.normalize(v, dim=1)).norm(dim=1)
    if isinstance(alpha, Tensor) or alpha < 1:  # at 0 the slope is infinite then: views that coincide are left alone
        equal = distance == 0
        return distance.masked_fill(equal, 1).pow(alpha).masked_fill(equal, 0).mean()
    return distance.pow(alpha).mean()


@loss(t=positive)
def uniform(z: Tensor, *, t: float = 2, tile: int | None = None) -> Tensor:
    """Uniformity (Wang & Isola 2020, Section 4.1.2): log of the mean of exp(-t‖z_i - z_j‖²) over pairs i < j, of
    embeddings L2-normalised.

    Args:
        z: (n, d) embeddings.
        t: > 0, the inverse width of the Gaussian potential.
        tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar in [-4t, 0]; lower is more uniform, 0 is collapse.

    Raises:
        CompanionError: if ``z`` is not (n, d), finite, with n >= 2, or t is not positive.
    """
    n = len(z)
    tile = tiled.side(z, z, tile, cosine)
    if tile is not None or z.device.type in HUNGRY:  # -t‖z_i - z_j‖² = 2t z_iᵀz_j - 2t
        return (
            log_sum_exp(z, z, 1 / (2 * t), cosine, SameInstance(n), tile).logsumexp(dim=0)
            - 2 * t
            - math.log(n * (n - 1))
        )
    squared = torch.pdist(F.normalize(z, dim=1)).square()  # (n(n-1)/2,)
    return (-t * squared).logsumexp(dim=0) - math.log(len(squared))


@loss(weight=not_negative)
def align_uniform(
    u: Tensor, v: Tensor, *, weight: float = 1, alpha: float = 2, t: float = 2, tile: int | None = None
) -> Tensor:
    """L_align + λ (L_uniform(u) + L_uniform(v)) / 2 (Wang & Isola 2020, Figure 6).

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        weight: λ >= 0 of the uniformity.
        alpha: of :func:`align`.
        t, tile: of :func:`uniform`.

    Returns:
        Scalar.

    Raises:
        CompanionError: as its two parts, or if λ is negative.
    """
    return align(u, v, alpha=alpha) + weight * (uniform(u, t=t, tile=tile) + uniform(v, t=t, tile=tile)) / 2
