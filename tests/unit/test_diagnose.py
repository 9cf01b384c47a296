"""The numbers of a reading, against loops and dense matrices in float64 that share no code with it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from companion import losses, metrics, theory
from companion.diagnose import arrays, diagnose, reading, sums


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    return u + 0.3, v + u, torch.randint(0, 5, (40,), generator=generator)


def unit(z):
    return z / z.square().sum(dim=1, keepdim=True).sqrt()


def flat(r) -> np.ndarray:
    """Every number of a reading, in one row."""

    def numbers(x):
        if isinstance(x, tuple | list):
            return [y for part in x for y in numbers(part)]
        return [float(x)] if isinstance(x, int | float) else []

    return np.array(numbers([getattr(r, field.name) for field in dataclasses.fields(r)]))


def pairs_of(a, b):
    return [(a[i] @ b[j]).item() for i in range(len(a)) for j in range(len(b)) if i != j]


def check_moments(found, values):
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
    assert found.mean == pytest.approx(mean, abs=1e-13)
    assert found.variance == pytest.approx(variance, abs=1e-13)
    assert found.std == pytest.approx(variance**0.5, abs=1e-13)


def test_similarities_against_loops(views):
    r, (u, v) = diagnose(*views[:2]), map(unit, views[:2])
    assert (r.pairs, r.dimension) == (40, 6)
    check_moments(r.positive, [(a @ b).item() for a, b in zip(u, v, strict=True)])
    check_moments(r.negative, pairs_of(u, v))
    check_moments(r.within_u, pairs_of(u, u))
    check_moments(r.within_v, pairs_of(v, v))


def test_alignment_uniformity_and_gap_against_loops(views):
    r, (u, v) = diagnose(*views[:2]), map(unit, views[:2])
    squared = [(a - b).square().sum().item() for a, b in zip(u, v, strict=True)]
    assert r.alignment == pytest.approx(math.fsum(squared) / 40, abs=1e-13)
    for found, z in ((r.u, u), (r.v, v), (r.both, torch.cat([u, v]))):
        values = [
            math.exp(-2 * (z[i] - z[j]).square().sum().item()) for i in range(len(z)) for j in range(i + 1, len(z))
        ]
        assert found.uniformity.value == pytest.approx(math.log(math.fsum(values) / len(values)), abs=1e-12)
        assert found.uniformity.pairs == len(values)
        assert found.uniformity.exact
        assert found.uniformity.low == found.uniformity.value == found.uniformity.high
        assert found.mean_length == pytest.approx(z.mean(dim=0).norm().item(), abs=1e-13)
    assert r.gap == pytest.approx((u.mean(dim=0) - v.mean(dim=0)).norm().item(), abs=1e-13)
    assert r.gap_share == pytest.approx(r.gap**2 / r.alignment, abs=1e-13)


def test_spectra_against_the_singular_value_decomposition(views):
    r, (u, v) = diagnose(*views[:2]), map(unit, views[:2])
    for found, z in ((r.u, u), (r.v, v), (r.both, torch.cat([u, v]))):
        values = np.linalg.svd(z.numpy() / math.sqrt(len(z)), compute_uv=False)
        np.testing.assert_allclose(found.singular_values, values, atol=1e-12)
        energies = values**2
        assert found.participation_ratio == pytest.approx(1 / (z @ z.T).square().mean().item(), rel=1e-12)
        about = (z - z.mean(dim=0)) @ (z - z.mean(dim=0)).T
        assert found.centred_ratio == pytest.approx((about.trace() ** 2 / about.square().sum()).item(), rel=1e-10)
        assert found.effective_rank == pytest.approx(math.exp(-(energies * np.log(energies)).sum()), rel=1e-12)
        k = found.energy_dimensions
        assert energies[:k].sum() >= 0.99 > energies[: k - 1].sum()


def test_classes_against_the_metrics_of_the_package(views):
    u, v, y = views
    y[0] = 9  # a class of one, and numbers that are left out
    found = diagnose(u, v, labels=y).classes
    assert found.count == 6
    for name, value in metrics.variance_parts(u, v, y).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-13), name
    assert found.tolerance_u == pytest.approx(metrics.tolerance(u, y), abs=1e-13)
    assert found.tolerance_v == pytest.approx(metrics.tolerance(v, y), abs=1e-13)
    names = np.array(["sea", "forest", "river", "crop", "road", *["-"] * 4, "once"])[y.numpy()]
    assert diagnose(u, v, labels=names).classes.among_class_pairs == pytest.approx(found.among_class_pairs, abs=1e-13)
    assert diagnose(u, v, labels=y.tolist()).classes == found


def test_one_class_has_no_structure(views):
    u, v, y = views
    found = diagnose(u, v, labels=torch.zeros_like(y)).classes
    assert found.same_vs_different == pytest.approx(0, abs=1e-13)
    assert found.among_class_pairs == pytest.approx(0, abs=1e-13)
    assert found.within_class_pairs == pytest.approx(found.total, abs=1e-13)


def test_a_training_set_and_vrns(views):
    u, v, _ = views
    found = diagnose(u, v, n=1000)
    assert found.target.vrns == pytest.approx(losses.vrns(u, v, n=1000).item(), abs=1e-13)
    assert found.target.value == pytest.approx(-1 / 999)
    assert found.target.distance == pytest.approx(found.negative.mean + 1 / 999, abs=1e-15)


def test_the_simplex_has_the_values_of_theory():
    w = theory.simplex_etf(10, 12)
    r = diagnose(3 * w, 0.5 * w, n=10)
    assert r.positive.mean == pytest.approx(1, abs=1e-14)
    assert r.positive.variance == pytest.approx(0, abs=1e-14)
    for found in (r.negative, r.within_u, r.within_v):
        assert found.mean == pytest.approx(-1 / 9, abs=1e-14)
        assert found.std == pytest.approx(0, abs=1e-8)
    assert r.u.uniformity.value == pytest.approx(-4 - 4 / 9, abs=1e-12)
    assert r.u.participation_ratio == pytest.approx(9, abs=1e-9)
    assert r.u.effective_rank == pytest.approx(9, abs=1e-9)
    assert r.u.energy_dimensions == 9
    assert r.alignment == pytest.approx(0, abs=1e-14)
    assert (r.gap, r.gap_share) == (pytest.approx(0, abs=1e-14), pytest.approx(0, abs=1))
    assert r.bound == pytest.approx(1, abs=1e-12)
    assert not r.separated
    assert r.target.vrns == pytest.approx(0, abs=1e-14)


def test_orthogonal_embeddings():
    r = diagnose(torch.eye(8), torch.eye(8))
    assert r.negative == r.within_u == (0, 0, 0)
    assert r.u.singular_values == pytest.approx([8**-0.5] * 8)
    assert (r.u.participation_ratio, r.u.energy_dimensions) == (pytest.approx(8), 8)
    assert r.uniformity_of_chance > r.u.uniformity.value == pytest.approx(-4)
    assert (r.alignment, r.gap, r.gap_share) == (0, 0, 0)


def test_collapse_to_a_point_keeps_its_digits():
    z = torch.tensor([[0.3, 0.4, 1.2]]).repeat(500, 1)
    r = diagnose(z, z)
    assert r.negative.mean == pytest.approx(1, abs=1e-14)
    assert r.negative.variance < 1e-28
    assert (r.u.participation_ratio, r.u.centred_ratio) == (pytest.approx(1), 0)
    assert (r.u.energy_dimensions, r.u.uniformity.value) == (1, pytest.approx(0, abs=1e-14))
    near = z.double() + 1e-6 * torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = 1 - torch.pdist(unit(near)).square() / 2  # from differences, which keep the digits of near pairs
    assert diagnose(near, near).within_u.variance == pytest.approx(exact.var(correction=0).item(), rel=1e-3)


@pytest.mark.parametrize("a", [0, 0.2, 0.6, 1])
def test_two_modalities_with_a_known_gap_lie_on_the_sharp_bound(a):
    r = diagnose(*theory.shifted_simplex(10, 10, a))
    assert r.gap == pytest.approx(2 * a, abs=1e-12)
    assert r.gap_share == pytest.approx(1 if a else 0, abs=1e-9)
    assert r.positive.mean == pytest.approx(1 - 2 * a**2, abs=1e-12)
    assert r.bound == pytest.approx(1 - 2 * a**2, abs=1e-12)
    assert r.bound_printed == pytest.approx(1 - a**2 * 8 / 9, abs=1e-12)  # (7) loses a factor 2(n-1)/(n-2)
    assert r.separated == (a > 0)


@pytest.mark.parametrize(("bias", "phase"), [(-10, "aligned"), (0, "partly separated"), (12, "antipodal")])
def test_the_optimum_of_siglip_is_read_as_what_it_is(bias, phase):
    n, scale = 16, 5.0
    optimum = theory.siglip_optimum(n, scale, bias)
    r = diagnose(*theory.shifted_simplex(n, n, optimum.a.item()), scale=scale, bias=bias)
    assert r.siglip.phase == phase
    assert r.siglip.s_pos == pytest.approx(r.positive.mean, abs=1e-12)
    assert r.siglip.s_neg == pytest.approx(r.negative.mean, abs=1e-12)
    assert r.negative.std == pytest.approx(0, abs=1e-7)
    assert (r.siglip.aligned_below, r.siglip.antipodal_above) == tuple(
        end.item() for end in theory.siglip_boundaries(n, scale)
    )
    assert (bias <= r.siglip.aligned_below) == (phase == "aligned")
    assert (bias >= r.siglip.antipodal_above) == (phase == "antipodal")


def test_the_phase_is_that_of_the_training_set_if_it_is_given(views):
    u, v, _ = views  # SigLIP's own start leaves the aligned phase at n = 22,040
    found = [diagnose(u, v, scale=10, bias=-10, n=n).siglip for n in (None, 22039, 22040)]
    assert [(s.n, s.phase) for s in found] == [(40, "aligned"), (22039, "aligned"), (22040, "partly separated")]


def test_two_pairs_have_no_sharp_bound_and_one_phase():
    r = diagnose(torch.eye(2), -torch.eye(2), scale=1, bias=5)
    assert r.bound is None
    assert r.bound_printed == pytest.approx(2)  # 1 + (0 + 1)
    assert (r.siglip.phase, r.siglip.aligned_below) == ("aligned", None)


@pytest.mark.parametrize("d", [1, 2, 3, 128])
def test_uniformity_of_chance_is_that_of_the_sphere(d):
    chance = diagnose(torch.ones(2, d), torch.ones(2, d)).uniformity_of_chance
    if d == 1:
        expected = math.log((1 + math.exp(-8)) / 2)
    elif d == 3:  # s is uniform on [-1, 1]
        expected = math.log((1 - math.exp(-8)) / 8)
    else:
        x = torch.randn(2, 20000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        s = (unit(x[0]) * unit(x[1])).sum(dim=1)
        expected = (4 * s - 4).exp().mean().log().item()
    assert chance == pytest.approx(expected, abs=0.02 if d in (2, 128) else 1e-12)


# --- what must not matter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 39, 4096])
def test_the_sizes_of_chunks_and_tiles_do_not_matter(views, monkeypatch, size):
    expected = diagnose(*views[:2], labels=views[2], n=50)
    monkeypatch.setattr(arrays, "CHUNK", size * 6)
    monkeypatch.setattr(sums, "TILE", size)
    found = diagnose(*views[:2], labels=views[2], n=50)
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-12)


def test_neither_lengths_nor_the_order_of_pairs_matter(views):
    u, v, y = views
    expected = flat(diagnose(u, v, labels=y))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    lengths = torch.logspace(-250, 250, 40, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(flat(diagnose(u[order], v[order], labels=y[order])), expected, atol=1e-12)
    np.testing.assert_allclose(flat(diagnose(u * lengths, v / lengths, labels=y)), expected, atol=1e-12)
    assert abs(diagnose(u, v[order]).positive.mean - diagnose(u, v).positive.mean) > 0.1  # the order of one side does


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_is_read_as_its_values_in_float64(views, dtype):
    u, v = (x.to(dtype) for x in views[:2])
    expected = diagnose(u.double(), v.double())
    assert diagnose(u, v) == expected
    assert diagnose(u.requires_grad_(), v) == expected
    if dtype != torch.bfloat16:
        assert diagnose(u.detach().numpy(), v.numpy()[::-1].copy()[::-1]) == expected  # rows from back to front, too


def test_a_memory_map_is_read_and_left_alone(views, tmp_path):
    for name, x in zip("uv", views[:2], strict=True):
        np.save(tmp_path / f"{name}.npy", x.numpy())
    u, v = (np.load(tmp_path / f"{name}.npy", mmap_mode="r+") for name in "uv")
    assert diagnose(u, v) == diagnose(*views[:2])
    assert (u == views[0].numpy()).all()
    assert (v == views[1].numpy()).all()


# --- the sample -----------------------------------------------------------------------------------------------------


def clustered(n=600):
    generator = torch.Generator().manual_seed(5)
    u = torch.randn(6, 8, generator=generator).repeat(n // 6, 1) + 0.5 * torch.randn(n, 8, generator=generator)
    return u, u + 0.5 * torch.randn(n, 8, generator=generator)


def test_a_sample_lies_within_its_interval_as_often_as_it_says():
    u, v = clustered()
    exact, inside = diagnose(u, v), []
    for seed in range(100):
        r = diagnose(u, v, max_pairs=2000, seed=seed)
        assert r.negative == exact.negative  # what is exact stays so
        for found, whole in ((r.u, exact.u), (r.v, exact.v), (r.both, exact.both)):
            assert not found.uniformity.exact
            inside.append(found.uniformity.low <= whole.uniformity.value <= found.uniformity.high)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_a_sample_is_as_large_as_it_says_and_hangs_on_its_seed():
    u, v = clustered()
    first, again, other = (diagnose(u, v, max_pairs=5000, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.u.uniformity != other.u.uniformity
    assert 0.5 * 5000 <= first.u.uniformity.pairs <= 5000
    assert first.both.uniformity.pairs == 4 * first.u.uniformity.pairs + 600
    assert sum(first.histogram.negative) == 2 * first.u.uniformity.pairs
    assert diagnose(u, v, max_pairs=600 * 599 // 2).u.uniformity.exact


def test_more_pairs_tell_more():
    u, v = clustered(3000)
    widths = [(lambda x: x.high - x.low)(diagnose(u, v, max_pairs=k).u.uniformity) for k in (1000, 16000, 256000)]
    assert widths[0] > 1.5 * widths[1] > 1.5**2 * widths[2]


def test_histograms_count_every_pair(views):
    r, (u, v) = diagnose(*views[:2]), map(unit, views[:2])
    s = u @ v.T
    for found, values in ((r.histogram.positive, s.diagonal()), (r.histogram.negative, pairs_of(u, v))):
        np.testing.assert_array_equal(found, np.histogram(values, bins=sums.BINS, range=(-1, 1))[0])
    z = torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (unit(z).square().sum(dim=1) > 1).any()  # rounding leaves the range
    assert diagnose(z, z).histogram.positive[-1] == 200


def test_no_matrix_over_all_pairs_is_formed():
    n = 30_000  # whose pairs would take 7 GB
    u = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.append(found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Watch():
        r = diagnose(u, u.flip(0), labels=torch.arange(n) // 2)
    assert max(sizes) <= max(arrays.CHUNK, sums.TILE**2)
    assert not r.u.uniformity.exact
    assert r.u.uniformity.value == pytest.approx(r.uniformity_of_chance, abs=0.01)


def test_phases_are_named_in_the_order_of_theory():
    phases = theory.siglip_optimum(16, 5, torch.tensor([-10.0, 0.0, 12.0])).phase
    assert [reading.PHASES[i] for i in phases] == ["aligned", "partly separated", "antipodal"]
