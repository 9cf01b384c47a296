"""What a run was made with."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata

import torch

from companion import paths
from companion.errors import choose

NAMES = ("deterministic", "python", "torch", "torchvision", "device", "commit")  # of what `provenance` gives


def provenance(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Versions, device, of several processes as ``2 × cpu, one thread``, and commit that a run was made with, and
    whether it was asked to be deterministic."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, one thread"
    asked = {"deterministic": "yes"} if torch.are_deterministic_algorithms_enabled() else {}
    return asked | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "device": name if processes == 1 else f"{processes} × {name}",
        "commit": _commit(),
    }


@contextlib.contextmanager
def algorithms() -> Iterator[None]:
    """Inside, torch takes the fastest algorithms or, if ``CONTRASTIVE_DETERMINISTIC`` is 1, only such that repeat their
    results bit by bit on the same device, and raises where there is none.

    Raises:
        CompanionError: if the variable is neither empty nor 0 nor 1.
    """
    given = os.environ.get("CONTRASTIVE_DETERMINISTIC", "").strip() or "0"
    deterministic = choose(given, ("0", "1"), "DETERMINISTIC (or CONTRASTIVE_DETERMINISTIC)") == "1"
    # Batches have one shape, so the fastest kernels are worth the search, unless it may choose others next time.
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _commit() -> str:
    if not (paths.ROOT / "pyproject.toml").exists():  # installed: a repository around it is somebody else's
        return "unknown"
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git
        return "unknown"
