"""How fast, and in how much memory: the losses here against the libraries in use. ``python -m companion.bench``.

Each contender does one forward and backward pass of the same loss on the same n pairs of 128-dimensional embeddings.
Peak memory is taken in a process of its own; times are taken in rounds, every contender once a round, so that whatever
else the machine does falls on all of them alike. What is reported of times are ratios within a round: their median, and
their range over the rounds.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from companion import losses, paths, progress, store
from companion.errors import CompanionError

TEMPERATURE, DIMENSION = 0.2, 128
TILE = {"cpu": 512, "cuda": 8192}
SIZES = {"cpu": (128, 256, 512, 1024, 2048, 4096, 8192), "cuda": (1024, 2048, 4096, 8192, 16384, 32768, 65536)}
LARGE = {"cpu": 50_000, "cuda": 500_000}  # instances, tiled only, once
PATIENCE = 12.0  # seconds: a contender whose next size would take longer is not asked


def usual_formula(u: Tensor, v: Tensor) -> Tensor:
    """NT-Xent as most repositories write it: exponentials, masks, a ratio, its logarithm."""
    z = F.normalize(torch.cat([u, v]), dim=1)
    exponentials = torch.exp(z @ z.T / TEMPERATURE)
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = torch.exp((z * z.roll(len(u), dims=0)).sum(dim=1) / TEMPERATURE)
    return -torch.log(positives / (exponentials * others).sum(dim=1)).mean()


def _products(a: Tensor, b: Tensor) -> None:
    """The matrix products that any dense form needs, and nothing else: S = a bᵀ, and with S for the slopes, S b, Sᵀ a."""
    with torch.no_grad():
        s = a @ b.T
        _ = s @ b, s.T @ a


def _pytorch_metric_learning(device: str):
    oracle = importlib.import_module("pytorch_metric_learning.losses").NTXentLoss(temperature=TEMPERATURE)
    return lambda u, v: oracle(torch.cat([u, v]), torch.arange(len(u), device=u.device).repeat(2))


def _open_clip(device: str):
    oracle = importlib.import_module("open_clip.loss").ClipLoss()
    scale = torch.tensor(1 / TEMPERATURE, device=device)
    return lambda u, v: oracle(F.normalize(u, dim=1), F.normalize(v, dim=1), scale)


# loss → contender → device → function of u and v; the three products are the floor that the others are held against
CONTENDERS = {
    "nt_xent": {
        "three products": lambda device: lambda u, v: _products(torch.cat([u, v]), torch.cat([u, v])),
        "companion, tiled": lambda device: (
            lambda u, v: losses.nt_xent(u, v, temperature=TEMPERATURE, tile=TILE[device])
        ),
        "companion, dense": lambda device: lambda u, v: losses.nt_xent(u, v, temperature=TEMPERATURE),
        "usual formula": lambda device: usual_formula,
        "lightly": lambda device: importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE),
        "pytorch-metric-learning": _pytorch_metric_learning,
    },
    "clip": {
        "three products": lambda device: _products,
        "companion, tiled": lambda device: lambda u, v: losses.clip(u, v, temperature=TEMPERATURE, tile=TILE[device]),
        "companion, dense": lambda device: lambda u, v: losses.clip(u, v, temperature=TEMPERATURE),
        "open_clip": _open_clip,
    },
}


def embeddings(n: int, device: str, autocast: bool) -> tuple[Tensor, Tensor]:
    """Two (n, 128) leaves; in bfloat16 under autocast, as a projector would hand them over."""
    generator = torch.Generator().manual_seed(n)
    u, v = torch.randn(2, n, DIMENSION, generator=generator).to(device, torch.bfloat16 if autocast else torch.float32)
    return u.requires_grad_(), v.requires_grad_()


def seconds(function, inputs: tuple[Tensor, Tensor], device: str, autocast: bool) -> float:
    """Time of one forward and backward pass."""
    for x in inputs:
        x.grad = None
    _synchronise(device)
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        value = function(*inputs)
    if value is not None:
        value.backward()
    _synchronise(device)
    return time.perf_counter() - start


def trial(loss: str, contender: str, sizes: list[int], device: str, autocast: bool, threads: int) -> dict:
    """Peak memory and a first time of one contender over growing n, in a process of its own.

    Returns:
        n → {"seconds", "bytes"}, as far as patience and memory reach; bytes above what the process held before, or
        None where the operating system does not tell. A contender that is not installed gives {}.
    """
    torch.set_num_threads(threads)
    try:
        function = CONTENDERS[loss][contender](device)
    except ImportError:
        return {}
    found = {}
    seconds(function, embeddings(8, device, autocast), device, autocast)  # loads what is loaded at the first call
    for n in sizes:
        inputs = embeddings(n, device, autocast)
        try:
            before = _reset_peak(device)
            elapsed = seconds(function, inputs, device, autocast)
            peak = _peak(device)
        except torch.OutOfMemoryError:
            break
        found[n] = {"seconds": elapsed, "bytes": None if peak is None else max(0, peak - before)}
        if 8 * elapsed > 2 * PATIENCE or 5 * (found[n]["bytes"] or 0) > _available(device):
            break
    return found


def race(loss: str, trials: dict, n: int, device: str, autocast: bool) -> dict[str, list[float]]:
    """Times of every contender that can do n, in rounds."""
    field = {name: CONTENDERS[loss][name](device) for name, found in trials.items() if n in found}
    slowest = sum(trials[name][n]["seconds"] for name in field)
    rounds = max(3, min(15, int(2 * PATIENCE / max(slowest, 1e-3))))
    inputs = embeddings(n, device, autocast)
    times = {name: [] for name in field}
    for warm in [False] + [True] * rounds:
        for name, function in field.items():
            elapsed = seconds(function, inputs, device, autocast)
            if warm:
                times[name].append(elapsed)
    return times


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
    hold("n = 4,096: at least 6 times as fast as lightly", ratios(at, "lightly", "companion, tiled"), lambda x: x >= 6)
    hold(
        "n = 4,096: no slower than the three products alone",
        ratios(at, "companion, tiled", "three products"),
        lambda x: x <= 1,
    )
    for n, row in times.items():
        if n >= 512:
            measured = ratios(row, "companion, tiled", "companion, dense")
            hold(f"n = {n:,}: tiled no slower than dense", measured, lambda x: x <= 1)
    for n, found in results["large"].items():
        if found["bytes"] is not None:
            size = found["bytes"] / 2**30
            row = {"goal": f"n = {n:,}: at most 2 GB peak", "measured": f"{size:.2f} GB in {found['seconds']:.0f} s"}
            rows.append({**row, "met": size <= 2})
    return rows


def table(results: dict) -> str:
    """The results in Markdown."""
    device = results["machine"]
    lines = [
        "# Benchmark: forward and backward of one loss",
        "",
        f"{device['name']}, {device['threads']} thread(s), torch {device['torch']}, {device['dtype']}, d = {DIMENSION}, "
        f"tiles of {device['tile']}. Times are ratios to the three matrix products that a dense form needs (their own "
        "time in the second column): median over rounds, and range. Memory is the peak above the inputs.",
    ]
    for loss, by_size in results["times"].items():
        names = [name for name in CONTENDERS[loss] if any(name in times for times in by_size.values())]
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
    """Time against the floor, and peak memory, of NT-Xent over n."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = list(CONTENDERS["nt_xent"])
    colors = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    with plt.style.context("seaborn-v0_8-whitegrid"):
        chart, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for name in names:
            found = {n: t for n, times in results["times"]["nt_xent"].items() if (t := ratios(times, name, names[0]))}
            middle = [statistics.median(t) for t in found.values()]
            left.plot(list(found), middle, "o-", color=colors[name], label=name)
            left.fill_between(
                list(found), *zip(*[(min(t), max(t)) for t in found.values()]), color=colors[name], alpha=0.2
            )
            memory = {n: x["bytes"] for n, x in results["trials"]["nt_xent"][name].items() if x["bytes"]}
            right.plot(list(memory), [x / 2**20 for x in memory.values()], "o-", color=colors[name])
        left.set(title="Time of NT-Xent, forward and backward", ylabel="times the three matrix products alone")
        right.set(title="Peak memory above the inputs", ylabel="MiB")
        for axes in (left, right):
            axes.set(xlabel="instances n (2n views)", xscale="log", yscale="log")
        left.legend(fontsize="small")
        chart.savefig(path, dpi=150)
        plt.close(chart)


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark, write ``results/bench/<device>.{json,md,png}``, print the table, return the table's path."""
    parser = argparse.ArgumentParser(prog="python -m companion.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 embeddings, under bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--sizes", type=int, nargs="+", help="instances n, growing")
    parser.add_argument("--large", type=int, help="n of the one large tiled run; 0 leaves it out")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise CompanionError("--device cuda: torch sees no CUDA device here. Leave the option out for the CPU.")
    sizes = sorted(chosen.sizes or SIZES[chosen.device])
    if sizes[0] < 2:
        raise CompanionError(f"--sizes holds {sizes[0]}: expected at least 2 instances.")
    large = LARGE[chosen.device] if chosen.large is None else chosen.large
    where = (chosen.device, chosen.autocast)
    torch.set_num_threads(chosen.threads)

    tasks = [(loss, contender, sizes) for loss, contenders in CONTENDERS.items() for contender in contenders]
    tasks += [("nt_xent", "companion, tiled", [large])] if large else []
    steps = len(tasks) + len(sizes) * len(CONTENDERS)
    found = []
    with progress.bar(steps, "bench", "step") as bar:
        for task in tasks:  # a new process each: what one contender leaves behind is not charged to the next
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found.append(fresh.submit(trial, *task, *where, chosen.threads).result())
            bar.update()
        results = {
            "machine": _machine(chosen),
            "trials": {loss: {} for loss in CONTENDERS},
            "times": {loss: {} for loss in CONTENDERS},
            "large": found.pop() if large else {},
        }
        for (loss, contender, _), outcome in zip(tasks, found, strict=False):
            results["trials"][loss][contender] = outcome
        for loss, trials in results["trials"].items():
            for n in sizes:
                results["times"][loss][n] = race(loss, trials, n, *where)
                bar.update()
    results["goals"] = goals(results) if where == ("cpu", False) and chosen.threads == 1 else []

    path = paths.results() / "bench" / (chosen.device + ("-autocast" if chosen.autocast else "") + ".md")
    store.write(path.with_suffix(".json"), json.dumps(results, indent=1))
    store.write(path, table(results))
    figure(results, path.with_suffix(".png"))
    print(table(results))
    return path


def _cell(results: dict, loss: str, n: int, name: str, times: dict) -> str:
    if not times.get(name):
        return "—"
    measured = ratios(times, name, "three products")
    floor = name == "three products" or not measured
    cell = f"{statistics.median(times[name]) * 1e3:.1f} ms" if floor else _spread(measured)
    size = results["trials"][loss][name][n]["bytes"]
    return cell if size is None or name == "three products" else f"{cell}, {size / 2**20:,.0f} MiB"


def _spread(measured: list[float]) -> str:
    return f"{statistics.median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})"


def _machine(chosen: argparse.Namespace) -> dict:
    name = platform.processor() or platform.machine()
    if chosen.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    dtype = "bfloat16 autocast" if chosen.autocast else "float32"
    tile, cores = TILE[chosen.device], os.cpu_count()
    return {
        "name": name, "cores": cores, "threads": chosen.threads, "torch": torch.__version__, "dtype": dtype, "tile": tile
    }  # fmt: skip


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int:
    """Start a new peak; return the bytes held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or 0


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int | None:
    """Bytes, from Linux's own account of this process; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _available(device: str) -> float:
    """Bytes that a process may still take: beyond them a CPU's contender would be killed, a GPU's is caught."""
    with contextlib.suppress(OSError, StopIteration):
        if device == "cpu":
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return float("inf")


if __name__ == "__main__":
    main()
