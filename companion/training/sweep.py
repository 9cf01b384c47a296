"""Contrastive pre-training: a :class:`Config` in, a :class:`Run` out, from the run store or trained."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor

from companion import encoders, environment, losses, metrics, progress, store
from companion.augment import TwoViews
from companion.config import WITHIN_VIEW, Config
from companion.runs import AUGMENTED, Run, folder, load_data, measure, seeded, two_views

TRACKED_PAIRS = 256  # positive pairs behind the similarity statistics of the history, after every epoch


def run(config: Config) -> Run:
    """Load the run that ``config`` describes, or train it. See :func:`sweep` for many."""
    return sweep([config])[0]


def sweep(configs: list[Config], *, jobs: int | None = None) -> list[Run]:
    """Load or train every run of ``configs``, in parallel, each in one thread.

    The processes are joblib's: inside ``joblib.parallel_config("ray")`` or ``("dask")`` the sweep runs on that cluster.

    Args:
        configs: descriptions of the runs; equal ones are trained once.
        jobs: most processes at once; default: ``CONTRASTIVE_JOBS``, or the cores that this process may use.

    Returns:
        The runs, in the order of ``configs``.

    Raises:
        CompanionError: for missing or damaged data, a diverged loss, or a run store that cannot be written. Runs that
            were complete stay stored; the others resume at their last epoch next time.
    """
    jobs = jobs or int(os.environ.get("CONTRASTIVE_JOBS") or joblib.cpu_count())
    folders = {config: folder(config) for config in configs}
    missing = [config for config, path in folders.items() if not path.exists()]
    if missing:
        load_data(missing[0])  # a missing data set is told here, not from the depth of a worker
        with _watch(missing, folders):
            if len(missing) == 1:
                _ensure(missing[0], jobs)
            else:
                # A worker may be older than a change of these variables, or run on another machine.
                settings = {name: value for name, value in os.environ.items() if name.startswith("CONTRASTIVE_")}
                task = joblib.delayed(_ensure_elsewhere)
                joblib.Parallel(n_jobs=min(jobs, len(missing)))(task(c, jobs, settings) for c in missing)
    _remember(folders.values())
    return [Run(config, folders[config]) for config in configs]


def objective(u: Tensor, v: Tensor, config: Config) -> Tensor:
    """``loss + λ · VRNS``, averaged over sub-batches of m pairs.

    Args:
        u: (M, d) projections of the first views of the optimiser's batch.
        v: (M, d) of the second views.
        config: names the loss and its hyperparameters, λ, m and the training-set size n.
    """
    contrastive = functools.partial(getattr(losses, config.loss), **hyperparameters(config))

    def on_sub_batch(u: Tensor, v: Tensor) -> Tensor:
        value = contrastive(u, v)
        return value + config.vrns * losses.vrns(u, v, n=config.n_train) if config.vrns else value

    return torch.stack([on_sub_batch(a, b) for a, b in zip(u.split(config.m), v.split(config.m), strict=True)]).mean()


def hyperparameters(config: Config) -> dict:
    """What the loss that ``config`` names takes besides the embeddings."""
    within_view = {"within_view": config.within_view} if config.loss in WITHIN_VIEW else {}
    if config.loss == "spectral":
        return within_view
    if config.loss == "siglip":
        return within_view | {"scale": 1 / config.temperature, "bias": config.bias}
    return within_view | {"temperature": config.temperature}


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up to ``learning_rate · M / 256``, then half a cosine to 0 (Loshchilov & Hutter 2017)."""
    peak = config.learning_rate * config.batch_size / 256
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def _ensure(config: Config, jobs: int) -> None:
    """Train one run unless it is there; wait if another process is training it."""
    final = folder(config)
    with store.lock(final.name):
        if not final.exists():
            with store.slot(jobs), _one_thread():
                _train(config, final)


def _ensure_elsewhere(config: Config, jobs: int, settings: dict[str, str]) -> None:
    os.environ.update(settings)
    _ensure(config, jobs)


def _train(config: Config, final: Path) -> None:
    started = time.perf_counter()
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    images = load_data(config)
    images = dataclasses.replace(images, train=images.train.to(fabric.device))
    channels = images.train.images.shape[1]
    with seeded(config.seed, 0):
        model = encoders.build(config, channels).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=False
    )
    model, optimizer = fabric.setup(model, optimizer)
    augment = TwoViews(config, channels)

    partial = _partial(final)
    history = _resume(partial / "checkpoint.pt", model, optimizer)
    steps_per_epoch = config.n_train // config.batch_size
    for epoch in range(len(history), config.epochs):
        # Seeding each epoch by its number makes a resumed run the run that was not interrupted.
        with seeded(config.seed, 2, epoch):
            model.train()
            order = torch.randperm(config.n_train).to(fabric.device)
            total = 0.0
            batches = _batches(images.train.images[order], augment, config)
            for step, (x, y) in enumerate(batches, start=epoch * steps_per_epoch):
                if config.heads == 1:
                    u, v = model(torch.cat([x, y])).chunk(2)  # (M, d) each; one pass, so batch norm sees both views
                else:
                    u, v = model(x), model(y, second=True)
                loss = objective(u, v, config)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, steps_per_epoch)
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                total += loss.detach()
        tracked = metrics.similarity_statistics(*two_views(model, config, images.train, TRACKED_PAIRS)[:2])
        history.append({"step": (epoch + 1) * steps_per_epoch, "loss": float(total) / steps_per_epoch} | tracked)
        _checkpoint(partial / "checkpoint.pt", model, optimizer, history)

    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    store.write(partial / "encoder.safetensors", safetensors.torch.save(weights))
    store.write(partial / "history.csv", pd.DataFrame(history).to_csv(index=False))
    store.write(partial / "metrics.json", json.dumps(measure(model, config, images), indent=1))
    store.write(partial / "config.json", json.dumps(dataclasses.asdict(config), indent=1))
    made_with = environment.provenance(fabric.device) | {"seconds": round(time.perf_counter() - started, 1)}
    store.write(partial / "environment.json", json.dumps(made_with, indent=1))
    for scaffold in ("checkpoint.pt", "epochs"):
        (partial / scaffold).unlink()
    store.publish(partial, final)


def _batches(images: Tensor, augment: TwoViews, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches (M, c, s, s), (M, c, s, s) of shuffled images, augmented in larger chunks: a chunk costs little
    more than a small batch. The rest of an epoch, less than a batch, is dropped."""
    size = config.batch_size
    for chunk in images[: len(images) // size * size].split(max(1, AUGMENTED // size) * size):
        x, y = (view.contiguous(memory_format=torch.channels_last) for view in augment(chunk))
        yield from zip(x.split(size), y.split(size), strict=True)


@contextlib.contextmanager
def _one_thread():
    """Two one-thread processes beat one two-thread process on small nets, and one thread repeats its sums exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _partial(final: Path) -> Path:
    """The hidden folder in which a run is made; it has one byte in ``epochs`` for every epoch done."""
    return final.with_name(f".partial-{final.name}")


def _resume(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Restore the last checkpoint, if there is one, and return the history up to it."""
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["history"]


def _checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, history: list[dict]) -> None:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}, buffer)
    store.write(path, buffer.getvalue())
    store.write(path.with_name("epochs"), "." * len(history))


@contextlib.contextmanager
def _watch(missing: list[Config], folders: dict[Config, Path]):
    """A progress bar over the epochs of all missing runs, whichever process trains them."""
    total = sum(config.epochs for config in missing)
    finished = threading.Event()

    def epochs_done(config: Config) -> int:
        if folders[config].exists():
            return config.epochs
        try:
            return (_partial(folders[config]) / "epochs").stat().st_size
        except OSError:
            return 0

    with progress.bar(total, f"training {len(missing)} run{'s' * (len(missing) > 1)}", "epoch") as bar:

        def follow():
            while not finished.wait(0.5):
                bar.update(sum(map(epochs_done, missing)) - bar.n)

        bar.initial = bar.n = sum(map(epochs_done, missing))
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


def _remember(used) -> None:
    """Tell the notebook runner which runs a notebook stands on (see :mod:`companion.execute`)."""
    path = os.environ.get("CONTRASTIVE_USED_RUNS")
    if path:
        with open(path, "a") as file:
            file.writelines(f"{run.name}\n" for run in used)
