"""Rebuild the embedded Fashion-MNIST subset, bit for bit, from the four original files.

    python data/build_fashion_mnist_subset.py FOLDER [--out FILE]

FOLDER holds ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz`` and the two ``t10k`` files. The subset is
the first 1,000 training and the first 200 test images of each class, in the order of the original files: nothing is
drawn at random, so nothing depends on a generator's version.
"""

import argparse
import gzip
import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).with_name("fashion-mnist-subset.npz")
PER_CLASS = {"train": 1000, "t10k": 200}
# SHA-256 of the *uncompressed* originals: distributions compress them anew, the content stays.
ORIGINALS = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes and verify its checksum."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        sys.exit(f"{path} is missing: give the folder that holds {', '.join(ORIGINALS)}.")
    except (gzip.BadGzipFile, EOFError) as error:
        sys.exit(f"{path} is damaged ({error}): fetch it again.")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != ORIGINALS[path.name]:
        sys.exit(f"{path} has SHA-256 {digest} once unpacked, expected {ORIGINALS[path.name]}: it is not the original.")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of the first ``per_class`` members of every class, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))


def build(folder: Path) -> dict[str, np.ndarray]:
    """Return ``{train,test}_images`` (n, 28, 28) and ``{train,test}_labels`` (n,), all uint8."""
    arrays = {}
    for source, split in (("train", "train"), ("t10k", "test")):
        images = read_idx(folder / f"{source}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{source}-labels-idx1-ubyte.gz")
        chosen = first_of_each_class(labels, PER_CLASS[source])
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    return arrays


def write_npz(arrays: dict[str, np.ndarray], out: Path) -> None:
    """Write an ``.npz`` whose bytes depend on the arrays alone: fixed dates, and LZMA, which unlike zlib has a single
    implementation in use and packs these images smaller."""
    temporary = out.with_suffix(".partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0))
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            archive.writestr(entry, buffer.getvalue())
    os.replace(temporary, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the four original .gz files")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the subset (default: beside this script)")
    arguments = parser.parse_args()
    write_npz(build(arguments.folder), arguments.out)
    digest = hashlib.sha256(arguments.out.read_bytes()).hexdigest()
    print(f"{arguments.out.name}: {arguments.out.stat().st_size:,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
