"""Controls of a figure: live ones where somebody is there to turn them, else pictures of all that they could show."""

import base64
import io
import json

import ipywidgets
import matplotlib
import nbformat
import numpy as np
import PIL.Image
import pytest
from matplotlib import pyplot as plt
from nbformat import v4

from companion.course import controls, execute, figures
from companion.errors import CompanionError
from companion.training import progress

MARGINS, SIGNS = [0.5, 1.0, 2.0], ["plus", "minus"]


def draw(*, margin=1.0, sign="plus", width=4):
    """A bar as long as the margin, on the side of the sign."""
    figure, (axes,) = figures.panels(height=1.0)
    axes.barh(0, margin if sign == "plus" else -margin, height=width)
    axes.set(xlim=(-3, 3))
    return figure


def alt(*, margin, sign="plus"):
    return f"A bar from 0 to {sign} {margin:g} on an axis from −3 to 3."


@pytest.fixture
def output(monkeypatch):
    """What was displayed: an image object of IPython, or data and metadata."""
    matplotlib.use("Agg")
    seen = []
    monkeypatch.setattr(figures, "display", lambda what, **options: seen.append((what, options)))
    monkeypatch.delenv("CONTRASTIVE_FRAMES", raising=False)
    return seen


@pytest.fixture
def frozen(output, monkeypatch):
    """Displays a figure as in a notebook that is being stored, and returns data, frames and metadata of the output."""
    monkeypatch.setenv("CONTRASTIVE_FRAMES", "1")

    def show(*arguments, **options):
        figures.movable(*arguments, **options)
        (data, displayed) = output.pop()
        assert displayed["raw"]
        return data, data[controls.MIME], displayed["metadata"]

    return show


def direct(output, figure):
    """The same figure shown on its own: the bytes of its picture."""
    figures.show(figure, "one of them")
    return output.pop()[0].data


def pixels(data):
    """(height, width, 3) of a PNG file, or of its base64 form."""
    data = base64.b64decode(data) if isinstance(data, str) else data
    return np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_without_a_reader_it_is_drawn_once_at_its_defaults(output, monkeypatch):
    monkeypatch.setattr(ipywidgets, "interact", None)  # would fail if called
    asked = []
    figures.movable(lambda margin=1.0: asked.append(margin) or draw(margin=margin), alt, margin=MARGINS)
    ((image, options),) = output
    assert (asked, image.alt, options) == ([1.0], alt(margin=1.0), {})
    assert image.data == direct(output, draw(margin=1.0))


def test_a_stored_figure_has_a_picture_for_every_combination(output, frozen):
    data, frames, metadata = frozen(draw, alt, margin=MARGINS, sign=SIGNS)
    points = [(margin, sign) for margin in MARGINS for sign in SIGNS]  # the first control is the outer one
    assert frames["format"] == "png"
    assert len(frames["frames"]) == len(points) == 6
    for (margin, sign), picture in zip(points, frames["frames"], strict=True):
        off = np.abs(pixels(picture) - pixels(direct(output, draw(margin=margin, sign=sign)))).max(axis=2)
        assert off.max() < 40  # of 255, on the edges of letters
        assert (off > 4).mean() < 0.01
    assert frames["alts"] == [alt(margin=margin, sign=sign) for margin, sign in points]
    assert len(set(frames["alts"])) == len(set(frames["frames"])) == 6
    assert points[frames["start"]] == (1.0, "plus")
    assert frames["controls"] == [
        {"name": "margin", "values": MARGINS, "start": 1},
        {"name": "sign", "values": SIGNS, "start": 0},
    ]
    assert data["image/png"] == frames["frames"][frames["start"]]
    assert data["text/plain"] == alt(margin=1.0, sign="plus")
    assert metadata == {"image/png": {"alt": alt(margin=1.0, sign="plus")}}
    assert not plt.get_fignums()


def test_the_bar_of_a_picture_is_as_long_as_its_value(frozen):
    _, frames, _ = frozen(draw, alt, margin=MARGINS)
    lengths = []
    for picture in frames["frames"]:
        blue = np.abs(pixels(picture) - np.multiply(figures.PALETTE[0], 255)).max(axis=2) < 16
        lengths.append(blue.sum(axis=1).max())
    assert np.divide(lengths, lengths[0]) == pytest.approx([1, 2, 4], rel=0.05)  # grid lines show through


def test_one_text_may_stand_for_all_pictures(frozen):
    assert frozen(draw, "A bar.", margin=MARGINS)[1]["alts"] == ["A bar."] * 3


def test_all_pictures_share_a_palette_that_keeps_areas_and_small_marks(frozen):
    def draw_dot(margin=1.0):
        figure = draw(margin=margin)
        figure.axes[0].plot(2.5, 0.0, "o", color="#d55e00", markersize=5)
        return figure

    _, frames, _ = frozen(draw_dot, alt, colors=12, margin=MARGINS)
    files = [PIL.Image.open(io.BytesIO(base64.b64decode(picture))) for picture in frames["frames"]]
    (palette,) = {tuple(file.getpalette()) for file in files}
    assert len(palette) <= 3 * 12
    blue = tuple(round(255 * x) for x in figures.PALETTE[0])
    for picture in frames["frames"]:
        assert (pixels(picture)[0, 0] == 255).all()  # white stays white, also beside palest grey
        for color, least in ((blue, 1000), ((255, 255, 255), 10_000), ((0xD5, 0x5E, 0x00), 10)):
            assert (pixels(picture) == color).all(axis=2).sum() > least


@pytest.mark.parametrize(
    ("marks", "colors", "kept"),
    [
        # Eight greys that fill areas, and a mark in a colour that nothing else is near to: half the palette is for it.
        ([((k, k, k), 100) for k in range(240, 160, -10)] + [((213, 94, 0), 5)], 4, (213, 94, 0)),
        # Of two colours far off the one that is seen is kept, not the pixel that is a little farther.
        ([((213, 94, 0), 50), ((0, 100, 0), 1)], 2, (213, 94, 0)),
    ],
)
def test_a_palette_is_half_for_areas_and_half_for_marks_that_are_seen(marks, colors, kept):
    white = np.full((1000, 3), 255)
    pixels = np.concatenate([white, *(np.full((count, 3), color) for color, count in marks)]).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[None]).save(buffer, format="png")
    (made,) = controls.with_few_colors([buffer.getvalue()], colors)
    found = PIL.Image.open(io.BytesIO(made)).convert("RGB")
    assert {(255, 255, 255), kept} <= set(found.getdata())
    assert len(found.getcolors()) <= colors


def test_fewer_colours_are_fewer_bytes(frozen):
    few, many = (len("".join(frozen(draw, alt, colors=n, margin=MARGINS)[1]["frames"])) for n in (4, 200))
    assert few < many


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ((0.0, 2.0, 0.5), [0.0, 0.5, 1.0, 1.5, 2.0]),
        ((0.1, 1.1, 0.3), [0.1, 0.4, 0.7, 1.0]),
        ((0.0, 0.3, 0.1), [0.0, 0.1, 0.2, 0.3]),
        ((1, 7, 2), [1, 3, 5, 7]),
    ],
)
def test_a_range_has_both_its_ends_where_the_step_meets_them(spec, values):
    (control,) = controls.read(lambda x=spec[0]: None, {"x": spec})
    assert list(control.values) == values
    assert {type(value) for value in control.values} == {type(spec[0])}


def test_what_is_stored_is_a_notebooks_output(frozen, output):
    data, frames, metadata = frozen(draw, alt, margin=MARGINS)
    json.dumps(frames)
    shown = v4.new_output("display_data", data=data, metadata=metadata)
    nbformat.validate(v4.new_notebook(cells=[v4.new_code_cell("figure", outputs=[shown])]))


def lives(monkeypatch, *arguments, **options):
    """The widgets of a figure in a live kernel, by their labels."""
    made = []
    monkeypatch.setattr(progress, "live", lambda: True)
    monkeypatch.setattr(ipywidgets, "interact", lambda f, **c: made.append(ipywidgets.interactive(f, **c)))
    figures.movable(*arguments, **options)
    (box,) = made
    box.update()  # as it is displayed
    return {child.description: child for child in box.children if hasattr(child, "value")}


@pytest.mark.parametrize("stored", ["", "1"])
def test_with_a_reader_the_controls_start_at_the_defaults_and_redraw(output, monkeypatch, stored):
    monkeypatch.setenv("CONTRASTIVE_FRAMES", stored)
    found = lives(monkeypatch, draw, alt, margin=MARGINS, sign=SIGNS)
    assert {name: (type(w), w.value) for name, w in found.items()} == {
        "margin": (ipywidgets.SelectionSlider, 1.0),
        "sign": (ipywidgets.SelectionSlider, "plus"),
    }
    assert not found["margin"].continuous_update
    assert [text for text, _ in found["margin"].options] == ["0.5", "1", "2"]
    assert output[-1][0].alt == alt(margin=1.0)
    found["margin"].value = 2.0
    assert output[-1][0].alt == alt(margin=2.0)
    assert output[-1][0].data == direct(output, draw(margin=2.0))
    found["sign"].value = "minus"
    assert output[-1][0].alt == alt(margin=2.0, sign="minus")


def test_a_control_is_labelled_in_words_and_its_values_are_as_they_are_written(output, monkeypatch):
    found = lives(monkeypatch, lambda *, same_side=True: draw(), "A bar.", same_side=[False, True])
    assert list(found) == ["same side"]
    assert [text for text, _ in found["same side"].options] == ["False", "True"]


def test_a_text_is_typed_in_and_stored_at_its_default_alone(output, monkeypatch):
    given = {"sign": "plus"}
    monkeypatch.setenv("CONTRASTIVE_FRAMES", "1")
    figures.movable(draw, "A bar.", **given)
    assert output.pop()[0].data == direct(output, draw())
    (field,) = lives(monkeypatch, draw, "A bar.", **given).values()
    assert (type(field), field.value) == (ipywidgets.Text, "plus")
    assert not field.continuous_update


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"margin": MARGINS, "sign": SIGNS, "width": [4, 5]}, "3 controls .* expected 2 at most"),
        ({"margin": [0.5, 2.0]}, "starts at 1.0: expected a default .* among 0.5, 2"),
        ({"margin": (0.5, 2.0, 1.0)}, "starts at 1.0"),
        ({"margn": MARGINS}, "Unknown control 'margn'.*Did you mean 'margin'"),
        ({"margin": [1.0]}, "two or more values"),
        ({"margin": [1.0, 1.0]}, "each once"),
        ({"margin": (2.0, 0.5, 0.5)}, r"expected \(low, high, step\)"),
        ({"margin": (0.0, 1.0)}, r"expected \(low, high, step\)"),
        ({"margin": (0.0, 1.0, 0.0)}, r"expected \(low, high, step\)"),
        ({"margin": (0.0, float("inf"), 1.0)}, r"expected \(low, high, step\)"),
        ({"sign": ("plus", "minus", "none")}, "or a list of values"),
        ({"margin": 2.0}, "'margin' is 2.0: expected .* a list of values"),
    ],
)
def test_controls_that_cannot_be_are_told(output, given, told):
    with pytest.raises(CompanionError, match=told):
        figures.movable(draw, "A bar.", **given)
    assert not output


def test_a_control_needs_a_default(output):
    with pytest.raises(CompanionError, match="'margin' has no default"):
        figures.movable(lambda margin: draw(margin=margin), alt, margin=MARGINS)


def test_pictures_of_two_sizes_are_told(frozen):
    def jumps(margin=1.0):
        return figures.panels(height=margin)[0]

    with pytest.raises(CompanionError, match=r"sizes 864 × 48, 864 × 96, 864 × 192: expected one size"):
        frozen(jumps, alt, margin=MARGINS)


def test_too_many_bytes_are_told_with_what_to_do(frozen, monkeypatch):
    _, frames, _ = frozen(draw, alt, margin=MARGINS)
    size = sum(len(base64.b64decode(picture)) for picture in frames["frames"])
    monkeypatch.setattr(controls, "BYTES", size)
    frozen(draw, alt, margin=MARGINS)
    monkeypatch.setattr(controls, "BYTES", size - 1)
    with pytest.raises(CompanionError, match=r"3 pictures .* Give fewer values, fewer `colors`"):
        frozen(draw, alt, margin=MARGINS)


def test_the_runner_asks_for_all_pictures_only_of_a_notebook_that_it_stores(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(execute, "execute", lambda *_: seen.append(controls.freezing()) or [])
    monkeypatch.setattr(execute, "normalise", lambda _: None)
    monkeypatch.setattr(execute.os, "replace", lambda *_: None)
    for name in ("CONTRASTIVE_FRAMES", "CONTRASTIVE_PROFILE"):
        monkeypatch.setenv(name, "")  # and so set back afterwards
    for more in ([], ["--freeze"]):
        monkeypatch.setattr("sys.argv", ["execute", str(tmp_path / "one.ipynb"), "--profile", "smoke", *more])
        assert execute.main() == 0
    assert seen == [False, True]


@pytest.mark.parametrize(("kernel", "told", "live"), [(True, "", True), (True, "off", False), (False, "", False)])
def test_only_a_kernel_without_a_runner_is_live(monkeypatch, kernel, told, live):
    monkeypatch.setattr(progress, "_in_notebook", lambda: kernel)
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", told)
    assert progress.live() is live
