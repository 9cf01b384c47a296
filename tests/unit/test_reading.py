"""What a person sees: figures with alt text, progress bars, the check of the machine."""

import io
import sys

import matplotlib
import PIL.Image
import pytest
from IPython.core.formatters import DisplayFormatter

from companion.course import environment, figures
from companion.training import progress


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")


def test_a_shown_figure_carries_its_alt_text_and_is_closed(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    figure, axes = figures.panels(2)
    axes[0].plot([1, 2], [3, 4])
    displayed = []
    monkeypatch.setattr(figures, "display", displayed.append)
    figures.show(figure, "A rising line.", path=tmp_path / "figures" / "line.png")
    _, metadata = DisplayFormatter().format(displayed[0])  # what a kernel would send
    assert metadata["image/png"]["alt"] == "A rising line."
    assert (tmp_path / "figures" / "line.png").read_bytes()[:4] == b"\x89PNG"
    assert not plt.fignum_exists(figure.number)


def test_an_animation_is_a_looping_gif_with_its_alt_text(monkeypatch):
    figure, (axes,) = figures.panels()
    drawn, displayed = [], []

    def draw(frame):
        drawn.append(frame)
        axes.clear()
        axes.plot([0, frame], [0, 1])

    monkeypatch.setattr(figures, "display", displayed.append)
    figures.animate(figure, draw, 5, "A line that leans over.", seconds=1)
    _, metadata = DisplayFormatter().format(displayed[0])
    assert metadata["image/gif"]["alt"] == "A line that leans over."
    moving = PIL.Image.open(io.BytesIO(displayed[0].data))
    assert (drawn, moving.n_frames, moving.info["loop"]) == ([0, 1, 2, 3, 4], 5, 0)


def test_a_log_axis_labels_its_ticks_and_nothing_else():
    figure, (axes,) = figures.panels()
    axes.plot([16, 256], [0, 1])
    figures.log_axis(axes, (256, 16, 64, 64))
    figure.canvas.draw()
    assert [label.get_text() for label in axes.get_xticklabels(which="both")] == ["16", "64", "256"]


def test_bars_are_silent_where_nobody_watches(monkeypatch):
    monkeypatch.delenv("CONTRASTIVE_PROGRESS", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(3, "training", "epoch") as bar:
        bar.update(3)
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", "off")
    with progress.bar(3, "training", "epoch") as bar:
        bar.update(3)
    assert sys.stderr.getvalue() == ""


def test_a_bar_can_be_drawn_on_a_terminal_that_the_runner_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", str(tmp_path / "terminal"))
    with progress.bar(4, "training 2 runs", "epoch") as bar:
        bar.update(2)
        bar.refresh()
    assert bar.fp.closed
    drawn = (tmp_path / "terminal").read_text()
    assert "training 2 runs" in drawn
    assert "2/4" in drawn
    assert "<" in drawn  # elapsed < remaining


def test_the_machine_is_ready():
    rows = environment.check()
    assert {what for what, *_ in rows} >= {"Python", "torch", "papermill", "torch with torchvision", "embedded data"}
    assert [row for row in rows if row[2] != "OK"] == []


def test_a_clone_that_is_not_installed_is_told(monkeypatch):
    def requires(name):
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "requires", requires)
    assert ("contrastive-companion", "not installed", "run `make setup`") in environment.check()


def test_what_is_missing_or_too_old_is_named(monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda _: ["torch>=99", "nonsuch>=1", "ray>=1; extra == 'x'"])
    rows = {what: todo for what, _, todo in environment.check()}
    assert "torch>=99 is needed: run `make setup`" in rows["torch"]
    assert rows["nonsuch"] == "run `make setup`"
    assert "ray" not in rows
