"""What a reading suggests: each finding where it is known to be there, and none where nothing is wrong."""

import dataclasses
import json
import math

import pytest
import torch

from companion import paths, theory
from companion.diagnose import advice, diagnose, table


def random(n, d, *, noise=0.3, seed=0):
    u, e = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u, u + noise * e


def clusters(n=600, d=64):
    u, v = random(n, d)
    y = torch.arange(n) % 4
    return u + 16 * torch.eye(d)[y], v + 16 * torch.eye(d)[y], y


def lead(a, b):
    """What a finding begins with."""
    return [item.finding.split(":")[0] for item in advice(diagnose(a, b))]


def few_dimensions(z):
    return torch.cat([z, torch.zeros(len(z), 48, dtype=z.dtype)], dim=1)


CASES = {
    "sound": (random(500, 16), ["Nothing stands out"]),
    "the simplex": ((theory.simplex_etf(12, 11),) * 2, ["Nothing stands out"]),
    "a point": ((torch.ones(50, 4), torch.ones(50, 4)), ["The embeddings have collapsed"]),
    "rows out of order": (
        (random(500, 16)[0], random(500, 16)[1].roll(1, 0)),
        ["Positive pairs are no more alike than negative ones", "Positive pairs are weakly aligned, "],
    ),
    "a gap that separates": (
        theory.shifted_simplex(40, 40, 0.4),
        ["Excessive separation", "Modality gap"],
    ),
    "a cone": (tuple(z + 0.5 for z in random(500, 16)), ["The embeddings lie in a cone"]),
    "few dimensions": (tuple(map(few_dimensions, random(500, 16))), ["Dimensional collapse"]),
    "scatter": (
        tuple(z * torch.tensor([9.0] + [1.0] * 63) for z in random(500, 64, noise=0.1)), ["The negatives scatter"]
    ),
    "weak positives": (random(2000, 64, noise=3), ["Positive pairs are weakly aligned, "]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_finding_is_made_where_it_is_there(case):
    (u, v), expected = CASES[case]
    found = lead(u, v)
    assert len(found) == len(expected)
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)


SOUND = diagnose(*random(500, 16))
EVEN = 1 / math.sqrt(16)  # the standard deviation of negatives that are spread evenly over 16 dimensions
THRESHOLDS = {  # how a finding begins → what a number changes of a reading, the threshold, and on which side it is made
    "Positive pairs are weakly": (lambda x: {"positive": SOUND.positive._replace(mean=x)}, math.cos(math.pi / 3), -1),
    "The embeddings lie in a cone": (lambda x: {"negative": SOUND.negative._replace(mean=x)}, 0.1, 1),
    "The negatives scatter": (lambda x: {"negative": SOUND.negative._replace(std=x)}, 2 * EVEN, 1),
    "Modality gap": (lambda x: {"gap": x, "gap_share": 0.5}, 0.1, 1),
    "Modality gap: the": (lambda x: {"gap": 0.1, "gap_share": x}, 0.5, 1),
    "Excessive separation": (lambda x: {"bound": x}, 0.99, -1),
    "Dimensional collapse": (lambda x: {"u": SOUND.u._replace(energy_dimensions=round(x))}, 8, -1e9),
    "Positive pairs are no more": (
        lambda x: {"positive": SOUND.positive._replace(mean=SOUND.negative.mean + x, std=1.0)}, 3 / math.sqrt(500), -1
    ),
    "The embeddings have collapsed": (
        lambda x: {name: SOUND.negative._replace(mean=x) for name in ("within_u", "within_v", "negative")}, 0.99, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("start", THRESHOLDS)
def test_a_finding_is_made_from_its_threshold_on(start):
    of, threshold, beyond = THRESHOLDS[start]
    for number, expected in ((threshold - 1e-9 * beyond, False), (threshold + 1e-9 * beyond, True)):
        found = advice(dataclasses.replace(SOUND, **of(number)))
        assert any(item.finding.startswith(start) for item in found) == expected, number


def test_the_phase_of_siglip_is_a_finding_unless_it_is_the_aligned_one():
    u, v = random(500, 16)
    assert "Nothing" in advice(diagnose(u, v, scale=10, bias=-10))[0].finding
    r = diagnose(u, v, scale=10, bias=-10, n=32768)
    (found,) = advice(r)
    assert found.finding.startswith("At scale 10 and bias -10 the optimum of SigLIP over 32,768 instances is partly")
    assert f"a bias of {theory.siglip_boundaries(32768, 10)[0]:.3f} or less" in found.suggestion


def test_scatter_that_is_class_structure_is_to_be_left():
    u, v, y = clusters()
    without, of_classes, of_noise = (
        next(item for item in advice(diagnose(u, v, labels=labels)) if "scatter" in item.finding)
        for labels in (None, y, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))])
    )
    assert without.finding == of_noise.finding
    assert "larger batch" in without.suggestion
    assert "% of the variance is structure" in of_classes.finding
    assert "would remove part of it" in of_classes.suggestion


def test_a_finding_has_the_numbers_of_the_reading():
    r = diagnose(*theory.shifted_simplex(40, 40, 0.4))
    separation, gap = advice(r)
    for number in (r.negative.mean, r.simplex, r.bound, r.bound_printed, r.positive.mean):
        assert f"{number:.4f}" in separation.finding
    assert f"{r.gap:.3f} apart" in gap.finding
    assert "100%" in gap.finding


def test_every_finding_leads_to_a_heading_of_a_notebook():
    seen = [item for (u, v), _ in CASES.values() for item in advice(diagnose(u, v, scale=10, bias=12))]
    u, v, y = clusters()
    seen += advice(diagnose(u, v, labels=y))
    assert len({item.section for item in seen}) >= 8
    for item in seen:
        cells = json.loads((paths.ROOT / item.notebook).read_text())["cells"]
        lines = [line.strip() for cell in cells for line in cell["source"] if cell["cell_type"] == "markdown"]
        assert {f"## {item.section}", f"### {item.section}"} & set(lines), item


def test_the_table_says_how_far_and_does_not_divide_by_nothing():
    assert "yes, by" in table.text(diagnose(*theory.shifted_simplex(10, 10, 0.4)))
    assert "excessive separation     no " in table.text(diagnose(*random(50, 4)))
    text = table.text(diagnose(torch.ones(9, 3), torch.ones(9, 3), labels=[0] * 9))
    assert "same or different        0 " in text
    assert "nan" not in text


def rows_of(r):
    return {row.name: row for rows in table.tables(r).values() for row in rows}


def test_every_number_of_the_table_stands_in_the_row_that_names_it():
    """Computed anew, pair by pair where it is about pairs."""
    (u, v), n = random(40, 6), 1000
    rows = rows_of(diagnose(u, v, n=n, scale=10, bias=-10))
    a, b = (torch.nn.functional.normalize(z, dim=1) for z in (u, v))
    others = ~torch.eye(40, dtype=torch.bool)
    within, across, positive = (a @ a.T)[others], (a @ b.T)[others], (a * b).sum(1)
    energy = torch.linalg.svdvals(a).square() / 40
    optimum, ends = theory.siglip_optimum(n, 10.0, -10.0), theory.siglip_boundaries(n, 10.0)
    for name, expected in {
        "positive pairs": f"{positive.mean():.4f} ± {positive.std(correction=0):.4f}",
        "negatives, across views": f"{across.mean():.4f} ± {across.std(correction=0):.4f}",
        "… their variance": f"{across.var(correction=0):.4g}",
        "negatives within u": f"{within.mean():.4f} ± {within.std(correction=0):.4f}",
        "negatives within v": f"{(b @ b.T)[others].mean():.4f} ± {(b @ b.T)[others].std(correction=0):.4f}",
        "alignment": f"{(a - b).square().sum(1).mean():.4f}",
        "uniformity of u": f"{(2 * within - 2).mul(2).exp().mean().log():.4f}",
        "uniformity of v": f"{(2 * (b @ b.T)[others] - 2).mul(2).exp().mean().log():.4f}",
        "modality gap": f"{(a.mean(0) - b.mean(0)).norm():.4f}",
        "mean negative - target": f"{across.mean() + 1 / (n - 1):.4g}",
        "phase of the optimum": "aligned",
        "s_pos, s_neg there": f"{optimum.s_pos:.4f}, {optimum.s_neg:.4g}",
        "phases end at a bias of": f"{ends[0]:.3f}, {ends[1]:.3f}",
    }.items():
        assert rows[name].value == expected, name
    assert rows["participation ratio"].value.split(", ")[0] == f"{1 / energy.square().sum():.1f}"
    assert rows["length of the mean"].value.split(", ")[1] == f"{b.mean(0).norm():.3f}"
    assert rows["uniformity of v"].meaning == "all pairs"
    assert not {"phase of the optimum", "mean negative - target"} & set(rows_of(diagnose(u, v)))


def test_the_table_says_what_does_not_bind_what_there_is_not_and_what_was_sampled():
    u, v = random(80, 5)
    r = diagnose(u, v, max_pairs=1000)
    rows, found = rows_of(r), r.u.uniformity
    assert found.low < found.value < found.high
    assert rows["uniformity of u"].value == f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
    assert rows["uniformity of v"].meaning == f"a sample of {found.pairs:,} pairs"
    assert rows_of(diagnose(*theory.shifted_simplex(10, 10, 0.4)))["bound on positives"].value == "0.6800"  # 1 - 2 a²
    one = rows_of(diagnose(theory.simplex_etf(12, 11), theory.simplex_etf(12, 11)))
    assert one["bound on positives"].value == "1 (does not bind)"
    two = rows_of(diagnose(torch.eye(2), -torch.eye(2), scale=1, bias=5))
    assert two["bound on positives"].value == "none"
    assert "phases end at a bias of" not in two
