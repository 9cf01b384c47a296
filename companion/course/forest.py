"""The scoreboard as a picture: one row a claim, its accepted range and what was observed, each row on a scale of its
own."""

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.course.figures import VERDICT_COLORS, WIDTH, panels
from companion.ledger import Claim, Observed
from companion.ledger.ledger import observed

ROW = 0.56  # inches: four lines of numbers
LEFT, RIGHT = 0.47, 0.72  # between them the intervals are drawn, in shares of the width


def forest(claims: list[Claim], records: dict[str, dict], recorded: dict[str, dict]) -> Figure:
    """A forest plot of the claims that have a record, or are left to the recorded runs.

    Left the statement, with its source; in the middle the accepted range in grey, this machine's value as a dot and the
    recorded one as a diamond, with their 95 % intervals; right the numbers. Every row has its own scale.

    Args:
        claims: the rows, from top to bottom; those without a record are left out.
        records: what this machine observed.
        recorded: what the recorded reference runs observed.
    """
    shown = [c for c in claims if c.id in records or (c.recorded_only and c.id in recorded)]
    figure, (axes,) = panels(height=0.7 + ROW * len(shown))
    figure.set_figwidth(WIDTH * 1.1)
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -1.0))
    for x, title in ((0.0, "claim"), (LEFT, "accepted range, 95 % intervals"), (RIGHT + 0.015, "numbers")):
        axes.text(x, -0.75, title, va="center", fontsize=8, weight="bold")
    for row, claim in enumerate(shown):
        _row(axes, row, claim, records.get(claim.id), recorded.get(claim.id))
    handles = [axes.plot([], [], "o", color=color, label=name)[0] for name, color in VERDICT_COLORS.items()]
    handles += [
        axes.plot([], [], "o", color="0.3", label="this machine")[0],
        axes.plot([], [], "D", color="0.3", label="recorded", markersize=5)[0],
        axes.plot([], [], color="0.85", linewidth=8, label="accepted")[0],
        axes.plot([], [], "|", color="black", markersize=9, label="zero")[0],
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _row(axes: Axes, row: int, claim: Claim, record: dict | None, reference: dict | None) -> None:
    here, then = (observed(r) if r else None for r in (record, reference))
    seen = [o for o in (here, then) if o]
    place = _scale(claim, seen)
    axes.axhline(row + 0.5, color="0.93", linewidth=0.8)  # where pieces.strips cuts a long plot for the site and slides
    axes.text(0, row - 0.14, _wrapped(claim.statement, 66), va="center", fontsize=7.5)
    axes.text(0, row + 0.34, f"{claim.source} · {claim.kind}", va="center", fontsize=6, color="0.45")
    ends = [place(end) if math.isfinite(end) else limit
            for end, limit in ((claim.at_least, LEFT), (claim.at_most, RIGHT))]  # fmt: skip
    axes.fill_betweenx((row - 0.3, row + 0.3), *ends, color="0.88", linewidth=0)
    axes.plot([place(0)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=0.8)
    for o, r, marker, shift in ((here, record, "o", -0.11), (then, reference, "D", 0.13)):
        if o:
            color = VERDICT_COLORS[r["verdict"]]
            axes.plot([place(o.low), place(o.high)], [row + shift] * 2, color=color, linewidth=2)
            axes.plot(place(o.value), row + shift, marker, color=color, markersize=6 if marker == "o" else 4.5)
    lines = [f"{o}, n = {o.n}{note}" for o, note in ((here, ""), (then, ", recorded")) if o]
    lines += [_wrapped(f"published: {claim.paper}", 50)] if claim.paper else []
    axes.text(RIGHT + 0.015, row, "\n".join(lines), va="center", fontsize=6.5, linespacing=1.3)


def _wrapped(text: str, width: int) -> str:
    """Lines, of which two have room in a row; an equation is not torn."""
    return "\n".join(textwrap.wrap(text.replace(" = ", "\u00a0=\u00a0"), width))


def _scale(claim: Claim, seen: list[Observed]):
    """Value → place between LEFT and RIGHT, such that zero, the ends of the range and the intervals have room."""
    points = [end for end in (claim.at_least, claim.at_most) if math.isfinite(end)] + [0.0]
    points += [x for o in seen for x in (o.low, o.high)]
    low, high = min(points), max(points)
    margin = 0.12 * ((high - low) or 1)
    low, high = low - margin, high + margin
    return lambda value: LEFT + (value - low) / (high - low) * (RIGHT - LEFT)
