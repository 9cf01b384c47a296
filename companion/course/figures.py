"""How every figure looks, and the plots that two notebooks share."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion import store
from companion.course import controls
from companion.errors import extra
from companion.ledger import NOT_LEARNT, VERDICTS, over_seeds
from companion.similarity import cosine
from companion.training import progress

with extra("course"):
    import ipywidgets
    import matplotlib.pyplot as plt
    import pandas as pd
    import PIL.Image
    import seaborn as sns
    from IPython.display import Image, Markdown, display
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = sns.color_palette("colorblind")
VERDICT_COLORS = dict(zip((*VERDICTS, NOT_LEARNT), (PALETTE[2], PALETTE[1], PALETTE[3], PALETTE[7]), strict=True))
pd.set_option("display.max_colwidth", None)  # a claim is shown whole
WIDTH = 9.0  # inches: the width of a notebook's text

EUROSAT = (
    "annual crop", "forest", "herbaceous vegetation", "highway", "industrial", "pasture", "permanent crop",
    "residential", "river", "sea or lake",
)  # fmt: skip


def class_name(dataset: str, y: int) -> str:
    """What a class is called, if we know."""
    return EUROSAT[y] if dataset.startswith("eurosat") else f"class {y}"


def panels(columns: int = 1, rows: int = 1, *, height: float = 3.4, **options) -> tuple[Figure, np.ndarray]:
    """A figure of text width with ``rows`` × ``columns`` axes in the shared style; axes as a flat array."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, font_scale=0.85)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False, **options
    )
    plt.close(figure)  # a notebook would show every open figure at the end of a cell, without its alt text
    return figure, axes.ravel()


def show(figure: Figure, alt: str, *, path: Path | None = None, colors: int = 256, place=None) -> None:
    """Display a finished figure with a text for those who do not see it, and close it.

    Args:
        figure: what :func:`panels` returned.
        alt: what the figure shows, in a sentence or two.
        path: where to write it as a PNG file too.
        colors: make do with so many, 256 at most, in a third of the bytes; fewer for large plots of lines and text.
        place: a display handle, ``display(display_id=True)``: the figure takes the place of what stood there, and so
            grows while something runs; a notebook keeps the last one. Default: below what is there.
    """
    (data,) = controls.with_few_colors([_png(figure)], colors)
    if path:
        store.write(path, data)
    (place.update if place else display)(Image(data, alt=alt))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=96)
    plt.close(figure)
    return buffer.getvalue()


def movable(draw: Callable[..., Figure], alt: str | Callable[..., str], *, colors: int = 32, **given) -> None:
    """A figure with controls to turn: live where a kernel answers, as pictures to choose from in a stored notebook.

    In a live kernel each control is a widget. When a notebook is executed to be stored, every combination of the
    controls' values is drawn, and the output holds all of them (``companion.course.controls.bundle``); the book
    makes sliders of it. Else the figure is drawn once, at its defaults, which is what all three start from.

    Keep the limits of the axes fixed, so that only what the control moves is seen to move.

    Args:
        draw: draws the figure; what can be turned are keyword arguments of it with defaults.
        alt: as for :func:`show`; or a function of the same keyword arguments that returns it for their values.
        colors: of all stored pictures together, 256 at most; fewer take fewer bytes.
        given: for each argument of ``draw``, at most two of them, its values: a list, or (low, high, step), or a text
            for a field to type in, which a stored notebook shows at its default alone.

    Raises:
        CompanionError: for more than two controls, a default that is not among the values, pictures of unequal size, or
            of more than 300 kB together.
    """
    found = controls.read(draw, given)
    words = alt if callable(alt) else lambda **_: alt

    def redraw(**values):
        show(draw(**values), words(**values))

    if progress.live():
        ipywidgets.interact(redraw, **{control.name: control.widget() for control in found})
    elif controls.freezing() and all(control.values for control in found):
        data, metadata = controls.bundle(found, lambda **values: _png(draw(**values)), words, colors)
        display(data, metadata=metadata, raw=True)
    else:
        redraw(**{control.name: control.default for control in found})


def animate(figure: Figure, draw: Callable[[int], None], frames: int, alt: str, *, seconds: float = 6) -> None:
    """Display an animation that plays anywhere, in JupyterLab, static HTML and a plain viewer alike: a looping GIF.

    Args:
        figure: what :func:`panels` returned.
        draw: draws frame number 0 … ``frames`` - 1 on the figure's axes, after clearing them.
        frames: how many; each costs some ten kilobytes.
        alt: what moves, and where it ends.
        seconds: length of one loop, with a rest of a fifth of it at the end.
    """
    images = []
    for number in range(frames):
        draw(number)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=64)
        images.append(PIL.Image.open(buffer).convert("RGB").quantize(64))
    plt.close(figure)
    step = int(800 * seconds / frames)  # milliseconds
    durations = [step] * (frames - 1) + [int(200 * seconds) + step]
    looped = io.BytesIO()
    images[0].save(looped, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    display(Image(looped.getvalue(), format="gif", alt=alt))


def log_axis(axes: Axes, ticks: Iterable[float]) -> None:
    """A logarithmic abscissa that labels ``ticks`` and nothing else."""
    ticks = sorted(set(ticks))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def mean_line(axes: Axes, table: pd.DataFrame, x: str, y: str, *, label: str = "", color=None, **options) -> None:
    """Line through the means over seeds, with a 95 % t interval as error bars.

    Args:
        axes: where to draw.
        table: one row a run, with columns ``x``, ``y``.
        x: column of the abscissa.
        y: column of the value.
        label: for the legend.
        color: of the line; default: the next of the palette.
        options: for :meth:`matplotlib.axes.Axes.errorbar`.
    """
    grouped = {key: over_seeds(values) for key, values in table.groupby(x)[y]}
    means = np.array([o.value for o in grouped.values()])
    errors = np.array([(o.value - o.low, o.high - o.value) for o in grouped.values()]).T
    options = {"marker": "o", "capsize": 3} | options
    axes.errorbar(list(grouped), means, errors, label=label, color=color, **options)


def recorded_line(axes: Axes, table: pd.DataFrame, x: str, y: str, *, label: str = "", color=None, **options) -> None:
    """The same for recorded runs: a line without markers in a band that is its 95 % t interval; nothing for no runs.

    Args:
        axes: where to draw.
        table: recorded runs, from :func:`companion.training.recorded.matching`; may be empty.
        x: column of the abscissa.
        y: column of the value.
        label: for the legend; the number of seeds is added.
        color: of line and band.
        options: for :meth:`matplotlib.axes.Axes.plot`.
    """
    if not len(table):
        return
    grouped = {key: over_seeds(values) for key, values in table.groupby(x)[y] if len(values) >= 3}
    low, high = ([getattr(o, end) for o in grouped.values()] for end in ("low", "high"))
    means, n = [o.value for o in grouped.values()], min((o.n for o in grouped.values()), default=0)
    (line,) = axes.plot(list(grouped), means, color=color, label=f"{label}, n = {n}" if label else "", **options)
    axes.fill_between(list(grouped), low, high, color=line.get_color(), alpha=0.2, linewidth=0)


BASELINES = {  # column → what stands at its line
    "supervised_accuracy": "trained with labels",
    "colours_accuracy": "colour statistics",
    "untrained_accuracy": "untrained network",
    "pixels_accuracy": "raw pixels",
}


def baseline_lines(axes: Axes, table: pd.DataFrame) -> None:
    """A dotted line, named at the left end, for every baseline of the runs in ``table``: means over them. A name
    that would lie on another stands at the right end.

    Call it last, when the limits of the axes are set.
    """
    means = sorted((table[column].mean(), name) for column, name in BASELINES.items())
    for value, _ in means:
        axes.axhline(value, color="0.35", linestyle=":", linewidth=1)
    low, high = axes.get_ylim()
    room = 11 * (high - low) / (axes.bbox.height * 72 / axes.figure.dpi)  # for a name, above the highest line
    axes.set_ylim(top=max(high, means[-1][0] + room))
    heights = axes.transData.transform([(0, value) for value, _ in means])[:, 1] * 72 / axes.figure.dpi  # points
    right = False
    for (value, name), above in zip(means, np.diff(heights, prepend=-np.inf), strict=True):
        right = above < 9 and not right
        axes.annotate(
            name, (0.98 if right else 0.02, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", ha="right" if right else "left", fontsize=7.5, color="0.35", zorder=5,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip


def baselines_in_words(table: pd.DataFrame) -> str:
    """The same as a sentence, for alt texts and for readers."""
    means = {name: table[column].mean() for column, name in BASELINES.items()}
    return "For comparison: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()) + "."


def say(markdown: str) -> None:
    """Show a sentence whose numbers come from the run, as text of the notebook."""
    display(Markdown(markdown))


def similarity_histogram(axes: Axes, u: Tensor, v: Tensor, y: Tensor) -> None:
    """Densities of the cosine similarities of positives, same-class negatives and different-class negatives.

    Args:
        axes: where to draw.
        u: (n, d) first views.
        v: (n, d) second views.
        y: (n,) class labels.
    """
    s = cosine(u, v)
    same = y[:, None] == y
    itself = torch.eye(len(y), dtype=torch.bool)
    groups = {"positives": itself, "same class": same & ~itself, "different class": ~same}
    edges = np.linspace(-1, 1, 81)
    for color, (label, members) in zip((PALETTE[2], PALETTE[1], PALETTE[0]), groups.items(), strict=True):
        axes.hist(s[members].numpy(), edges, density=True, histtype="stepfilled", alpha=0.35, color=color, label=label)
