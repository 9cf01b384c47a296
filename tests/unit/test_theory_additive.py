"""The exact optimum of the additive family against the losses themselves, conditions, and the papers' numbers."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.nn.functional import normalize

from companion import losses, theory
from companion.errors import CompanionError
from companion.losses.families import ADDITIVE_FAMILY

SIGLIP, SPECTRAL = ADDITIVE_FAMILY
SCALES, BIASES = st.floats(0.1, 20), st.floats(-20, 20)


def siglip_terms(n, scale, bias):
    return theory.terms(SIGLIP, n, scale=scale, bias=bias)


@pytest.mark.parametrize(
    ("t", "b", "s_pos", "s_neg"),
    [
        (5, 0, 0.0200, -0.52400),
        (5, 2, 0.6076, -0.24979),
        (10, 0, 0.2251, -0.42830),
        (10, 5, 0.9118, -0.10781),
        (1, 0, -1, -1),
        (5, -5, -1, -1),
        (10, -10, -1, -1),
    ],
)
def test_optimum_of_sixteen(t, b, s_pos, s_neg):
    best = theory.siglip_optimum(16, t, -b)  # the paper's b is minus SigLIP's bias
    assert best.s_pos == pytest.approx(s_pos, abs=5e-5)
    assert best.s_neg == pytest.approx(s_neg, abs=5e-6)


@given(n=st.integers(2, 10), t=SCALES, bias=BIASES)
def test_optimum_is_the_loss_of_its_shifted_simplex(n, t, bias):
    best = theory.siglip_optimum(n, t, bias)
    u, v = theory.shifted_simplex(n, n + 1, best.a.item())
    assert losses.siglip(u, v, scale=t, bias=bias).item() == pytest.approx(best.loss.item(), rel=1e-9, abs=1e-12)
    assert theory.moments(u, v)[:2] == pytest.approx((best.s_pos.item(), best.s_neg.item()), abs=1e-7)


@given(
    n=st.integers(2, 10), d=st.integers(1, 12), t=SCALES, bias=BIASES, tie=st.floats(-3, 3), seed=st.integers(0, 10**6)
)
def test_no_embeddings_beat_the_optimum(n, d, t, bias, tie, seed):
    u, v = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    value = losses.siglip(u, normalize(v, dim=1) + tie * normalize(u, dim=1), scale=t, bias=bias)
    assert value >= theory.siglip_optimum(n, t, bias).loss * (1 - 1e-12)


@given(n=st.integers(3, 20), alpha=st.floats(0.2, 5), beta=st.floats(0.2, 5), weight=st.floats(0.05, 20))
def test_optimum_of_any_terms_is_that_of_a_search_over_the_shift(n, alpha, beta, weight):
    """φ(x) = -e^{-αx}, ψ(x) = w e^{βx}: neither SigLIP nor named."""
    best = theory.optimum(lambda x: -torch.exp(-alpha * x), lambda x: weight * torch.exp(beta * x), n)

    def value(x):
        return math.exp(-alpha * (1 - 2 * x)) + weight * math.exp(-beta * ((1 - x) / (n - 1) + x))

    found = minimize_scalar(value, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    assert best.loss.item() <= min(found.fun, value(0), value(1)) * (1 + 1e-14)
    assert best.loss.item() == pytest.approx(value(best.a.item() ** 2), rel=1e-12)


def test_a_grid_is_its_points():
    t, bias = torch.meshgrid(torch.linspace(0.5, 12, 7), torch.linspace(-12, 12, 9), indexing="ij")
    grid = theory.siglip_optimum(16, t, bias)
    assert grid.phase.unique().tolist() == [0, 1, 2]
    for i in range(7):
        for j in range(9):
            point = theory.siglip_optimum(16, t[i, j].item(), bias[i, j].item())
            assert [x[i, j].item() for x in grid] == [x.item() for x in point]


@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink a failure would take more than a minute
@given(n=st.integers(3, 5000), t=SCALES, bias=BIASES)
def test_conditions_boundaries_and_optimum_agree_on_the_phase(n, t, bias):
    aligned, antipodal = theory.siglip_boundaries(n, t)
    if min(abs(bias - aligned), abs(bias - antipodal)) < 1e-6:
        return
    assert aligned < antipodal
    best = theory.siglip_optimum(n, t, bias)
    assert best.phase.item() == (bias > aligned).int() + (bias > antipodal).int()
    assert (best.phase > 0).item() == theory.siglip_separates(n, t, bias).item()
    assert (best.phase > 0).item() == theory.separates(*siglip_terms(n, t, bias), n).item()


@pytest.mark.parametrize("n", [3, 4, 6, 10])
@pytest.mark.parametrize("t", [0.5, 2.0, 8.0])
def test_siglip_separates_on_one_side_of_its_boundary_and_not_on_the_other(n, t):
    """A step of .05 in bias from the closed form, against a search over all shifts of the value itself."""
    boundary, _ = theory.siglip_boundaries(n, t)
    for bias, separated in ((boundary.item() - 0.05, False), (boundary.item() + 0.05, True)):

        def value(x, bias=bias):  # of a simplex shifted by √x
            s_pos, s_neg = 1 - 2 * x, -(1 - x) / (n - 1) - x
            return math.log1p(math.exp(-t * s_pos - bias)) + (n - 1) * math.log1p(math.exp(t * s_neg + bias))

        found = minimize_scalar(value, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).x
        assert (found > 1e-3) == (found > 1e-6) == separated
        assert theory.separates(*siglip_terms(n, t, bias), n).item() == separated
        assert theory.siglip_separates(n, t, bias).item() == separated
        assert (theory.siglip_optimum(n, t, bias).phase > 0).item() == separated


@given(n=st.integers(5, 5000))
def test_phases_for_b_equal_to_t(n):
    """a = 0 iff t ≥ ((n-1)/n)·log(n-3); a = 1 iff t ≤ ½ log((n-2)/2)."""
    first, second = (n - 1) / n * math.log(n - 3), math.log((n - 2) / 2) / 2
    t = torch.tensor([first * 1.001, first * 0.999, second * 1.001, second * 0.999], dtype=torch.float64)
    assert theory.siglip_optimum(n, t, -t).phase.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_instances_have_their_phases_too(n):
    assert theory.siglip_optimum(n, 10, 0).phase == {2: 0, 3: 1, 4: 1}[n]
    assert theory.siglip_optimum(n, 10, -10).phase == 0
    assert theory.siglip_separates(2, 1, 100) == False  # noqa: E712 a tensor


def test_siglips_own_start_separates_from_22040_on():
    verdicts = {n: theory.siglip_separates(n, 10, -10).item() for n in (1000, 22_039, 22_040, 32_768)}
    assert verdicts == {1000: False, 22_039: False, 22_040: True, 32_768: True}
    assert theory.siglip_optimum(22_039, 10, -10).a == 0
    assert theory.siglip_optimum(22_040, 10, -10).a > 0


@given(n=st.integers(2, 2000))
def test_the_spectral_loss_meets_condition_iii_and_is_refused(n):
    phi, psi = theory.terms(SPECTRAL, n)
    assert not theory.separates(phi, psi, n)
    with pytest.raises(CompanionError, match="not increasing"):
        theory.optimum(phi, psi, n)


def test_large_scales_do_not_overflow():
    for t in (100.0, 700.0):
        aligned, antipodal = theory.siglip_boundaries(10, t)
        assert torch.isfinite(torch.stack([aligned, antipodal])).all()
        assert torch.isfinite(torch.stack(list(theory.siglip_optimum(10, t, aligned.item() + 1)))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.siglip_optimum(16, 0, 0),
        lambda: theory.siglip_optimum(16, -1, 0),
        lambda: theory.siglip_optimum(16, math.nan, 0),
        lambda: theory.siglip_optimum(16, 10, math.inf),
        lambda: theory.siglip_optimum(1, 10, 0),
        lambda: theory.siglip_boundaries(2, 10),
        lambda: theory.siglip_separates(16, torch.tensor([1.0, -1.0]), 0),
        lambda: theory.separates(*siglip_terms(16, 10, -10), 1),
    ],
)
def test_bad_input_is_told(call):
    with pytest.raises(CompanionError):
        call()
