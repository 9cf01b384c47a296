"""How fast, and in how much memory: the losses here against the libraries in use. ``python -m companion.bench``.

Each contender does one forward and backward pass of the same loss on the same n pairs of 128-dimensional embeddings.
Peak memory is taken in a process of its own; times are taken in rounds, every contender once a round, so that whatever
else the machine does falls on all of them alike. What is reported of times are ratios within a round: their median, and
their range over the rounds.
"""

import argparse
import contextlib
import ctypes
import json
import math
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from companion import paths, store
from companion.bench import report
from companion.bench.contenders import CONTENDERS, DIMENSION, OURS, TILE
from companion.bench.report import AUTO, DENSE, FLOOR, TILED, USUAL
from companion.errors import CompanionError, whole
from companion.training import progress

SIZES = {"cpu": tuple(2**k for k in range(4, 14)), "cuda": tuple(2**k for k in range(10, 19))}
LARGE = {"cpu": 50_000, "cuda": 500_000}  # instances, of this package's NT-Xent alone, once
EXACT = {"cpu": 4096, "cuda": 65_536}  # most instances of which the gradient is held against float64
PATIENCE = 30.0  # seconds: a contender whose next size would take longer for one pass is not asked
OURS_AND_USUAL = (FLOOR, AUTO, TILED, DENSE, USUAL)  # whose failure is a fault; a library may not suit the machine
TURN = 0.05  # seconds that a turn of a contender takes at least: single passes of small batches scatter too much


def embeddings(n: int, device: str, autocast: bool) -> tuple[Tensor, Tensor]:
    """Two (n, 128) leaves; in bfloat16 under autocast, as a projector would hand them over."""
    generator = torch.Generator().manual_seed(n)
    u, v = torch.randn(2, n, DIMENSION, generator=generator).to(device, torch.bfloat16 if autocast else torch.float32)
    return u.requires_grad_(), v.requires_grad_()


def seconds(function, inputs: tuple[Tensor, Tensor], device: str, autocast: bool) -> float:
    """Time of one forward and backward pass."""
    for x in inputs:
        x.grad = None
    synchronise(device)
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        value = function(*inputs)
    if value is not None:
        value.backward()
    synchronise(device)
    return time.perf_counter() - start


def trial(loss: str, contender: str, sizes: list[int], device: str, autocast: bool, threads: int) -> dict:
    """Peak memory and a first time of one contender over growing n, in a process of its own.

    Returns:
        n → {"seconds", "bytes"}, as far as patience and memory reach; bytes above what the process held before, or
        None where the operating system does not tell. The largest n up to ``EXACT`` has the "error" of the gradient
        too, by :func:`error`. A contender that is not installed gives {}; a library that fails, what it did before.
    """
    torch.set_num_threads(threads)
    found = {}
    with left_out_if_it_fails(f"{contender}, {loss}", contender not in OURS_AND_USUAL):
        _try(found, loss, contender, sizes, device, autocast)
    return found


def _try(found: dict, loss: str, contender: str, sizes: list[int], device: str, autocast: bool) -> None:
    try:
        function = CONTENDERS[loss][contender](device)
    except ImportError:
        return
    seconds(function, embeddings(8, device, autocast), device, autocast)  # loads what is loaded at the first call
    for n in sizes:
        inputs = embeddings(n, device, autocast)
        try:
            before = _reset_peak(device)
            elapsed = seconds(function, inputs, device, autocast)
            if device == "cuda":  # the first pass of a size may have compiled kernels for it
                elapsed = seconds(function, inputs, device, autocast)
            held = None if before is None else max(0, _peak(device) - before)
        except torch.OutOfMemoryError:
            break
        found[n] = {"seconds": elapsed, "bytes": held}
        later = [size for size in sizes if size > n]
        if later and (
            _extrapolate(found, "seconds", later[0]) > PATIENCE
            or _extrapolate(found, "bytes", later[0]) > 0.8 * _available(device)
        ):
            break
    if exact := [n for n in found if n <= EXACT[device]]:  # last, for what it allocates would hide later peaks
        inputs = embeddings(max(exact), device, autocast)
        seconds(function, inputs, device, autocast)
        if inputs[0].grad is not None:
            found[max(exact)]["error"] = error(loss, inputs)


@contextlib.contextmanager
def left_out_if_it_fails(what: str, optional: bool) -> Iterator[None]:
    """What fails inside is told, and no more, if it is ``optional``: the others are measured."""
    try:
        yield
    except Exception as error:
        if not optional:
            raise
        print(f"{what}: left out, for it failed here: {type(error).__name__}: {error}", file=sys.stderr)


def error(loss: str, inputs: tuple[Tensor, Tensor]) -> float:
    """Of the gradient that ``inputs`` hold: its distance from that of this package in float64, over the latter's
    length."""
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = torch.cat(torch.autograd.grad(OURS[loss](*doubles), doubles))
    return ((torch.cat([x.grad for x in inputs]) - exact).norm() / exact.norm()).item()


def _extrapolate(found: dict, key: str, n: int) -> float:
    """What the next n will take, by the power law of the last two; after the first, by n³."""
    (n1, first), (n2, last) = ([(2, {key: 0}), *found.items()])[-2:]
    grows = bool(first[key] and last[key])
    power = math.log(last[key] / first[key]) / math.log(n2 / n1) if grows else 3
    return (last[key] or 0) * (n / n2) ** min(max(power, 1), 3)


def race(loss: str, trials: dict, n: int, device: str, autocast: bool) -> dict[str, list[float]]:
    """Times of a pass of every contender that can do n, in rounds: the median of its passes in a round."""
    field = {name: CONTENDERS[loss][name](device) for name, found in trials.items() if n in found}
    round_trip = sum(trials[name][n]["seconds"] for name in field)
    rounds = max(4, min(15, int(PATIENCE / max(round_trip, 1e-3))))
    inputs = embeddings(n, device, autocast)
    passes = {name: max(1, round(TURN / trials[name][n]["seconds"])) for name in field}
    times = {name: [] for name in field}
    for number in range(1 + rounds):  # the first one warms up
        for name in [*times]:
            with left_out_if_it_fails(f"{name}, {loss}, n = {n}", name not in OURS_AND_USUAL):
                turn = [seconds(field[name], inputs, device, autocast) for _ in range(passes[name])]
                times[name] += [statistics.median(turn)] if number else []
                continue
            del times[name]
    if device == "cuda":  # the next contender is tried in a process of its own, beside this one
        del inputs
        torch.cuda.empty_cache()
    return times


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark, write ``results/bench/<device>.{json,md,png}``, print the table, return the table's path."""
    parser = argparse.ArgumentParser(prog="python -m companion.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 embeddings, under bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--sizes", type=int, nargs="+", help="instances n, growing")
    parser.add_argument("--large", type=int, help="n of the one large run; 0 leaves it out")
    chosen = parsed(parser, arguments)
    sizes = sorted(chosen.sizes or SIZES[chosen.device])
    if sizes[0] < 2:
        raise CompanionError(f"--sizes holds {sizes[0]}: expected at least 2 instances.")
    large = LARGE[chosen.device] if chosen.large is None else chosen.large
    where = (chosen.device, chosen.autocast)
    torch.set_num_threads(whole(chosen.threads, "--threads", least=1))

    results = {
        "machine": machine(chosen.device, chosen.threads)
        | {"dtype": "bfloat16 autocast" if chosen.autocast else "float32", "tile": TILE[chosen.device], "d": DIMENSION},
        "trials": {},
        "times": {},
        "large": {},
    }
    name = chosen.device + ("-autocast" if chosen.autocast else "")

    def tried(loss: str, contender: str, sizes: list[int]) -> dict:
        """A trial in a new process: what one contender leaves behind is not charged to the next."""
        fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with fresh, left_out_if_it_fails(f"{contender}, {loss}", contender not in OURS_AND_USUAL):
            return fresh.submit(trial, loss, contender, sizes, *where, chosen.threads).result()
        return {}

    steps = sum(len(contenders) + len(sizes) for contenders in CONTENDERS.values()) + bool(large)
    with progress.bar(steps, "bench", "step") as bar:
        for loss, contenders in CONTENDERS.items():
            trials = results["trials"][loss] = {}
            for contender in contenders:
                trials[contender] = tried(loss, contender, sizes)
                bar.update()
            times = results["times"][loss] = {}
            for n in sizes:
                times[n] = race(loss, trials, n, *where)
                bar.update()
            _stored(name, results)  # so that who is stopped has the losses before
        if large:
            results["large"] = tried("nt_xent", AUTO, [large])
            bar.update()
    results["goals"] = report.goals(results) if where == ("cpu", False) and chosen.threads == 1 else []

    path = written(name, results, report.table(results))
    report.figure(results, path.with_suffix(".png"))
    return path


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of a benchmark, whose device is there.

    Raises:
        CompanionError: if it is not.
    """
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise CompanionError("--device cuda: torch sees no CUDA device here. Leave the option out for the CPU.")
    return chosen


def written(name: str, results: dict, table: str) -> Path:
    """Write the results as JSON, and their table, which is printed too; return the table's path."""
    path = _stored(name, results).with_suffix(".md")
    store.write(path, table)
    print(table)
    return path


def _stored(name: str, results: dict) -> Path:
    """Write the results as JSON; return the path."""
    path = paths.results() / "bench" / f"{name}.json"
    store.write(path, json.dumps(results, indent=1))
    return path


def machine(device: str, threads: int) -> dict:
    """What it ran on."""
    name = platform.processor() or platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {"name": name, "threads": threads, "torch": torch.__version__}


def synchronise(device: str) -> None:
    """Wait for the device, so that what it was asked for is in the time."""
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int | None:
    """Start a new peak; return the bytes held now, None where the operating system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):  # what glibc keeps of smaller n would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    """Bytes, from Linux's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _available(device: str) -> float:
    """Bytes that a process may still take: beyond them a CPU's contender would be killed, a GPU's is caught."""
    with contextlib.suppress(OSError, StopIteration):
        if device == "cpu":
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return float("inf")
