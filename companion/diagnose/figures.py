"""Three figures of a reading as SVG text, with words for those who do not see them. Needs matplotlib.

Lines and letters are drawn in colours that stand for the page's own, so that a figure follows its light or dark theme.
"""

import io
import re
from typing import NamedTuple

import numpy as np

from companion import theory
from companion.diagnose.reading import Reading
from companion.diagnose.sums import BINS
from companion.errors import extra

# Placeholders that no figure needs → the page's custom properties.
INK, FAINT, POSITIVE, NEGATIVE = "#010203", "#040506", "#070809", "#0a0b0c"
THEME = {INK: "var(--ink)", FAINT: "var(--faint)", POSITIVE: "var(--positive)", NEGATIVE: "var(--negative)"}
SIZE = (4.7, 3.2)  # inches; as wide as a telephone, so that letters stay letters there
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "companion", "font.size": 10, "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "savefig.transparent": True,
    "axes.unicode_minus": False,
}  # fmt: skip


class Picture(NamedTuple):
    """A figure for a page."""

    title: str
    svg: str
    alt: str  #: what it shows, with its numbers


def library():
    """matplotlib.

    Raises:
        MissingExtraError: if it is not installed.
    """
    with extra("course"):
        import matplotlib
    return matplotlib


def draw(r: Reading) -> list[Picture]:
    """The histograms of similarities, the spectrum, and the plane of mean similarities with the bound.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    matplotlib = library()
    from matplotlib.figure import Figure

    pictures = []
    with matplotlib.rc_context(STYLE):
        for title, plot in (
            ("Similarities", _histograms),
            ("Singular values", _spectrum),
            ("Positives against negatives", _plane),
        ):
            figure = Figure(figsize=SIZE, layout="constrained")
            alt = plot(figure.add_subplot(), r)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            pictures.append(Picture(title, _themed(buffer.getvalue(), len(pictures)), alt))
    return pictures


def _themed(svg: str, number: int) -> str:
    svg = svg[svg.index("<svg") :]  # without the declaration, as a page wants it
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for colour, name in THEME.items():
        svg = svg.replace(colour, name)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>f{number}-", svg)  # ids of one page differ
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _histograms(axes, r: Reading) -> str:
    edges = np.linspace(-1, 1, BINS + 1)
    positive, negative = (np.array(h, dtype=float) for h in r.histogram)
    met = np.flatnonzero(positive + negative)
    low, high = met[0], met[-1] + 1
    step = max(1, (high - low) // 60)  # some sixty bars where there is something to see
    low, high = max(0, low - step), min(BINS, high + step)
    starts = np.arange(low, high, step)
    bounds = np.append(edges[starts], edges[min(BINS, starts[-1] + step)])
    for counts, colour, label in ((negative, NEGATIVE, "negatives"), (positive, POSITIVE, "positives")):
        heights = np.add.reduceat(np.append(counts[:high], 0), starts) / counts.sum() / np.diff(bounds)
        axes.stairs(heights, bounds, fill=True, color=colour, alpha=0.45)
        axes.stairs(heights, bounds, color=colour, linewidth=1.5, label=label)
    seen = bounds[0] <= r.simplex <= bounds[-1]
    if seen:
        axes.axvline(r.simplex, color=INK, linestyle=":", linewidth=1, label="-1/(n-1)")
    axes.set(xlabel="cosine similarity", ylabel="density", xlim=(bounds[0], bounds[-1]))
    axes.legend(fontsize=9)
    return (
        f"Densities of cosine similarities. Positives: mean {r.positive.mean:.3f}, standard deviation "
        f"{r.positive.std:.3f}. Negatives across views: mean {r.negative.mean:.3f}, standard deviation "
        f"{r.negative.std:.3f}. "
        + (
            f"A dotted line marks the simplex, {r.simplex:.3g}."
            if seen
            else f"The simplex, {r.simplex:.3g}, lies outside."
        )
    )


def _spectrum(axes, r: Reading) -> str:
    for spread, colour, label, width in ((r.u, POSITIVE, "u", 4), (r.v, NEGATIVE, "v", 1.5)):  # so that both are seen
        values = np.array(spread.singular_values)
        values[values < 1e-7] = np.nan  # the square root of rounding, no dimension
        axes.plot(np.arange(1, len(values) + 1), values, ".-", color=colour, markersize=4, linewidth=width, label=label)
        axes.axvline(spread.energy_dimensions, color=colour, linestyle="--", linewidth=width / 2)
    axes.axhline(r.dimension**-0.5, color=INK, linestyle=":", linewidth=1, label="evenly spread")
    axes.set(xlabel="number of the singular value", ylabel="singular value / √n", yscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high / 20), high)  # a decade at least, or an even spectrum looks steep
    axes.legend(fontsize=9)
    return (
        f"Singular values of u and v in falling order, on a logarithmic scale, from {r.u.singular_values[0]:.3f} and "
        f"{r.v.singular_values[0]:.3f}; evenly spread embeddings would have {r.dimension**-0.5:.3f} throughout. Dashed "
        f"lines: {r.u.energy_dimensions} of {r.dimension} dimensions carry 99 % of the energy of u, "
        f"{r.v.energy_dimensions} of v."
    )


def _plane(axes, r: Reading) -> str:
    left = min(r.simplex - 0.25, r.negative.mean - 0.1)
    grid = np.linspace(max(-1, left), min(1, max(r.simplex + 0.25, r.negative.mean + 0.1)), 200)
    ceilings = [("Eq. 7 as printed", "--", FAINT, np.minimum(1, theory.positive_bound(grid, r.pairs, sharp=False)))]
    if r.bound is not None:
        ceilings.append(("sharp bound", "-", INK, np.minimum(1, theory.positive_bound(grid, r.pairs))))
    for label, line, colour, values in ceilings:
        axes.plot(grid, values, line, color=colour, linewidth=1.3, label=label)
    axes.fill_between(grid, ceilings[-1][-1], 1.08, color=FAINT, alpha=0.25, linewidth=0)
    axes.axvline(r.simplex, color=INK, linestyle=":", linewidth=1, label="-1/(n-1)")
    axes.plot(
        r.negative.mean, r.positive.mean, "o", color=POSITIVE, markersize=8, label="these embeddings", clip_on=False
    )
    lowest = min(r.positive.mean - 0.15, 0.0, ceilings[-1][-1].min())
    axes.set(xlabel="mean negative", ylabel="mean positive", ylim=(max(-1.05, lowest), 1.08), xlim=(grid[0], grid[-1]))
    axes.legend(fontsize=9, loc="best")
    ceiling = "does not bind here" if r.bound is None or r.bound >= 1 else f"allows {r.bound:.3f} at most"
    return (
        f"The plane of mean negative and mean positive similarity. These embeddings lie at {r.negative.mean:.3f} and "
        f"{r.positive.mean:.3f}; the sharp bound of Theorem 5.2 {ceiling}. The simplex is at {r.simplex:.3g} and 1."
    )
