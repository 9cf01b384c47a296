"""Sums over all pairs in closed form, and over a sample of pairs where there is none. No n × n matrix anywhere.

Moments of all n² similarities follow from the means and the d × d covariances of the two sides: with u_i = ū + x_i and
v_j = v̄ + y_j, Var(u_iᵀv_j) = tr(Σ_u Σ_v) + v̄ᵀΣ_u v̄ + ūᵀΣ_v ū. Being a sum of squares it keeps its digits where
embeddings collapse, as E s² - (E s)² would not.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from companion.diagnose.arrays import Rows
from companion.similarity import off_diagonal

BINS = 400  # of the histograms, over [-1, 1]
TILE = 1024  # rows at once where all pairs are visited
BLOCK, LEAST_BLOCKS = 256, 32  # rows of a sampled block, and how many blocks a standard error should rest on
T = 2  # of the Gaussian potential, Wang & Isola's choice


class Similarities(NamedTuple):
    """Population moments of similarities in [-1, 1]."""

    mean: float
    variance: float
    std: float


class Uniformity(NamedTuple):
    """Uniformity, log E exp(-2‖a-b‖²), in [-8, 0]; lower is more uniform."""

    value: float
    low: float  #: 95 % interval of what all pairs would give; from the value to the value if it is exact
    high: float
    pairs: int  #: how many pairs it rests on
    exact: bool  #: whether these are all


class Totals(NamedTuple):
    """What one look at every pair, and one at every embedding, give."""

    positives: Tensor  #: (n,) u_iᵀv_i
    alignment: float  #: mean ‖u_i - v_i‖²
    means: tuple[Tensor, Tensor]  #: (d,) each
    covariances: tuple[Tensor, Tensor]  #: (d, d) each
    class_sums: tuple[Tensor, Tensor] | None  #: (C, d) each


def totals(u: Rows, v: Rows, y: Tensor | None = None, n_classes: int = 0) -> Totals:
    """Two passes over the arrays, in float64: means and positives, then covariances about those means."""
    n, d = len(u), u.dimension
    positives, alignment = torch.empty(n, dtype=torch.float64), 0.0
    means = [torch.zeros(d, dtype=torch.float64) for _ in range(2)]
    class_sums = None if y is None else tuple(torch.zeros(n_classes, d, dtype=torch.float64) for _ in range(2))
    for part in u.chunks():
        views = u[part], v[part]
        positives[part] = (views[0] * views[1]).sum(dim=1)
        alignment += (views[0] - views[1]).square().sum().item() / n
        for side, z in enumerate(views):
            means[side] += z.sum(dim=0) / n
            if class_sums is not None:
                class_sums[side].index_add_(0, y[part], z)
    covariances = [torch.zeros(d, d, dtype=torch.float64) for _ in range(2)]
    for part in u.chunks():
        for covariance, mean, rows in zip(covariances, means, (u, v), strict=True):
            z = rows[part].sub_(mean)
            covariance.addmm_(z.T, z, alpha=1 / n)
    return Totals(positives, alignment, tuple(means), tuple(covariances), class_sums)


def of_diagonal(values: Tensor) -> Similarities:
    """Moments of the positives."""
    variance = values.var(correction=0).item()
    return Similarities(values.mean().item(), variance, math.sqrt(variance))


def off_the_diagonal(n: int, means, covariances, diagonal: Tensor) -> Similarities:
    """Moments of the n(n-1) similarities a_iᵀb_j, i ≠ j: of all n², less the diagonal.

    Args:
        n: number of rows on each side.
        means: (d,) of a and of b.
        covariances: (d, d) of a and of b.
        diagonal: (n,) a_iᵀb_i, or (1,) if all are equal.
    """
    (a, b), (cov_a, cov_b) = means, covariances
    mean_all = a @ b
    mean = (n * mean_all - diagonal.mean()) / (n - 1)
    variance_all = (cov_a * cov_b).sum() + b @ cov_a @ b + a @ cov_b @ a
    about_mean = variance_all + (mean_all - mean).square()
    variance = ((n * about_mean - (diagonal - mean).square().mean()) / (n - 1)).clamp(min=0)  # 0 but for rounding
    return Similarities(mean.item(), variance.item(), variance.sqrt().item())


class Potentials(NamedTuple):
    """Means of exp(-2‖a-b‖²) over pairs of different instances, a row a block of them; and what was met on the way."""

    means: Tensor  #: (blocks, 3): within u, within v, across
    pairs: int  #: i < j, in all blocks together
    exact: bool
    histogram: Tensor  #: (BINS,) counts of the cross-view similarities


def potentials(u: Rows, v: Rows, max_pairs: int, seed: int) -> Potentials:
    """Over all pairs if there are at most ``max_pairs``; else over pairs within random, disjoint blocks of rows.

    Block means are independent, so their spread gives a standard error, whatever clusters the embeddings form; single
    pairs would give one too, but a block of m rows costs m reads for m(m-1)/2 pairs.
    """
    n = len(u)
    if n * (n - 1) // 2 <= max_pairs:
        sums, histogram = torch.zeros(3, dtype=torch.float64), torch.zeros(BINS, dtype=torch.float64)
        for i in u.chunks(TILE):
            for j in u.chunks(TILE):
                if j.start >= i.start:
                    part, counts = _tile((u[i], v[i]), None if i == j else (u[j], v[j]))
                    sums, histogram = sums + part, histogram + counts
        return Potentials(sums[None] / (n * (n - 1)), n * (n - 1) // 2, True, histogram)
    size = max(2, min(BLOCK, n // LEAST_BLOCKS, math.isqrt(2 * max_pairs // LEAST_BLOCKS)))
    pairs = size * (size - 1) // 2
    blocks = min(n // size, max_pairs // pairs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: blocks * size]
    means, histogram = [], torch.zeros(BINS, dtype=torch.float64)
    for block in order.view(blocks, size).sort(dim=1).values:  # sorted, to read a file forwards
        sums, counts = _tile((u[block], v[block]), None)
        means.append(sums / (2 * pairs))
        histogram += counts
    return Potentials(torch.stack(means), blocks * pairs, False, histogram)


def _tile(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """(3,) sums of the potential over ordered pairs i ≠ j, and the histogram of the cross-view similarities.

    ``right`` = None stands for ``left`` with itself; otherwise the mirror tile is counted along.
    """
    a, b = right or left
    within = [left[0] @ a.T, left[1] @ b.T]
    across = [left[0] @ b.T] if right is None else [left[0] @ b.T, a @ left[1].T]
    if right is None:
        within, across = [off_diagonal(s) for s in within], [off_diagonal(across[0])]
    histogram = sum(counts(s) for s in across)
    weight = 1 if right is None else 2
    sums = [weight * potential(s).sum() for s in within] + [sum(potential(s).sum() for s in across)]
    return torch.stack(sums), histogram


def potential(s: Tensor) -> Tensor:
    """exp(-2‖a-b‖²) of unit vectors of similarity s, since ‖a-b‖² = 2 - 2s."""
    return (2 * T * (s - 1)).exp()


def counts(s: Tensor) -> Tensor:
    """(BINS,) how many similarities fall into each bin of [-1, 1]."""
    return torch.histc(s.clamp(-1, 1), BINS, -1, 1)  # rounding may leave the range


def uniformity(found: Potentials, positives: Tensor) -> tuple[Uniformity, Uniformity, Uniformity]:
    """Of u, of v, and of the 2n embeddings together, whose n positive pairs are known exactly."""
    n = len(positives)
    within_u, within_v, across = found.means.T  # (blocks,) each
    pooled = ((n - 1) * ((within_u + within_v) / 2 + across) + potential(positives).mean()) / (2 * n - 1)
    pairs = found.pairs, found.pairs, 4 * found.pairs + n
    return tuple(_log_of_mean(m, k, found.exact) for m, k in zip((within_u, within_v, pooled), pairs, strict=True))


def _log_of_mean(blocks: Tensor, pairs: int, exact: bool) -> Uniformity:
    """The log of a mean over blocks with its 95 % t interval, by the delta method."""
    mean, half = blocks.mean(), 0.0
    if not exact:
        error = blocks.std(correction=1) / math.sqrt(len(blocks)) / mean
        half = float(stats.t.ppf(0.975, len(blocks) - 1)) * error.item()
    value = mean.log().item()
    return Uniformity(value, value - half, value + half, pairs, exact)


def spectrum(second_moment: Tensor) -> np.ndarray:
    """Eigenvalues of a second-moment matrix of unit vectors, falling; they add up to 1, as they do but for rounding."""
    values = torch.linalg.eigvalsh(second_moment).flip(0).clamp(min=0)
    return (values / values.sum()).numpy()
