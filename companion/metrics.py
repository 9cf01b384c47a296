"""What the papers measure on embeddings."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from companion import losses
from companion.errors import CompanionError
from companion.losses._inputs import check_embeddings, check_labels, check_views, without_autocast
from companion.losses.families import pair_gradient
from companion.similarity import Similarity, cosine, off_diagonal


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
    s = _double(_cosines(u, v))
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
        y: (n,) class labels, whole numbers.

    Returns:
        ``same_vs_different``, ``among_class_pairs``, ``within_class_pairs``, which add up to ``total``.

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views, or there is no label for each.
    """
    check_views(u, v)
    check_labels(y, u, anywhere=True)
    s = _double(_cosines(u, v)).fill_diagonal_(0)  # (n, n); the positives on the diagonal count for nothing
    member = F.one_hot(y.unique(return_inverse=True)[1].to(s.device)).double()  # (n, C)
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
    with losses.plain():
        return losses.uniform(z, t=t).item()


@torch.no_grad()
def tolerance(z: Tensor, y: Tensor) -> float:
    """Mean similarity of pairs of different instances of one class (Wang & Liu 2021, Eq. 11, as the conditional mean
    that its published values imply).

    Args:
        z: (n, d) embeddings.
        y: (n,) labels, whole numbers; at least one class has two members.

    Raises:
        CompanionError: if the embeddings are not (n, d) and finite, there is no label for each, or no class has two
            members.
    """
    check_embeddings("z", z)
    check_labels(y, z)
    s = off_diagonal(_cosines(z, z))
    same = off_diagonal((y[:, None] == y).to(s.dtype))
    if not same.any():
        raise CompanionError(f"All {len(y)} labels differ: expected a class with at least two members.")
    return ((s * same).sum() / same.sum()).item()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, k) cosine similarities in float32 or better, whatever autocast says: in half precision lengths overflow, and
    near similarities are one."""
    with without_autocast(a):
        dtype = functools.reduce(torch.promote_types, (a.dtype, b.dtype), torch.float32)
        return cosine(a.to(dtype), b.to(dtype))


def _double(s: Tensor) -> Tensor:
    """In float64, where ``s`` lies; on the CPU if it lies on an Apple GPU, which has no float64."""
    return (s.cpu() if s.device.type == "mps" else s).double()


@torch.no_grad()
def nearest_similarities(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Target and noise similarities of Feeney & Hughes (2023): the cosine similarity of each test embedding to the
    nearest training embedding of its own class, and to the nearest of any other class.

    Args:
        train: (n, d) embeddings of training images.
        labels: (n,).
        test: (q, d) embeddings of test images.
        test_labels: (q,), each among ``labels``, which hold another class too.

    Returns:
        target (q,) and noise (q,), in [-1, 1]; the margin of the paper is the difference of their medians.

    Raises:
        CompanionError: if embeddings are not finite and of one dimension, or there is no label for each, or for a test
            image no training image of its class, or none of another.
    """
    for name, z, of_labels, y in (("train", train, "labels", labels), ("test", test, "test_labels", test_labels)):
        check_embeddings(name, z, least=1)
        check_labels(y, z, name=of_labels)
    if train.shape[1] != test.shape[1]:
        raise CompanionError(f"train has shape {tuple(train.shape)} and test {tuple(test.shape)}: expected one d.")
    s, same = _cosines(test, train), test_labels[:, None] == labels  # (q, n)
    if not (same.any(dim=1) & ~same.all(dim=1)).all():
        raise CompanionError("A test image has no training image of its class, or of no other: expected both.")
    return tuple(s.masked_fill(~mask, -torch.inf).amax(dim=1) for mask in (same, ~same))


NEAR, FAR = 15.0, (30.0, 60.0)  # degrees: what counts as a small angle, and what it is held against


def pulls(
    function: Callable, z: Tensor, y: Tensor, *, similarity: Similarity, **hyperparameters
) -> tuple[Tensor, Tensor]:
    """How hard a loss pulls at each pair of one class: the gradient through this pair's similarity alone, as a share of
    the embedding's length, |∂L/∂s_ij| · ‖∂s_ij/∂z_i‖ · ‖z_i‖.

    With cosine and arc length that is how fast the loss falls with the pair's angle θ: ‖∂s/∂z_i‖ ‖z_i‖ is sin θ for
    cosine and 1/π for arc length. With Euclidean similarity, which has a gradient along z_i too, it is ‖z_i‖.

    Args:
        function: a loss with labels that takes `similarity=`.
        z: (n, d) embeddings.
        y: (n,) labels.
        similarity: that the loss is taken with: one of :mod:`companion.similarity`.
        hyperparameters: of the loss.

    Returns:
        (k,) angles in degrees and (k,) pulls of the k ordered pairs (i, j) of one class, i ≠ j.
    """
    z = z.detach().double()
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    same = (y[:, None] == y) & ~itself
    slope = pair_gradient(function, similarity(z, z), y, **hyperparameters)[same].abs()  # (k,)
    first, second = (z[index].requires_grad_(i == 0) for i, index in enumerate(torch.where(same)))
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(similarity.paired(first, second).sum(), first)  # (k, d)
    angles = cosine.paired(first, second).detach().clamp(-1, 1).arccos().rad2deg()
    return angles, slope * gradient.norm(dim=1) * first.detach().norm(dim=1)


def pulls_by_angle(angles: Tensor, strength: Tensor) -> dict[str, float]:
    """What :func:`pulls` gives, below ``NEAR`` degrees and between those of ``FAR``.

    Returns:
        ``near_share``: of the pairs, how many are near; ``near_pull_share``: their share of all pulls, NaN where
        nothing pulls; ``near_pull`` and ``far_pull``: the mean pull there, NaN where there is no pair.
    """
    near, far = angles < NEAR, (angles >= FAR[0]) & (angles < FAR[1])
    return {
        "near_share": near.double().mean().item(),
        "near_pull_share": (strength[near].sum() / strength.sum()).item(),
        "near_pull": strength[near].mean().item(),
        "far_pull": strength[far].mean().item(),
    }
