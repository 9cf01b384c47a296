import math

import pytest
import torch

from companion import metrics
from companion.errors import CompanionError


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    return u, v, torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 4])  # unbalanced, a class of one, an empty class


def negatives(u, v):
    """(i, j, similarity) of every cross-view pair, by the definition."""
    for i in range(len(u)):
        for j in range(len(v)):
            if i != j:
                yield i, j, (u[i] @ v[j] / (u[i].norm() * v[j].norm())).item()


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def test_similarity_statistics_against_loops(views):
    u, v, _ = views
    s = [value for *_, value in negatives(u, v)]
    p = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(u, v, strict=True)]
    found = metrics.similarity_statistics(u, v)
    assert found["positive_mean"] == pytest.approx(mean(p), abs=1e-12)
    assert found["positive_variance"] == pytest.approx(mean((x - mean(p)) ** 2 for x in p), abs=1e-12)
    assert found["negative_mean"] == pytest.approx(mean(s), abs=1e-12)
    assert found["negative_variance"] == pytest.approx(mean((x - mean(s)) ** 2 for x in s), abs=1e-12)
    assert found["negative_std"] == pytest.approx(found["negative_variance"] ** 0.5, abs=1e-12)


def test_variance_parts_against_loops(views):
    u, v, y = views
    pairs = [(s, int(y[i]), int(y[j])) for i, j, s in negatives(u, v)]
    total_mean = mean(s for s, *_ in pairs)
    by_group = {same: mean(s for s, a, b in pairs if (a == b) == same) for same in (True, False)}
    cells = {(a, b) for _, a, b in pairs}
    by_cell = {cell: mean(s for s, *ab in pairs if tuple(ab) == cell) for cell in cells}
    found = metrics.variance_parts(u, v, y)
    assert found["same_vs_different"] == pytest.approx(
        mean((by_group[a == b] - total_mean) ** 2 for _, a, b in pairs), abs=1e-12
    )
    assert found["among_class_pairs"] == pytest.approx(
        mean((by_cell[a, b] - by_group[a == b]) ** 2 for _, a, b in pairs), abs=1e-12
    )
    assert found["within_class_pairs"] == pytest.approx(mean((s - by_cell[a, b]) ** 2 for s, a, b in pairs), abs=1e-12)
    assert found["total"] == pytest.approx(metrics.similarity_statistics(u, v)["negative_variance"], abs=1e-12)


def test_variance_parts_of_one_class_lie_within(views):
    u, v, y = views
    found = metrics.variance_parts(u, v, torch.zeros_like(y))
    assert found["same_vs_different"] == pytest.approx(0, abs=1e-15)
    assert found["within_class_pairs"] == pytest.approx(found["total"], abs=1e-12)


def test_tolerance_is_the_mean_over_same_class_pairs(views):
    u, _, y = views
    same = [s for i, j, s in negatives(u, u) if y[i] == y[j]]
    assert metrics.tolerance(u, y) == pytest.approx(mean(same), abs=1e-12)


def test_alignment_and_uniformity_of_known_arrangements():
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert metrics.alignment(3 * square, square) == pytest.approx(0, abs=1e-12)  # length does not matter
    assert metrics.alignment(square, -square) == pytest.approx(4, abs=1e-12)
    # four sides of squared length 2, two diagonals of 4
    assert metrics.uniformity(square) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6), abs=1e-12)


def test_alignment_and_uniformity_take_their_exponents():
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert metrics.alignment(square, -square, alpha=3) == pytest.approx(2**3, abs=1e-12)
    assert metrics.uniformity(square, t=1) == pytest.approx(
        math.log((4 * math.exp(-2) + 2 * math.exp(-4)) / 6), abs=1e-12
    )


class OnApple(torch.Tensor):
    """A tensor that says it lies on an Apple GPU, where float64 is not to be had."""

    device = property(lambda self: torch.device("mps"))

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_moments_are_taken_in_float64_even_for_a_device_that_has_none(views):
    u, v, y = views
    elsewhere = (u.as_subclass(OnApple), v.as_subclass(OnApple))
    assert metrics.similarity_statistics(*elsewhere) == metrics.similarity_statistics(u, v)
    assert metrics.variance_parts(*elsewhere, y) == metrics.variance_parts(u, v, y)


def test_no_statistics_of_what_has_none(views):
    u, v, y = views
    for bad, expected in (
        ((u[:1], v[:1]), "u has 1 rows: expected at least 2"),
        ((u, v[:5]), "expected two views of one shape"),
        ((u, v * math.nan), "v has NaN or infinite values in 12 of 12 rows"),
    ):
        with pytest.raises(CompanionError, match=expected):
            metrics.similarity_statistics(*bad)
    with pytest.raises(CompanionError, match="All 12 labels differ: expected a class with at least two members"):
        metrics.tolerance(u, torch.arange(len(y)))
