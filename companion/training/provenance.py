"""What a run was made with."""

import platform
import subprocess
from importlib import metadata

import torch

from companion import paths


def provenance(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Versions, device and commit that a run was made with; of several processes, ``2 × cpu, one thread``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, one thread"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "device": name if processes == 1 else f"{processes} × {name}",
        "commit": _commit(),
    }


def _commit() -> str:
    if not (paths.ROOT / "pyproject.toml").exists():  # installed: a repository around it is somebody else's
        return "unknown"
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git
        return "unknown"
