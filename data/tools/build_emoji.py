"""Rebuild the embedded emoji, bit for bit, from four npm packages.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/twemoji@1.2.5
    npm pack cldr-annotations-full@48.2.0 emojibase-data@17.0.0
    pip install resvg-py==0.5.0
    python data/tools/build_emoji.py FOLDER [--out FOLDER]

FOLDER holds the tarballs as npm names them. NumPy and the Pillow of constraints.txt are needed too.

What all three artists have drawn and CLDR has named is kept, in the order of its code points, but for what has no
picture of its own or no name of its own: skin tones, flags, clock faces, buttons and arrows, families, a man's or a
woman's variant of a person, things that face right. Each drawing is rendered at 128×128 on white and averaged to 32×32.
They become one lossless picture, ``emoji.webp``: first all of Noto's tiles, row by row, 40 across, then Fluent's, then
Twemoji's. ``emoji.tsv`` has one line a concept: code points, name, group and subgroup (Unicode's), kind (ours, of
subgroups that belong together) and CLDR's keywords, without rude ones.
"""

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

OUT = Path(__file__).parent.parent
PACKAGES = {  # what → tarball, its SHA-256
    "noto": ("iconify-json-noto-1.2.9.tgz", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "fluent": (
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "twemoji": ("iconify-json-twemoji-1.2.5.tgz", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "cldr": ("cldr-annotations-full-48.2.0.tgz", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"),
    "emojibase": ("emojibase-data-17.0.0.tgz", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}
ARTISTS = ("noto", "fluent", "twemoji")
TILE, OVER, ACROSS = 32, 4, 40  # pixels a side; times as many when rendered; tiles in a row of the picture
SHA256 = {
    "emoji.webp": "55ac9a1d79eef4c6402051aa19526772a8fa2758cf8aa8c4a01de4d21896cb2a",
    "emoji.tsv": "3ab7ec67a4800807c3d895e1c895f02b1b00d995dcb7d94fd22eb919823f8cef",
}
TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
NO_PICTURE = re.compile(r"\bbutton\b|\barrow\b|keycap|^input |^japanese |\b(small|medium)\b")  # among the symbols
DROPPED = {
    "copyright", "registered", "trade mark", "wavy dash", "part alternation mark", "circled m", "minus", "divide",
    "plus", "multiply", "middle finger", "double exclamation mark", "exclamation question mark",
}  # fmt: skip
RUDE = {
    "af", "ass", "asses", "asshole", "bastard", "bitch", "boobs", "bs", "butt", "cock", "crap", "damn",
    "dammit", "dick", "fart", "fck", "fml", "fu", "fuck", "gtfo", "hell", "hoe", "horny", "kinky", "knockers",
    "litaf", "lmao", "lmfao", "merde", "naked", "nsfw", "nude", "omfg", "penis", "piss", "pissed", "poo",
    "poop", "pube", "pussy", "screw", "sex", "sexy", "shit", "slut", "smut", "stfu", "sucks", "tits", "turd",
    "vagina", "whore", "wtf", "wth",
}  # fmt: skip
KINDS = {  # the first letters of a subgroup → its kind, one word that a caption may hold
    "face-": "face", "cat-face": "face", "monkey-face": "face", "heart": "heart", "emotion": "emotion",
    "hand": "hand", "body-parts": "body", "person": "person", "animal-bird": "bird", "animal-bug": "bug",
    "animal-marine": "fish", "animal-reptile": "reptile", "animal-amphibian": "reptile", "animal-mammal": "mammal",
    "plant": "plant", "food-fruit": "fruit", "food-vegetable": "vegetable", "food-": "food", "drink": "drink",
    "dishware": "kitchen", "place-building": "building", "place-religious": "building", "hotel": "building",
    "place": "place", "transport-sign": "sign", "transport": "vehicle", "sky-weather": "weather", "sport": "sport",
    "award": "sport", "game": "game", "event": "celebration", "arts": "art", "music": "music", "sound": "sound",
    "clothing": "clothing", "tool": "tool", "lock": "tool", "science": "science", "medical": "medical",
    "household": "household", "office": "office", "writing": "office", "book": "book", "mail": "mail",
    "computer": "electronics", "phone": "electronics", "light-video": "electronics", "money": "money", "time": "time",
    "geometric": "shape",
}  # fmt: skip


def read(folder: Path, package: str, *names: str) -> list:
    """The JSON files of these names in a tarball; end with a message if it is not there or not the pinned one."""
    name, digest = PACKAGES[package]
    try:
        raw = (folder / name).read_bytes()
    except OSError as error:
        sys.exit(f"{folder / name} cannot be read ({error.strerror or error}): fetch it with `npm pack`, see above.")
    if hashlib.sha256(raw).hexdigest() != digest:
        sys.exit(f"{folder / name} is not the pinned package: its SHA-256 is not {digest[:12]}…; fetch it anew.")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [json.load(tar.extractfile(f"package/{name}")) for name in names]


def words(text: str) -> str:
    """Lower case, no accents, no marks: what a caption is made of."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode().replace("'", "")
    return " ".join(re.findall(r"[a-z0-9]+", plain))


def code(text: str) -> str:
    """Code points in hexadecimal, without the selector that asks for colours."""
    return "-".join(f"{ord(x):04x}" for x in text if ord(x) != 0xFE0F)


def has_no_picture(key: str, name: str, group: str, known: set[str]) -> bool:
    """Whether a concept is left out; ``known`` has the code points of all."""
    parts = key.split("-")
    return (
        bool(TONES & set(parts))
        or group == "flags"
        or 0x1F550 <= int(parts[0], 16) <= 0x1F567  # clock faces
        or (group == "symbols" and bool(NO_PICTURE.search(name)))
        or name in DROPPED
        or "27a1" in parts  # facing right
        or (group == "people-body" and bool({"2642", "2640"} & set(parts[1:])))
        or (
            group == "people-body"
            and bool(re.match(r"(family|couple|kiss|men|women|woman and|people holding)\b", name))
        )
        or (parts[0] in ("1f468", "1f469") and len(parts) > 2 and "-".join(["1f9d1", *parts[1:]]) in known)
    )


def concepts(folder: Path) -> list[dict]:
    """What is kept, by its code points: code, name, group, subgroup, kind, keywords, and each artist's name of it."""
    drawn = {}
    for artist in ARTISTS:
        (chars,) = read(folder, artist, "chars.json")
        drawn[artist] = {key.replace("-fe0f", ""): name for key, name in chars.items()}
    ((annotations,), (data, meta)) = (
        read(folder, "cldr", "annotations/en/annotations.json"),
        read(folder, "emojibase", "en/data.json", "meta/groups.json"),
    )
    named = {code(text): entry for text, entry in annotations["annotations"]["annotations"].items()}
    placed = {
        entry["hexcode"].lower().replace("-fe0f", ""): (
            meta["groups"][str(entry["group"])],
            meta["subgroups"][str(entry["subgroup"])],
        )
        for entry in data
        if "subgroup" in entry
    }
    shared = set(named) & {key.zfill(4) for key in placed} & set.intersection(*map(set, drawn.values()))
    found = []
    for key in sorted(shared, key=lambda key: [int(part, 16) for part in key.split("-")]):
        (group, subgroup), name = placed[key], words(named[key]["tts"][0])
        if has_no_picture(key, name, group, shared):
            continue
        keywords = list(dict.fromkeys(map(words, named[key]["default"])))
        keep = [k for k in keywords if k and k != name and len(k.split()) <= 3 and not RUDE & set(k.split())]
        kind = next((kind for start, kind in KINDS.items() if subgroup.startswith(start)), "sign")
        row = {"code": key, "name": name, "group": group, "subgroup": subgroup, "kind": kind, "keywords": keep}
        found.append(row | {"drawn": {artist: drawn[artist][key] for artist in ARTISTS}})
    return found


def render(body: str, width: float, height: float) -> np.ndarray:
    """One drawing on white, every 4×4 pixels of a 128×128 picture averaged: (32, 32, 3) uint8."""
    import resvg_py  # needed here alone

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )
    side = TILE * OVER
    packed = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    with Image.open(io.BytesIO(bytes(packed))) as picture:
        drawing = picture.convert("RGBA")
    white = Image.new("RGBA", (side, side), "white")
    white.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return np.asarray(white.convert("RGB").reduce(OVER))


def draw(folder: Path, artist: str, rows: list[dict]) -> np.ndarray:
    """All of an artist's tiles, (n, 32, 32, 3) uint8."""
    (icons,) = read(folder, artist, "icons.json")
    tiles = []
    for row in rows:
        name = row["drawn"][artist]
        while name not in icons["icons"]:
            name = icons["aliases"][name]["parent"]
        icon = icons["icons"][name]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        tiles.append(render(icon["body"], width, height))
    return np.stack(tiles)


def to_mosaic(tiles: np.ndarray) -> np.ndarray:
    """(artists, n, 32, 32, 3) → one picture, each artist's last row filled up with white."""
    artists, n = tiles.shape[:2]
    rows = -(-n // ACROSS)
    padded = np.full((artists, rows * ACROSS, TILE, TILE, 3), 255, np.uint8)
    padded[:, :n] = tiles
    grid = padded.reshape(artists * rows, ACROSS, TILE, TILE, 3).swapaxes(1, 2)
    return grid.reshape(artists * rows * TILE, ACROSS * TILE, 3)


def compress(mosaic: np.ndarray) -> bytes:
    """The picture as a lossless WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def to_table(rows: list[dict]) -> bytes:
    """One line a concept, a head line first."""
    columns = ("code", "name", "group", "subgroup", "kind")
    lines = ["\t".join([*columns, "keywords"])]
    lines += ["\t".join([*(row[column] for column in columns), "|".join(row["keywords"])]) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the five tarballs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: data/)")
    arguments = parser.parse_args()
    rows = concepts(arguments.folder)
    mosaic = to_mosaic(np.stack([draw(arguments.folder, artist, rows) for artist in ARTISTS]))
    packed = {"emoji.webp": compress(mosaic), "emoji.tsv": to_table(rows)}
    differing = []
    for name, content in packed.items():
        digest = hashlib.sha256(content).hexdigest()
        print(f"{name}: {len(content):,} bytes, SHA-256 {digest}")
        differing += [name] if digest != SHA256[name] else []
    if differing:
        sys.exit(
            f"{', '.join(differing)}: not the embedded file. Use resvg-py 0.5.0 and the Pillow of constraints.txt "
            f"(this is {PIL.__version__}). Nothing was written."
        )
    for name, content in packed.items():
        try:
            (arguments.out / name).write_bytes(content)
        except OSError as error:
            sys.exit(f"{arguments.out / name} cannot be written ({error}): choose another folder with --out.")
    print(f"{len(rows):,} concepts, {len(ARTISTS)} artists: written, identical to the embedded files")


if __name__ == "__main__":
    main()
