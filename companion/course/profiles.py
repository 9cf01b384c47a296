"""Profiles: one name for everything that scales an experiment up or down."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from companion import paths
from companion.errors import CompanionError, choose, whole

if TYPE_CHECKING:  # torch takes seconds, and the runner of a notebook needs no more than the profile's names
    from companion.training import Config


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Settings that all notebooks share; which of them a notebook crosses with which is its own, see :meth:`pick`."""

    name: str
    accelerator: str = "cpu"
    settings: dict = field(default_factory=dict)  #: of every run, where they are not a Config's defaults
    augmentation: dict = field(default_factory=dict)  #: the same of SimCLR's augmentation
    seeds: tuple[int, ...] = (0, 1, 2)
    small_batch: int = 32  #: m of the sweeps over other settings
    tests_as: str = ""  #: the profile whose claims and grids it takes; itself, but for one that records
    tag: str = ""  #: set where data set, seed or length are not those of the claims: no verdict is expected then
    data_tag: str = ""  #: the part of it that names the images: another data set, or how long they are trained on

    def __post_init__(self):
        object.__setattr__(self, "tests_as", self.tests_as or self.name)

    @functools.cached_property
    def base(self) -> Config:
        """What every run of this profile starts from."""
        from companion.training import Config, SimCLR

        return Config(accelerator=self.accelerator, augmentation=SimCLR(**self.augmentation), **self.settings)

    @property
    def folder(self) -> str:
        """Name of the results folder: results of different settings never mix."""
        return (f"reference/{self.tests_as}" if self.records else self.name) + self.tag

    @property
    def recorded(self) -> str:
        """Name of the folder of recorded runs that compare with this profile's: same settings and data, any seeds."""
        return self.tests_as + self.data_tag

    @property
    def records(self) -> bool:
        """Whether its runs are to be recorded, for another profile to show beside its own."""
        return self.tests_as != self.name

    @property
    def second(self) -> bool:
        """Whether it records on other images or longer than the profile it records for, where the ends of every grid
        are enough."""
        return self.records and bool(self.tag)

    def config(self, **changes) -> Config:
        """The profile's base :class:`~companion.training.Config` with some values changed."""
        return self.base.replace(**changes)

    def configs(self, **changes) -> list[Config]:
        """The same for every seed of the profile."""
        return [self.config(seed=seed, **changes) for seed in self.seeds]

    def pick(self, **grids):
        """The grid that a notebook made for this profile: ``pick(smoke=…, cpu=…, gpu=…, paper=…, second=…)``.

        The recorded reference takes ``reference`` where there is one, else ``cpu``; on another data set, and ``long``,
        ``second``.

        Raises:
            CompanionError: if the notebook has none for it.
        """
        wanted = "second" if self.second else self.name if self.name in grids else self.tests_as
        return grids[choose(wanted, grids, "grid of profile")]


_CIFAR = {
    "dataset": "cifar10", "image_size": 32, "n_train": 45_000, "n_validation": 5_000, "encoder": "resnet18",
    "projector_hidden": 512, "learning_rate": 0.3, "batch_size": 256, "measured_pairs": 5000,
    "precision": "bf16-mixed",
}  # fmt: skip
_CIFAR_VIEWS = {"crop_scale": 0.08, "jitter": 0.4, "grayscale": 0.2}

DATA_CENTRE = 36  # GiB of memory: a data centre's GPUs have more, and take hours for `gpu`; others take far longer

_PROFILES = {
    "smoke": Profile(
        name="smoke",
        settings={"n_train": 128, "n_validation": 50, "width": 8, "epochs": 1, "warmup_epochs": 0, "batch_size": 64},
    ),
    "cpu": Profile(name="cpu"),
    "gpu": Profile(
        name="gpu", accelerator="cuda", settings=_CIFAR | {"epochs": 15}, augmentation=_CIFAR_VIEWS, small_batch=128
    ),
    # The paper's n is all 50,000 training images, so none are left to choose hyperparameters on.
    "paper": Profile(
        name="paper",
        accelerator="cuda",
        settings=_CIFAR
        | {"dataset": "cifar100", "n_train": 50_000, "n_validation": 0, "epochs": 200, "warmup_epochs": 10},
        augmentation=_CIFAR_VIEWS | {"blur": 0.5},
        seeds=(0, 1, 2, 3, 4),
        small_batch=128,
    ),
    # The experiments of `cpu` with more seeds, other ones: what `make reference` records.
    "reference": Profile(name="reference", seeds=tuple(range(100, 110)), tests_as="cpu"),
    # The same on all embedded images that are for neither choosing nor testing, at their own size, for five times the
    # epochs: SimCLR does better than colour statistics then. Nothing chosen for `cpu` is chosen anew.
    "long": Profile(
        name="long",
        settings={"image_size": 32, "n_train": 6000, "epochs": 40},
        seeds=tuple(range(100, 110)),
        tests_as="cpu",
        tag="-long",
        data_tag="-long",
    ),
}
NAMES = tuple(_PROFILES)


def named(name: str) -> Profile:
    """A profile as it is, whether or not its device is here; raises
    :class:`~companion.errors.CompanionError` for an unknown name."""
    return _PROFILES[choose(name, NAMES, "profile")]


def load(name: str = "auto", *, dataset: str = "", seed: int = 0) -> Profile:
    """Return a profile's settings.

    Args:
        name: ``smoke``, ``cpu``, ``gpu``, ``paper``, ``reference``, ``long``, or ``auto``: the environment variable
            ``CONTRASTIVE_PROFILE`` if it is set, else ``gpu`` on a GPU of ``DATA_CENTRE`` GiB or more, else ``cpu``,
            which takes minutes and downloads nothing.
        dataset: a data set to use in place of the profile's own.
        seed: added to every seed of the profile.

    Raises:
        CompanionError: for an unknown profile or data set, for the emoji, or a ``gpu`` or ``paper`` profile where torch
            sees no CUDA, but for a dry run.
    """
    if name == "auto":
        name = os.environ.get("CONTRASTIVE_PROFILE") or ("gpu" if _data_centre() else "cpu")
    profile = named(name)
    if profile.accelerator == "cuda" and not _cuda() and not _planned():
        raise CompanionError(
            f"Profile {name!r} needs a CUDA device and torch sees none: install a CUDA build, or use PROFILE=cpu."
        )
    whole(seed, "seed", least=0)
    seeds, data_tag = tuple(s + seed for s in profile.seeds), profile.data_tag
    if dataset == "emoji":
        raise CompanionError(
            "DATASET is 'emoji', whose concepts every seed splits anew, so that no two runs could be compared as the "
            "other notebooks do. Leave it out: notebook 11 takes the emoji by itself."
        )
    if dataset:
        profile = replace(profile, settings=profile.settings | {"dataset": dataset})
        profile.config()  # an unknown data set is told here
        data_tag += "-" + slug(dataset)
    tag = data_tag + (f"-seed{seed}" if seed else "")
    return replace(profile, seeds=seeds, tag=tag, data_tag=data_tag)


def slug(dataset: str) -> str:
    """The name of a data set as part of a folder's name; of an image folder its last folder alone.

    Raises:
        CompanionError: if nothing is left of it.
    """
    name = paths.without_folder(dataset).removeprefix("imagefolder:")
    if found := re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"):
        return found
    raise CompanionError(
        f"{name!r} has neither a letter from a to z nor a digit, and its results lie in a folder that is named by "
        "them: rename it, or name a link to it."
    )


def _planned() -> bool:
    """Whether a dry run goes on, which needs no device."""
    from companion.training import planned

    return bool(planned.current())


def _cuda() -> bool:
    import torch  # only here: listing the profiles must not take seconds

    return torch.cuda.is_available()


def _data_centre() -> bool:
    import torch

    return _cuda() and torch.cuda.get_device_properties(0).total_memory >= DATA_CENTRE * 2**30
