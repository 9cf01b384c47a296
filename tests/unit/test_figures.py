"""A movable figure: drawn once where nobody is, with controls where somebody is."""

import ipywidgets
import pytest
from matplotlib.figure import Figure

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


@pytest.mark.parametrize(("kernel", "told", "live"), [(True, "", True), (True, "off", False), (False, "", False)])
def test_only_a_kernel_without_a_runner_is_live(monkeypatch, kernel, told, live):
    monkeypatch.setattr(progress, "_in_notebook", lambda: kernel)
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", told)
    assert progress.live() is live
