"""Data sets: a name in, uint8 images and labels out, with their provenance.

One that fits lives in memory as a uint8 tensor (60,000 images at 32×32: 184 MB), from where a batch is one indexing
operation, on the device if it lies there. Others stay in their files, see :class:`FileSplit`.
"""

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from companion import paths, store
from companion.errors import CompanionError, choose
from companion.training import places
from companion.training.config import DATASETS, EMBEDDED, EMOJI
from companion.training.digits import digits

_EMBEDDED_SHA256 = "3c65a1714f4291d8eeb306959f7649a57f6bf09f6945ac59e037cbc349069170"
_TORCHVISION = {  # name → class, keyword arguments of the training and of the test split
    "fashion-mnist": (torchvision.datasets.FashionMNIST, {"train": True}, {"train": False}),
    "cifar10": (torchvision.datasets.CIFAR10, {"train": True}, {"train": False}),
    "cifar100": (torchvision.datasets.CIFAR100, {"train": True}, {"train": False}),
    "svhn": (torchvision.datasets.SVHN, {"split": "train"}, {"split": "test"}),
    "stl10": (torchvision.datasets.STL10, {"split": "train"}, {"split": "test"}),
    "stl10-unlabelled": (torchvision.datasets.STL10, {"split": "train+unlabeled"}, {"split": "test"}),
}
EUROSAT_TEST = 5  # one image in five of each class, since the authors give no split of their own
EUROSAT_IMAGES = 27_000


@dataclass(frozen=True)
class Split:
    """Images (n, channels, height, width) uint8 and labels (n,) int64, in memory."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index])

    def subset(self, index: Tensor) -> "Split":
        """Some of the images, by their numbers."""
        return self[index]

    def to(self, device) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class FileSplit:
    """Images that stay in their files until they are asked for; ``split[index]`` reads them into a :class:`Split`."""

    files: np.ndarray  #: (n,) paths
    labels: Tensor  #: (n,) int64
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index) -> Split:
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda path: _read_image(path, self.image_size), self.files[index]))
        return Split(torch.stack(images), self.labels[index])

    def subset(self, index: Tensor) -> "FileSplit":
        """Some of the images, by their numbers, still in their files."""
        return FileSplit(self.files[index.numpy()], self.labels[index], self.image_size)

    def to(self, device) -> "FileSplit":
        """Itself: files lie where they lie, and a source moves each batch."""
        return self


@dataclass(frozen=True)
class Data:
    """A data set, split: ``validation`` is taken from the training images and never trained on."""

    train: Split | FileSplit
    validation: Split | FileSplit
    test: Split | FileSplit
    identity: str

    @property
    def labelled(self) -> Split | FileSplit:
        """The training images that have a label: of ``stl10-unlabelled`` most have none, which is written -1."""
        return self.train.subset(torch.where(self.train.labels >= 0)[0])


def load(name: str, *, image_size: int, n_train: int, n_validation: int = 0, storage: str = "memory") -> Data:
    """Load a data set, resized to ``image_size`` and cut to ``n_train`` + ``n_validation`` training images.

    The cut is stratified by class and the same for every seed of a run.

    Args:
        name: one of ``companion.training.config.DATASETS``. ``imagefolder:PATH`` is a tree
            ``PATH/train/<class>/*``, ``PATH/test/<class>/*``; a relative PATH is also looked for below the data
            folders.
        image_size: pixels a side; images are resized so and centre-cropped to a square.
        n_train: images to train on.
        n_validation: images to hold out of them; those without a label are left out then.
        storage: ``memory``, or ``files`` to leave an image folder on the disk.

    Raises:
        CompanionError: unknown name; data missing (with the places searched), damaged, or fewer than asked for.
    """
    if name == EMOJI:
        raise CompanionError("'emoji' are drawings with names: load them with companion.training.emoji.load.")
    train, test = _load_whole(name, image_size, storage)
    wanted = n_train + n_validation
    if wanted > len(train):
        raise CompanionError(
            f"{name} has {len(train):,} training images; {n_train:,} to train on and {n_validation:,} for validation "
            "were asked for: lower n_train or n_validation."
        )
    order = _stratified(torch.arange(len(train)), wanted, train.labels)
    chosen = _stratified(order, n_train, train.labels[order])
    held_out = order[~torch.isin(order, chosen)]
    return Data(train.subset(chosen), train.subset(held_out[train.labels[held_out] >= 0]), test, identity(name))


@functools.lru_cache
def identity(name: str) -> str:
    """What the data *are*, wherever they lie: the name, or of an image folder its name and a hash of its file list."""
    if not name.startswith("imagefolder:"):
        return choose(name, DATASETS, "data set")
    folder = _image_folder(name)
    digest = hashlib.sha256()
    walks = (os.walk(folder / split, followlinks=True) for split in ("train", "test"))  # as torchvision walks
    files = (Path(where, file) for walk in walks for where, _, inside in walk for file in inside)
    for path in sorted(path for path in files if path.suffix.lower() in IMG_EXTENSIONS):  # not .DS_Store
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
def _load_whole(name: str, image_size: int, storage: str) -> tuple[Split, Split] | tuple[FileSplit, FileSplit]:
    if name.startswith("imagefolder:"):
        splits = _load_image_folder(_image_folder(name), image_size)
        return splits if storage == "files" else _in_memory(splits, f"{identity(name)}-{image_size}")
    if name == "eurosat":
        return _load_eurosat(image_size)
    own = {EMBEDDED: _load_embedded, "digits": lambda: [Split(*part) for part in digits()]}
    splits = own[name]() if name in own else _load_torchvision(name)
    return tuple(Split(_resize(s.images, image_size), s.labels) for s in splits)


def _resize(images: Tensor, size: int) -> Tensor:
    """(n, c, h, w) uint8 → (n, c, size, size): the shorter side to ``size``, then the centre."""
    if images.shape[-2:] == (size, size):
        return images
    return transforms.center_crop(transforms.resize(images, [size], antialias=True), [size])


def _load_embedded() -> tuple[Split, Split]:
    """One JPEG mosaic of 100 × 100 tiles of 32 × 32 pixels: of the ten rows of each class the first eight are its
    training images, the last two its test images (data/README.md)."""
    path = places.find(EMBEDDED + ".jpg", "Restore data/ from the repository, or rebuild it (data/README.md).")
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != _EMBEDDED_SHA256:
            raise ValueError(f"its SHA-256 is not {_EMBEDDED_SHA256[:12]}…")
        with Image.open(BytesIO(raw)) as mosaic:
            pixels = torch.from_numpy(np.array(mosaic.convert("RGB")))
    except (OSError, ValueError) as error:
        raise CompanionError(
            f"{path} is damaged ({error}). Restore it from the repository, or rebuild it (data/README.md)."
        ) from error
    tiles = pixels.view(10, 10, 32, 100, 32, 3).permute(0, 1, 3, 5, 2, 4)  # (class, row, column, channel, 32, 32)
    labels = torch.arange(10)[:, None, None].expand(10, 10, 100)
    return tuple(
        Split(tiles[:, rows].reshape(-1, 3, 32, 32), labels[:, rows].flatten()) for rows in (slice(8), slice(8, 10))
    )


def _load_torchvision(name: str) -> tuple[Split, Split]:
    source, *splits = _TORCHVISION[choose(name, DATASETS, "data set")]
    return tuple(
        map(_as_split, places.from_roots(name, lambda root, **how: [source(root, **how, **s) for s in splits]))
    )


def _as_split(dataset) -> Split:
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:  # (n, h, w) grey
        images = images[:, None]
    elif images.shape[-1] == 3:  # (n, h, w, 3)
        images = images.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return Split(images.contiguous(), torch.as_tensor(np.asarray(labels)).long())


def _eurosat(root: Path, download: bool) -> torchvision.datasets.EuroSAT:
    """torchvision asks only whether the folder is there, be it cut off or still being unpacked."""
    found = torchvision.datasets.EuroSAT(str(root), download=download)
    if len(found.samples) != EUROSAT_IMAGES:
        raise RuntimeError(f"{root / 'eurosat'} has {len(found.samples):,} images, not {EUROSAT_IMAGES:,}")
    return found


def _load_eurosat(image_size: int) -> tuple[Split, Split]:
    """EuroSAT whole, as torchvision has it: one folder a class. Of each class the last fifth is the test set, in the
    order of the SHA-256 of the file names."""
    found = places.from_roots("eurosat", _eurosat)
    files, labels = np.array([path for path, _ in found.samples]), torch.tensor(found.targets)
    hashes = np.array([hashlib.sha256(Path(path).name.encode()).hexdigest() for path in files])
    test = torch.zeros(len(files), dtype=torch.bool)
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        last = np.argsort(hashes[members.numpy()])[len(members) - len(members) // EUROSAT_TEST :]
        test[members[torch.from_numpy(last)]] = True
    whole = FileSplit(files, labels, image_size)
    return _in_memory(tuple(whole.subset(torch.where(part)[0]) for part in (~test, test)), f"eurosat-{image_size}")


def _image_folder(name: str) -> Path:
    kind, _, given = name.partition(":")
    if kind != "imagefolder" or not given:
        choose(name, DATASETS, "data set")
    hint = "An image folder holds train/<class>/*.jpg and test/<class>/*.jpg."
    folder = places.find(str(Path(given).expanduser()), hint)
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise CompanionError(f"{folder} has no folder {split}/. {hint}")
    return folder


def _load_image_folder(folder: Path, image_size: int) -> tuple[FileSplit, FileSplit]:
    found = {}
    for split in ("train", "test"):
        try:
            found[split] = torchvision.datasets.ImageFolder(str(folder / split))
        except OSError as error:  # no class folders, or an empty one
            raise CompanionError(
                f"{folder / split} cannot be used ({error}): expected a folder with images for every class. Fill the "
                "empty ones or remove them from train/ and test/ both."
            ) from error
    if found["train"].classes != found["test"].classes:
        differing = sorted(set(found["train"].classes) ^ set(found["test"].classes))
        raise CompanionError(
            f"{folder} has class folders in only one of train/ and test/: {', '.join(differing)}. Both need the same."
        )
    classes = len(found["train"].classes)
    if classes < 2 or len(found["test"]) <= classes:
        raise CompanionError(
            f"{folder} has {classes} class{'es' * (classes > 1)} and {len(found['test'])} test images: expected at "
            "least two classes, and two test images of one of them, or there is nothing to measure."
        )
    return tuple(
        FileSplit(np.array([path for path, _ in f.samples]), torch.tensor(f.targets), image_size)
        for f in found.values()
    )


def _in_memory(splits: tuple[FileSplit, FileSplit], name: str) -> tuple[Split, Split]:
    """Decode every image once; later runs map the decoded tensors from ``results/cache``."""
    cache = paths.results() / "cache" / f"{name.replace(':', '-')}.safetensors"
    with store.lock(cache.stem):  # several processes start at once; one decodes
        named = dict(zip(("train_images", "test_images"), splits, strict=True))
        try:
            tensors = safetensors.torch.load_file(cache)
            whole = all(len(tensors[name]) == len(files) for name, files in named.items())
        except (FileNotFoundError, safetensors.SafetensorError, KeyError):  # not there yet, or damaged
            whole = False
        if not whole:
            store.write(cache, safetensors.torch.save({name: files[:].images for name, files in named.items()}))
            tensors = safetensors.torch.load_file(cache)
    return tuple(Split(tensors[name], files.labels) for name, files in named.items())


def _read_image(path: str, image_size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            return _resize(transforms.pil_to_tensor(image.convert("RGB")), image_size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as PIL's readers raise them
        raise CompanionError(f"{path} is not a readable image ({error}): replace or remove it.") from error
