"""What one training run is: a frozen, validated, hashable description."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from companion.errors import CompanionError, choose, number, positive, whole

# Raise this when a change to the training code changes the numbers that a run gives: stored runs are then retrained.
TRAINING_VERSION = 1

EMBEDDED = "fashion-mnist-subset"  # the data set that lies in the repository
DATASETS = (EMBEDDED, "fashion-mnist", "cifar10", "cifar100", "svhn", "stl10", "imagefolder:PATH")
LOSSES = ("nt_xent", "clip", "info_nce", "dcl", "siglip", "spectral")
WITHIN_VIEW = ("clip", "siglip", "spectral")  # losses that can take within-view negatives besides cross-view ones
ENCODERS = ("small", "resnet18", "resnet50")
PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of contrastive pre-training, from the data to the seed.

    Raises:
        CompanionError: if any value is outside its range, so a run that starts has a sound description.
    """

    # Data: one of DATASETS
    dataset: str = EMBEDDED
    image_size: int = 14  # pixels a side
    n_train: int = 3000  # images to train on: the theory's n
    n_validation: int = 2000  # training images set aside to choose hyperparameters on

    # Model
    encoder: str = "small"
    width: int = 24  # channels of the small net's first layer
    projector_hidden: int = 256
    projector_dim: int = 128  # the theory's d
    heads: int = 1  # projectors: 1 for both views, or 2, one for each, as for images and texts in CLIP

    # Loss: `loss(temperature) + vrns * L_VRNS`, on sub-batches of `loss_batch_size` out of each `batch_size`.
    loss: str = "nt_xent"
    temperature: float = 0.2  # of SigLIP: 1 / scale; the spectral loss has none
    bias: float = -10.0  # of SigLIP
    within_view: bool = False  # within-view negatives too: c₂ = 1
    vrns: float = 0.0  # the weight λ of Definition 5.7; 0 switches it off
    batch_size: int = 128  # the optimiser's batch M, in instances (2M views)
    loss_batch_size: int | None = None  # the loss's m; must divide M; None: m = M

    # Optimisation: SGD with momentum, lr = learning_rate * batch_size / 256, linear warm-up, then cosine to 0.
    epochs: int = 10
    learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: int = 1

    # Two-view augmentation
    crop_scale: float = 0.2  # smallest share of the area that a crop keeps
    flip: float = 0.5  # probability
    jitter: float = 0.4  # strength of brightness, contrast and saturation; a quarter of it for hue
    jitter_probability: float = 0.8
    grayscale: float = 0.2  # probability (colour images only)
    blur: float = 0.0  # probability

    measured_pairs: int = 2000  # positive pairs behind the reported similarity statistics; the papers take 5,000
    precision: str = "32-true"
    accelerator: str = "auto"
    seed: int = 0

    def __post_init__(self):
        if not (self.dataset.startswith("imagefolder:") and self.dataset.partition(":")[2]):
            choose(self.dataset, DATASETS, "data set")
        choose(self.loss, LOSSES, "loss")
        choose(self.encoder, ENCODERS, "encoder")
        choose(self.precision, PRECISIONS, "precision")
        choose(self.accelerator, ACCELERATORS, "accelerator")
        for name, least in (
            ("image_size", 8), ("n_train", 2), ("n_validation", 0), ("width", 1), ("projector_hidden", 1),
            ("projector_dim", 2), ("batch_size", 2), ("epochs", 1), ("measured_pairs", 2), ("warmup_epochs", 0),
            ("seed", 0),
        ):  # fmt: skip
            whole(getattr(self, name), name, least=least)
        for name in ("temperature", "learning_rate", "crop_scale"):
            positive(getattr(self, name), name)
        for name in ("vrns", "momentum", "weight_decay", "jitter"):
            positive(getattr(self, name), name, zero=True)
        for name in ("flip", "jitter_probability", "grayscale", "blur", "crop_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise CompanionError(f"{name} is {getattr(self, name)!r}: expected a number from 0 to 1.")
        number(self.bias, "bias")
        if self.heads not in (1, 2):
            raise CompanionError(f"heads is {self.heads!r}: expected 1, a projector for both views, or 2.")
        if self.within_view and self.loss not in WITHIN_VIEW:
            raise CompanionError(
                f"within_view makes no difference to {self.loss!r}: it is for {', '.join(WITHIN_VIEW)}."
            )
        if self.batch_size > self.n_train:
            raise CompanionError(
                f"batch_size {self.batch_size} is larger than n_train {self.n_train}: a batch cannot exceed the data."
            )
        if self.loss_batch_size is not None:
            whole(self.loss_batch_size, "loss_batch_size", least=2)
            if self.batch_size % self.loss_batch_size:
                raise CompanionError(
                    f"loss_batch_size {self.loss_batch_size} does not divide batch_size {self.batch_size}: the batch "
                    "must split into sub-batches of equal size."
                )
            if self.loss_batch_size == self.batch_size:  # one description for one experiment
                object.__setattr__(self, "loss_batch_size", None)

    @property
    def m(self) -> int:
        """Instances that one evaluation of the loss sees."""
        return self.loss_batch_size or self.batch_size

    def replace(self, **changes) -> "Config":
        """A copy with some values changed.

        Raises:
            CompanionError: for a name that is no field, or a value outside its range.
        """
        for name in changes:
            choose(name, self.__dataclass_fields__, "parameter")
        return dataclasses.replace(self, **changes)

    def key(self, data_identity: str) -> str:
        """``<readable name>-<hash>``: the run's folder. The hash covers every field, the training code's version and
        the identity of the data (see :func:`companion.data.identity`), but not where the data lies."""
        fields = dataclasses.asdict(self) | {"dataset": data_identity, "training_version": TRAINING_VERSION}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
        loss = self.loss + "-within" * self.within_view + "-2heads" * (self.heads == 2)
        vrns = f"-vrns{self.vrns:g}" if self.vrns else ""
        batch = f"m{self.m}" if self.m == self.batch_size else f"m{self.m}of{self.batch_size}"
        return f"{loss}{vrns}-t{self.temperature:g}-{batch}-e{self.epochs}-seed{self.seed}-{digest}"
