"""What the speed run is: its settings, the tricks that can be left out of it, and its clock.

See :mod:`companion.bench.speedrun`.
"""

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from companion.errors import CompanionError, choose, share, whole
from companion.store import TRAINING_VERSION
from companion.training import Batch, Config, Contrastive, SimCLR, Views, data
from companion.training.methods.contrastive import ContrastiveMethod
from companion.training.settings import Settings

SMALL = 3 / 4  # of the pixels a side: a little over half of the work

# What SimCLR was trained with where 500 epochs gave 90.3 ± 0.3 % (k = 10, three runs) in 1 h 39 min on one A100, the
# record that the README of github.com/dkobak/simclr-cifar10 tells. Unlike there, the projector has batch norm, both
# views pass the network together, and the first epoch warms up.
RECORD = Config(
    dataset="cifar10", image_size=32, n_train=50_000, n_validation=0, encoder="resnet18", accelerator="cuda",
    augmentation=SimCLR(crop_scale=0.2, jitter=0.4, grayscale=0.1), method=Contrastive(temperature=0.5),
    projector_hidden=1024, batch_size=512, epochs=500, learning_rate=0.03, weight_decay=5e-4, precision="bf16-mixed",
)  # fmt: skip

TRICKS = {  # name → what it is, and the values that undo it
    "bf16": ("convolutions and matrix products in bfloat16, not TF32 and float32", {"precision": "32-true"}),
    "graph": ("the forward and backward pass of a step as one CUDA graph", {"graph": False}),
    "compile": ("the encoder by torch.compile, which joins batch norm with what follows it", {"compiled": False}),
    "small-first": ("three quarters of the pixels a side in the first half of the epochs", {"small_first": 0.0}),
    "average": ("what is evaluated is a moving average of the encoder's weights", {"average": 0.0}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Race(Settings):
    """One training against the clock.

    Raises:
        CompanionError: if a value is outside its range.
    """

    config: Config = RECORD
    target: float = 0.9  #: accuracy of the k-NN vote on the test images at which the clock is read
    every: int = 10  #: epochs between two evaluations; the last epoch is evaluated too
    to_the_end: bool = False  #: go on to the end of the schedule after the target

    graph: bool = True
    compiled: bool = True
    small_first: float = 0.5  #: share of the epochs with small views
    average: float = 0.01  #: share of all steps that the moving average reaches back; 0: none

    def validate(self):
        for name in ("target", "small_first", "average"):
            share(getattr(self, name), name)
        whole(self.every, "every", least=1)
        whole(self.config.epochs, "epochs", least=1)
        if type(self.config.method) is not Contrastive:
            raise CompanionError(f"method is {self.config.method!r}: expected Contrastive, whose loss sees no label.")
        if self.small_first and self.config.image_size * SMALL < 8:
            raise CompanionError(
                f"image_size is {self.config.image_size}: expected 11 or more, for the first views are smaller by a "
                "quarter. Or leave out small-first."
            )

    def without(self, names: str) -> "Race":
        """The same without a trick, or without several, joined by ``+``.

        Raises:
            CompanionError: for a name that is not in ``TRICKS``.
        """
        race = self
        for name in names.split("+"):
            _, changes = TRICKS[choose(name, TRICKS, "trick")]
            own = {key: value for key, value in changes.items() if key in {f.name for f in fields(self)}}
            others = {key: value for key, value in changes.items() if key not in own}
            race = race.replace(config=race.config.replace(**others), **own)
        return race

    def described(self) -> dict:
        """All that decides the outcome; of the data what they are, not where they lie."""
        values = self.to_dict() | {"training_version": TRAINING_VERSION}
        values["config"]["dataset"] = data.identity(self.config.dataset)
        return values

    @property
    def key(self) -> str:
        """A name for the folder of its checkpoint."""
        digest = hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()[:12]
        return f"speedrun-e{self.config.epochs}-seed{self.config.seed}-{digest}"


class Clock:
    """Seconds of training, running from its creation; reading it waits for what the device was asked to do.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device):
        self.device, self.outside = device, 0.0
        self.set(0.0)

    def read(self) -> float:
        """Seconds so far."""
        return self._now() - self.started

    def set(self, seconds: float) -> None:
        """Go on from there."""
        self.started = self._now() - seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time goes to ``outside``."""
        seconds = self.read()
        try:
            yield
        finally:
            self.outside += self.read() - seconds
            self.set(seconds)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Growing(Views):
    """Two random views of every image; those of the first epochs are smaller.

    Args:
        race: how large, and until when.
        split: the images, which are moved to the device.
        device: where the views are made.
    """

    def __init__(self, race: Race, split: data.Split, device: torch.device):
        config = race.config
        self.full = config.augmentation.build(config.image_size)
        super().__init__(split, self.full, config.batch_size, seed=config.seed, device=device)
        self.until = round(race.small_first * config.epochs)
        self.small = config.augmentation.build(round(SMALL * config.image_size)) if self.until else self.full

    def batches(self, epoch: int) -> Iterator[Batch]:
        self.augmentation = self.small if epoch < self.until else self.full
        yield from super().batches(epoch)


class Racer(ContrastiveMethod):
    """SimCLR with a moving average of its encoder, and with its clock and what was read from it, so that a checkpoint
    holds them.

    Args:
        race: the tricks.
        split: the training images.
        clock: of the training.
    """

    def __init__(self, race: Race, split: data.Split, clock: Clock):
        super().__init__(race.config.method, race.config, split)
        self.static, self.compiled, self.clock = race.graph, race.compiled, clock
        self.epoch, self.noted, self.sittings = 0, [], 1
        self.average = copy.deepcopy(self.model.encoder).requires_grad_(False) if race.average else None
        steps = race.average * race.config.epochs * (len(split) // race.config.batch_size)
        self.blend = get_ema_multi_avg_fn(1 - 1 / max(1, steps))

    @torch.no_grad()
    def after_step(self) -> None:
        if self.average is not None:
            self.blend(_weights(self.average), _weights(self.model.encoder), None)

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images) if self.average is None else self.average(images)

    def get_extra_state(self) -> dict:
        return {
            "seconds": self.clock.read(), "outside": self.clock.outside, "epoch": self.epoch, "noted": self.noted,
            "sittings": self.sittings,
        }  # fmt: skip

    def set_extra_state(self, state: dict) -> None:
        self.clock.set(state["seconds"])
        self.clock.outside = state["outside"]
        self.epoch, self.noted, self.sittings = state["epoch"], list(state["noted"]), state["sittings"] + 1


def _weights(encoder: torch.nn.Module) -> list[Tensor]:
    """Parameters and the statistics of batch norm; not how many batches it has seen, which nothing reads."""
    return [*encoder.parameters(), *(buffer for buffer in encoder.buffers() if buffer.is_floating_point())]
