"""The two sums over pairs that all losses are made of: a log-sum-exp for each anchor, and a plain total.

Which pairs count is said by a function `keep(i, j)` of two index tensors that broadcast to a matrix; the dense form
calls it once for the whole matrix, :mod:`companion.losses.tiled` once a tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.similarity import Similarity


def others(n: int):
    """Keep the pairs of different instances, where rows and columns count instances 0 … n-1, again and again.

    On (n, n) views u, v it drops the diagonal; on (2n, 2n) views of cat([u, v]) an anchor's self and its twin.
    """
    return lambda i, j: (i - j) % n != 0


def log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding for every x (torch's own softplus is linear beyond 20)."""
    return -F.logsigmoid(-x)


def log_sum_exp(a: Tensor, b: Tensor, temperature, similarity: Similarity, keep=None) -> Tensor:
    """(n,) log Σ_j exp(s(a_i, b_j)/τ) over the kept pairs; -∞ for an anchor that keeps none."""
    logits = similarity(a, b) / temperature  # (n, k)
    if keep is not None:
        logits = logits.masked_fill(~keep(*indices(logits)), -torch.inf)
    return logits.logsumexp(dim=1)


def indices(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) row and (1, k) column indices of an (n, k) matrix."""
    n, k = matrix.shape
    return torch.arange(n, device=matrix.device)[:, None], torch.arange(k, device=matrix.device)[None, :]
