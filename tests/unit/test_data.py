"""Data sets: the embedded one, torchvision's, EuroSAT whole, and folders of images, in memory and in files."""

import gzip
import hashlib
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits

from companion import paths
from companion.errors import CompanionError
from companion.training import baselines, data, run, runs, table
from companion.training.config import EMBEDDED

FILE = paths.ROOT / "data" / "eurosat-subset.jpg"
README = (paths.ROOT / "data" / "README.md").read_text()


@pytest.fixture(autouse=True)
def _nothing_remembered(forget):
    pass


def test_the_embedded_file_is_the_documented_one():
    packed = FILE.read_bytes()
    assert len(packed) <= 6e6
    digest = hashlib.sha256(packed).hexdigest()
    assert digest == data._EMBEDDED_SHA256
    assert f"{digest}  {FILE.name} ({len(packed):,} bytes)" in README


def test_the_embedded_images_are_those_that_the_readme_reads(monkeypatch):
    """Its three lines of NumPy are another reader of the file."""
    about = README.partition("## The embedded subset")[2].partition("\n## ")[0]
    lines = re.findall(r"^    ((?:tiles|train).*)$", about, re.M)
    assert len(lines) == 3
    names = {"np": np, "Image": Image}
    monkeypatch.chdir(paths.ROOT)
    exec("\n".join(lines), names)
    loaded = data.load(EMBEDDED, image_size=32, n_train=8000)
    for split, tiles, count in ((loaded.train, names["train"], 800), (loaded.test, names["test"], 200)):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (10 * count, 3, 32, 32)
        assert split.labels.tolist() == [label for label in range(10) for _ in range(count)]
        assert (split.images.numpy() == tiles.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)).all()


def test_splits_are_balanced_and_share_no_image():
    loaded = data.load(EMBEDDED, image_size=32, n_train=3000, n_validation=2000)
    assert loaded.train.labels.bincount().tolist() == [300] * 10
    assert loaded.validation.labels.bincount().tolist() == [200] * 10
    assert loaded.test.labels.bincount().tolist() == [200] * 10
    seen = [{image.numpy().tobytes() for image in split.images} for split in (loaded.train, loaded.validation)]
    assert not seen[0] & seen[1]
    assert len(seen[0]) > 2990  # a patch of open water may look like another
    assert not seen[0] & {image.numpy().tobytes() for image in loaded.test.images}


def test_the_cut_is_the_same_every_time():
    once, again = (data.load(EMBEDDED, image_size=8, n_train=200, n_validation=100) for _ in range(2))
    for name in ("train", "validation"):
        assert torch.equal(getattr(once, name).images, getattr(again, name).images)


def test_resizing_is_pillows():
    large = data.load(EMBEDDED, image_size=32, n_train=100).train.images
    small = data.load(EMBEDDED, image_size=16, n_train=100).train.images
    for before, after in zip(large, small, strict=True):
        image = Image.fromarray(before.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(image).astype(int) - after.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        (EMBEDDED, {"n_train": 7_000, "n_validation": 2_000},
         "has 8,000 training images; 7,000 to train on and 2,000 for validation were asked for: lower"),
        (EMBEDDED, {"n_train": 5}, "with every class in proportion"),
        ("cifar-10", {"n_train": 10}, r"'cifar-10': expected one of eurosat-subset, emoji, .*Did you mean 'cifar10'"),
        ("imagefolder:", {"n_train": 10}, "Did you mean 'imagefolder:PATH'"),
    ],
)  # fmt: skip
def test_too_many_or_too_few_images_and_unknown_names(name, numbers, expected):
    with pytest.raises(CompanionError, match=expected):
        data.load(name, image_size=32, **numbers)


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty", "missing"])
def test_a_damaged_or_missing_embedded_file(damage, tmp_path, monkeypatch):
    good = FILE.read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "one byte": good[:100_000] + bytes([good[100_000] ^ 1]) + good[100_001:],
        "empty": b"",
    }.get(damage)
    if bad is not None:
        (tmp_path / FILE.name).write_bytes(bad)
    monkeypatch.setattr(paths, "data_roots", lambda: [tmp_path])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CompanionError, match=r"is damaged.*Restore" if bad is not None else r"found in none of.*Restore"
    ):
        data.load(EMBEDDED, image_size=32, n_train=8000)


# ---- torchvision's data sets, from files in their official formats ---------------------------------------------------


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())


def test_torchvision_fashion_mnist_from_files_that_are_there(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(256, size=(30, 28, 28), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10
    for split, turn in (("train", lambda x: x), ("t10k", np.flip)):
        write_idx(raw / f"{split}-images-idx3-ubyte", turn(images))
        write_idx(raw / f"{split}-labels-idx1-ubyte", turn(labels))
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    loaded = data.load("fashion-mnist", image_size=28, n_train=30)
    assert loaded.train.images.shape == (30, 1, 28, 28)
    assert (loaded.train.images[:, 0].numpy() == images).all()
    assert (loaded.train.labels.numpy() == labels).all()
    assert (loaded.test.images[:, 0].numpy() == np.flip(images)).all()
    assert (loaded.test.labels.numpy() == np.flip(labels)).all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_cifar_from_files_that_are_there(name, tmp_path, monkeypatch):
    source = data._TORCHVISION[name][0]
    folder = tmp_path / source.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(20, 3, 32, 32), dtype=np.uint8)
    key = "labels" if name == "cifar10" else "fine_labels"
    labels = list(range(10)) * 2
    for files, x, y in ((source.train_list, pixels, labels), (source.test_list, 255 - pixels, labels[::-1])):
        for file, _ in files:
            (folder / file).write_bytes(pickle.dumps({"data": x.reshape(20, -1), key: y}))
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: ["class"] * 10}))
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    loaded = data.load(name, image_size=32, n_train=20 * len(source.train_list))
    assert (loaded.train.images[:20].numpy() == pixels).all()
    assert loaded.train.labels[:20].tolist() == labels
    assert (loaded.test.images.numpy() == 255 - pixels).all()
    assert loaded.test.labels.tolist() == labels[::-1]


def test_torchvision_svhn_from_files_that_are_there(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(32, 32, 3, 20), dtype=np.uint8)
    labels = np.arange(20)[:, None] % 10 + 1
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": labels})
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": 255 - pixels, "y": labels[::-1]})
    monkeypatch.setattr(data._TORCHVISION["svhn"][0], "_check_integrity", lambda self: True)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    loaded = data.load("svhn", image_size=32, n_train=20)
    assert (loaded.train.images.numpy() == pixels.transpose(3, 2, 0, 1)).all()
    assert (loaded.test.images.numpy() == 255 - pixels.transpose(3, 2, 0, 1)).all()
    digits = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2  # the digit 0 is stored as 10
    assert (loaded.train.labels.tolist(), loaded.test.labels.tolist()) == (digits, digits[::-1])


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Twelve images in STL-10's own format, for training, for testing, and without labels; their pixels."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(12, 3, 96, 96), dtype=np.uint8)  # channel, row, column
    for split in ("train", "test", "unlabeled"):
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())  # stored column by column
    for split in ("train", "test"):
        (folder / f"{split}_y.bin").write_bytes((np.arange(12) % 3 + 1).astype(np.uint8).tobytes())
    darker = pixels // 2  # so that the test images are no others
    (folder / "test_X.bin").write_bytes(darker.transpose(0, 1, 3, 2).tobytes())
    (folder / "class_names.txt").write_text("a\nb\nc\n")
    monkeypatch.setattr(data._TORCHVISION["stl10"][0], "_check_integrity", lambda self: True)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    return pixels


def test_torchvision_stl10_from_files_that_are_there(stl10):
    pixels = stl10
    loaded = data.load("stl10", image_size=96, n_train=12)
    assert (loaded.train.images.numpy() == pixels).all()
    assert loaded.test.labels.tolist() == [0, 1, 2] * 4


def test_images_without_a_label_are_trained_on_and_not_probed(stl10):
    loaded = data.load("stl10-unlabelled", image_size=96, n_train=24)
    assert (loaded.train.images.numpy() == np.concatenate([stl10, stl10])).all()
    assert loaded.train.labels.tolist() == [0, 1, 2] * 4 + [-1] * 12
    assert (loaded.labelled.images.numpy() == stl10).all()
    assert (loaded.test.images.numpy() == stl10 // 2).all()
    assert loaded.labelled.labels.tolist() == loaded.test.labels.tolist() == [0, 1, 2] * 4
    cut = data.load("stl10-unlabelled", image_size=16, n_train=16, n_validation=8)
    assert (cut.train.labels >= 0).sum() == 8
    assert len(cut.validation) == 4
    assert (cut.validation.labels >= 0).all()


def test_a_run_takes_all_images_and_its_probe_and_baseline_the_labelled_ones(stl10, results, tiny, monkeypatch):
    monkeypatch.setitem(baselines.__globals__, "BATCH_SIZE", 4)
    config = tiny.replace(
        dataset="stl10-unlabelled", n_train=24, n_validation=0, batch_size=8, epochs=1, warmup_epochs=0,
        loss="align_uniform", schedule="steps", measured_pairs=12, projector_hidden=0,
    )  # fmt: skip
    probed = []
    for name in ("linear_probe", "knn"):
        classify = getattr(runs.probe, name)
        monkeypatch.setattr(
            runs.probe, name, lambda x, y, *a, f=classify, **k: probed.append(y.tolist()) or f(x, y, *a, **k)
        )
    found = run(config)
    assert probed == [[0, 1, 2] * 4] * 2
    assert found.history["step"].tolist() == [3]
    assert sorted(found.two_views()[2].tolist()) == sorted([0, 1, 2] * 4)
    assert run(baselines(config)["supervised"]).history["step"].tolist() == [3]  # 12 images in batches of 4
    row = table([found]).iloc[0]
    assert row[["linear_accuracy", "supervised_accuracy", "pixels_accuracy"]].between(0, 1).all()


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("name", "module"), [("cifar10", "cifar"), ("svhn", "svhn"), ("eurosat", "eurosat")])
def test_a_data_set_that_is_nowhere_says_where_it_was_looked_for(tmp_path, results, monkeypatch, name, module, there):
    def offline(*_, **__):
        raise OSError("no network")

    for function in ("download_and_extract_archive", "download_url"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.{function}", offline, raising=False)
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path / "mine"))
    if there:
        (tmp_path / "mine").mkdir()
    with pytest.raises(CompanionError, match=rf"{name} was found in none of .*mine.*no network.*DATA=") as told:
        data.load(name, image_size=32, n_train=10)
    assert EMBEDDED in str(told.value)


def test_a_data_set_that_is_cut_off_is_told_to_be_removed(tmp_path, results, monkeypatch):
    kinds = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    for name in kinds:
        (tmp_path / "FashionMNIST" / "raw" / name).touch()
    monkeypatch.setattr("companion.paths.data_roots", lambda: [tmp_path])
    with pytest.raises(CompanionError, match=r"fashion-mnist was found in none of .*remove the set's own folder"):
        data.load("fashion-mnist", image_size=28, n_train=10)


# ---- EuroSAT whole ---------------------------------------------------------------------------------------------------

SIZES = {"Forest": 11, "River": 25, "SeaLake": 7, "Highway": 4}


def test_a_eurosat_that_is_cut_off_or_still_being_unpacked_is_not_taken_for_it(tmp_path, results, monkeypatch):
    for folder, count in (("cut off", 3), ("whole", 5)):
        for label in ("Forest", "River"):
            (tmp_path / folder / "eurosat" / "2750" / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / folder / "eurosat" / "2750" / label / f"{label}_{i}.jpg")
    monkeypatch.setattr(data, "EUROSAT_IMAGES", 10)
    monkeypatch.setattr(paths, "data_roots", lambda: [tmp_path / "cut off", tmp_path / "whole"])
    assert len(data.load("eurosat", image_size=8, n_train=8).train) == 8
    monkeypatch.setattr(paths, "data_roots", lambda: [tmp_path / "cut off"])
    with pytest.raises(
        CompanionError, match=r"has 6 images, not 10\).*remove the set's own folder there if it is cut off"
    ):
        data.load("eurosat", image_size=9, n_train=8)


def test_eurosat_whole_is_split_by_the_hashes_of_its_names(tmp_path, results, monkeypatch):
    monkeypatch.setattr(data, "EUROSAT_IMAGES", sum(SIZES.values()))
    pixels, number = {}, 0
    for label, size in SIZES.items():
        (tmp_path / "eurosat" / "2750" / label).mkdir(parents=True)
        for i in range(1, size + 1):
            number += 1
            path = tmp_path / "eurosat" / "2750" / label / f"{label}_{i}.jpg"
            Image.new("RGB", (64, 64), (4 * number, 255 - 4 * number, 100)).save(path, quality=100)
            pixels[path.name] = np.asarray(Image.open(path))[0, 0]
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    loaded = data.load("eurosat", image_size=64, n_train=sum(size - size // 5 for size in SIZES.values()))
    assert loaded.identity == "eurosat"

    def names(split):
        found = {}
        for image, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
            matches = [name for name, colour in pixels.items() if (colour == image[:, 0, 0]).all()]
            found.setdefault(label, []).extend(matches)
        return found

    train, test = names(loaded.train), names(loaded.test)
    for label, name in enumerate(sorted(SIZES)):  # torchvision's class numbers are alphabetical
        files = [f"{name}_{i}.jpg" for i in range(1, SIZES[name] + 1)]
        files.sort(key=lambda file: hashlib.sha256(file.encode()).hexdigest())
        kept = SIZES[name] - SIZES[name] // 5
        assert sorted(train[label]) == sorted(files[:kept])
        assert sorted(test.get(label, [])) == sorted(files[kept:])  # of four images a fifth is none


# ---- Folders of images -----------------------------------------------------------------------------------------------


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


def load(folder, **changes):
    return data.load(f"imagefolder:{folder}", **({"image_size": 16, "n_train": 16, "n_validation": 8} | changes))


def test_an_image_folder(image_folder, results, monkeypatch, forget):
    loaded = load(image_folder)
    assert loaded.train.images.shape == (16, 3, 16, 16)
    assert (loaded.train.labels.bincount().tolist(), loaded.validation.labels.bincount().tolist()) == ([8, 8], [4, 4])
    brightness = loaded.train.images.float().mean(dim=(1, 2, 3))
    assert ((brightness > 100).long() == loaded.train.labels).all()
    # found below a data folder too, with the same identity, since it is the same data
    monkeypatch.setenv("CONTRASTIVE_DATA", str(image_folder.parent))
    assert data.identity("imagefolder:images") == loaded.identity
    assert str(image_folder.parent) not in loaded.identity
    (image_folder / "train" / "dark" / "0.png").unlink()
    forget()
    assert data.identity("imagefolder:images") != loaded.identity


def test_images_of_any_shape_become_squares_cut_from_their_middle(image_folder, results):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # the middle third
    Image.fromarray(wide).save(image_folder / "test" / "dark" / "0.png")
    found = load(image_folder, storage="files").test[:1].images
    assert found.shape == (1, 3, 16, 16)
    assert found[..., 2:-2].float().mean() > 195


@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_files_give_the_images_that_memory_gives(image_folder, results, which):
    memory, files = (getattr(load(image_folder, storage=storage), which) for storage in ("memory", "files"))
    assert isinstance(memory, data.Split)
    assert isinstance(files, data.FileSplit)
    assert len(files) == len(memory)
    for index in (slice(None), slice(2, 5), np.array([3, 0]), torch.tensor([3, 0]).numpy()):
        assert torch.equal(files[index].images, memory[index].images)
        assert torch.equal(files[index].labels, memory[index].labels)
    some = torch.tensor([3, 1])
    assert torch.equal(files.subset(some)[:].images, memory.subset(some).images)
    assert torch.equal(files.labels, memory.labels)


UNREADABLE = {
    "bomb.ppm": b"P6 99999 99999 255\n",
    "words.ppm": b"P6 x 9 255\n",
}  # more pixels than PIL takes; no number


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_image_that_pil_cannot_read_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(UNREADABLE[name])
    with pytest.raises(CompanionError, match=rf"{name} is not a readable image .*replace or remove it"):
        data._read_image(str(tmp_path / name), 16)


def test_a_second_load_reads_decoded_images(image_folder, results, monkeypatch, forget):
    first = load(image_folder).train.images
    forget()
    monkeypatch.setattr(data, "_read_image", None)
    assert torch.equal(load(image_folder).train.images, first)


def test_decoded_images_of_another_number_are_not_those_of_the_folder(image_folder, results, forget):
    first = load(image_folder).train.images
    (cache,) = (results / "cache").glob("*.safetensors")
    tensors = safetensors.torch.load_file(cache)
    cache.write_bytes(safetensors.torch.save(tensors | {"train_images": tensors["train_images"][1:]}))
    forget()
    assert torch.equal(load(image_folder).train.images, first)


def test_classes_that_are_links_are_part_of_what_the_images_are(image_folder, results, forget):
    """torchvision follows links to folders."""
    for split in ("train", "test"):
        (image_folder / split / "dark").rename(image_folder.parent / f"dark {split}")
        (image_folder / split / "dark").symlink_to(image_folder.parent / f"dark {split}")
    first = data.identity(f"imagefolder:{image_folder}")
    (image_folder.parent / "dark train" / "0.png").unlink()
    forget()
    assert data.identity(f"imagefolder:{image_folder}") != first


def test_an_image_folder_that_is_nowhere_has_no_test_split_or_a_broken_image(image_folder, results, tmp_path):
    with pytest.raises(CompanionError, match=r"found in none of.*train/<class>"):
        load("no/such/folder")
    (image_folder / "train" / "light" / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(CompanionError, match=r"3\.png is not a readable image.*replace or remove"):
        load(image_folder)
    assert not list(results.rglob("*.safetensors"))
    (image_folder / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(CompanionError, match="has no folder test/"):
        load(image_folder)


@pytest.mark.parametrize("storage", ["memory", "files"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_folder_is_told(image_folder, results, split, storage):
    (image_folder / split / "empty").mkdir()
    with pytest.raises(CompanionError, match=rf"{split} cannot be used.*empty.*a folder with images for every class"):
        load(image_folder, storage=storage)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_in_only_one_of_train_and_test_is_told(image_folder, results, split):
    (image_folder / split / "extra").mkdir()
    Image.new("RGB", (20, 20)).save(image_folder / split / "extra" / "0.png")
    with pytest.raises(CompanionError, match=r"in only one of train/ and test/: extra\. Both need the same"):
        load(image_folder)


def test_a_folder_without_class_folders_is_told(tmp_path, results):
    for split in ("train", "test"):
        (tmp_path / "flat" / split).mkdir(parents=True)
    with pytest.raises(CompanionError, match=r"train cannot be used"):
        load(tmp_path / "flat")


def test_what_cannot_be_measured_is_told_before_it_is_trained(tmp_path, results):
    for classes, tests in ((1, 4), (2, 1)):
        folder = tmp_path / f"{classes}-{tests}"
        for split, count in (("train", 12), ("test", tests)):
            for label in range(classes):
                (folder / split / str(label)).mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (20, 20)).save(folder / split / str(label) / f"{i}.png")
        with pytest.raises(
            CompanionError, match=rf"has {classes} class.* and {classes * tests} test images: expected at"
        ):
            load(folder, n_train=8, n_validation=0)


def test_the_identity_of_an_image_folder_is_that_of_its_images(image_folder, forget, monkeypatch):
    before = data.identity(f"imagefolder:{image_folder}")
    with monkeypatch.context() as changed:  # each disk lists files in an order of its own
        listed = Path.rglob
        changed.setattr(Path, "rglob", lambda *given: reversed(list(listed(*given))))
        forget()
        assert data.identity(f"imagefolder:{image_folder}") == before
    for junk in (".DS_Store", "train/.DS_Store", "train/dark/Thumbs.db", "notes.png"):
        (image_folder / junk).write_text("left by a file manager")
    forget()
    assert data.identity(f"imagefolder:{image_folder}") == before
    (image_folder / "test" / "dark" / "more.JPG").write_text("an image")
    forget()
    assert data.identity(f"imagefolder:{image_folder}") != before


def test_damaged_decoded_images_are_decoded_again(image_folder, results, forget):
    first = load(image_folder).train.images.clone()
    (cache,) = results.rglob("*.safetensors")
    whole = cache.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        cache.unlink()  # what is mapped stays as it is
        cache.write_bytes(damaged)
        forget()
        assert torch.equal(load(image_folder).train.images, first)
        assert cache.read_bytes() == whole


def test_digits_are_scikit_learns_each_once_in_three_equal_channels():
    loaded = data.load("digits", image_size=8, n_train=1000, n_validation=200)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (1000, 200, 597)
    found = torch.cat([split.images for split in (loaded.train, loaded.validation, loaded.test)])
    labels = torch.cat([split.labels for split in (loaded.train, loaded.validation, loaded.test)])
    assert (found == found[:, :1]).all()
    expected = load_digits()
    grey = sorted(
        (*image.ravel().tolist(), label) for image, label in zip(expected.images, expected.target, strict=True)
    )
    ours = (found[:, 0].flatten(1).double() * 16 / 255).round()
    assert sorted((*row.tolist(), int(label)) for row, label in zip(ours, labels, strict=True)) == grey
    assert loaded.test.labels.bincount().min() > 50
