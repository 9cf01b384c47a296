"""How every figure looks, and the plots that two notebooks share."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.claims import over_seeds

PALETTE = sns.color_palette("colorblind")
VERDICT_COLORS = {"reproduced": PALETTE[2], "partly": PALETTE[1], "not reproduced": PALETTE[3]}
WIDTH = 9.0  # inches: the width of a notebook's text


def panels(columns: int = 1, rows: int = 1, *, height: float = 3.4, **options) -> tuple[Figure, np.ndarray]:
    """A figure of text width with ``rows`` × ``columns`` axes in the shared style; axes as a flat array."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, font_scale=0.85)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False, **options
    )
    return figure, axes.ravel()


def show(figure: Figure, alt: str) -> None:
    """Display a finished figure with a text for those who do not see it, and close it.

    Args:
        figure: what :func:`panels` returned.
        alt: what the figure shows, in a sentence or two.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=96)
    plt.close(figure)
    display(Image(buffer.getvalue(), alt=alt))


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
