"""The training loop, and nothing but the loop."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from companion.errors import CompanionError
from companion.training import planned
from companion.training.capture import gradient
from companion.training.config import Config
from companion.training.methods import Method
from companion.training.processes import alone, any_of_them, check_alone, synchronise
from companion.training.resume import Checkpoints
from companion.training.sources import Views, seed

MILESTONES = (155 / 200, 170 / 200, 185 / 200)  # shares of the epochs, as Wang & Isola (2020) train on STL-10


def train(
    method: Method, source: Views, config: Config, *, fabric: Fabric | None = None, checkpoint: Path | None = None,
    track: Callable[[Method], dict[str, float]] = lambda method: {}, stop: Callable[[], bool] = lambda: False,
) -> list[dict]:  # fmt: skip
    """Train ``method`` in place on the batches of ``source``, by the optimiser of
    :func:`~companion.training.loop.optimizer_of`, on the schedule of :func:`~companion.training.loop.learning_rate`.

    Args:
        method: what is trained, and for what.
        source: where batches come from.
        config: epochs, optimiser, learning rate and its schedule, momentum, weight decay and seed.
        fabric: device and precision; default: the CPU in float32. On several processes, launched, ``source`` yields
            each its part of every batch, and batch norm is changed in place to see all of it.
        checkpoint: a file to resume from, and to save to, which the first process does, see
            :class:`~companion.training.resume.Checkpoints`.
        track: numbers to note of the method after every epoch, in the first process.
        stop: asked after every step whether to save there and leave; of several processes, one is enough.

    Returns:
        The history: for every epoch ``step``, mean ``loss``, and what ``track`` noted.

    Raises:
        CompanionError: if the loss has become NaN or infinite, or ``torch.distributed`` has other processes than
            ``fabric``.
        SystemExit: with the status of a process that SIGTERM ended, 143, after ``stop`` said so.
    """
    fabric = fabric or alone(config.replace(accelerator="cpu", precision="32-true"))
    check_alone(fabric)
    if plan := planned.current():
        plan.unstored.append((config, "cuda" if config.accelerator == "cuda" else fabric.device.type))
        return []
    if fabric.world_size > 1:
        synchronise(method, fabric.device)
        stop = any_of_them(stop)
    wrapped, optimizer, step_gradient = set_up(method, config, fabric)
    checkpoints = Checkpoints(checkpoint, config, method, optimizer)
    history = checkpoints.restore()
    fabric.barrier()  # before the first process is done, and removes the checkpoint
    rank = [fabric.global_rank] if fabric.global_rank else []  # the first process draws what one process draws
    steps = len(source)
    for epoch in range(len(history), config.epochs):
        # Seeding each epoch by its number makes a resumed run the run that was not interrupted.
        with seeded(config.seed, 4, epoch, *rank):
            wrapped.train()
            total = torch.zeros((), device=fabric.device)
            batches = enumerate(source.batches(epoch), start=epoch * steps)
            for step, batch in checkpoints.rest(batches, total):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, steps)
                total += step_gradient(batch)
                optimizer.step()
                method.after_step()
                if stop():
                    checkpoints.stop(history, step + 1 - epoch * steps, total)
        mean = total.item() / steps
        if not math.isfinite(mean):
            raise CompanionError(
                f"The loss became NaN or infinite in epoch {epoch + 1}: the network has diverged. Lower the learning "
                f"rate (now {config.learning_rate:g} at a batch of 256), or check the input images."
            )
        wrapped.eval()
        history.append({"step": (epoch + 1) * steps, "loss": mean})
        if fabric.is_global_zero:
            history[-1] |= track(method)
            checkpoints.after_epoch(history)
    wrapped.eval()
    return history


def set_up(method: Method, config: Config, fabric: Fabric) -> tuple[nn.Module, torch.optim.Optimizer, Callable]:
    """The method as ``fabric`` wraps it, its optimiser, and the function of a batch that leaves the loss's gradient in
    its parameters and returns the loss (``companion.training.capture.gradient``)."""
    wrapped, optimizer = fabric.setup(method, optimizer_of(method, config))
    wrapped.mark_forward_method("loss")  # so that several processes share its gradient
    return wrapped, optimizer, gradient(wrapped, fabric)


def optimizer_of(method: Method, config: Config) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay on all that has a shape, as the papers of SimCLR and MoCo train; or AdamW
    (Loshchilov & Hutter 2019) with CLIP's second moment, .98, and weight decay on matrices and kernels alone. A learned
    scale, a number, is decayed by neither."""
    least = {"sgd": 1, "adamw": 2}[config.optimizer]  # dimensions of what is decayed
    parts = {True: [], False: []}
    for parameter in method.parameters():
        parts[parameter.ndim >= least].append(parameter)
    decays = {True: config.weight_decay, False: 0.0}
    groups = [{"params": part, "weight_decay": decays[decayed]} for decayed, part in parts.items() if part]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.momentum, 0.98))


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up to ``learning_rate · B / 256``, then half a cosine to 0 (Loshchilov & Hutter 2017); or ``steps``:
    that rate, and a tenth of it from each of ``MILESTONES`` on, rounded to whole epochs."""
    peak = config.learning_rate * config.batch_size / 256
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "steps":
        return peak * 0.1 ** sum(step >= round(share * config.epochs) * steps_per_epoch for share in MILESTONES)
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


@contextlib.contextmanager
def seeded(*key: int):
    """Inside, torch draws from generators seeded by ``key``; outside, those of the CPU and of the GPU in use have not
    changed. A GPU that nothing has used yet, or another than the current one, stays seeded by ``key``."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed(*key))
        yield
