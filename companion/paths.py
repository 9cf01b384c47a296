"""Where things lie. Every other module asks here."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CHECKOUT = ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()  # installed without a checkout: work in the cwd


def data_roots() -> list[Path]:
    """Folders that may hold data sets, the user's own first: ``CONTRASTIVE_DATA``, the project's ``data/``, and what
    was installed with the package."""
    own = os.environ.get("CONTRASTIVE_DATA")
    return [*([Path(own).expanduser()] if own else []), _CHECKOUT / "data", ROOT / "companion" / "embedded"]


def without_folder(dataset: str) -> str:
    """A data set without where it lies, which is nobody's business: an image folder by its last folder's name alone."""
    prefix, folder, path = dataset.partition("imagefolder:")
    return prefix + folder + path.rstrip("/").rpartition("/")[2] if folder else dataset


def results() -> Path:
    """Folder of everything that is computed: ``CONTRASTIVE_RESULTS``, or the project's ``results/``."""
    return Path(os.environ.get("CONTRASTIVE_RESULTS") or _CHECKOUT / "results").expanduser()


def reference() -> Path:
    """Recorded results, which are committed."""
    return _CHECKOUT / "results" / "reference"


def full_size() -> list[str]:
    """Names of the recorded results with the main paper's network and image size, those of the profile ``paper``
    before those of ``gpu``."""
    names = sorted(path.name for path in reference().glob("*") if path.is_dir())
    return [name for profile in ("paper", "gpu") for name in names if name.partition("-")[0] == profile]


def runs() -> Path:
    """The run store."""
    return results() / "runs"
