"""How long a run takes: timed on the device that it would be trained on, or from rates that were recorded.

Not part of any result. A run is its steps, a look at the network after every epoch, and the measuring at the end.
"""

import dataclasses
import functools
import itertools
import time

import torch
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from companion.training import encoders
from companion.training.augment import SimCLR
from companion.training.baselines import BATCH_SIZE
from companion.training.capture import WARM_UP
from companion.training.config import Config
from companion.training.loop import set_up
from companion.training.methods import Clip, Contrastive, Labelled, MoCo
from companion.training.processes import alone
from companion.training.runs import initial, load_data, measure
from companion.training.sources import CHUNK
from companion.training.sweeps import one_thread, source_of, tracked

# Seconds of a step by batch size, of a ResNet-18 at 32×32 pixels with bfloat16 on one H100, every step a CUDA graph; of
# one step with float32; and of all that is measured at the end (results/reference/README.md, "On a GPU").
STEP = {32: 2 * 32 / 22_800, 512: 2 * 512 / 53_100}
STEP_FLOAT32 = {256: 2 * 256 / 30_100}
MEASURING = 1.6
TIMED = Config(encoder="resnet18", image_size=32, projector_hidden=512)  # what was timed then
PASSES = 6  # through the network that a step makes of an image: two views forward, and backward at twice the cost


def on_gpu(config: Config) -> bool:
    """Whether a run would be trained on a GPU, were there one."""
    return config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())


def seconds(config: Config) -> float:
    """How long the run of ``config`` takes, alone on its device (or, on the CPU, on its core): timed here, or if it
    needs a GPU and there is none, from the recorded rates."""
    step, epoch, end = recorded(config) if on_gpu(config) and not torch.cuda.is_available() else timed(config)
    return config.epochs * (config.n_train // config.batch_size * step + epoch) + end


def recorded(config: Config) -> tuple[float, float, float]:
    """Seconds of a step, of the look after an epoch and of the measuring at the end, by the rates above.

    In the batch size a step is a line through both; what of it grows with the batch is scaled by multiply-adds, and by
    what float32 took where that is asked for. The look after an epoch was not timed, and is counted as nothing.
    """
    (small, few), (large, many) = STEP.items()
    slope = (many - few) / (large - small)
    fixed = few - slope * small
    if config.precision == "32-true":
        ((size, took),) = STEP_FLOAT32.items()
        slope *= (took - fixed) / (size * slope)
    scale = multiply_adds(config) / multiply_adds(TIMED)
    return fixed + slope * scale * config.batch_size, 0.0, MEASURING * max(1.0, scale)


def multiply_adds(config: Config) -> float:
    """Of the network, in a step, for one image of the batch."""
    passes = {MoCo: PASSES * 4 / 6, Clip: PASSES / 2}.get(type(config.method), PASSES)  # keys have no gradient
    return passes * _forward(config.encoder, config.image_size, config.width, config.projector_hidden)


@functools.cache
def _forward(encoder: str, image_size: int, width: int, hidden: int) -> float:
    """Multiply-adds of one view; a batch of two, which batch norm needs."""
    if encoder in encoders.FIXED:
        return 0.0
    config = Config(encoder=encoder, image_size=image_size, width=width, projector_hidden=hidden)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        encoders.build(config, 3)(torch.empty(2, 3, image_size, image_size))
    return counter.get_total_flops() / 2 / 2  # two floating-point operations each


def timed(config: Config) -> tuple[float, float, float]:
    """The same three times, of a few steps after a warm-up, timed on this machine. What makes no difference to them
    (seeds, rates, temperatures, the length of the schedule) is timed once."""
    step, epoch = _timed_step(_alike(config)) if config.epochs else (0.0, 0.0)
    method = config.method if isinstance(config.method, Clip | Labelled) else Contrastive()  # others measure alike
    end = _alike(config.replace(method=method, augmentation=SimCLR(), batch_size=min(BATCH_SIZE, config.n_train)))
    return step, epoch, _timed_end(end)


def _alike(config: Config) -> Config:
    """The config that takes as long, with the values that do not matter set to their defaults."""
    changes = {"seed": 0, "epochs": 1, "warmup_epochs": 0}
    changes |= {name: getattr(TIMED, name) for name in ("learning_rate", "momentum", "weight_decay", "schedule")}
    for part in (config.method, config.augmentation):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float) and value:  # a part that is switched off stays off
                changes[field.name] = field.default or 1.0
    return config.replace(**changes)


def _set_up(config: Config):
    fabric = alone(config)
    return fabric, load_data(config), initial(config).to(fabric.device)


@functools.cache
@one_thread()
def _timed_step(config: Config) -> tuple[float, float]:
    fabric, images, method = _set_up(config)
    source = source_of(config, images, fabric.device)
    wrapped, optimizer, step = set_up(method, config, fabric)  # its learning rate is 0
    batches = (batch for epoch in itertools.count() for batch in source.batches(epoch))
    wrapped.train()

    def steps(count: int) -> None:
        for batch in itertools.islice(batches, count):
            step(batch)
            optimizer.step()
            method.after_step()

    count = max(1, CHUNK // config.batch_size) * 2  # whole chunks, which are augmented at once
    steps(max(count, WARM_UP + 1))
    took = _clock(fabric, lambda: steps(count)) / count
    wrapped.eval()
    return took, _clock(fabric, lambda: tracked(method, config, images))


@functools.cache
@one_thread()
def _timed_end(config: Config) -> float:
    fabric, images, method = _set_up(config)
    return _clock(fabric, lambda: measure(method, config, images))


def _clock(fabric: Fabric, work) -> float:
    """Seconds that it takes, with what it leaves to the GPU."""

    def now() -> float:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        return time.perf_counter()

    start = now()
    work()
    return now() - start
