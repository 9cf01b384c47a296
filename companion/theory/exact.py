"""Closed forms: configurations on the sphere, the bounds on their similarities, and the exact slack of those bounds.

Notation of Lee et al. (2025): n instances, two views ``u, v``, unit embeddings in R^d. s_pos is the mean of u_iᵀv_i;
s_neg the mean of u_iᵀv_j over the n(n-1) cross-view pairs i ≠ j. Everything here is float64.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import helmert
from torch import Tensor
from torch.nn.functional import pad

from companion.errors import CompanionError, choose, positive, whole
from companion.similarity import off_diagonal

ARRANGEMENTS = ("orthogonal", "coincident", "random")


class Moments(NamedTuple):
    """Moments of the similarities of a configuration; population moments, since the pairs are the population."""

    s_pos: Tensor  #: (...,) mean similarity of the n positive pairs
    s_neg: Tensor  #: (...,) mean similarity of the n(n-1) cross-view negative pairs
    variance: Tensor  #: (...,) variance of those negatives


def moments(u: Tensor, v: Tensor) -> Moments:
    """Moments of the similarities of unit embeddings, over any leading dimensions.

    Args:
        u: (..., n, d) first view, unit vectors; n >= 2.
        v: (..., n, d) second view.

    Raises:
        CompanionError: if u and v have not one shape, or n < 2, which leaves no negatives.
    """
    if u.shape != v.shape or u.ndim < 2 or u.shape[-2] < 2:
        shapes = f"{tuple(u.shape)} and {tuple(v.shape)}"
        raise CompanionError(f"u and v have the shapes {shapes}: expected one shape (..., n, d), with n of at least 2.")
    s = u @ v.mT  # (..., n, n)
    negatives = off_diagonal(s).flatten(-2)  # (..., n(n-1))
    positives = s.diagonal(dim1=-2, dim2=-1)  # (..., n)
    return Moments(positives.mean(-1), negatives.mean(-1), negatives.var(-1, correction=0))


# --- configurations -------------------------------------------------------------------------------------------------


def simplex_etf(n: int, d: int) -> Tensor:
    """The simplex equiangular tight frame: n unit vectors, every pairwise inner product -1/(n-1).

    It is what the full batch is pulled to (Lee et al. 2025, Theorem 5.1).

    Args:
        n: number of vectors, at least 2.
        d: dimension, at least n-1.

    Returns:
        (n, d) float64; the last d-n+1 coordinates are 0.

    Raises:
        CompanionError: if n < 2 or d < n-1.
    """
    whole(n, "n", least=2)
    if whole(d, "d", least=1) < n - 1:
        raise CompanionError(f"d is {d}: a simplex of {n} vectors needs d of at least n-1 = {n - 1}.")
    frame = torch.from_numpy(helmert(n)).T * math.sqrt(n / (n - 1))  # (n, n-1)
    return pad(frame, (0, d - n + 1))


def shifted_simplex(n: int, d: int, a: float) -> tuple[Tensor, Tensor]:
    """Two simplices moved apart: u_i = √(1-a²) w_i + a ξ and v_i = √(1-a²) w_i - a ξ, with w a simplex orthogonal to ξ.

    Then s_pos = 1 - 2a² and every negative is -(1-a²)/(n-1) - a². The gap u_i - v_i = 2a ξ is the same for every pair:
    a modality gap. The optimum of every independently additive loss without within-view negatives has this form.

    Args:
        n: number of instances, at least 2.
        d: dimension, at least n.
        a: shift in [0, 1]; 0 is the aligned simplex, 1 two antipodal points.

    Returns:
        u and v, each (n, d) float64; ξ is the n-th coordinate axis.

    Raises:
        CompanionError: if n < 2, d < n, or a lies outside [0, 1].
    """
    if not 0 <= positive(a, "a", zero=True) <= 1:
        raise CompanionError(f"a is {a}: expected a shift in [0, 1].")
    if whole(d, "d", least=1) < whole(n, "n", least=2):
        raise CompanionError(f"d is {d}: a shifted simplex of {n} instances needs d of at least n = {n}.")
    w = simplex_etf(n, d) * math.sqrt(1 - a**2)
    shift = torch.zeros(d, dtype=w.dtype)
    shift[n - 1] = a
    return w + shift, w - shift


def simplex_batches(n: int, m: int, d: int, arrangement: str, *, seed: int = 0) -> Tensor:
    """n/m batches, each a simplex of m vectors: what a fixed partition is pulled to (Lee et al. 2025, Theorem 5.5).

    Args:
        n: number of instances; m divides it.
        m: batch size, at least 2.
        d: dimension.
        arrangement: how the batches lie to each other. ``orthogonal``: mutually orthogonal, which gives the smallest
            variance of the negatives and needs d >= (n/m)(m-1); ``coincident``: all the same, the largest;
            ``random``: each turned by an independent, uniform rotation, which gives :func:`expected_variance`.
        seed: of the random rotations.

    Returns:
        (n, d) float64, batch by batch; both views of an instance.

    Raises:
        CompanionError: if m does not divide n, m < 2, d is too small, or the arrangement is unknown.
    """
    batches = batch_count(n, m)
    if choose(arrangement, ARRANGEMENTS, "arrangement") == "orthogonal" and d < batches * (m - 1):
        raise CompanionError(
            f"d is {d}: {batches} mutually orthogonal simplices of {m} vectors need d of at least {batches * (m - 1)}."
        )
    simplex = simplex_etf(m, d)  # (m, d)
    if arrangement == "coincident":
        return simplex.repeat(batches, 1)
    if arrangement == "orthogonal":
        return torch.cat([simplex.roll(k * (m - 1), dims=1) for k in range(batches)])
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(batches, d, d, dtype=simplex.dtype, generator=generator)
    rotations, r = torch.linalg.qr(gaussian)
    rotations = rotations * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]  # without this QR is not uniform
    return (simplex @ rotations.mT).flatten(0, 1)


# --- full batch -----------------------------------------------------------------------------------------------------


def positive_bound(s_neg, n: int, sharp: bool = True):
    """Largest mean similarity of the positives that a mean similarity of the negatives allows, for any encoder.

    As printed in Lee et al. (2025, Theorem 5.2, Eq. 7): s_pos ≤ 1 + (s_neg + 1/(n-1)). Its proof (Lemma C.3) loses a
    factor 2; restored, the bound is s_pos ≤ 1 + 2(n-1)/(n-2)·(s_neg + 1/(n-1)), attained by every
    :func:`shifted_simplex`. Either is above 1, and says nothing, where s_neg > -1/(n-1); elsewhere the sharp one is
    the lower.

    Args:
        s_neg: mean similarity of the cross-view negatives in [-1, 1]: number, array or tensor.
        n: number of instances, at least 3 (2 as printed).
        sharp: the sharp bound, or the printed one.

    Returns:
        The bound, in the type of ``s_neg``.

    Raises:
        CompanionError: if n is too small (with n = 2 negatives at -1 allow any s_pos), or s_neg is outside [-1, 1].
    """
    whole(n, "n", least=3 if sharp else 2)
    values = np.asarray(s_neg.detach().cpu() if isinstance(s_neg, Tensor) else s_neg)
    if not (np.abs(values) <= 1 + 1e-6).all():  # False for NaN too; room for rounding
        raise CompanionError(f"s_neg is {s_neg}: expected mean similarities in [-1, 1].")
    slope = 2 * (n - 1) / (n - 2) if sharp else 1
    return 1 + slope * (s_neg + 1 / (n - 1))


def bound_slack(u: Tensor, v: Tensor, *, sharp: bool = True) -> Tensor:
    """:func:`positive_bound` minus s_pos, from the spread of the embeddings alone: what the bound leaves, exactly.

    With ū, v̄ the mean embeddings and tr Var(u-v) the trace of the covariance of the gaps:
    sharp, n/(2(n-2))·[tr Var(u-v) + ‖ū+v̄‖²]; as printed, n/(2(n-1))·[tr Var(u-v) + ‖ū‖² + ‖v̄‖²].

    So the sharp bound is attained iff all gaps u_i - v_i are equal and the two means cancel, which is the condition
    that the paper prints for its own bound; that one is attained iff all gaps are equal and both means vanish.

    Args:
        u: (..., n, d) first view, unit vectors; n >= 3 (2 as printed).
        v: (..., n, d) second view.
        sharp: which bound.

    Returns:
        (...,) slack, at least 0.

    Raises:
        CompanionError: if n is smaller than that.
    """
    n = u.shape[-2]
    whole(n, "n", least=3 if sharp else 2)
    mean_u, mean_v = u.mean(-2), v.mean(-2)  # (..., d)
    spread = (u - v).var(-2, correction=0).sum(-1)
    if sharp:
        return n / (2 * (n - 2)) * (spread + (mean_u + mean_v).square().sum(-1))
    return n / (2 * (n - 1)) * (spread + mean_u.square().sum(-1) + mean_v.square().sum(-1))


# --- mini-batch -----------------------------------------------------------------------------------------------------


def variance_bounds(n: int, m: int) -> tuple[float, float]:
    """Range of the variance of the negatives when n/m fixed batches are each a simplex (Lee et al. 2025, Theorem 5.5).

    Args:
        n: number of instances; m divides it.
        m: batch size, at least 2.

    Returns:
        Lower end (n-m)/((m-1)(n-1)²), mutually orthogonal batches; upper end, n times that, coincident batches.

    Raises:
        CompanionError: if m < 2 or m does not divide n.
    """
    batch_count(n, m)
    low = (n - m) / ((m - 1) * (n - 1) ** 2)
    return low, n * low


def expected_variance(n: int, m: int, d: int) -> float:
    """Expected variance of the negatives for batches at independent, uniformly random orientations.

    [1/(m-1) + (n-m)/d]/(n-1) - 1/(n-1)²: the upper end of :func:`variance_bounds` at d = m-1, the lower as d → ∞.
    This companion's addition to Theorem 5.5: the value in between that free optimisation lands on.

    Args:
        n: number of instances; m divides it.
        m: batch size, at least 2.
        d: dimension, at least m-1.

    Raises:
        CompanionError: if m < 2, m does not divide n, or d < m-1.
    """
    batch_count(n, m)
    whole(d, "d (m-1 or more, so that a batch can be a simplex)", least=m - 1)
    return (1 / (m - 1) + (n - m) / d) / (n - 1) - 1 / (n - 1) ** 2


def negative_gradient(similarities: Tensor, *, temperature: float) -> Tensor:
    """Gradient of symmetric InfoNCE with respect to every similarity of a batch (Lee et al. 2025, Theorem 5.6).

    For i ≠ j it is (p_ij + p̃_ij)/(2mτ) with p, p̃ the softmax over rows and over columns: never negative, and larger
    the fewer instances share the softmax. On the diagonal, for the positives, it is never positive.

    Args:
        similarities: (..., m, m) similarities of the two views.
        temperature: τ > 0.

    Returns:
        (..., m, m) gradient of :func:`companion.losses.clip`.

    Raises:
        CompanionError: if the temperature is not positive.
    """
    positive(temperature, "temperature")
    m = similarities.shape[-1]
    logits = similarities / temperature
    eye = torch.eye(m, dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) + logits.softmax(-2) - 2 * eye) / (2 * m * temperature)


def gaussian_uniformity(mean, variance, *, t: float = 1):
    """Uniformity log E exp(-t‖u-u'‖²) of similarities with this mean and variance, were they Gaussian.

    It is 2t(E s - 1) + 2t² Var s; Lee et al. (2025, Eq. 6) print t = 1: 2(E s + Var s - 1). The higher cumulants of s,
    which are 0 only for a Gaussian, are left out, and weigh more the larger t.

    Args:
        mean: mean similarity of the negatives: number, array or tensor.
        variance: their variance.
        t: > 0; 2 in Wang & Isola (2020).

    Raises:
        CompanionError: if t is not positive.
    """
    positive(t, "t")
    return 2 * t * (mean - 1) + 2 * t**2 * variance


def batch_count(n: int, m: int) -> int:
    """Number of batches of m >= 2 among n instances; a :class:`CompanionError` unless m divides n."""
    whole(m, "m", least=2)
    whole(n, "n", least=m)
    if n % m:
        raise CompanionError(f"m is {m} and n is {n}: expected batches of m instances that divide n evenly.")
    return n // m
