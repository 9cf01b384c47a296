"""What one training run is: a frozen, validated, hashable description."""

import hashlib
import json
from dataclasses import dataclass, fields

from companion.errors import CompanionError, choose, positive, whole
from companion.store import TRAINING_VERSION
from companion.training.augment import AUGMENTATIONS, SimCLR
from companion.training.encoders import ENCODERS
from companion.training.methods import METHODS, Contrastive
from companion.training.settings import Settings, from_dict

EMBEDDED = "eurosat-subset"  # the data set that lies in the repository
EMOJI = "emoji"  # and that of drawings with names: see companion.training.emoji
DATASETS = (
    EMBEDDED, EMOJI, "eurosat", "fashion-mnist", "cifar10", "cifar100", "svhn", "stl10", "stl10-unlabelled", "digits",
    "imagefolder:PATH",
)  # fmt: skip
STORAGE = ("memory", "files")
SCHEDULES = ("cosine", "steps")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda", "mps")
NEIGHBOURS = 5  # that vote on an image when a run is measured, so the fewest to train on


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """One run of training, from the data to the seed.

    Raises:
        CompanionError: if any value is outside its range, so a run that starts has a sound description.
    """

    # Data: one of DATASETS
    dataset: str = EMBEDDED
    image_size: int = 16  #: pixels a side
    n_train: int = 4000  #: images to train on: the theory's n
    n_validation: int = 2000  #: training images set aside to choose hyperparameters on
    storage: str = "memory"  #: or "files": read an image folder batch by batch, for what does not fit

    augmentation: Settings = SimCLR()
    method: Settings = Contrastive()

    # Model
    encoder: str = "small"
    width: int = 24  #: channels of the small net's first layer
    projector_hidden: int = 256  #: 0: the projector is one linear map
    projector_dim: int = 128  #: the theory's d

    # Optimisation: lr = learning_rate * batch_size / 256, linear warm-up, then the schedule.
    optimizer: str = "sgd"  #: with momentum; or "adamw", whose weight decay spares biases, norms and scales
    batch_size: int = 128  #: the optimiser's batch B, in instances (2B views)
    epochs: int = 8  #: 0: the untrained network
    learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: int = 1
    schedule: str = "cosine"  #: to 0; or "steps": a tenth of it after each milestone of the loop
    calibrate_batch_norm: bool = False  #: take its statistics from an epoch of views at the end: of untrained networks

    measured_pairs: int = 2000  #: positive pairs behind the reported similarity statistics; the papers take 5,000
    precision: str = "32-true"
    accelerator: str = "auto"
    seed: int = 0

    def validate(self):
        if not (str(self.dataset).startswith("imagefolder:") and self.dataset.partition(":")[2]):
            choose(self.dataset, DATASETS, "data set")
            if self.storage == "files":
                raise CompanionError(f"storage is 'files' and dataset {self.dataset!r}: expected an imagefolder:PATH.")
        choose(self.storage, STORAGE, "storage")
        choose(self.encoder, ENCODERS, "encoder")
        choose(self.schedule, SCHEDULES, "schedule")
        choose(self.optimizer, OPTIMIZERS, "optimizer")
        choose(self.precision, PRECISIONS, "precision")
        choose(self.accelerator, ACCELERATORS, "accelerator")
        for name, registry in (("augmentation", AUGMENTATIONS), ("method", METHODS)):
            if type(getattr(self, name)) not in registry.values():
                raise CompanionError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(registry)}.")
        for name, least in (
            ("image_size", 8), ("n_train", NEIGHBOURS), ("n_validation", 0), ("width", 1),
            ("projector_hidden", 0), ("projector_dim", 2), ("batch_size", 2), ("epochs", 0), ("measured_pairs", 2),
            ("warmup_epochs", 0), ("seed", 0),
        ):  # fmt: skip
            whole(getattr(self, name), name, least=least)
        if not isinstance(self.calibrate_batch_norm, bool):
            raise CompanionError(f"calibrate_batch_norm is {self.calibrate_batch_norm!r}: expected True or False.")
        positive(self.learning_rate, "learning_rate")
        for name in ("momentum", "weight_decay"):
            positive(getattr(self, name), name, zero=True)
        if self.momentum >= 1:
            raise CompanionError(f"momentum is {self.momentum}: expected less than 1, or the steps grow without end.")
        if self.warmup_epochs > self.epochs > 0:
            raise CompanionError(
                f"warmup_epochs is {self.warmup_epochs} and epochs {self.epochs}: expected a warm-up that ends in time."
            )
        if self.batch_size > self.n_train:
            raise CompanionError(
                f"batch_size {self.batch_size} is larger than n_train {self.n_train}: a batch cannot exceed the data."
            )
        object.__setattr__(self, "method", self.method.fit(self.batch_size))

    @property
    def m(self) -> int:
        """Instances that one evaluation of the loss sees. Where ``loss_batch_size`` is that of the batch, or None, m
        goes with the batch: ``replace(batch_size=…)`` changes both."""
        return getattr(self.method, "loss_batch_size", None) or self.batch_size

    def replace(self, **changes) -> "Config":
        """A copy with some values changed: its own, or arguments of its augmentation and its method.

        Raises:
            CompanionError: for a name that is none of these, or a value outside its range.
        """
        own = [f.name for f in fields(self)]
        parts = {part: changes.get(part, getattr(self, part)) for part in _NESTED}
        nested = {part: [f.name for f in fields(s)] if isinstance(s, Settings) else [] for part, s in parts.items()}
        for name in changes:
            choose(name, [*own, *nested["augmentation"], *nested["method"]], "parameter")
        values = {name: value for name, value in changes.items() if name in own}
        for part, names in nested.items():
            of_part = {name: value for name, value in changes.items() if name in names}
            if of_part:
                values[part] = parts[part].replace(**of_part)
        return super().replace(**values)

    def flat(self) -> dict:
        """Every value under its own name, those of augmentation and method too: a row of a table."""
        values = self.to_dict()
        for part in _NESTED:
            nested = values.pop(part)
            values |= {part: nested.pop("name")} | nested
        return values | {"m": self.m}

    def key(self, data_identity: str) -> str:
        """``<readable name>-<hash>``: the run's folder. The hash covers every value that is not its default, the
        training code's version and the identity of the data (see :func:`companion.training.data.identity`), but not
        where the data lies."""
        values = self.changed() | {"dataset": data_identity, "training_version": TRAINING_VERSION}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        title = f"{self.encoder}-untrained" if self.epochs == 0 else self.method.title
        batch = f"m{self.m}" if self.m == self.batch_size else f"m{self.m}of{self.batch_size}"
        return f"{title}-{batch}-e{self.epochs}-seed{self.seed}-{digest}"


_NESTED = ("augmentation", "method")


def from_json(text: str) -> Config:
    """The config that ``json.dumps(config.to_dict())`` described.

    Raises:
        CompanionError: for what is no such text, or describes something that this version does not know.
    """
    try:
        values = json.loads(text)
        parts = {
            "augmentation": from_dict(values.pop("augmentation"), AUGMENTATIONS, "augmentation"),
            "method": from_dict(values.pop("method"), METHODS, "method"),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error).removesuffix(".")
        raise CompanionError(f"{str(text)[:80]!r} is not the description of a run: {why}.") from error
    for name in values:
        choose(name, [f.name for f in fields(Config)], "parameter")
    return Config(**values, **parts)
