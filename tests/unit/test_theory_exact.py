"""Closed forms of companion.theory against naive loops, against each other, and against the papers' numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.nn.functional import cross_entropy, normalize

from companion import losses, theory
from companion.errors import CompanionError
from companion.losses.families import pair_gradient

SIZES = st.integers(3, 12)
DIMENSIONS = st.integers(1, 12)
SEEDS = st.integers(0, 2**31)
SHIFTS = st.floats(0, 1)
PARTITIONS = st.sampled_from([(n, m) for n in range(4, 25) for m in range(2, n) if n % m == 0])


@st.composite
def views(draw, sizes=SIZES):
    """Unit embeddings from scattered to collapsed, from aligned over unrelated to antipodal, with and without a gap."""
    n, d = draw(sizes), draw(DIMENSIONS)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    cone, gap, tie = draw(st.floats(0, 5)), draw(st.floats(-5, 5)), draw(st.floats(-3, 3))
    centre, gap_axis = torch.randn(2, d, dtype=torch.float64, generator=generator)
    u, v = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return normalize(u + cone * centre + gap * gap_axis, dim=1), normalize(v + tie * u + cone * centre, dim=1)


def naive_moments(u, v):
    n = len(u)
    positives = [float(u[i] @ v[i]) for i in range(n)]
    negatives = [float(u[i] @ v[j]) for i in range(n) for j in range(n) if i != j]
    return np.mean(positives), np.mean(negatives), np.var(negatives)


# --- configurations -------------------------------------------------------------------------------------------------


@given(views(st.integers(2, 12)))
@settings(max_examples=30)
def test_moments_are_those_of_the_naive_loops(pair):
    assert theory.moments(*pair) == pytest.approx(naive_moments(*pair), abs=1e-12)


def test_moments_of_many_configurations_at_once():
    u, v = normalize(torch.randn(2, 3, 4, 5, 6, dtype=torch.float64), dim=-1)
    together = theory.moments(u, v)
    for i, j in itertools.product(range(3), range(4)):
        assert [x[i, j].item() for x in together] == pytest.approx(naive_moments(u[i, j], v[i, j]), abs=1e-12)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (3, 5)), ((3, 4), (2, 4)), ((4,), (4,))])
def test_moments_of_what_has_no_pairs_are_told(shapes):
    with pytest.raises(CompanionError, match=r"u and v have the shapes .* expected one shape \(\.\.\., n, d\)"):
        theory.moments(*map(torch.ones, shapes))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 3), (3, 2), (7, 6), (10, 64)])
def test_simplex_has_unit_vectors_at_one_angle(n, d):
    gram = theory.simplex_etf(n, d) @ theory.simplex_etf(n, d).T
    expected = torch.full((n, n), -1 / (n - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-14)


@given(n=st.integers(2, 12), spare=st.integers(0, 5), a=SHIFTS)
def test_shifted_simplex_has_the_similarities_it_promises(n, spare, a):
    u, v = theory.shifted_simplex(n, n + spare, a)
    s = u @ v.T
    expected = torch.full((n, n), -(1 - a**2) / (n - 1) - a**2, dtype=torch.float64).fill_diagonal_(1 - 2 * a**2)
    torch.testing.assert_close(s, expected, rtol=0, atol=1e-14)
    for z in (u, v):
        torch.testing.assert_close(z.norm(dim=1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-14)
    gaps = u - v
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=0, atol=1e-14)  # one gap for all: a modality gap
    assert gaps[0].norm().item() == pytest.approx(2 * a, abs=1e-14)


@pytest.mark.parametrize("arrangement", ["orthogonal", "coincident", "random"])
def test_each_batch_is_a_simplex(arrangement):
    n, m = 12, 4
    z = theory.simplex_batches(n, m, 9, arrangement)
    for batch in z.split(m):
        expected = torch.full((m, m), -1 / (m - 1), dtype=torch.float64).fill_diagonal_(1)
        torch.testing.assert_close(batch @ batch.T, expected, rtol=0, atol=1e-14)


# --- Theorem 5.2, as printed and sharp ------------------------------------------------------------------------------


@given(views(), st.booleans())
@settings(max_examples=300)
def test_no_embeddings_violate_a_bound_and_the_slack_is_exact(pair, sharp):
    u, v = pair
    s_pos, s_neg, _ = theory.moments(u, v)
    left = theory.positive_bound(s_neg, len(u), sharp=sharp) - s_pos
    assert left >= -1e-12
    assert left.item() == pytest.approx(theory.bound_slack(u, v, sharp=sharp).item(), abs=1e-12)


@given(n=st.integers(3, 50), x=st.floats(0, 1))
def test_the_sharp_bound_is_the_lower_one_where_negatives_are_excessively_separated(n, x):
    s_neg = -1 / (n - 1) - x * (1 - 1 / (n - 1))  # from -1 to -1/(n-1)
    assert theory.positive_bound(s_neg, n) <= theory.positive_bound(s_neg, n, sharp=False) + 1e-15


@given(n=SIZES, spare=st.integers(0, 5), a=SHIFTS)
def test_shifted_simplices_attain_the_sharp_bound(n, spare, a):
    u, v = theory.shifted_simplex(n, n + spare, a)
    assert theory.bound_slack(u, v).item() == pytest.approx(0, abs=1e-13)
    printed = theory.bound_slack(u, v, sharp=False).item()
    assert printed == pytest.approx(n / (n - 1) * a**2, abs=1e-13)  # ū = a e = -v̄: not attained but for a = 0


@pytest.mark.parametrize(
    ("a", "s_pos", "s_neg", "printed", "sharp"),
    [(0.2, 0.92, -0.146667, 0.964444, 0.92), (0.6, 0.28, -0.431111, 0.68, 0.28)],
)
def test_shifted_simplex_of_ten(a, s_pos, s_neg, printed, sharp):
    moments = theory.moments(*theory.shifted_simplex(10, 10, a))
    values = [
        moments.s_pos,
        moments.s_neg,
        theory.positive_bound(moments.s_neg, 10, sharp=False),
        theory.positive_bound(moments.s_neg, 10),
    ]
    assert values == pytest.approx([s_pos, s_neg, printed, sharp], abs=5e-7)


@pytest.mark.parametrize("n", [3, 4, 10])
def test_counterexample_to_the_printed_condition_of_equality(n):
    """All u at e, all v at -e meet the condition printed under Eq. 7, and leave 1 + 1/(n-1) of slack in it."""
    u = torch.zeros(n, 5, dtype=torch.float64)
    u[:, 0] = 1
    v = -u
    assert (u - v).var(0, correction=0).sum() == 0
    assert (u + v).mean(0).norm() == 0
    s_pos, s_neg, _ = theory.moments(u, v)
    assert s_pos == s_neg == -1
    assert theory.positive_bound(s_neg, n, sharp=False) == pytest.approx(1 / (n - 1))
    assert theory.positive_bound(s_neg, n) == pytest.approx(-1)


@given(views())
def test_lemma_c3_with_its_factor_two(pair):
    u, v = pair
    s_pos, mean_u, mean_v = (u * v).sum(1).mean(), u.mean(0), v.mean(0)
    right = (u - v).var(0, correction=0).sum() / 2 + (mean_u + mean_v).square().sum() / 2
    assert (1 - s_pos + 2 * mean_u @ mean_v).item() == pytest.approx(right.item(), abs=1e-12)


def test_bounds_take_numbers_arrays_and_tensors():
    for s_neg in (-0.5, np.array([-0.5, -1.0]), torch.tensor([-0.5, -1.0])):
        assert type(theory.positive_bound(s_neg, 5)) is type(s_neg)


# --- Theorem 5.5 ----------------------------------------------------------------------------------------------------


def test_variance_bounds_of_twelve_in_fours():
    assert theory.variance_bounds(12, 4) == pytest.approx((0.0220386, 0.2644628), abs=5e-8)


@given(PARTITIONS)
def test_orthogonal_and_coincident_batches_reach_the_ends(sizes):
    n, m = sizes
    low, high = theory.variance_bounds(n, m)
    for arrangement, d, end in [("orthogonal", n // m * (m - 1), low), ("coincident", m - 1, high)]:
        z = theory.simplex_batches(n, m, d, arrangement)
        s_pos, s_neg, variance = naive_moments(z, z)
        assert (s_pos, s_neg, variance) == pytest.approx((1, -1 / (n - 1), end), abs=1e-12)


@given(PARTITIONS, st.integers(0, 20), SEEDS)
def test_the_variance_of_simplex_batches_stays_within_its_bounds(sizes, spare, seed):
    n, m = sizes
    low, high = theory.variance_bounds(n, m)
    z = theory.simplex_batches(n, m, m - 1 + spare, "random", seed=seed)
    _, s_neg, variance = theory.moments(z, z)
    assert s_neg == pytest.approx(-1 / (n - 1), abs=1e-12)
    assert low - 1e-12 <= variance <= high + 1e-12


@given(PARTITIONS)
def test_expected_variance_runs_from_the_upper_end_to_the_lower(sizes):
    n, m = sizes
    low, high = theory.variance_bounds(n, m)
    values = [theory.expected_variance(n, m, d) for d in (m - 1, m, 2 * m, 10 * m, 10**12)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == pytest.approx((high, low), abs=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 4, 3), (12, 4, 5), (24, 3, 8), (16, 8, 30)])
def test_expected_variance_is_the_mean_over_random_orientations(n, m, d):
    drawn = [theory.moments(*[theory.simplex_batches(n, m, d, "random", seed=s)] * 2).variance for s in range(400)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert np.mean(drawn) == pytest.approx(theory.expected_variance(n, m, d), abs=4 * error + 1e-12)


# --- Theorem 5.6 and Eq. 6 ------------------------------------------------------------------------------------------


def similarities(m, seed):
    return torch.rand(m, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(m=st.integers(2, 8), seed=SEEDS, temperature=st.floats(0.05, 2))
def test_negative_gradient_is_that_of_cross_entropy(m, seed, temperature):
    s = similarities(m, seed).requires_grad_()
    value = sum(cross_entropy(logits / temperature, torch.arange(m)) for logits in (s, s.T)) / 2
    slope = torch.autograd.grad(value, s)[0]
    torch.testing.assert_close(theory.negative_gradient(s.detach(), temperature=temperature), slope)


def test_negative_gradient_is_that_of_the_clip_loss():
    s = similarities(5, 0)
    table = torch.cat([torch.cat([torch.eye(5), s], 1), torch.cat([s.T, torch.eye(5)], 1)])
    slope = pair_gradient(losses.clip, table, temperature=0.3)[:5, 5:]
    torch.testing.assert_close(theory.negative_gradient(s, temperature=0.3), slope)


def test_negative_gradient_of_several_batches_is_that_of_each():
    several = torch.stack([similarities(4, seed) for seed in range(3)])
    each = torch.stack([theory.negative_gradient(s, temperature=0.3) for s in several])
    torch.testing.assert_close(theory.negative_gradient(several, temperature=0.3), each)


@given(m=st.integers(3, 10), seed=SEEDS, temperature=st.floats(0.05, 2))
def test_the_gradient_of_every_negative_grows_as_the_batch_shrinks(m, seed, temperature):
    s = similarities(m, seed)
    negatives = ~torch.eye(m - 1, dtype=torch.bool)
    whole = theory.negative_gradient(s, temperature=temperature)[:-1, :-1][negatives]
    smaller = theory.negative_gradient(s[:-1, :-1], temperature=temperature)[negatives]
    assert (whole >= 0).all()
    assert (smaller > whole).all()


@pytest.mark.parametrize(("mean", "variance", "t"), [(0.0, 0.01, 1), (-0.1, 0.05, 1), (0.3, 0.02, 2)])
def test_gaussian_uniformity_is_exact_for_a_gaussian(mean, variance, t):
    normal = stats.norm(mean, math.sqrt(variance))
    energy, _ = integrate.quad(lambda s: math.exp(-t * (2 - 2 * s)) * normal.pdf(s), -3, 3)
    assert theory.gaussian_uniformity(mean, variance, t=t) == pytest.approx(math.log(energy), abs=1e-7)


def test_gaussian_uniformity_as_printed():
    assert theory.gaussian_uniformity(-0.1, 0.05) == pytest.approx(2 * (-0.1 + 0.05 - 1))
    assert theory.gaussian_uniformity(-0.1, 0.05, t=2) == pytest.approx(4 * -0.1 + 8 * 0.05 - 4)


def test_gaussian_uniformity_misses_the_higher_cumulants():
    """A third cumulant κ adds (2t)³κ/6: here two values, 0.9 in a tenth of the pairs and -0.1 in the others."""
    values, weights = np.array([0.9, -0.1]), np.array([0.1, 0.9])
    mean = weights @ values
    variance, third = weights @ (values - mean) ** 2, weights @ (values - mean) ** 3
    for t in (0.05, 0.1):
        exact = math.log(weights @ np.exp(-t * (2 - 2 * values)))
        miss = exact - theory.gaussian_uniformity(mean, variance, t=t)
        assert miss == pytest.approx((2 * t) ** 3 * third / 6, rel=0.1)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.simplex_etf(1, 3),
        lambda: theory.simplex_etf(5, 3),
        lambda: theory.simplex_etf(3.0, 3),
        lambda: theory.shifted_simplex(5, 4, 0.1),
        lambda: theory.shifted_simplex(5, 5, 1.1),
        lambda: theory.shifted_simplex(5, 5, math.nan),
        lambda: theory.simplex_batches(12, 4, 8, "orthogonal"),
        lambda: theory.simplex_batches(12, 4, 2, "coincident"),
        lambda: theory.simplex_batches(12, 4, 9, "crossed"),
        lambda: theory.simplex_batches(12, 5, 9, "random"),
        lambda: theory.positive_bound(-0.5, 2),
        lambda: theory.positive_bound(-1.5, 5),
        lambda: theory.positive_bound(math.nan, 5),
        lambda: theory.variance_bounds(12, 5),
        lambda: theory.variance_bounds(12, 1),
        lambda: theory.expected_variance(12, 4, 2),
        lambda: theory.negative_gradient(torch.eye(3), temperature=0),
        lambda: theory.gaussian_uniformity(0, 0.1, t=-1),
    ],
)
def test_bad_input_is_told(call):
    with pytest.raises(CompanionError):
        call()


def test_random_batches_are_turned_uniformly():
    """In three dimensions each coordinate of a uniform direction is itself uniform on [-1, 1] (Archimedes)."""
    first = theory.simplex_batches(4000, 2, 3, "random")[::2]  # one vector of each batch
    for coordinate in first.T:
        assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
