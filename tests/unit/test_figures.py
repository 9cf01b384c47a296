"""Figures: what they draw of a table, and controls to move one by where somebody is there to move it."""

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from companion.course import figures
from companion.training import progress


@pytest.fixture
def drawn(monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: seen.append((figure.margin, alt)))
    return seen


def draw(*, margin=1.0):
    figure = Figure()
    figure.margin = margin
    return figure


def test_without_a_reader_it_is_drawn_once_at_its_defaults(drawn, monkeypatch):
    monkeypatch.setattr(ipywidgets, "interact", None)  # would fail if called
    figures.movable(draw, "what it shows", margin=(0.0, 2.0, 0.5))
    assert drawn == [(1.0, "what it shows")]


def test_with_a_reader_the_controls_start_at_the_defaults_and_redraw(drawn, monkeypatch):
    widgets = []
    monkeypatch.setattr(progress, "live", lambda: True)
    monkeypatch.setattr(ipywidgets, "interact", lambda f, **c: widgets.append(ipywidgets.interactive(f, **c)))
    figures.movable(draw, "what it shows", margin=(0.0, 2.0, 0.5))
    (slider,) = (child for child in widgets[0].children if isinstance(child, ipywidgets.FloatSlider))
    assert (slider.min, slider.value, slider.max) == (0.0, 1.0, 2.0)
    slider.value = 1.5
    assert drawn[-1] == (1.5, "what it shows")


def test_a_figure_takes_the_place_that_it_is_given(monkeypatch):
    placed, below = [], []
    place = type("Handle", (), {"update": staticmethod(placed.append)})()
    monkeypatch.setattr(figures, "display", below.append)
    for where in (place, place, None):
        figure, _ = figures.panels()
        figures.show(figure, "what it shows", place=where)
    assert [image.alt for image in placed] == ["what it shows"] * 2
    assert len(below) == 1


@pytest.mark.parametrize(("kernel", "told", "live"), [(True, "", True), (True, "off", False), (False, "", False)])
def test_only_a_kernel_without_a_runner_is_live(monkeypatch, kernel, told, live):
    monkeypatch.setattr(progress, "_in_notebook", lambda: kernel)
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", told)
    assert progress.live() is live


@pytest.fixture
def axes():
    matplotlib.use("Agg")
    figure, (found,) = figures.panels()
    yield found
    plt.close(figure)


TABLE = pd.DataFrame(
    {"m": [16, 16, 16, 64, 64, 64, 64, 256, 256], "y": [0.1, 0.2, 0.4, 0.5, 0.6, 0.55, 0.65, 0.9, 0.8]}
    | {column: np.linspace(0.2, 0.3, 9) + 0.1 * i for i, column in enumerate(figures.BASELINES)}
)


def interval(m):
    values = TABLE[TABLE["m"] == m]["y"]
    return stats.ttest_1samp(values, 0).confidence_interval(0.95)


def test_a_line_goes_through_the_means_and_its_bars_are_t_intervals(axes):
    figures.mean_line(axes, TABLE[TABLE["m"] < 256], "m", "y", label="here")
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_xydata().tolist() == [[16, pytest.approx(0.7 / 3)], [64, pytest.approx(0.575)]]
    for m, (low, high) in zip((16, 64), bars.get_segments(), strict=True):
        assert (low[1], high[1]) == (pytest.approx(interval(m).low), pytest.approx(interval(m).high))
    assert axes.get_legend_handles_labels()[1] == ["here"]


def test_a_recorded_line_lies_in_the_band_of_its_t_intervals(axes):
    figures.recorded_line(axes, TABLE, "m", "y", label="recorded", color="red")
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[16, pytest.approx(0.7 / 3)], [64, pytest.approx(0.575)]]  # of 256 too few
    assert line.get_label() == "recorded, n = 3"
    corners = axes.collections[0].get_paths()[0].vertices
    for m in (16, 64):
        ends = corners[corners[:, 0] == m][:, 1]
        assert (ends.min(), ends.max()) == (pytest.approx(interval(m).low), pytest.approx(interval(m).high))


def test_nothing_recorded_draws_nothing(axes):
    figures.recorded_line(axes, pd.DataFrame(), "m", "y", label="recorded")
    assert not axes.lines
    assert axes.get_legend_handles_labels() == ([], [])


def test_baselines_stand_at_their_means_in_picture_and_words(axes):
    figures.baseline_lines(axes, TABLE)
    means = {name: TABLE[column].mean() for column, name in figures.BASELINES.items()}
    assert [line.get_ydata()[0] for line in axes.lines] == list(means.values())
    assert {text.get_text(): text.xy[1] for text in axes.texts} == means
    words = figures.baselines_in_words(TABLE)
    for name, value in means.items():
        assert f"{name} {value:.3f}" in words


def test_the_histogram_counts_each_pair_once_in_its_group(axes, monkeypatch):
    u, v = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    y, counted = torch.arange(12) % 3, {}
    monkeypatch.setattr(
        axes, "hist", lambda values, edges, label, **_: counted.update({label: sorted(values.tolist())})
    )
    figures.similarity_histogram(axes, u, v, y)
    expected = {"positives": [], "same class": [], "different class": []}
    for i in range(12):
        for j in range(12):
            group = "positives" if i == j else "same class" if y[i] == y[j] else "different class"
            expected[group].append((u[i] @ v[j] / (u[i].norm() * v[j].norm())).item())
    for group, values in expected.items():
        assert counted[group] == pytest.approx(sorted(values), abs=1e-6)
