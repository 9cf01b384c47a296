import gzip
import hashlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data, paths
from companion.config import EMBEDDED
from companion.errors import CompanionError


@pytest.fixture(autouse=True)
def _nothing_remembered():
    data._load_whole.cache_clear()
    data.identity.cache_clear()
    yield
    data._load_whole.cache_clear()
    data.identity.cache_clear()


SCRIPT = paths.ROOT / "data" / "build_fashion_mnist_subset.py"


def test_embedded_subset_is_balanced_and_its_file_the_documented_one():
    loaded = data.load(EMBEDDED, image_size=28, n_train=10_000)
    assert loaded.train.images.shape == (10_000, 1, 28, 28)
    assert loaded.test.images.shape == (2_000, 1, 28, 28)
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train.labels.bincount().tolist() == [1000] * 10
    assert loaded.test.labels.bincount().tolist() == [200] * 10
    path = paths.ROOT / "data" / "fashion-mnist-subset.npz"
    assert path.stat().st_size <= 6e6
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == data._EMBEDDED_SHA256
    assert digest in (paths.ROOT / "data" / "README.md").read_text()


def test_splits_are_balanced_and_share_no_image():
    loaded = data.load(EMBEDDED, image_size=14, n_train=3000, n_validation=2000)
    assert loaded.train.images.shape == (3000, 1, 14, 14)
    assert loaded.train.labels.bincount().tolist() == [300] * 10
    assert loaded.validation.labels.bincount().tolist() == [200] * 10
    rows = {image.numpy().tobytes() for image in loaded.train.images}
    assert len(rows) > 2990  # a few images of the data set are the same at 14×14
    assert sum(image.numpy().tobytes() in rows for image in loaded.validation.images) <= 5


def test_resizing_keeps_the_mean_of_the_image():
    large = data.load(EMBEDDED, image_size=28, n_train=100).train.images.float().mean(dim=(1, 2, 3))
    small = data.load(EMBEDDED, image_size=14, n_train=100).train.images.float().mean(dim=(1, 2, 3))
    assert (large - small).abs().max() < 4  # of 255: halving by antialiased interpolation is nearly averaging


def test_too_many_images_and_unknown_names():
    with pytest.raises(CompanionError, match="has 10,000 training images; 9,000 to train on and 2,000 for validation"):
        data.load(EMBEDDED, image_size=28, n_train=9_000, n_validation=2_000)
    with pytest.raises(CompanionError, match=r"Unknown data set 'cifar-10'.*Did you mean 'cifar10'"):
        data.load("cifar-10", image_size=32, n_train=10)
    with pytest.raises(CompanionError, match="Did you mean 'imagefolder:PATH'"):
        data.load("imagefolder:", image_size=32, n_train=10)
    with pytest.raises(CompanionError, match="with every class in proportion"):
        data.load(EMBEDDED, image_size=28, n_train=5)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_or_missing_embedded_file(damage, tmp_path, monkeypatch):
    good = (paths.ROOT / "data" / "fashion-mnist-subset.npz").read_bytes()
    bad = {"truncate": good[: len(good) // 2], "flip": good[:1000] + b"\0\0\0\0" + good[1004:], "remove": None}[damage]
    if bad is not None:
        (tmp_path / "fashion-mnist-subset.npz").write_bytes(bad)
    monkeypatch.setattr(paths, "data_roots", lambda: [tmp_path])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompanionError, match="found in none of" if bad is None else "is damaged"):
        data.load(EMBEDDED, image_size=28, n_train=10_000)


@pytest.fixture
def image_folder(tmp_path):
    """Two classes, images of different size and mode, the class written into the brightness."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(100, size=(20 + i, 30), dtype=np.uint8) + 100 * label
                mode = Image.fromarray(pixels.astype(np.uint8)).convert("RGB" if i % 2 else "L")
                mode.save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def test_image_folder(image_folder, results, monkeypatch):
    loaded = data.load(f"imagefolder:{image_folder}", image_size=16, n_train=16, n_validation=8)
    assert loaded.train.images.shape == (16, 3, 16, 16)
    assert (loaded.train.labels.bincount().tolist(), loaded.validation.labels.bincount().tolist()) == ([8, 8], [4, 4])
    brightness = loaded.train.images.float().mean(dim=(1, 2, 3))
    assert ((brightness > 100).long() == loaded.train.labels).all()
    # found below a data folder too, with the same identity, since it is the same data
    monkeypatch.setenv("CONTRASTIVE_DATA", str(image_folder.parent))
    assert data.identity("imagefolder:images") == loaded.identity
    (image_folder / "train" / "dark" / "0.png").unlink()
    data.identity.cache_clear()
    assert data.identity("imagefolder:images") != loaded.identity


def test_image_folder_without_test_split_or_with_a_broken_image(image_folder, results, tmp_path):
    with pytest.raises(CompanionError, match="found in none of"):
        data.load("imagefolder:no/such/folder", image_size=16, n_train=4)
    (image_folder / "train" / "light" / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(CompanionError, match=r"3\.png is not a readable image"):
        data.load(f"imagefolder:{image_folder}", image_size=16, n_train=16)
    assert not list(results.rglob("*.safetensors"))
    (image_folder / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(CompanionError, match="has no folder test/"):
        data.load(f"imagefolder:{image_folder}", image_size=16, n_train=16)


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_torchvision_fashion_mnist_from_files_that_are_there(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(256, size=(30, 28, 28), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte.gz", labels)
        for kind in ("images-idx3", "labels-idx1"):  # torchvision reads the unpacked ones
            packed = raw / f"{split}-{kind}-ubyte.gz"
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    loaded = data.load("fashion-mnist", image_size=28, n_train=30)
    assert (loaded.train.images[:, 0].numpy() == images).all()
    assert (loaded.test.labels.numpy() == labels).all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_cifar_from_files_that_are_there(name, tmp_path, monkeypatch):
    source = data._TORCHVISION[name][0]
    folder = tmp_path / source.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(20, 3, 32, 32), dtype=np.uint8)
    key = "labels" if name == "cifar10" else "fine_labels"
    batch = pickle.dumps({"data": pixels.reshape(20, -1), key: list(range(10)) * 2})
    files = [file for file, _ in source.train_list + source.test_list]
    for file in files:
        (folder / file).write_bytes(batch)
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: ["class"] * 10}))
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    batches = len(source.train_list)
    loaded = data.load(name, image_size=32, n_train=20 * batches)
    assert (loaded.train.images[:20].numpy() == pixels).all()
    assert len(loaded.test) == 20


def test_a_data_set_that_is_nowhere_says_where_it_was_looked_for(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path / "mine"))
    with pytest.raises(CompanionError, match=r"cifar10 was found in none of .*mine.*no network.*DATA=") as told:
        data.load("cifar10", image_size=32, n_train=10)
    assert EMBEDDED in str(told.value)


def build(folder, out):
    command = [sys.executable, SCRIPT, folder, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def test_building_the_subset_refuses_what_is_not_the_original(tmp_path):
    told = build(tmp_path, tmp_path / "out.npz")
    assert told.returncode == 1
    assert "train-images-idx3-ubyte.gz is missing" in told.stderr
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((2, 28, 28), np.uint8))
    assert "it is not the original" in build(tmp_path, tmp_path / "out.npz").stderr
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bno")
    assert "is damaged" in build(tmp_path, tmp_path / "out.npz").stderr
    assert not (tmp_path / "out.npz").exists()


def test_writing_the_embedded_arrays_again_gives_the_file_bit_for_bit(tmp_path):
    """With the originals at hand the whole script does this; here its last half, on the arrays it must choose."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import build_fashion_mnist_subset as builder
    finally:
        sys.path.remove(str(SCRIPT.parent))
    with np.load(builder.OUT) as arrays:
        builder.write_npz(dict(arrays), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == builder.OUT.read_bytes()
    assert builder.first_of_each_class(np.array([1, 0, 1, 1, 0, 0]), 2).tolist() == [0, 1, 2, 4]
