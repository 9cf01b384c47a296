"""Is this machine ready?"""

import platform
import sys
from importlib import metadata

import torch
from packaging.requirements import Requirement

from companion.errors import CompanionError
from companion.training import data
from companion.training.config import EMBEDDED

MINIMUM_PYTHON = (3, 11)
NEEDED = ("train", "course")  # extras that the notebooks use


def check() -> list[tuple[str, str, str]]:
    """Look at everything that the notebooks need.

    Returns:
        Rows of (what, found, what to do); the last is ``"OK"`` where nothing is to be done.
    """
    python_ok = sys.version_info >= MINIMUM_PYTHON
    rows = [("Python", platform.python_version(), "OK" if python_ok else "install Python 3.11 or newer")]
    try:
        required = metadata.requires("contrastive-companion") or []
    except metadata.PackageNotFoundError:  # a clone by PYTHONPATH
        required, rows = [], [*rows, ("contrastive-companion", "not installed", "run `make setup`")]
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in NEEDED):
            rows.append((requirement.name, *_installed(requirement)))
    rows.append(("torch with torchvision", *_torch_matches_torchvision()))
    rows.append(("embedded data", *_embedded_data()))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows.append(("device", device, "OK"))
    return rows


def _installed(requirement: Requirement) -> tuple[str, str]:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing", "run `make setup`"
    if requirement.specifier.contains(version, prereleases=True):
        return version, "OK"
    return version, f"{requirement.name}{requirement.specifier} is needed: run `make setup`"


def _torch_matches_torchvision() -> tuple[str, str]:
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # a compiled operator: fails if the builds differ
    except (ImportError, RuntimeError) as error:
        return str(error).splitlines()[0], "install torch and torchvision as a pair: run `make setup`"
    return "they match", "OK"


def _embedded_data() -> tuple[str, str]:
    try:
        loaded = data.load(EMBEDDED, image_size=32, n_train=8000)
    except CompanionError as error:
        return "not found or damaged", str(error)
    return f"{len(loaded.train):,} training and {len(loaded.test):,} test images", "OK"
