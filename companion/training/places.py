"""Where data sets lie: in the data folders, or downloaded into the first of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from companion import paths, store
from companion.errors import DAMAGED, CompanionError
from companion.training.config import EMBEDDED

Found = TypeVar("Found")


def find(name: str, hint: str) -> Path:
    """An absolute path as it is, a relative one below the current folder or the first data folder that has it.

    Raises:
        CompanionError: if it is in none of them, with the ``hint``.
    """
    roots = [Path()] if Path(name).is_absolute() else [*paths.data_roots(), Path.cwd()]
    candidates = [root / name for root in roots]
    if found := next((candidate for candidate in candidates if candidate.exists()), None):
        return found
    raise CompanionError(f"{name} was found in none of {', '.join(str(c.parent) for c in candidates)}. {hint}")


def from_roots(name: str, read: Callable[..., Found]) -> Found:
    """``read(root, download=…)`` of the first data folder that holds the set whole, or else after a download, which
    one process makes while others wait.

    Raises:
        CompanionError: if it is in none of them, and cannot be downloaded.
    """
    roots = paths.data_roots()
    for root in roots:
        try:
            return read(root, download=False)
        except DAMAGED:  # not here, or cut off, or still being unpacked
            continue
    try:
        with store.lock(f"download-{name}"):
            os.makedirs(roots[0], exist_ok=True)
            return read(roots[0], download=True)
    except DAMAGED as error:
        raise CompanionError(
            f"{name} was found in none of {', '.join(map(str, roots))}, and downloading it failed ({error}). "
            "Point DATA= (or CONTRASTIVE_DATA) at a folder that torchvision has filled, or remove the set's own folder "
            f"there if it is cut off, or use the embedded {EMBEDDED!r}, which needs no download."
        ) from error
