"""How many trainings one device takes at once: views a second of all of them. ``python -m companion.bench.together``.

A small network on a small batch does not fill a GPU, and is not worth a second thread of a CPU. So several runs may
share a device: in processes of their own, as ``make reproduce JOBS=n`` has it (on CUDA they run side by side if
NVIDIA's MPS daemon is there, and take turns if not), in one process on a CUDA stream each, or as one run of networks
stacked by ``torch.func`` and ``torch.vmap``. All train the same network on batches of the same size, an epoch each in
turns; what is reported are ratios within a round.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.func import functional_call, grad, stack_module_state

from companion import losses
from companion.bench.measure import left_out_if_it_fails, parsed, synchronise, written
from companion.bench.report import ratios, spread
from companion.bench.training import config_of, described, network, noise, steps_of, views_of
from companion.errors import CompanionError, command, whole
from companion.training import Config
from companion.training.loop import optimizer_of
from companion.training.methods import Batch
from companion.training.processes import alone
from companion.training.progress import bar

ONE, THREADS, PROCESSES = "one run", "one run, all threads", "a process each"
STREAMS, STACKED = "a stream each", "stacked by vmap"
STEPS = {"cpu": 60, "cuda": 200}  # of a round, and a run
PATIENCE = 300  # seconds that processes are waited for


def one(config: Config, steps: int) -> Callable[[], int]:
    """What trains ``steps`` batches when it is called, and returns how many those were; so do the others below."""
    fabric = alone(config)
    images = noise(config, steps)
    epoch = steps_of(config, fabric, images, views_of(config, fabric, images).batches)

    def train() -> int:
        taken = sum(1 for _ in epoch())
        synchronise(fabric.device.type)
        return taken

    return train


def by_streams(config: Config, steps: int, runs: int) -> Callable[[], int]:
    """The same of several runs in this process, a step of each in turn; on CUDA each has a stream."""
    fabric = alone(config)
    images, on_cuda = noise(config, steps), fabric.device.type == "cuda"
    epochs = [steps_of(config, fabric, images, views_of(config, fabric, images).batches) for _ in range(runs)]
    streams = [torch.cuda.Stream() if on_cuda else None for _ in range(runs)]
    synchronise(fabric.device.type)  # what was made on the stream in use is used on others

    def train() -> int:
        steps_of_each, taken = [epoch() for epoch in epochs], 0
        for _ in range(steps):
            for stream, its in zip(streams, steps_of_each, strict=True):
                with torch.cuda.stream(stream):  # None: the one in use
                    next(its)
                taken += 1
        synchronise(fabric.device.type)
        return taken

    return train


class _Loss(nn.Module):
    """A method whose forward pass is its loss, which is what torch.func calls; its precision does not reach the
    backward pass."""

    def __init__(self, method, fabric: Fabric):
        super().__init__()
        self.method, self.autocast = method, fabric.autocast
        for module in method.modules():  # under vmap torch's batch norm takes no other precision than its weights'
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(lambda module, inputs: tuple(x.float() for x in inputs))

    def forward(self, *batch):
        with losses.plain(), self.autocast():
            return self.method.loss(Batch(*batch))


def stacked(config: Config, steps: int, runs: int) -> Callable[[], int]:
    """The same of several runs as one: their parameters are stacked, and one step trains all."""
    fabric = alone(config)
    images, device = noise(config, steps), fabric.device
    modules = [_Loss(network(config, images).to(device), fabric).train() for _ in range(runs)]
    parameters, buffers = stack_module_state(modules)
    base = modules[0]
    owner = nn.Module()  # for the optimiser, which asks a module for its parameters
    owner.stack = nn.ParameterList(parameters.values())
    parameters = dict(zip(parameters, owner.stack, strict=True))
    optimizer = optimizer_of(owner, config)
    slopes = torch.vmap(grad(lambda own, state, *batch: functional_call(base, (own, state), batch)))
    sources, epochs = [views_of(config, fabric, images) for _ in range(runs)], itertools.count()

    def train() -> int:
        number, taken = next(epochs), 0
        for batches in zip(*(source.batches(number) for source in sources), strict=True):
            found = slopes(parameters, buffers, *(torch.stack(parts) for parts in zip(*batches, strict=True)))
            for name, parameter in parameters.items():
                parameter.grad = found[name]
            optimizer.step()
            taken += runs
        synchronise(device.type)
        return taken

    return train


@contextlib.contextmanager
def by_processes(config: Config, steps: int, runs: int) -> Iterator[Callable[[], int]]:
    """The same of several runs, each in a process with one thread, which live as long as the context.

    Raises:
        CompanionError: by what it yields, if one of them has died.
    """
    spawn = multiprocessing.get_context("spawn")
    gate, taken = spawn.Barrier(runs + 1), spawn.Value("q", 0)
    workers = [spawn.Process(target=_worker, args=(config, steps, gate, taken), daemon=True) for _ in range(runs)]
    for worker in workers:
        worker.start()

    def train() -> int:
        before = taken.value
        try:
            for _ in range(2):  # start and end of an epoch
                gate.wait(PATIENCE)
        except threading.BrokenBarrierError as error:
            raise CompanionError(
                f"One of {runs} processes that train at once has died or hangs: is there memory for so many? Ask for "
                "fewer by --runs."
            ) from error
        return taken.value - before

    try:
        yield train
    finally:
        gate.abort()
        for worker in workers:
            worker.join(10)
            worker.kill()


def _worker(config: Config, steps: int, gate, taken) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    try:
        train = one(config, steps)
        while True:
            gate.wait()
            steps_taken = train()
            with taken.get_lock():
                taken.value += steps_taken
            gate.wait()
    except threading.BrokenBarrierError:
        return  # it is over
    except BaseException:
        gate.abort()
        raise


def measure(config: Config, steps: int, runs: int, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of every contender's epochs, by name, the first of which is left out: it warms up. So is one that fails
    in it, if one run alone does not."""
    with by_processes(config, steps, runs) as processes:
        made = {ONE: (lambda: one(config, steps), 1), PROCESSES: (lambda: processes, 1)}
        if config.accelerator == "cuda":
            made[STREAMS] = (lambda: by_streams(config, steps, runs), 1)
        elif threads > 1:
            made[THREADS] = (lambda: one(config, steps), threads)
        made[STACKED] = (lambda: stacked(config, steps, runs), threads)
        field = {}
        for name, (make, its_threads) in made.items():
            torch.set_num_threads(its_threads)
            with left_out_if_it_fails(name, name != ONE):
                train = make()
                train()
                field[name] = train, its_threads
        times: dict[str, list[float]] = {name: [] for name in field}
        with bar(rounds * len(field), "bench", "epoch") as progress:
            for _ in range(rounds):
                for name, (train, its_threads) in field.items():
                    torch.set_num_threads(its_threads)
                    start = time.perf_counter()
                    train()
                    times[name].append(time.perf_counter() - start)
                    progress.update()
    return times


def table(results: dict) -> str:
    """The results in Markdown."""
    times, runs = results["times"], results["runs"]
    lines = [
        "# Benchmark: several trainings at once",
        "",
        "{name}, torch {torch}; {encoder}, images of {image_size}×{image_size} pixels in batches of {batch_size}, "
        "precision {precision}.".format(**results["machine"]),
        "",
        "| runs at once | views a second, of all | times as many as of one run |",
        "|---|---|---|",
    ]
    for name, rounds in times.items():
        count = 1 if name in (ONE, THREADS) else runs
        rate = count * results["views"] / statistics.median(rounds)
        many = [count * x for x in ratios(times, ONE, name)]
        lines.append(f"| {name if count == 1 else f'{runs}: {name}'} | {rate:,.0f} | {spread(many)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark, write ``results/bench/together-<device>.{json,md}``, print the table, return its path."""
    parser = argparse.ArgumentParser(prog="python -m companion.bench.together", description="Several runs at once.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, help="runs at once (default: the cores of a CPU, 4 on CUDA)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    chosen = parsed(parser, arguments)
    threads = len(os.sched_getaffinity(0))
    runs = {"cpu": max(2, threads), "cuda": 4}[chosen.device] if chosen.runs is None else chosen.runs
    runs, rounds = whole(runs, "--runs", least=2), whole(chosen.rounds, "--rounds", least=1)
    steps = STEPS[chosen.device]
    config = config_of(chosen.device, steps, chosen.batch_size)
    before = torch.get_num_threads()
    torch.backends.cudnn.benchmark = True  # as in every training
    try:
        times = measure(config, steps, runs, rounds, threads)
    finally:
        torch.set_num_threads(before)
    results = {
        "machine": described(config, threads),
        "runs": runs,
        "views": 2 * steps * config.batch_size,
        "times": times,
    }
    return written(f"together-{chosen.device}", results, table(results))


if __name__ == "__main__":
    sys.exit(command(main)())
