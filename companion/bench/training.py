"""How fast a training is: views a second, against the usual pipeline and against the network alone.
``python -m companion.bench.training``.

The contenders train one network on batches of one size with NT-Xent. They differ in where the views come
from: nowhere (one batch again and again: what the network and the loss alone take), this package's images in memory
that are augmented on the device in one pass, its images in files, and torchvision's transforms of PIL images in worker
processes, as the papers' published code has it. On a CUDA device one more trains from memory with an encoder made by
``torch.compile``, to see whether that would pay. They take turns, an epoch each, so that whatever else the machine does
falls on all of them alike; what is reported are ratios within a round.
"""

import argparse
import collections
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from companion.bench.contenders import TEMPERATURE, usual_formula
from companion.bench.measure import left_out_if_it_fails, machine, parsed, synchronise, written
from companion.bench.report import ratios, spread
from companion.errors import command, whole
from companion.training import Config, Contrastive, SimCLR
from companion.training.data import FileSplit, Split
from companion.training.loop import optimizer_of, seeded, set_up
from companion.training.methods import Batch, Method
from companion.training.processes import alone
from companion.training.progress import bar
from companion.training.sources import Views

ALONE, MEMORY, FILES, USUAL = "network alone", "companion, from memory", "companion, from files", "usual pipeline"
COMPILED = "companion, from memory, compiled"
VIEWS = SimCLR(crop_scale=0.08, jitter=0.4, grayscale=0.2)
SETTINGS = {
    "cpu": {"image_size": 16, "batch_size": 128},
    "cuda": {"image_size": 32, "batch_size": 512, "encoder": "resnet18", "precision": "bf16-mixed"},
}
STEPS = {"cpu": 30, "cuda": 100}  # of a round


class TwoCrops(Dataset):
    """Two views of each PIL image by torchvision's transforms, as most repositories write them."""

    def __init__(self, images: list[Image.Image], settings: SimCLR, size: int):
        strength = settings.jitter
        jitter = transforms.ColorJitter(strength, strength, strength, strength / 4)
        self.images, self.transform = images, transforms.Compose([
            transforms.RandomResizedCrop(size, scale=(settings.crop_scale, 1)),
            transforms.RandomHorizontalFlip(settings.flip),
            transforms.RandomApply([jitter], settings.jitter_probability),
            transforms.RandomGrayscale(settings.grayscale),
            transforms.ToTensor(),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.transform(self.images[index]), 0


def contenders(
    config: Config, steps: int, workers: int, folder: Path, *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """What trains ``steps`` batches when it is called, by name; each has a network of its own.

    Args:
        config: the network, the batch, the augmentation, the device and its precision.
        steps: batches of an epoch.
        workers: processes that read and transform PIL images; those that read files.
        folder: where files may be written.
        compiled: whether one of them compiles the encoder.
    """
    fabric = alone(config)
    images = noise(config, steps)

    def ours(batches: Callable[[int], Iterator[Batch]], compiled: bool = False) -> Callable[[], None]:
        epoch = steps_of(config, fabric, images, batches, compiled)
        return lambda: collections.deque(epoch(), maxlen=0)

    def usual() -> Callable[[], None]:
        method = network(config, images).to(fabric.device)
        model, optimizer = method.model.train(), optimizer_of(method, config)
        pil = [Image.fromarray(array) for array in np.ascontiguousarray(images.images.permute(0, 2, 3, 1))]
        on_cuda = fabric.device.type == "cuda"
        loader = DataLoader(
            TwoCrops(pil, config.augmentation, config.image_size), config.batch_size, shuffle=True, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=on_cuda,
        )  # fmt: skip
        scaler = torch.amp.GradScaler(fabric.device.type, enabled=on_cuda)

        def epoch():
            for first, second, _ in loader:
                with torch.autocast(fabric.device.type, torch.float16, enabled=on_cuda):
                    views = torch.cat([first, second]).to(fabric.device, non_blocking=True)
                    loss = usual_formula(*model(views).float().chunk(2))
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

        return epoch

    files = _written(images, folder)
    fixed = next(views_of(config, fabric, images).batches(0))
    return {
        ALONE: ours(lambda epoch: itertools.repeat(fixed, steps)),
        MEMORY: ours(views_of(config, fabric, images).batches),
        FILES: ours(views_of(config, fabric, files, workers).batches),
        USUAL: usual(),
        # Last, for the others would suffer if it failed in the middle of a graph's capture.
        **({COMPILED: ours(views_of(config, fabric, images).batches, True)} if compiled else {}),
    }


def noise(config: Config, steps: int) -> Split:
    """As many images as ``steps`` batches take: the time does not depend on what is in them."""
    shape = steps * config.batch_size, 3, config.image_size, config.image_size
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def views_of(config: Config, fabric: Fabric, images, workers: int = 0) -> Views:
    """Views of the images as the configuration has them; of files, by so many workers."""
    augmentation = config.augmentation.build(config.image_size)
    return Views(images, augmentation, config.batch_size, seed=config.seed, device=fabric.device, workers=workers)


def network(config: Config, images: Split) -> Method:
    """The same weights for all."""
    with seeded(config.seed):
        return config.method.build(config, images)


def steps_of(
    config: Config, fabric: Fabric, images: Split, batches: Callable[[int], Iterator[Batch]], compiled: bool = False
) -> Callable[[], Iterator[None]]:
    """A function that gives the steps of the next epoch, each taken when it is asked for, of a network of its own."""
    method = network(config, images).to(fabric.device, memory_format=torch.channels_last)
    method.compiled = compiled
    wrapped, optimizer, step = set_up(method, config, fabric)
    wrapped.train()
    epochs = itertools.count()

    def epoch() -> Iterator[None]:
        for batch in batches(next(epochs)):
            step(batch)
            optimizer.step()
            method.after_step()
            yield

    return epoch


def _written(images: Split, folder: Path) -> FileSplit:
    """The images as JPEG files."""
    files = [folder / f"{number}.jpg" for number in range(len(images))]
    for file, array in zip(files, np.ascontiguousarray(images.images.permute(0, 2, 3, 1)), strict=True):
        Image.fromarray(array).save(file)
    return FileSplit(np.array(files), images.labels, images.images.shape[-1])


def goals(times: dict[str, list[float]], device: str) -> list[dict]:
    """What the training is to reach on this device: the statement, what was measured, and whether it holds."""
    faster, share = ratios(times, USUAL, MEMORY), ratios(times, ALONE, MEMORY)
    least = {"cpu": 2, "cuda": 5}[device]
    return [
        {"goal": f"{least} times as fast as the usual pipeline", "measured": spread(faster),
         "met": statistics.median(faster) >= least},
        {"goal": "at least .8 of the speed of the network alone", "measured": spread(share),
         "met": statistics.median(share) >= 0.8},
    ]  # fmt: skip


def table(results: dict) -> str:
    """The results in Markdown."""
    times, views = results["times"], results["views"]
    lines = [
        "# Benchmark: training",
        "",
        "{name}, {threads} thread(s) and {workers} worker(s), torch {torch}; {encoder}, images of {image_size}×"
        "{image_size} pixels in batches of {batch_size}, precision {precision}.".format(**results["machine"]),
        "",
        "| views come from | views a second | speed, of the usual pipeline's |",
        "|---|---|---|",
    ]
    for name, rounds in times.items():
        rate = f"{views / statistics.median(rounds):,.0f}"
        lines.append(f"| {name} | {rate} | {spread(ratios(times, USUAL, name))} |")
    lines += ["", "| goal | measured | |", "|---|---|---|"]
    lines += [f"| {g['goal']} | {g['measured']} | {'met' if g['met'] else '**not met**'} |" for g in results["goals"]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> Path:
    """Run the benchmark, write ``results/bench/training-<device>.{json,md}``, print the table, return its path."""
    parser = argparse.ArgumentParser(prog="python -m companion.bench.training", description="Benchmark the training.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--workers", type=int, help="worker processes (default: as many as threads)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="one trains a compiled encoder (default: on cuda)"
    )
    chosen = parsed(parser, arguments)
    workers = chosen.threads if chosen.workers is None else whole(chosen.workers, "--workers", least=0)
    rounds, steps = whole(chosen.rounds, "--rounds", least=1), STEPS[chosen.device]
    config = config_of(chosen.device, steps, chosen.batch_size)
    before = torch.get_num_threads()
    torch.set_num_threads(whole(chosen.threads, "--threads", least=1))
    torch.backends.cudnn.benchmark = True  # as in every training
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = chosen.device == "cuda" if chosen.compiled is None else chosen.compiled
            field = warm(contenders(config, steps, workers, Path(folder), compiled=compiled))
            times = {name: [] for name in field}
            with bar(rounds * len(field), "bench", "epoch") as progress:
                for _ in range(rounds):
                    for name, epoch in field.items():
                        synchronise(chosen.device)
                        start = time.perf_counter()
                        epoch()
                        synchronise(chosen.device)
                        times[name].append(time.perf_counter() - start)
                        progress.update()
    finally:
        torch.set_num_threads(before)
    results = {
        "machine": described(config, chosen.threads) | {"workers": workers},
        "views": 2 * steps * config.batch_size,
        "times": times,
        "goals": goals(times, chosen.device),
    }
    return written(f"training-{chosen.device}", results, table(results))


def warm(field: dict[str, Callable[[], None]]) -> dict[str, Callable[[], None]]:
    """Those of the field that can be run, after a first epoch each: a machine may lack what compiles."""
    able = {}
    for name, epoch in field.items():
        with left_out_if_it_fails(name, name == COMPILED):
            epoch()
            able[name] = epoch
    return able


def config_of(device: str, steps: int, batch_size: int | None) -> Config:
    """What is trained on this device, with as many images as ``steps`` batches of that size take; None: the usual
    size."""
    settings = SETTINGS[device] | ({} if batch_size is None else {"batch_size": batch_size})
    return Config(
        accelerator=device, n_train=steps * settings["batch_size"], method=Contrastive(temperature=TEMPERATURE),
        augmentation=VIEWS, **settings,
    )  # fmt: skip


def described(config: Config, threads: int) -> dict:
    """What it ran on, and what was trained."""
    names = ("encoder", "image_size", "batch_size", "precision")
    return machine(config.accelerator, threads) | {name: getattr(config, name) for name in names}


if __name__ == "__main__":
    sys.exit(command(main)())
