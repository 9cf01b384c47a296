"""What the benchmark found, as goals, a table and a figure. See :mod:`companion.bench`."""

import io
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from companion import store
from companion.course import figures

FLOOR, TILED, DENSE = "three products", "companion, tiled", "companion, dense"


def ratios(times: dict[str, list[float]], above: str, below: str) -> list[float] | None:
    """Round by round, how many times as long `above` took as `below`; None if either did not run."""
    if not times.get(above) or not times.get(below):
        return None
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def goals(results: dict) -> list[dict]:
    """What NT-Xent on one CPU core is to reach: the statement, what was measured, and whether it holds."""
    times = results["times"]["nt_xent"]
    rows = []

    def hold(statement: str, measured: list[float] | None, holds) -> None:
        if measured:
            middle = statistics.median(measured)
            rows.append({"goal": statement, "measured": _spread(measured), "met": holds(middle)})

    at = times.get(4096, {})
    hold("n = 4,096: at least 6 times as fast as lightly", ratios(at, "lightly", TILED), lambda x: x >= 6)
    hold("n = 4,096: no slower than the three products alone", ratios(at, TILED, FLOOR), lambda x: x <= 1)
    for n, row in times.items():
        if n >= 512:
            measured = ratios(row, TILED, DENSE)
            hold(f"n = {n:,}: tiled no slower than dense", measured, lambda x: x <= 1)
    for n, found in results["large"].items():
        if found["bytes"] is not None:
            size = found["bytes"] / 2**30
            row = {"goal": f"n = {n:,}: at most 2 GiB peak", "measured": f"{size:.2f} GiB in {found['seconds']:.0f} s"}
            rows.append({**row, "met": size <= 2})
    return rows


def table(results: dict) -> str:
    """The results in Markdown."""
    lines = [
        "# Benchmark: forward and backward of one loss",
        "",
        "{name}, {threads} thread(s), torch {torch}, {dtype}, d = {d}, tiles of {tile}. Times are ratios to the three "
        "matrix products that a dense form needs, whose own time stands in the second column: median over rounds, and "
        "range. Memory is the peak above the inputs.".format(**results["machine"]),
    ]
    for loss, by_size in results["times"].items():
        names = [name for name in results["trials"][loss] if any(name in times for times in by_size.values())]
        lines += ["", f"## `{loss}`", "", "| n | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for n, times in by_size.items():
            cells = [_cell(results, loss, n, name, times) for name in names]
            lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    if results["goals"]:
        lines += ["", "## Goals", "", "| goal | measured | |", "|---|---|---|"]
        lines += [
            f"| {g['goal']} | {g['measured']} | {'met' if g['met'] else '**not met**'} |" for g in results["goals"]
        ]
    return "\n".join(lines) + "\n"


def figure(results: dict, path: Path) -> None:
    """Write a picture of NT-Xent over n: time against the floor, and peak memory."""
    chart, (left, right) = figures.panels(2, height=3.8)
    for (name, trial), color in zip(results["trials"]["nt_xent"].items(), figures.PALETTE, strict=False):
        found = {n: t for n, times in results["times"]["nt_xent"].items() if (t := ratios(times, name, FLOOR))}
        left.plot(list(found), [statistics.median(t) for t in found.values()], "o-", color=color, label=name)
        low, high = [min(t) for t in found.values()], [max(t) for t in found.values()]
        left.fill_between(list(found), low, high, color=color, alpha=0.2)
        memory = {n: x["bytes"] / 2**20 for n, x in trial.items() if x["bytes"]}
        right.plot(list(memory), list(memory.values()), "o-", color=color)
    left.set(title="Time of NT-Xent, forward and backward", ylabel="times the three matrix products alone")
    right.set(title="Peak memory above the inputs", ylabel="MiB")
    for axes in (left, right):
        axes.set(xlabel="instances n (2n views)", yscale="log")
        figures.log_axis(axes, results["times"]["nt_xent"])
    left.legend(fontsize="small")
    picture = io.BytesIO()
    chart.savefig(picture, format="png", dpi=150)
    plt.close(chart)
    store.write(path, picture.getvalue())


def _cell(results: dict, loss: str, n: int, name: str, times: dict) -> str:
    if not times.get(name):
        return "—"
    measured = ratios(times, name, FLOOR)
    floor = name == FLOOR or not measured
    cell = f"{statistics.median(times[name]) * 1e3:.1f} ms" if floor else _spread(measured)
    size = results["trials"][loss][name][n]["bytes"]
    return cell if size is None or name == FLOOR else f"{cell}, {size / 2**20:,.0f} MiB"


def _spread(measured: list[float]) -> str:
    return f"{statistics.median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})"
