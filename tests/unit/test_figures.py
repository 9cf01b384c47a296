"""Figures: what they draw of a table, and controls to move one by where somebody is there to move it."""

import io
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import stats

from companion.course import figures


def test_a_figure_takes_the_place_that_it_is_given(monkeypatch):
    placed, below = [], []
    place = type("Handle", (), {"update": staticmethod(placed.append)})()
    monkeypatch.setattr(figures, "display", below.append)
    for where in (place, place, None):
        figure, _ = figures.panels()
        figures.show(figure, "what it shows", place=where)
    assert [image.alt for image in placed] == ["what it shows"] * 2
    assert len(below) == 1


def test_a_figure_is_written_as_it_is_shown_in_256_colours_or_fewer(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    for options in ({}, {"colors": 8}):
        figure, (axes,) = figures.panels()
        assert not plt.get_fignums()  # else the notebook shows it once more at the end of the cell
        axes.imshow(np.arange(100.0).reshape(10, 10), cmap="viridis")
        figures.show(figure, "colours", path=tmp_path / "figure.png", **options)
        assert (tmp_path / "figure.png").read_bytes() == shown[-1].data
    whole, few = (PIL.Image.open(io.BytesIO(image.data)).convert("RGB").getcolors(1 << 24) for image in shown)
    assert len(few) <= 8 < len(whole) <= 256


def test_an_animation_loops_for_ever_and_rests_for_a_fifth_of_its_seconds(monkeypatch):
    shown, figure = [], figures.panels(height=1.0)[0]
    monkeypatch.setattr(figures, "display", shown.append)

    def draw(number):
        figure.axes[0].clear()
        figure.axes[0].barh(0, number + 1)
        figure.axes[0].set(xlim=(0, 5))

    figures.animate(figure, draw, 4, "a bar that grows", seconds=2)
    gif, lengths, blue = PIL.Image.open(io.BytesIO(shown[0].data)), [], []
    for number in range(gif.n_frames):
        gif.seek(number)
        lengths.append(gif.info["duration"])
        off = np.abs(np.array(gif.convert("RGB")) - np.multiply(figures.PALETTE[0], 255)).max(axis=2)
        blue.append((off < 24).sum())
    assert lengths == [400, 400, 400, 800]  # milliseconds
    assert np.divide(blue, blue[0]) == pytest.approx([1, 2, 3, 4], rel=0.1)
    assert (gif.info["loop"], shown[0].alt) == (0, "a bar that grows")


def test_a_logarithmic_axis_has_the_ticks_that_were_asked_for_and_no_others(axes):
    figures.log_axis(axes, [16, 64, 4, 16])
    axes.figure.canvas.draw()
    ticks = axes.xaxis.get_major_ticks() + axes.xaxis.get_minor_ticks()
    assert [tick.label1.get_text() for tick in ticks] == ["4", "16", "64"]
    assert (axes.get_xscale(), axes.get_xticks().tolist()) == ("log", [4, 16, 64])


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
    assert sorted(line.get_ydata()[0] for line in axes.lines) == sorted(means.values())
    assert {text.get_text(): text.xy[1] for text in axes.texts} == means
    words = figures.baselines_in_words(TABLE)
    for name, value in means.items():
        assert f"{name} {value:.3f}" in words


def test_names_of_baselines_that_are_close_do_not_lie_on_each_other(axes):
    close = TABLE.assign(supervised_accuracy=0.695, colours_accuracy=0.7, untrained_accuracy=0.56, pixels_accuracy=0.44)
    figures.baseline_lines(axes, close)
    axes.figure.canvas.draw()
    assert len({text.xy[0] for text in axes.texts}) == 2  # one of the two went to the other end
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("limits", [None, (0.4, 0.702)])
def test_lines_and_names_of_baselines_lie_inside_of_the_picture(axes, limits):
    axes.plot([1, 2], [0.69, 0.699])
    if limits:
        axes.set_ylim(limits)
    far = TABLE.assign(supervised_accuracy=0.66, colours_accuracy=0.7, untrained_accuracy=0.56, pixels_accuracy=0.44)
    figures.baseline_lines(axes, far)
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    assert all(low < line.get_ydata()[0] < high for line in axes.lines[1:])
    frame = axes.get_window_extent()
    assert all(frame.y0 < box.y0 < box.y1 < frame.y1 for box in (text.get_window_extent() for text in axes.texts))


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
