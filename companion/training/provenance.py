"""What a run was made with."""

import platform
import subprocess
from importlib import metadata

import torch

from companion import paths


def provenance(device: torch.device) -> dict[str, str]:
    """Versions, device and commit that a run was made with."""
    git = subprocess.run(
        ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, one thread",
        "commit": git.stdout.strip() or "unknown",
    }
