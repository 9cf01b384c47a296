import math

import naive
import pytest
import torch

from companion import losses, metrics, similarity
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


def test_target_and_noise_against_loops():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(k, 4, dtype=torch.float64, generator=generator) for k in (15, 6))
    labels, own = torch.arange(15) % 3, torch.arange(6) % 3
    target, noise = metrics.nearest_similarities(train, labels, test, own)
    for i in range(6):
        for found, alike in ((target, True), (noise, False)):
            members = [j for j in range(15) if (labels[j] == own[i]) == alike]
            assert found[i].item() == pytest.approx(
                max(naive.cosine(test[i].tolist(), train[j].tolist()) for j in members)
            )


def test_a_test_image_needs_company_of_both_kinds():
    x = torch.randn(4, 3)
    for labels in ([0, 0, 0, 0], [1, 1, 2, 2]):
        with pytest.raises(CompanionError, match="no training image of its class, or of no other"):
            metrics.nearest_similarities(x, torch.tensor(labels), x[:1], torch.tensor([0]))


def sincere_slopes(z, y, s, temperature):
    """{(i, j): derivative of SINCERE with respect to s_ij = s_ji} for pairs of one class, from its formula."""
    n, slopes = len(z), {}
    anchors = [i for i in range(n) if y.count(y[i]) > 1]
    for i in anchors:
        positives = [j for j in range(n) if y[j] == y[i] and j != i]
        noise = sum(math.exp(s(z[i], z[j]) / temperature) for j in range(n) if y[j] != y[i])
        for j in positives:
            own = math.exp(s(z[i], z[j]) / temperature)
            slope = (own / (own + noise) - 1) / temperature / len(positives) / len(anchors)
            for pair in ((i, j), (j, i)):
                slopes[pair] = slopes.get(pair, 0) + slope
    return slopes


@pytest.mark.parametrize("name", ["cosine", "arc_length", "euclidean"])
def test_a_pull_is_the_slope_of_the_loss_times_that_of_the_similarity(name):
    z = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = [0, 0, 1, 1, 2, 0, 1]  # one image is alone in its class
    angles, strength = metrics.pulls(
        losses.sincere, z, torch.tensor(y), similarity=getattr(similarity, name), temperature=0.4
    )
    slopes, rows = sincere_slopes(z.tolist(), y, getattr(naive, name), 0.4), z.tolist()
    assert len(angles) == len(slopes)
    for (i, j), angle, pull in zip(sorted(slopes), angles.tolist(), strength.tolist(), strict=True):
        theta = math.acos(naive.cosine(rows[i], rows[j]))
        own = {"cosine": math.sin(theta), "arc_length": 1 / math.pi, "euclidean": math.hypot(*rows[i])}[name]
        assert angle == pytest.approx(math.degrees(theta))
        assert pull == pytest.approx(-slopes[i, j] * own)


def test_pulls_by_angle_by_hand():
    angles, strength = (torch.tensor(x, dtype=torch.float64) for x in ([1, 14, 15, 30, 59, 60], [1, 2, 3, 4, 6, 9]))
    found = metrics.pulls_by_angle(angles, strength)
    assert found == {
        "near_share": pytest.approx(2 / 6), "near_pull_share": pytest.approx(3 / 25), "near_pull": 1.5, "far_pull": 5,
    }  # fmt: skip
    assert math.isnan(metrics.pulls_by_angle(angles[:2], strength[:2])["far_pull"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tolerance_of_many_pairs_in_half_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 8, generator=generator)
    y = torch.arange(600) % 2
    z = (centres[y] + 0.3 * torch.randn(600, 8, generator=generator)).to(dtype)
    exact = metrics.tolerance(z.double(), y)
    assert 0.5 < exact < 1
    assert metrics.tolerance(z, y) == pytest.approx(exact, abs=1e-6)  # 90,000 pairs a class: more than float16 counts


def test_labels_are_whole_numbers_of_any_kind_one_an_embedding():
    u, v = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1, 0, 2, 2])
    expected = metrics.variance_parts(u, v, y)
    assert metrics.variance_parts(u, v, (7 * y - 3).int()) == pytest.approx(expected)
    for bad, message in ((y[:5], r"shape \(5,\)"), (y.float(), "dtype torch.float32")):
        with pytest.raises(CompanionError, match=message):
            metrics.variance_parts(u, v, bad)
        with pytest.raises(CompanionError, match=message):
            metrics.tolerance(u, bad)
    with pytest.raises(CompanionError, match="NaN or infinite"):
        metrics.tolerance(u / 0, y)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "float16, long", "mixed"])
def test_statistics_are_taken_in_single_precision_at_least(kind):
    """In a cone, where the similarities of half precision are one; and of lengths that it cannot hold."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 64, generator=generator) * 3 + 0.15 * torch.randn(2, 60, 64, generator=generator)
    u, v = {
        "autocast": near, "bfloat16": near.bfloat16(), "float16, long": (near * 2000).half(),
        "mixed": (near[0].half(), near[1].double()),
    }[kind]  # fmt: skip
    y = torch.arange(60) % 4

    def found(u, v):
        s = metrics.nearest_similarities(u[:30], y[:30], v[30:], y[30:])
        return [
            *metrics.similarity_statistics(u, v).values(), *metrics.variance_parts(u, v, y).values(),
            metrics.tolerance(u, y), *s[0].tolist(), *s[1].tolist(),
        ]  # fmt: skip

    expected = found(u.double(), v.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        observed = found(u, v)
    assert expected[3] > 1e-7
    assert observed == pytest.approx(expected, rel=2e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("train", "labels", "test", "expected"),
    [
        (torch.full((4, 3), torch.nan), torch.arange(4) % 2, torch.ones(2, 3), "train has NaN"),
        (torch.ones(4, 3), torch.arange(3) % 2, torch.ones(2, 3), r"labels has shape \(3,\)"),
        (torch.ones(4, 3), torch.arange(4) % 2, torch.ones(3, 3), r"test_labels has shape \(2,\)"),
        (torch.ones(4, 3), torch.arange(4) % 2, torch.ones(2, 4), r"train has shape \(4, 3\) and test \(2, 4\)"),
    ],
)
def test_nearest_similarities_of_what_does_not_fit_are_told(train, labels, test, expected):
    with pytest.raises(CompanionError, match=expected):
        metrics.nearest_similarities(train, labels, test, torch.arange(2))
