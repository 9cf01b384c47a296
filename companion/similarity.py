"""Similarity functions: how alike two embeddings are, as pairwise matrices."""

import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every row of ``a`` with every row of ``b``.

    Args:
        a: (n, d) embeddings, of any length; they are L2-normalised here.
        b: (k, d) embeddings.

    Returns:
        (n, k) similarities in [-1, 1].
    """
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def off_diagonal(s: Tensor) -> Tensor:
    """The n(n-1) entries of a square matrix beside its diagonal: the negatives, where the diagonal holds positives.

    Args:
        s: (n, n) pairwise similarities.

    Returns:
        (n, n-1): row i without its entry i.
    """
    n = s.shape[0]
    return s.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
