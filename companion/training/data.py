"""Data sets as tensors: a name in, uint8 images and labels out, with their provenance.

A data set that fits lives in memory as one uint8 tensor (60,000 images at 32×32: 184 MB), from where a batch is one
indexing operation, on the device if it lies there.
"""

import functools
import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from companion import paths, store
from companion.config import DATASETS, EMBEDDED
from companion.errors import CompanionError, choose

_EMBEDDED_SHA256 = "01d68a4610f8d001e969bbfbf22d8b8fbce010ca11ffdaded522055c5d45b534"
_TORCHVISION = {  # name → class, keyword arguments of the training and of the test split
    "fashion-mnist": (torchvision.datasets.FashionMNIST, {"train": True}, {"train": False}),
    "cifar10": (torchvision.datasets.CIFAR10, {"train": True}, {"train": False}),
    "cifar100": (torchvision.datasets.CIFAR100, {"train": True}, {"train": False}),
    "svhn": (torchvision.datasets.SVHN, {"split": "train"}, {"split": "test"}),
    "stl10": (torchvision.datasets.STL10, {"split": "train"}, {"split": "test"}),
}


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) uint8 and labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set, split: ``validation`` is taken from the training images and never trained on."""

    train: Split
    validation: Split
    test: Split
    identity: str


def load(name: str, *, image_size: int, n_train: int, n_validation: int = 0) -> Data:
    """Load a data set, resized to ``image_size`` and cut to ``n_train`` + ``n_validation`` training images.

    The cut is stratified by class and the same for every seed of a run.

    Args:
        name: one of :data:`companion.config.DATASETS`. ``imagefolder:PATH`` is a tree ``PATH/train/<class>/*``,
            ``PATH/test/<class>/*``; a relative PATH is also looked for below the data folders.
        image_size: pixels a side; images are resized so and centre-cropped to a square.

    Raises:
        CompanionError: unknown name; data missing (with the places searched), damaged, or fewer than asked for.
    """
    train, test, identity_ = _load_whole(name, image_size)
    wanted = n_train + n_validation
    if wanted > len(train):
        raise CompanionError(
            f"{name} has {len(train):,} training images; {n_train:,} to train on and {n_validation:,} for validation "
            "were asked for: lower n_train or n_validation."
        )
    order = _stratified(torch.arange(len(train)), wanted, train.labels)
    chosen = _stratified(order, n_train, train.labels[order])
    held_out = order[~torch.isin(order, chosen)]
    return Data(train[chosen], train[held_out], test, identity_)


@functools.lru_cache
def identity(name: str) -> str:
    """What the data *are*, wherever they lie: the name, or for an image folder its name and a hash of its file list."""
    if not name.startswith("imagefolder:"):
        return choose(name, DATASETS, "data set")
    folder = _image_folder(name)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return f"imagefolder:{folder.name}:{digest.hexdigest()[:12]}"


def _stratified(index: Tensor, size: int, labels: Tensor) -> Tensor:
    """``size`` of ``index``, with the classes in proportion, in ascending order."""
    if size == len(index):
        return index
    try:
        chosen, _ = train_test_split(index.numpy(), train_size=size, random_state=0, stratify=labels.numpy())
    except ValueError as error:  # fewer images than classes
        raise CompanionError(f"Cannot choose {size} images with every class in proportion: {error}") from error
    return torch.from_numpy(np.sort(chosen))


@functools.lru_cache(maxsize=2)
def _load_whole(name: str, image_size: int) -> tuple[Split, Split, str]:
    if name == EMBEDDED:
        splits = _load_embedded()
    elif name in _TORCHVISION:
        splits = _load_torchvision(name)
    else:
        splits = _load_image_folder(_image_folder(name), image_size)
    train, test = (Split(_resize(s.images, image_size), s.labels) for s in splits)
    return train, test, identity(name)


def _resize(images: Tensor, size: int) -> Tensor:
    """(n, c, h, w) uint8 → (n, c, size, size): the shorter side to ``size``, then the centre."""
    if images.shape[-2:] == (size, size):
        return images
    return transforms.center_crop(transforms.resize(images, [size], antialias=True), [size])


def _load_embedded() -> tuple[Split, Split]:
    path = _find(EMBEDDED + ".npz", "Restore data/ from the repository, or rebuild it (data/README.md).")
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != _EMBEDDED_SHA256:
            raise ValueError(f"its SHA-256 is not {_EMBEDDED_SHA256[:12]}…")
        with np.load(path) as arrays:
            return tuple(
                Split(
                    torch.from_numpy(arrays[f"{split}_images"])[:, None],
                    torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)),
                )
                for split in ("train", "test")
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CompanionError(
            f"{path} is damaged ({error}). Restore it from the repository, or rebuild it (data/README.md)."
        ) from error


def _load_torchvision(name: str) -> tuple[Split, Split]:
    source, *splits = _TORCHVISION[name]
    roots = paths.data_roots()
    for root in roots:
        try:
            return tuple(_as_split(source(root, **split)) for split in splits)
        except RuntimeError:  # not here, or incomplete
            continue
        except Exception as error:  # found, but unreadable: torchvision lets many kinds through
            raise CompanionError(f"{name} in {root} is damaged ({error}): remove it, then run again.") from error
    try:
        os.makedirs(roots[0], exist_ok=True)
        return tuple(_as_split(source(roots[0], download=True, **split)) for split in splits)
    except (OSError, RuntimeError) as error:
        raise CompanionError(
            f"{name} was found in none of {', '.join(map(str, roots))}, and downloading it failed ({error}). "
            "Point DATA= (or CONTRASTIVE_DATA) at a folder that torchvision has filled, or use the embedded "
            f"{EMBEDDED!r}, which needs no download."
        ) from error


def _as_split(dataset) -> Split:
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:  # (n, h, w) grey
        images = images[:, None]
    elif images.shape[-1] == 3:  # (n, h, w, 3)
        images = images.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return Split(images.contiguous(), torch.as_tensor(np.asarray(labels)).long())


def _image_folder(name: str) -> Path:
    kind, _, given = name.partition(":")
    if kind != "imagefolder" or not given:
        choose(name, DATASETS, "data set")
    hint = "An image folder holds train/<class>/*.jpg and test/<class>/*.jpg."
    folder = _find(str(Path(given).expanduser()), hint)
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise CompanionError(f"{folder} has no folder {split}/. {hint}")
    return folder


def _load_image_folder(folder: Path, image_size: int) -> tuple[Split, Split]:
    """Decode every image once; later runs map the decoded tensors from ``results/cache``."""
    cache = (
        paths.results() / "cache" / f"{identity(f'imagefolder:{folder}').replace(':', '-')}-{image_size}.safetensors"
    )
    with store.lock(cache.stem):  # several processes start at once; one decodes
        if not cache.exists():
            tensors = {}
            for split in ("train", "test"):
                found = torchvision.datasets.ImageFolder(str(folder / split))
                with ThreadPoolExecutor() as pool:
                    images = list(
                        pool.map(lambda path: _read_image(path, image_size), (path for path, _ in found.samples))
                    )
                tensors[f"{split}_images"] = torch.stack(images)
                tensors[f"{split}_labels"] = torch.tensor(found.targets)
            store.write(cache, safetensors.torch.save(tensors))
    tensors = safetensors.torch.load_file(cache)
    return tuple(Split(tensors[f"{split}_images"], tensors[f"{split}_labels"]) for split in ("train", "test"))


def _read_image(path: str, image_size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            return _resize(transforms.pil_to_tensor(image.convert("RGB")), image_size)
    except OSError as error:  # PIL's own errors are OSErrors too
        raise CompanionError(f"{path} is not a readable image ({error}): replace or remove it.") from error


def _find(name: str, hint: str) -> Path:
    """An absolute path as it is, a relative one below the current folder or the first data folder that has it."""
    candidates = (
        [Path(name)] if Path(name).is_absolute() else [root / name for root in [*paths.data_roots(), Path.cwd()]]
    )
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise CompanionError(f"{name} was found in none of {', '.join(str(c.parent) for c in candidates)}. {hint}")
