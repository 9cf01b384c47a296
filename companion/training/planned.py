"""A dry run: what would be trained is noted, and nothing is."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from companion.training.config import EMBEDDED, EMOJI, Config
from companion.training.data import Data, Split

LOCAL = (EMBEDDED, EMOJI, "digits")  # data sets that come with the package and its libraries
CLASSES, TESTED = 10, 10_000  # classes and test images of noise: as many as CIFAR-10 has


@dataclass
class Plan:
    """What a dry run has been asked for.

    Args:
        numbers: the metrics that shall stand in for those of a run that is not in the store.
    """

    numbers: Callable[[Config], dict[str, float]]
    runs: dict[Config, bool] = field(default_factory=dict)  #: each run asked for, and whether it is in the store
    unstored: list[tuple[Config, str]] = field(default_factory=list)  #: trainings outside the store, and their device


_plans: list[Plan] = []


def current() -> Plan | None:
    """The plan of the dry run that goes on, if one does."""
    return _plans[-1] if _plans else None


@contextlib.contextmanager
def dry_run(numbers: Callable[[Config], dict[str, float]]) -> Iterator[Plan]:
    """Inside, in this process, :func:`companion.training.sweep` and :func:`companion.training.train` note what they are
    asked for, :func:`companion.training.load_data` downloads nothing, and a profile needs no device.

    Args:
        numbers: as for :class:`Plan`.
    """
    _plans.append(Plan(numbers))
    try:
        yield _plans[-1]
    finally:
        _plans.pop()


@functools.lru_cache(maxsize=2)
def noise(image_size: int, n_train: int, n_validation: int) -> Data:
    """Random images in the place of a data set that may not be there."""
    draws = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        shape = (n, 3, image_size, image_size)
        images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
        return Split(images, torch.arange(n) % CLASSES)

    return Data(split(n_train), split(n_validation), split(TESTED), "noise")
