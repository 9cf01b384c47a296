"""Arrays from files, without running what a file might hold: ``.npy``, ``.npz``, ``.safetensors``, ``.pt``."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.errors import DAMAGED, CompanionError, choose, extra

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")


def load(where: str | Path) -> np.ndarray | Tensor:
    """The array that ``where`` names: ``FILE``, or ``FILE:NAME`` for one of several in a file.

    A ``.npy`` is mapped into memory, so that it may be larger than memory; ``.safetensors`` and ``.pt`` (a tensor or a
    dictionary of tensors, read with ``weights_only=True``) keep bfloat16.

    Args:
        where: such as ``u.npy``, ``pairs.npz:u``, ``pairs.safetensors:u`` or ``pairs.pt:u``. Without a name a file
            must hold one array.

    Raises:
        CompanionError: if there is no such file, it cannot be read, or it does not hold the array (its names are told).
        MissingExtraError: for a ``.safetensors`` if safetensors is not installed.
    """
    path, name = _split(str(where))
    if not path.is_file():
        raise CompanionError(f"There is no file {path}: expected {', '.join(SUFFIXES)}, with :NAME for one of several.")
    read = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}.get(path.suffix, _torch)
    try:
        return read(path, name)
    except CompanionError:
        raise
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _split(where: str) -> tuple[Path, str | None]:
    """Only a colon behind a suffix parts a name from a file: a folder may have one, and a Windows drive does."""
    suffixes = "|".join(re.escape(suffix) for suffix in SUFFIXES)
    found = re.fullmatch(rf"(.+?(?:{suffixes}))(?::(.+))?", where, re.S)
    if not found:
        raise CompanionError(
            f"{where} is of no known kind: expected {', '.join(SUFFIXES)}, with :NAME for one of several."
        )
    return Path(found.group(1)), found.group(2)


def _pick(path: Path, names, name: str | None) -> str:
    names = sorted(names)
    if name is not None:
        if name not in names:
            choose(name, names or ["nothing"], f"array in {path.name}")
        return name
    if len(names) != 1:
        listed = ", ".join(names) or "nothing"
        raise CompanionError(
            f"{path} holds {listed}: say which array is meant, as {path.name}:{(names or ['NAME'])[0]}."
        )
    return names[0]


def _npy(path: Path, name: str | None) -> np.ndarray:
    if name is not None:
        raise CompanionError(f"{path}:{name} names an array inside {path.name}, but a .npy holds one without a name.")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path, name: str | None) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[_pick(path, archive.files, name)]


def _safetensors(path: Path, name: str | None) -> Tensor:
    with extra("train"):
        import safetensors
    try:
        with safetensors.safe_open(path, framework="pt") as archive:
            return archive.get_tensor(_pick(path, archive.keys(), name))
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error


def _torch(path: Path, name: str | None) -> Tensor:
    held = torch.load(path, weights_only=True, map_location="cpu")
    if isinstance(held, Tensor) and name is None:
        return held
    tensors = {str(key): x for key, x in held.items() if isinstance(x, Tensor)} if isinstance(held, dict) else {}
    if not tensors:
        raise CompanionError(f"{path} holds {'one tensor' if isinstance(held, Tensor) else type(held).__name__}: "
                             "expected a tensor, or a dictionary of tensors for :NAME.")  # fmt: skip
    return tensors[_pick(path, tensors, name)]


def _damaged(path: Path, error: Exception) -> CompanionError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return CompanionError(
        f"{path} cannot be read ({reason}): expected plain arrays in it. Files that hold Python objects are not "
        "opened, since they could run code; save the arrays alone, with numpy.save or safetensors."
    )
