"""Rebuild the embedded EuroSAT subset, bit for bit, from the official JPEG files.

    python data/tools/build_eurosat_subset.py FOLDER [--out FILE]

FOLDER holds the ten class folders, ``AnnualCrop/AnnualCrop_1.jpg`` and so on. Of each class the files are put in the
order of the SHA-256 of their names: the first 800 are training images, the next 200 test images. Nothing is drawn at
random, so nothing depends on a generator's version.

The images, averaged from 64×64 to 32×32 pixels, become one JPEG mosaic of 100×100 tiles that needs no labels: image k
of class c (in alphabetical order) is tile 1000 c + k, row by row, so that a class owns ten rows, eight of training and
two of test images. A tile is 4×4 of JPEG's blocks of 8×8 pixels, so none bleeds into the next.
"""

import argparse
import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

OUT = Path(__file__).parent.with_name("eurosat-subset.jpg")
CLASSES = {  # in alphabetical order, with the number of images that EuroSAT has of each
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}
TRAIN, TEST = 800, 200  # images a class
SIDE, TILE, ACROSS = 64, 32, 100  # pixels a side of an original and of a tile; tiles a side of the mosaic
QUALITY = 95  # 100 is the best; 96 would pass 6 MB
SHA256 = "3c65a1714f4291d8eeb306959f7649a57f6bf09f6945ac59e037cbc349069170"
PIXELS_SHA256 = "293f89d955416707ad1fac5f642e2290936a3310afe0eb010738757f06ef2779"  # of the tiles before compression


def chosen_names(label: str) -> list[str]:
    """File names of a class's images: 800 to train on, then 200 to test on."""
    names = (f"{label}_{number}.jpg" for number in range(1, CLASSES[label] + 1))
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[: TRAIN + TEST]


def check_tree(folder: Path) -> None:
    """End with a message unless every class folder is there and holds exactly the files of EuroSAT."""
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder: give the one that holds EuroSAT's ten class folders.")
    missing = [label for label in CLASSES if not (folder / label).is_dir()]
    if missing:
        sys.exit(
            f"{folder} has no folder {', '.join(missing)}: give the folder that holds EuroSAT's ten class folders "
            "(torchvision unpacks them to eurosat/2750)."
        )
    for label, count in CLASSES.items():
        expected = {f"{label}_{number}.jpg" for number in range(1, count + 1)}
        found = {path.name for path in (folder / label).glob("*.jpg") if not path.name.startswith(".")}
        if found != expected:
            lacking, foreign = sorted(expected - found), sorted(found - expected)
            sys.exit(
                f"{folder / label} holds {len(found):,} .jpg files, expected {count:,}, {label}_1.jpg to "
                f"{label}_{count}.jpg"
                + (f"; missing: {len(lacking):,}, such as {lacking[0]}" if lacking else "")
                + (f"; not of EuroSAT: {len(foreign):,}, such as {foreign[0]}" if foreign else "")
                + ": unpack the original archive anew."
            )


def read_tile(path: Path) -> np.ndarray:
    """One image, every 2×2 pixels replaced by their rounded mean: (32, 32, 3) uint8."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:  # all of them Pillow's, for damaged files
        sys.exit(f"{path} cannot be read ({error}): unpack the original archive anew.")
    given, expected = (image.format, image.mode, *image.size), ("JPEG", "RGB", SIDE, SIDE)
    if given != expected:
        sys.exit(
            f"{path} is {' '.join(map(str, given))}, expected {' '.join(map(str, expected))}: give the RGB version of "
            "EuroSAT, not resized."
        )
    return np.asarray(image.reduce(SIDE // TILE))


def read_tiles(folder: Path) -> np.ndarray:
    """All chosen images, class by class: (10, 1000, 32, 32, 3) uint8."""
    check_tree(folder)
    return np.stack([[read_tile(folder / label / name) for name in chosen_names(label)] for label in CLASSES])


def to_mosaic(tiles: np.ndarray) -> np.ndarray:
    """(10, 1000, 32, 32, 3) → (3200, 3200, 3)."""
    grid = tiles.reshape(ACROSS, ACROSS, TILE, TILE, 3)
    return grid.swapaxes(1, 2).reshape(ACROSS * TILE, ACROSS * TILE, 3)


def to_tiles(mosaic: np.ndarray) -> np.ndarray:
    """(3200, 3200, 3) → (10, 1000, 32, 32, 3)."""
    grid = mosaic.reshape(ACROSS, TILE, ACROSS, TILE, 3)
    return grid.swapaxes(1, 2).reshape(len(CLASSES), TRAIN + TEST, TILE, TILE, 3)


def compress(tiles: np.ndarray) -> bytes:
    """The mosaic as a baseline JPEG file with its colours at full resolution."""
    buffer = io.BytesIO()
    options = {"quality": QUALITY, "subsampling": "4:4:4", "optimize": False, "progressive": False}
    Image.fromarray(to_mosaic(tiles)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decompress(packed: bytes) -> np.ndarray:
    """The tiles as a reader of the file gets them."""
    return to_tiles(np.asarray(Image.open(io.BytesIO(packed))))


def psnr(tiles: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels."""
    return 10 * np.log10(255**2 / np.mean((tiles.astype(np.float64) - others) ** 2))


def count_leaks(tiles: np.ndarray) -> int:
    """Test images that equal a training image, of whatever class, in every pixel."""
    train = {tile.tobytes() for tiles_of_class in tiles for tile in tiles_of_class[:TRAIN]}
    return sum(tile.tobytes() in train for tiles_of_class in tiles for tile in tiles_of_class[TRAIN:])


def verify(tiles: np.ndarray, packed: bytes) -> None:
    """End with a message that says where the result departs from the embedded file, if it does."""
    pixels, digest = hashlib.sha256(tiles.tobytes()).hexdigest(), hashlib.sha256(packed).hexdigest()
    if digest == SHA256:
        return
    if pixels == PIXELS_SHA256:
        cause = f"The pixels agree before compression: Pillow {PIL.__version__} compresses them otherwise."
    else:
        cause = (
            f"The pixels differ before compression (SHA-256 {pixels}, expected {PIXELS_SHA256}): the images are not "
            f"the original ones, or Pillow {PIL.__version__} decodes them otherwise."
        )
    sys.exit(
        f"The subset has SHA-256 {digest}, expected {SHA256}. {cause} Use the original archive and the Pillow of "
        "constraints.txt. Nothing was written."
    )


def write(packed: bytes, out: Path) -> None:
    """Write under a temporary name, then rename: ``out`` is the old file or the new one, never half of it."""
    temporary = out.with_name(out.name + ".partial")
    try:
        temporary.write_bytes(packed)
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        sys.exit(f"{out} cannot be written ({error}): choose another place with --out.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the ten class folders of the official JPEG files")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where to write the subset (default: data/eurosat-subset.jpg)"
    )
    arguments = parser.parse_args()
    tiles = read_tiles(arguments.folder)
    packed = compress(tiles)
    decoded = decompress(packed)
    print(f"{len(packed):,} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")
    print(f"{psnr(tiles, decoded):.2f} dB PSNR to the tiles before compression")
    print(f"{count_leaks(tiles)} test images equal a training image before compression, {count_leaks(decoded)} after")
    verify(tiles, packed)
    write(packed, arguments.out)
    print(f"{arguments.out}: written, identical to the embedded file")


if __name__ == "__main__":
    main()
