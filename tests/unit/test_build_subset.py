"""The script that builds the embedded images: in miniature, on trees that are not EuroSAT, and on EuroSAT itself."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tools
from PIL import Image

from companion import paths

SCRIPT = paths.ROOT / "data" / "tools" / "build_eurosat_subset.py"  # a folder below data/ stays out of the wheel
EMBEDDED = paths.ROOT / "data" / "eurosat-subset.jpg"
TREE = os.environ.get("EUROSAT_TREE", "")  # the folder with the ten class folders of the official JPEG files


@pytest.fixture
def script():
    return tools.load(SCRIPT)


@pytest.fixture
def miniature(script, monkeypatch, tmp_path):
    """The script for ten classes of thirteen images, of which it takes eight and two."""
    monkeypatch.setattr(script, "CLASSES", dict.fromkeys(script.CLASSES, 13))
    for name, value in {"TRAIN": 8, "TEST": 2, "ACROSS": 10}.items():
        monkeypatch.setattr(script, name, value)
    generator = np.random.default_rng(0)
    for label in script.CLASSES:
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(1, 14):
            coarse = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(
                tmp_path / "tree" / label / f"{label}_{number}.jpg", quality=90
            )
    return tmp_path / "tree"


def test_of_each_class_the_first_names_by_hash_are_chosen(script):
    for label, count in script.CLASSES.items():
        chosen = script.chosen_names(label)
        rest = {f"{label}_{number}.jpg" for number in range(1, count + 1)} - set(chosen)
        digests = [hashlib.sha256(name.encode()).hexdigest() for name in chosen]
        assert len(set(chosen)) == 1000
        assert len(rest) == count - 1000
        assert digests == sorted(digests)
        assert all(hashlib.sha256(name.encode()).hexdigest() > digests[-1] for name in rest)


def test_tiles_are_means_of_two_by_two_pixels_at_their_place_in_the_mosaic(script, miniature):
    tiles = script.read_tiles(miniature)
    mosaic = script.to_mosaic(tiles)
    assert tiles.shape == (10, 10, 32, 32, 3)
    assert mosaic.shape == (320, 320, 3)
    for c, label in enumerate(sorted(script.CLASSES)):
        names = sorted(
            (f"{label}_{number}.jpg" for number in range(1, 14)),
            key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
        )
        for k, name in enumerate(names[:10]):
            pixels = np.asarray(Image.open(miniature / label / name)).astype(float)
            expected = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
            assert np.abs(tiles[c, k] - expected).max() <= 0.5  # rounded
            row, column = divmod(10 * c + k, 10)  # image k of class c is tile (8 + 2) c + k
            assert (mosaic[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] == tiles[c, k]).all()
    assert (script.to_tiles(mosaic) == tiles).all()


def test_compression_bleeds_into_no_neighbour_and_keeps_the_colours(script, miniature):
    tiles = script.read_tiles(miniature)
    packed = script.compress(tiles)
    assert script.psnr(tiles, script.decompress(packed)) > 38
    changed = tiles.copy()
    changed[3, 4] = 255 - changed[3, 4]
    differs = (script.decompress(script.compress(changed)) != script.decompress(packed)).any(axis=(2, 3, 4))
    assert np.argwhere(differs).tolist() == [[3, 4]]
    with Image.open(io.BytesIO(packed)) as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # colours at full resolution


def test_leaks_are_counted(script, miniature):
    tiles = script.read_tiles(miniature)
    assert script.count_leaks(tiles) == 0
    tiles[2, 9], tiles[5, 8] = tiles[2, 0], tiles[7, 7]
    assert script.count_leaks(tiles) == 2


def test_what_is_built_is_written_only_if_it_is_the_embedded_file(script, miniature, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jpg"
    monkeypatch.setattr(sys, "argv", ["build", str(miniature), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"The pixels differ before compression.*Nothing was written"):
        script.main()
    tiles = script.read_tiles(miniature)
    monkeypatch.setattr(script, "PIXELS_SHA256", hashlib.sha256(tiles.tobytes()).hexdigest())
    with pytest.raises(SystemExit, match=r"The pixels agree before compression: Pillow .* compresses them otherwise"):
        script.main()
    assert not out.exists()
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(script.compress(tiles)).hexdigest())
    script.main()
    assert out.read_bytes() == script.compress(tiles)
    assert "identical to the embedded file" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["build", str(miniature), "--out", str(tmp_path / "no" / "out.jpg")])
    with pytest.raises(SystemExit, match=r"cannot be written .*--out"):
        script.main()


def damage(tree, kind):
    path = tree / "River" / "River_5.jpg"
    if kind == "missing image":
        path.unlink()
    elif kind == "foreign image":
        (tree / "River" / "river.jpg").write_bytes(path.read_bytes())
    elif kind == "renamed image":
        path.rename(path.with_name("River_14.jpg"))
    elif kind == "missing class":
        (tree / "River").rename(tree / "Rivers")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing image", r"River holds 12 \.jpg files, expected 13.*missing: 1, such as River_5\.jpg"),
        ("foreign image", r"River holds 14 \.jpg files, expected 13.*not of EuroSAT: 1, such as river\.jpg"),
        ("renamed image", r"River holds 13 .*such as River_5\.jpg.*such as River_14\.jpg"),
        ("missing class", "has no folder River:"),
    ],
)
def test_a_tree_that_is_not_eurosat_is_told(script, miniature, kind, expected):
    damage(miniature, kind)
    with pytest.raises(SystemExit, match=expected):
        script.read_tiles(miniature)


def test_hidden_files_beside_the_images_are_nobodys_business(script, miniature):
    (miniature / "River" / "._River_1.jpg").write_bytes(b"a file manager's")
    script.check_tree(miniature)


def picture(mode="RGB", size=(64, 64), kind="JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read"),
        (picture()[:300], "cannot be read"),
        (picture(size=(32, 32)), "is JPEG RGB 32 32, expected JPEG RGB 64 64"),
        (picture(mode="L"), "is JPEG L 64 64, expected"),
        (picture(kind="PNG"), "is PNG RGB 64 64, expected"),
    ],
    ids=["empty", "truncated", "resized", "grey", "png"],
)
def test_an_image_that_is_not_the_original_is_told(script, miniature, content, expected):
    label = "Forest"
    (miniature / label / script.chosen_names(label)[0]).write_bytes(content)
    with pytest.raises(SystemExit, match=expected):
        script.read_tiles(miniature)


def test_without_another_place_it_writes_the_embedded_file(script):
    assert script.OUT == EMBEDDED
    assert hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() == script.SHA256


def build(folder: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, folder, "--out", out], capture_output=True, text=True)


def test_from_the_command_line_too(tmp_path):
    told = build(tmp_path / "nowhere", tmp_path / "out.jpg")
    assert told.returncode == 1
    assert "is not a folder: give the one that holds EuroSAT's ten class folders" in told.stderr
    (tmp_path / "AnnualCrop").mkdir()
    told = build(tmp_path, tmp_path / "out.jpg")
    assert told.returncode == 1
    assert "has no folder Forest, HerbaceousVegetation, " in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "out.jpg").exists()


@pytest.mark.skipif(not TREE, reason="set EUROSAT_TREE to the folder with the ten class folders of the official files")
def test_the_official_files_give_the_embedded_file_bit_for_bit(tmp_path):
    told = build(Path(TREE), tmp_path / "out.jpg")
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "out.jpg").read_bytes() == EMBEDDED.read_bytes()
    assert "0 test images equal a training image before compression, 0 after" in told.stdout
