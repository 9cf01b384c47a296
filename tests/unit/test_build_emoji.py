"""The script that builds the embedded emoji: its parts, and the whole from the pinned packages."""

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
from companion.training import emoji

SCRIPT = paths.ROOT / "data" / "tools" / "build_emoji.py"
EMBEDDED = paths.ROOT / "data"
PACKAGES = os.environ.get("EMOJI_PACKAGES", "")  # the folder with the five tarballs; needs resvg-py


@pytest.fixture
def script():
    return tools.load(SCRIPT)


@pytest.mark.parametrize("name", ["emoji.webp", "emoji.tsv"])
def test_the_embedded_files_are_those_that_the_script_makes_and_the_loader_wants(script, name):
    digest = hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest()
    assert digest == script.SHA256[name] == emoji.SHA256[name]
    assert script.OUT == EMBEDDED
    assert sum((EMBEDDED / name).stat().st_size for name in script.SHA256) < 4e6


def test_tiles_lie_artist_by_artist_and_nothing_is_lost(script):
    tiles = np.random.default_rng(0).integers(256, size=(3, 50, 32, 32, 3), dtype=np.uint8)
    mosaic = script.to_mosaic(tiles)
    assert mosaic.shape == (3 * 2 * 32, 40 * 32, 3)
    for artist, k in ((0, 0), (1, 39), (2, 49)):
        row, column = divmod(k, 40)
        row += 2 * artist
        assert (mosaic[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] == tiles[artist, k]).all()
    assert (mosaic[32:64, 10 * 32 :] == 255).all()
    assert (np.asarray(Image.open(io.BytesIO(script.compress(mosaic)))) == mosaic).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("Piñata’s 1st", "pinatas 1st"), ("A-button (blood  type)", "a button blood type"), ("☀", "")],
)
def test_captions_are_made_of_plain_words(script, given, expected):
    assert script.words(given) == expected


@pytest.mark.parametrize(
    ("key", "name", "group", "out"),
    [
        ("1f1e6", "flag", "flags", True), ("1f550", "one o clock", "travel-places", True),
        ("1f44b-1f3fb", "waving hand", "people-body", True), ("2b05", "left arrow", "symbols", True),
        ("1f3f9", "bow and arrow", "objects", False), ("1f468-200d-1f680", "man astronaut", "people-body", True),
        ("1f9d1-200d-1f680", "astronaut", "people-body", False), ("1f595", "middle finger", "people-body", True),
        ("1f46a", "family", "people-body", True), ("1f6b6-200d-27a1", "man facing right", "people-body", True),
        ("1f938-200d-2642", "man cartwheeling", "people-body", True), ("1f436", "dog face", "animals-nature", False),
    ],
)  # fmt: skip
def test_what_has_no_picture_of_its_own_is_left_out(script, key, name, group, out):
    assert script.has_no_picture(key, name, group, {"1f9d1-200d-1f680"}) == out


def build(folder: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, folder, "--out", out], capture_output=True, text=True)


def test_a_package_that_is_missing_or_another_is_told(tmp_path):
    told = build(tmp_path, tmp_path)
    assert told.returncode == 1
    assert "iconify-json-noto-1.2.9.tgz cannot be read" in told.stderr
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"another")
    told = build(tmp_path, tmp_path)
    assert "is not the pinned package: its SHA-256 is not" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.skipif(not PACKAGES, reason="set EMOJI_PACKAGES to the folder with the five tarballs, install resvg-py")
def test_the_packages_give_the_embedded_files_bit_for_bit(tmp_path):
    told = build(Path(PACKAGES), tmp_path)
    assert told.returncode == 0, told.stderr
    for name in ("emoji.webp", "emoji.tsv"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes()
