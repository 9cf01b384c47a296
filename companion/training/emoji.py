"""Emoji: what three artists drew of one concept, and the words for it.

Concepts are split, not images: what is tested was neither drawn nor named in training. The validation concepts are the
same for every split, so that what is chosen on them was never seen in a test.
"""

import functools
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor

from companion.errors import CompanionError, choose, whole
from companion.training import places
from companion.training.config import EMOJI
from companion.training.data import Data, Split, _resize
from companion.training.sources import Views, seed

ARTISTS = ("noto", "fluent", "twemoji")
SHA256 = {
    "emoji.webp": "55ac9a1d79eef4c6402051aa19526772a8fa2758cf8aa8c4a01de4d21896cb2a",
    "emoji.tsv": "3ab7ec67a4800807c3d895e1c895f02b1b00d995dcb7d94fd22eb919823f8cef",
}
TILE, ACROSS = 32, 40  # pixels a side of a drawing; drawings in a row of the picture
NAME, KEYWORD, KEYWORDS = 8, 3, 4  # most words of a name and of a keyword; most keywords of a caption
LENGTH = 32  # words of a text that are read


@dataclass(frozen=True)
class Concepts:
    """Some concepts: drawings (n, artists, 3, s, s) uint8, and one row each of code, name, group, subgroup, kind and
    keywords, a list."""

    images: Tensor
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Tensor) -> "Concepts":
        return Concepts(self.images[index], self.table.iloc[index.numpy()].reset_index(drop=True))

    @property
    def names(self) -> list[str]:
        """One name a concept."""
        return list(self.table["name"])

    def described(self, most: int = 6) -> list[str]:
        """Names, each with its first ``most`` keywords."""
        return [" ".join([name, *words[:most]]) for name, words in zip(self.names, self.table["keywords"], strict=True)]

    def drawn(self, artist: str) -> Tensor:
        """(n, 3, s, s) uint8: the drawings of one artist.

        Raises:
            CompanionError: for an unknown artist.
        """
        return self.images[:, ARTISTS.index(choose(artist, ARTISTS, "artist"))]

    def labels(self, column: str = "group") -> Tensor:
        """(n,) numbers of ``column`` among its values in the whole set, in alphabetical order."""
        values = sorted(concepts().table[column].unique())
        return torch.tensor([values.index(value) for value in self.table[column]])


class Vocabulary:
    """Words and their numbers, from 1 on; 0 fills a text up.

    Args:
        texts: whose words are known from then on.
    """

    def __init__(self, texts: Sequence[str]):
        self.numbers = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.split()}), start=1)}

    def __len__(self) -> int:
        """Words, and the filling."""
        return len(self.numbers) + 1

    def knows(self, texts: Sequence[str]) -> Tensor:
        """(n,) booleans: which texts have a word that is known."""
        return torch.tensor(
            [any(word in self.numbers for word in split_words(text)) for text in texts], dtype=torch.bool
        )

    def encode(self, texts: Sequence[str], *, length: int = LENGTH) -> Tensor:
        """(n, length) numbers of the known words of each text; the others are left out.

        Raises:
            CompanionError: for a text without a known word, which would mean nothing.
        """
        found = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            numbers = [self.numbers[word] for word in split_words(text) if word in self.numbers][:length]
            if not numbers:
                raise CompanionError(
                    f"No word of {text!r} is known: the vocabulary has the {len(self) - 1:,} words of the training "
                    "captions. Choose other words, or ask `knows` first."
                )
            found[row, : len(numbers)] = torch.tensor(numbers)
        return found


def split_words(text: str) -> list[str]:
    """Lower-case words of letters and digits, as the captions have them."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


@dataclass(frozen=True)
class Drawn(Split):
    """Drawings of the training concepts by the training artists, each an image, labels their groups; and the words."""

    vocabulary: Vocabulary


@dataclass(frozen=True)
class Emoji(Data):
    """A split: as images with the labels of their groups, for any method, and as concepts, for :class:`Captions` and
    :class:`Drawings`."""

    artists: tuple[str, ...]  #: whose drawings are trained on
    parts: dict[str, Concepts]  #: "train", "validation", "test"

    @property
    def vocabulary(self) -> Vocabulary:
        return self.train.vocabulary

    @property
    def unseen_artists(self) -> list[str]:
        """Whose drawings are not trained on."""
        return [artist for artist in ARTISTS if artist not in self.artists]


@functools.lru_cache(maxsize=2)
def concepts(image_size: int = TILE) -> Concepts:
    """All concepts, in the order of their code points; read only.

    Raises:
        CompanionError: if a file is missing or is not the one of this version.
    """
    read = {}
    for name, digest in SHA256.items():
        path = places.find(name, "Restore data/ from the repository, or rebuild it (data/README.md).")
        read[name] = path.read_bytes()
        if hashlib.sha256(read[name]).hexdigest() != digest:
            raise CompanionError(
                f"{path} is damaged (its SHA-256 is not {digest[:12]}…). Restore it from the repository, or rebuild it "
                "(data/README.md)."
            )
    table = pd.read_csv(io.BytesIO(read["emoji.tsv"]), sep="\t", keep_default_na=False, dtype=str)
    table["keywords"] = [text.split("|") if text else [] for text in table["keywords"]]
    with Image.open(io.BytesIO(read["emoji.webp"])) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    tiles = pixels.view(len(ARTISTS), -1, TILE, ACROSS, TILE, 3).permute(1, 3, 0, 5, 2, 4)
    images = tiles.reshape(-1, len(ARTISTS), 3, TILE, TILE)[: len(table)]
    resized = _resize(images.reshape(-1, 3, TILE, TILE), image_size)
    return Concepts(resized.view(len(table), len(ARTISTS), 3, image_size, image_size), table)


def split(n_train: int, n_validation: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the concepts to train on, to choose settings on and to test on, each group in proportion.

    Args:
        n_train: concepts to train on.
        n_validation: concepts to choose settings on: the same ones whatever the split.
        number: of the split; the concepts that are left are drawn anew for each.

    Raises:
        CompanionError: for a number below 0, or if that leaves no concept to test on.
    """
    whole(number, "number of the split", least=0)
    groups, n = concepts().labels().numpy(), len(concepts())
    least = len(np.unique(groups))
    if n_train + n_validation > n - least:
        raise CompanionError(
            f"{n_train:,} concepts to train on and {n_validation:,} for validation were asked for, of {n:,} that there "
            f"are: expected {n - least:,} at most together, so that some are left to test on. Lower one of the two."
        )

    def divide(index, size, key):
        if not size:
            return index[:0], index
        try:
            return train_test_split(index, train_size=size, random_state=key, stratify=groups[index])
        except ValueError as error:
            raise CompanionError(f"Cannot choose {size} concepts with every group in proportion: {error}") from error

    validation, rest = divide(np.arange(n), n_validation, 0)
    train, test = divide(rest, n_train, seed(number, 5))
    return tuple(torch.from_numpy(np.sort(part)) for part in (train, validation, test))


def chosen_artists(text: str) -> tuple[str, ...]:
    """``"noto+twemoji"`` → the artists named.

    Raises:
        CompanionError: for an unknown artist, or one that stands twice.
    """
    names = tuple(choose(name, ARTISTS, "artist") for name in str(text).split("+"))
    if len(set(names)) < len(names):
        raise CompanionError(f"artists is {text!r}: expected each artist once.")
    return names


def load(
    *, image_size: int = TILE, n_train: int, n_validation: int, number: int = 0, artists: str = "noto+twemoji"
) -> Emoji:
    """Load a split of the concepts.

    Args:
        image_size: pixels a side.
        n_train, n_validation, number: as for :func:`split`.
        artists: whose drawings are trained on, with a plus between them.

    Raises:
        CompanionError: as :func:`split`, :func:`chosen_artists` and :func:`concepts`; for an image size below 8.
    """
    names, everything = chosen_artists(artists), concepts(whole(image_size, "image_size", least=8))
    parts = dict(zip(("train", "validation", "test"), split(n_train, n_validation, number), strict=True))
    parts = {name: everything[index] for name, index in parts.items()}
    flat = {}
    for name, part in parts.items():
        images = torch.stack([part.drawn(artist) for artist in names], dim=1)
        flat[name] = Split(images.flatten(0, 1), part.labels().repeat_interleave(len(names)))
    table = parts["train"].table
    vocabulary = Vocabulary([*table["name"], *(word for words in table["keywords"] for word in words)])
    train = Drawn(flat["train"].images, flat["train"].labels, vocabulary)
    return Emoji(train, flat["validation"], flat["test"], EMOJI, artists=names, parts=parts)


class Drawings(Views):
    """Two views of every concept: two artists' drawings of it, or two views of one artist's; who, is drawn anew each
    epoch.

    Args:
        emoji: whose training concepts and artists are taken.
        augmentation, batch_size, options: as for :class:`~companion.training.sources.Views`.
        two_artists: of two artists; with False two views of one drawing.

    Raises:
        CompanionError: if two artists are wanted and one is there.
    """

    def __init__(self, emoji: Emoji, augmentation, batch_size: int, *, two_artists: bool = False, **options):
        if two_artists and len(emoji.artists) < 2:
            raise CompanionError(f"Pairs of two artists need two, and there is {emoji.artists[0]} alone.")
        part = emoji.parts["train"]
        images = torch.stack([part.drawn(artist) for artist in emoji.artists], dim=1)
        super().__init__(Split(images, part.labels()), augmentation, batch_size, **options)
        self.second = 1 if two_artists else 0

    def _pairs(self, numbers, chunk, draws):
        n, artists = chunk.images.shape[:2]
        row = torch.arange(n, device=self.device)
        order = torch.rand(n, artists, generator=draws, device=self.device).argsort(1)
        first, second = (Split(chunk.images[row, order[:, i]], chunk.labels) for i in (0, self.second))
        return self._views(first, draws), self._second(numbers, second, draws)


class Captions(Drawings):
    """Drawings with captions: the first view is a drawing, the second its caption, (m, words) numbers, drawn anew each
    epoch.

    A caption is the name, the keywords or both: 0 to 4 keywords; the name stands in half of those that have a keyword
    and in all others.
    """

    def __init__(self, emoji: Emoji, augmentation, batch_size: int, **options):
        super().__init__(emoji, augmentation, batch_size, **options)
        vocabulary, table = emoji.vocabulary, emoji.parts["train"].table
        most = max(map(len, table["keywords"]))
        self.name = vocabulary.encode(table["name"], length=NAME).to(self.device)  # (n, words)
        self.keywords = torch.zeros(len(table), most, KEYWORD, dtype=torch.long)  # (n, keywords, words)
        for row, words in enumerate(table["keywords"]):
            if words:
                self.keywords[row, : len(words)] = vocabulary.encode(words, length=KEYWORD)
        self.keywords = self.keywords.to(self.device)

    def _second(self, numbers, chunk, draws) -> Tensor:
        name, keywords = self.name[numbers], self.keywords[numbers]
        there = keywords[:, :, 0] > 0  # (m, keywords)

        def uniform(*shape):
            return torch.rand(*shape, generator=draws, device=self.device)

        count = (uniform(len(name)) * (KEYWORDS + 1)).long().minimum(there.sum(1))
        chosen = (uniform(*there.shape) - (~there).float()).topk(min(KEYWORDS, there.shape[1]), dim=1).indices
        taken = torch.arange(chosen.shape[1], device=self.device) < count[:, None]
        words = keywords.gather(1, chosen[..., None].expand(-1, -1, KEYWORD)) * taken[..., None]
        name = name * ((uniform(len(name)) < 0.5) | (count == 0))[:, None]
        return torch.cat([name, words.flatten(1)], dim=1)
