"""What two arrays of paired embeddings say about themselves, in numbers."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import hyp0f1
from torch import Tensor

from companion import theory
from companion.diagnose import sums
from companion.diagnose.arrays import classes, paired
from companion.diagnose.sums import Similarities, Totals, Uniformity
from companion.errors import CompanionError, number, positive, whole

MAX_PAIRS = 2**24  # all pairs of 5,793 instances
LEAST_PAIRS = 1000  # fewer give no standard error worth its name
ENERGY = 0.99
PHASES = ("aligned", "partly separated", "antipodal")  # in the order of companion.theory.Optimum.phase


class Spread(NamedTuple):
    """How one set of unit embeddings fills its d dimensions."""

    uniformity: Uniformity  #: Wang & Isola (2020, Eq. 5), t = 2
    mean_length: float  #: ‖mean embedding‖ in [0, 1]; 1 is collapse to a point
    participation_ratio: float  #: 1/E[s²] over all ordered pairs, an embedding with itself included; in [1, min(n, d)]
    centred_ratio: float  #: the same of the covariance, (tr Σ)²/tr Σ²: without the mean; 0 if there is nothing else
    effective_rank: float  #: Roy & Vetterli (2007): exp of the entropy of the second moment's spectrum; same range
    energy_dimensions: int  #: how many singular values carry 99 % of the energy, the sum of their squares
    singular_values: tuple[float, ...]  #: (d,) of the (n, d) matrix over √n, falling; their squares add up to 1


class Siglip(NamedTuple):
    """Where SigLIP at fixed scale and bias has its optimum over free embeddings (d >= n), and where its phases end."""

    n: int  #: instances that the optimum is of
    scale: float
    bias: float  #: SigLIP's own sign
    phase: str  #: one of PHASES
    s_pos: float  #: at the optimum
    s_neg: float
    aligned_below: float | None  #: the largest bias of the aligned phase; None for n = 2, which has no other
    antipodal_above: float | None  #: the smallest bias of the antipodal phase


class Classes(NamedTuple):
    """The variance of the cross-view negatives by class, as :func:`companion.metrics.variance_parts` splits it, and
    the tolerance of both views, as :func:`companion.metrics.tolerance`."""

    count: int
    same_vs_different: float
    among_class_pairs: float
    within_class_pairs: float
    total: float
    tolerance_u: float
    tolerance_v: float


class Target(NamedTuple):
    """The negatives against the training set's simplex (Lee et al. 2025, Definition 5.7)."""

    n: int  #: size of the training set
    value: float  #: -1/(n-1)
    distance: float  #: mean of the cross-view negatives minus that
    vrns: float  #: :func:`companion.losses.vrns`: their variance plus the squared distance


class Histogram(NamedTuple):
    """Counts of cosine similarities in equal bins over [-1, 1]."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]  #: cross-view; of the pairs that the uniformity rests on


@dataclass(frozen=True)
class Reading:
    """What :func:`diagnose` found; all similarities are cosines, all moments population moments, in float64."""

    pairs: int  #: n
    dimension: int  #: d
    alignment: float  #: Wang & Isola (2020, Eq. 4), α = 2: mean ‖u_i - v_i‖², in [0, 4]; 0 is perfect
    positive: Similarities  #: u_iᵀv_i
    negative: Similarities  #: cross-view, u_iᵀv_j with i ≠ j
    within_u: Similarities  #: u_iᵀu_j with i ≠ j
    within_v: Similarities
    u: Spread
    v: Spread
    both: Spread  #: of the 2n embeddings together
    gap: float  #: modality gap ‖mean u - mean v‖, in [0, 2]
    gap_share: float  #: its square as a share of the alignment, in [0, 1]; 0 where the alignment is 0
    bound: float | None  #: the most that the positives' mean can be, sharp form of Theorem 5.2; None for n = 2
    bound_printed: float  #: the same by Eq. 7 as printed
    histogram: Histogram
    siglip: Siglip | None = None  #: with scale and bias
    classes: Classes | None = None  #: with labels
    target: Target | None = None  #: with n

    @property
    def simplex(self) -> float:
        """-1/(pairs-1): the lowest that the mean negative can be while positives are aligned."""
        return -1 / (self.pairs - 1)

    @property
    def separated(self) -> bool:
        """Whether the embeddings are excessively separated (Lee et al. 2025, Section 5.1): the mean negative lies
        below -1/(n-1), by more than rounding."""
        return self.negative.mean < self.simplex - 1e-9

    @property
    def uniformity_of_chance(self) -> float:
        """Uniformity of a uniform distribution on the sphere in d dimensions, log E exp(4s - 4) with
        E exp(κs) = ₀F₁(d/2; κ²/4): what the spread can be compared with. Few embeddings can lie below it."""
        return float(math.log(hyp0f1(self.dimension / 2, (2 * sums.T) ** 2 / 4)) - 2 * sums.T)


@torch.no_grad()
def diagnose(u, v, *, labels=None, n=None, scale=None, bias=None, max_pairs: int = MAX_PAIRS, seed: int = 0) -> Reading:
    """Read paired embeddings: the numbers of this companion's papers, without ever forming an n × n matrix.

    Means and variances over all pairs are exact, from d × d matrices, in O(n d²) time. Uniformity, which has no such
    form, and the histogram of negatives are exact up to ``max_pairs`` pairs i < j, and beyond rest on a random sample
    of pairs, with a 95 % interval. Lengths of embeddings do not matter.

    Args:
        u: (n, d) first view or modality, NumPy (memory-mapped too) or torch, any floating dtype, any device.
        v: (n, d) second; row i is the partner of row i of ``u``.
        labels: (n,) class labels, whole numbers or strings; None: no split by class.
        n: size of the training set, at least the number of pairs; None: no comparison with its simplex.
        scale: SigLIP's t > 0, with ``bias``; None: no phase.
        bias: in SigLIP's own sign (its start is -10). The phase is that of ``n`` instances, or of the pairs given.
        max_pairs: the most pairs i < j of which each is visited, at least 1000.
        seed: of the sample.

    Returns:
        A :class:`Reading`.

    Raises:
        CompanionError: if the arrays are not two sound (n, d) views, see :class:`companion.diagnose.arrays.Rows`, or
            an option does not fit them.
    """
    whole(max_pairs, "max_pairs", least=LEAST_PAIRS)
    whole(seed, "seed", least=0)
    _check_siglip(scale, bias)
    u, v = paired(u, v)
    pairs = len(u)
    if n is not None:
        n = whole(n, f"n (the size of the training set that the {pairs} pairs are from)", least=pairs)
    y, n_classes = (None, 0) if labels is None else classes(labels, pairs)
    total = sums.totals(u, v, y, n_classes)
    found = sums.potentials(u, v, max_pairs, seed)
    (mean_u, mean_v), (cov_u, cov_v) = total.means, total.covariances
    one = torch.ones(1, dtype=torch.float64)
    negative = sums.off_the_diagonal(pairs, total.means, total.covariances, total.positives)
    gap = (mean_u - mean_v).norm().item()
    seconds = [cov_u + mean_u.outer(mean_u), cov_v + mean_v.outer(mean_v)]
    seconds.append((seconds[0] + seconds[1]) / 2)
    middles = mean_u, mean_v, (mean_u + mean_v) / 2
    u_spread, v_spread, both_spread = map(_spread, sums.uniformity(found, total.positives), middles, seconds)
    return Reading(
        pairs=pairs,
        dimension=u.dimension,
        alignment=total.alignment,
        positive=sums.of_diagonal(total.positives),
        negative=negative,
        within_u=sums.off_the_diagonal(pairs, (mean_u, mean_u), (cov_u, cov_u), one),
        within_v=sums.off_the_diagonal(pairs, (mean_v, mean_v), (cov_v, cov_v), one),
        u=u_spread,
        v=v_spread,
        both=both_spread,
        gap=gap,
        gap_share=min(1.0, gap**2 / total.alignment) if total.alignment > 0 else 0.0,
        bound=theory.positive_bound(negative.mean, pairs) if pairs > 2 else None,
        bound_printed=theory.positive_bound(negative.mean, pairs, sharp=False),
        histogram=Histogram(*(tuple(map(int, h)) for h in (sums.counts(total.positives), found.histogram))),
        siglip=None if scale is None else siglip(n or pairs, scale, bias),
        classes=None if y is None else _by_class(total, y, n_classes, negative),
        target=None if n is None else _target(n, negative),
    )


def siglip(n: int, scale: float, bias: float) -> Siglip:
    """The phase of SigLIP at fixed t and bias for n instances, by :func:`companion.theory.siglip_optimum`."""
    optimum = theory.siglip_optimum(n, scale, bias)
    ends = [end.item() for end in theory.siglip_boundaries(n, scale)] if n > 2 else [None, None]
    return Siglip(
        n, float(scale), float(bias), PHASES[optimum.phase.item()], optimum.s_pos.item(), optimum.s_neg.item(), *ends
    )


def _check_siglip(scale, bias) -> None:
    if (scale is None) != (bias is None):
        missing = "bias" if bias is None else "scale"
        raise CompanionError(f"SigLIP's phase needs scale and bias: {missing} is missing (its own start is 10, -10).")
    if scale is not None:
        positive(scale, "scale")
        number(bias, "bias")


def _spread(uniformity: Uniformity, mean: Tensor, second_moment: Tensor) -> Spread:
    energies = sums.spectrum(second_moment)
    present = energies[energies > 0]
    covariance = second_moment - mean.outer(mean)
    trace = covariance.trace().item()
    return Spread(
        uniformity=uniformity,
        mean_length=mean.norm().item(),
        participation_ratio=float(1 / (energies**2).sum()),
        centred_ratio=trace**2 / covariance.square().sum().item() if trace > 1e-14 else 0.0,  # else it is rounding
        effective_rank=float(math.exp(-(present * [math.log(x) for x in present]).sum())),
        energy_dimensions=int((energies.cumsum() < ENERGY - 1e-12).sum()) + 1,
        singular_values=tuple(map(float, energies**0.5)),
    )


def _by_class(total: Totals, y: Tensor, n_classes: int, negative: Similarities) -> Classes:
    """From the sums of each class alone: over two classes, Σ u_iᵀv_j = (Σ u_i)ᵀ(Σ v_j).

    Σ over different classes a ≠ b of n_a n_b (mean of the cell)² comes from d × d matrices, not from the C × C cells.
    """
    n, sizes = len(y), torch.bincount(y, minlength=n_classes).double()  # (C,)
    sum_u, sum_v = total.class_sums
    itself = torch.zeros(n_classes, dtype=torch.float64).index_add_(0, y, total.positives)
    same_sums, same_pairs = (sum_u * sum_v).sum(dim=1) - itself, sizes * (sizes - 1)  # (C,) over i ≠ j of one class
    p_all, p_same = n * (n - 1), same_pairs.sum().item()
    p_different = p_all - p_same
    mean_same = same_sums.sum().item() / p_same
    mean_different = (negative.mean * p_all - same_sums.sum().item()) / p_different if p_different else 0.0
    # Cells about the mean of their group. Of one class:
    cells = torch.where(same_pairs > 0, same_sums / same_pairs.clamp(min=1) - mean_same, 0)
    among = (same_pairs * cells.square()).sum().item()
    # Of two classes, a ≠ b: all cells less those with a = b.
    weighted = [s / sizes.sqrt()[:, None] for s in (sum_u, sum_v)]  # √n_a times the mean of class a
    squares = ((weighted[0].T @ weighted[0]) * (weighted[1].T @ weighted[1])).sum()
    squares -= (weighted[0] * weighted[1]).sum(dim=1).square().sum()
    among += max(0.0, squares.item() - p_different * mean_different**2)
    parts = [
        (p_same * (mean_same - negative.mean) ** 2 + p_different * (mean_different - negative.mean) ** 2) / p_all,
        among / p_all,
    ]
    tolerances = [
        ((z.square().sum(dim=1) - sizes).sum() / p_same).item()  # an embedding with itself is 1
        for z in (sum_u, sum_v)
    ]
    return Classes(n_classes, *parts, max(0.0, negative.variance - sum(parts)), negative.variance, *tolerances)


def _target(n: int, negative: Similarities) -> Target:
    value = -1 / (n - 1)
    distance = negative.mean - value
    return Target(n, value, distance, negative.variance + distance**2)
