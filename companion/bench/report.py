"""What the benchmark found, as goals, a table and a figure. See :mod:`companion.bench`."""

import io
import statistics
from pathlib import Path

from companion import store
from companion.errors import extra

FLOOR, AUTO, TILED, DENSE = "three products", "companion", "companion, tiled", "companion, dense"
USUAL = "usual formula"
EQUAL = 1.05  # as slow as another, or faster: two contenders that do the same differ by that much


def ratios(times: dict[str, list[float]], above: str, below: str) -> list[float] | None:
    """Round by round, how many times as long `above` took as `below`; None if either did not run."""
    if not times.get(above) or not times.get(below):
        return None
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def goals(results: dict) -> list[dict]:
    """What the losses are to reach on one CPU core: the statement, what was measured, and whether it holds."""
    rows = []

    def hold(statement: str, measured: list[float] | None, holds) -> None:
        if measured:
            rows.append({"goal": statement, "measured": spread(measured), "met": holds(measured)})

    for loss, other, times_as_fast, at_least in (("nt_xent", "lightly", 7, 6), ("clip", "open_clip", 3, 2.5)):
        hold(
            f"`{loss}`, n = 4,096: {times_as_fast} times as fast as {other}, in every round {at_least} times",
            ratios(results["times"].get(loss, {}).get(4096, {}), other, AUTO),
            lambda x, goal=times_as_fast, least=at_least: statistics.median(x) >= goal and min(x) >= least,
        )
    nt_xent = results["times"].get("nt_xent", {}).get(4096, {})
    hold(
        "`nt_xent`, n = 4,096: no slower than the three products alone",
        ratios(nt_xent, AUTO, FLOOR), lambda x: statistics.median(x) <= 1,
    )  # fmt: skip
    for loss, by_size in results["times"].items():
        for n, times in by_size.items():
            others = [times[name] for name in (TILED, DENSE, USUAL) if times.get(name)]
            fastest = [min(rounds) for rounds in zip(*others, strict=True)]
            hold(
                f"`{loss}`, n = {n:,}: no slower than the fastest of tiled, dense and the usual formula",
                ratios(times | {"fastest": fastest}, AUTO, "fastest"), lambda x: statistics.median(x) <= EQUAL,
            )  # fmt: skip
    for n, found in results["large"].items():
        if found["bytes"] is not None:
            size = found["bytes"] / 2**30
            measured = f"{size:.2f} GiB in {found['seconds']:.0f} s"
            rows.append({"goal": f"`nt_xent`, n = {n:,}: at most 2 GiB peak", "measured": measured, "met": size <= 2})
    return rows


def table(results: dict) -> str:
    """The results in Markdown."""
    lines = [
        "# Benchmark: forward and backward of one loss",
        "",
        "{name}, {threads} thread(s), torch {torch}, {dtype}, d = {d}, tiles of {tile}. Times are ratios to the three "
        "matrix products that a dense form needs, whose own time stands in the second column: median over rounds, and "
        "range. Memory is the peak above the inputs. The error is the gradient's, relative, against float64.".format(
            **results["machine"]
        ),
    ]
    for loss, by_size in results["times"].items():
        names = [name for name in results["trials"][loss] if any(name in times for times in by_size.values())]
        lines += ["", f"## `{loss}`", "", "| n | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for n, times in by_size.items():
            cells = [_cell(results, loss, n, name, times) for name in names]
            lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
        errors = {n: [results["trials"][loss][name].get(n, {}).get("error") for name in names] for n in by_size}
        exact = [n for n, row in errors.items() if any(row)]
        if exact:
            cells = ["—" if error is None else f"{error:.0e}" for error in errors[max(exact)]]
            lines.append(f"| error at {max(exact):,} | " + " | ".join(cells) + " |")
    if results["goals"]:
        lines += ["", "## Goals", "", "| goal | measured | |", "|---|---|---|"]
        lines += [
            f"| {g['goal']} | {g['measured']} | {'met' if g['met'] else '**not met**'} |" for g in results["goals"]
        ]
    return "\n".join(lines) + "\n"


def figure(results: dict, path: Path) -> None:
    """Write a picture of NT-Xent over n: time against the floor, and peak memory."""
    with extra("course"):  # here, so that a machine without notebooks measures too
        import matplotlib.pyplot as plt

        from companion.course import figures
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
    cell = f"{statistics.median(times[name]) * 1e3:.1f} ms" if floor else spread(measured)
    size = results["trials"][loss][name][n]["bytes"]
    return cell if size is None or name == FLOOR else f"{cell}, {size / 2**20:,.0f} MiB"


def spread(measured: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})"
