"""What the papers measure on embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion import losses
from companion.errors import CompanionError
from companion.losses._inputs import check_views
from companion.similarity import cosine, off_diagonal


@torch.no_grad()
def similarity_statistics(u: Tensor, v: Tensor) -> dict[str, float]:
    """Mean and variance of the similarities of positive and of negative pairs, as Lee et al. (2025, Section 6) measure
    them: projector outputs of two augmented views, every cross-view pair (i ≠ j) a negative.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.

    Returns:
        ``positive_mean``, ``positive_variance``, ``negative_mean``, ``negative_variance``, ``negative_std``; population
        moments, since the pairs *are* the population.

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2.
    """
    check_views(u, v)
    s = _double(cosine(u, v))
    positives, negatives = s.diagonal(), off_diagonal(s)
    return {
        "positive_mean": positives.mean().item(),
        "positive_variance": positives.var(correction=0).item(),
        "negative_mean": negatives.mean().item(),
        "negative_variance": negatives.var(correction=0).item(),
        "negative_std": negatives.std(correction=0).item(),
    }


@torch.no_grad()
def variance_parts(u: Tensor, v: Tensor, y: Tensor) -> dict[str, float]:
    """Split the variance of the negatives by the law of total variance, twice.

    First by whether a pair shares its class, then, inside those two groups, by the ordered pair of classes:

        Var(s) = Var E[s | same?]  +  E Var(E[s | y_i, y_j] | same?)  +  E Var(s | y_i, y_j)

    The first two parts are structure between classes, which a good representation has; the third lies within class
    pairs, between instances.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        y: (n,) class labels 0 … C-1.

    Returns:
        ``same_vs_different``, ``among_class_pairs``, ``within_class_pairs``, which add up to ``total``.
    """
    s = _double(cosine(u, v)).fill_diagonal_(0)  # (n, n); the positives on the diagonal count for nothing
    member = F.one_hot(y.to(s.device)).double()  # (n, C)
    sizes = member.sum(dim=0)  # (C,)
    pairs = sizes[:, None] * sizes - torch.diag(sizes)  # (C, C) negatives in each ordered pair of classes
    sums = member.T @ s @ member  # (C, C)
    cell_means = sums / pairs.clamp(min=1)
    same = torch.eye(len(sizes), dtype=torch.bool, device=s.device)
    mean, group_means = sums.sum() / pairs.sum(), torch.empty_like(cell_means)
    for group in (same, ~same):
        group_means[group] = sums[group].sum() / pairs[group].sum().clamp(min=1)
    weights = pairs / pairs.sum()
    total = s.square().sum() / pairs.sum() - mean.square()
    parts = {
        "same_vs_different": (weights * (group_means - mean).square()).sum(),
        "among_class_pairs": (weights * (cell_means - group_means).square()).sum(),
    }
    parts["within_class_pairs"] = total - sum(parts.values())
    parts["total"] = total
    return {name: value.item() for name, value in parts.items()}


@torch.no_grad()
def alignment(u: Tensor, v: Tensor, *, alpha: float = 2) -> float:
    """:func:`companion.losses.align` as a number: 0 is perfect, 4 the worst at α = 2."""
    return losses.align(u, v, alpha=alpha).item()


@torch.no_grad()
def uniformity(z: Tensor, *, t: float = 2) -> float:
    """:func:`companion.losses.uniform` as a number: lower is more uniform."""
    return losses.uniform(z, t=t).item()


@torch.no_grad()
def tolerance(z: Tensor, y: Tensor) -> float:
    """Mean similarity of pairs of different instances of one class (Wang & Liu 2021, Eq. 11, as the conditional mean
    that its published values imply).

    Args:
        z: (n, d) embeddings.
        y: (n,) labels; at least one class has two members.

    Raises:
        CompanionError: if no class has two members.
    """
    same = off_diagonal((y[:, None] == y).to(z.dtype))
    if not same.any():
        raise CompanionError(f"All {len(y)} labels differ: expected a class with at least two members.")
    return ((off_diagonal(cosine(z, z)) * same).sum() / same.sum()).item()


def _double(s: Tensor) -> Tensor:
    """In float64, where ``s`` lies; on the CPU if it lies on an Apple GPU, which has no float64."""
    return (s.cpu() if s.device.type == "mps" else s).double()
