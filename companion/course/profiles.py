"""Profiles: one name for everything that scales an experiment up or down."""

import os
import re
from dataclasses import dataclass, replace

from companion.config import Config
from companion.errors import CompanionError, choose, whole


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Settings that the notebooks draw on; which of them a notebook crosses with which is the notebook's own story."""

    name: str
    base: Config  # what every run of this profile starts from
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128, 256)  # m, as in the paper's Table 1
    long_factor: int = 2  # how many times longer the control run at the largest m trains
    optimiser_batch: int = 128  # M of the controlled experiment
    sub_batches: tuple[int, ...] = (8, 16, 32, 64, 128)  # m of the controlled experiment; each divides M
    small_batch: int = 32  # m of the λ and temperature sweeps
    weights: tuple[float, ...] = (1.0, 10.0, 30.0, 100.0)  # λ
    paper_weight: float = 30.0  # the paper's default λ
    temperatures: tuple[float, ...] = (0.07, 0.2, 0.5, 2.0)
    dcl_batch_sizes: tuple[int, ...] = (32, 256)
    tag: str = ""  # set when the user overrides the data set or the seed: no verdict is expected then

    @property
    def folder(self) -> str:
        """Name of the results folder: results of different settings never mix."""
        return self.name + self.tag

    def config(self, **changes) -> Config:
        """The profile's base :class:`Config` with some values changed."""
        return self.base.replace(**changes)

    def configs(self, **changes) -> list[Config]:
        """The same for every seed of the profile."""
        return [self.config(seed=seed, **changes) for seed in self.seeds]


_CIFAR = Config(
    dataset="cifar10", image_size=32, n_train=45_000, n_validation=5_000, encoder="resnet18", projector_hidden=512,
    learning_rate=0.3, crop_scale=0.08, batch_size=256, measured_pairs=5000, precision="bf16-mixed", accelerator="cuda",
)  # fmt: skip

_PROFILES = {
    "smoke": Profile(
        name="smoke",
        base=Config(n_train=128, n_validation=50, width=8, epochs=1, warmup_epochs=0, accelerator="cpu", batch_size=64),
        seeds=(0, 1, 2),
        batch_sizes=(16, 32, 64), optimiser_batch=64, sub_batches=(16, 32, 64), small_batch=32,
        weights=(1.0, 30.0), temperatures=(0.2, 1.0), dcl_batch_sizes=(32, 64), long_factor=2,
    ),
    "cpu": Profile(name="cpu", base=Config(accelerator="cpu")),
    "gpu": Profile(
        name="gpu", base=_CIFAR.replace(epochs=15),
        batch_sizes=(32, 128, 512), long_factor=2, optimiser_batch=512, sub_batches=(32, 128, 512), small_batch=128,
        weights=(1.0, 30.0), temperatures=(0.07, 0.2, 1.0), dcl_batch_sizes=(128,),
    ),
    "paper": Profile(
        name="paper", base=_CIFAR.replace(dataset="cifar100", epochs=200, warmup_epochs=10, blur=0.5),
        seeds=(0, 1, 2, 3, 4), batch_sizes=(32, 64, 128, 256, 512), long_factor=1,
        optimiser_batch=512, sub_batches=(32, 64, 128, 256, 512), small_batch=128,
        weights=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        temperatures=(0.07, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0), dcl_batch_sizes=(32, 64, 128, 256, 512),
    ),
}  # fmt: skip
NAMES = tuple(_PROFILES)


def load(name: str = "auto", *, dataset: str = "", seed: int = 0) -> Profile:
    """Return a profile's settings.

    Args:
        name: ``smoke``, ``cpu``, ``gpu``, ``paper``, or ``auto``: the environment variable ``CONTRASTIVE_PROFILE`` if
            it is set, else ``gpu`` where CUDA is available, else ``cpu``.
        dataset: a data set to use in place of the profile's own.
        seed: added to every seed of the profile.

    Raises:
        CompanionError: for an unknown profile or data set, or a ``gpu`` or ``paper`` profile where torch sees no CUDA.
    """
    if name == "auto":
        name = os.environ.get("CONTRASTIVE_PROFILE") or ("gpu" if _cuda() else "cpu")
    profile = _PROFILES[choose(name, NAMES, "profile")]
    if profile.base.accelerator == "cuda" and not _cuda():
        raise CompanionError(
            f"Profile {name!r} needs a CUDA device and torch sees none: install a CUDA build, or use PROFILE=cpu."
        )
    whole(seed, "seed", least=0)
    base, tag = profile.base, ""
    if dataset:
        base, tag = base.replace(dataset=dataset), "-" + re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
    seeds = tuple(s + seed for s in profile.seeds)
    return replace(profile, base=base, seeds=seeds, tag=tag + (f"-seed{seed}" if seed else ""))


def _cuda() -> bool:
    import torch  # only here: listing the profiles must not take seconds

    return torch.cuda.is_available()
