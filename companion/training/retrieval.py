"""Retrieval and zero-shot classes, from similarities of images and texts."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import CompanionError, whole
from companion.training.emoji import Emoji

KINDS = {  # words that stand for a kind: the first that is known alone, or all of them as an ensemble
    "face": "face expression smile", "person": "person man woman", "sign": "sign symbol prohibited",
    "vehicle": "vehicle car train boat transport", "mammal": "mammal animal", "food": "food meal restaurant",
    "weather": "weather sky cloud sun moon", "clothing": "clothing clothes shirt shoe", "hand": "hand finger fingers",
    "electronics": "electronics computer phone electric camera", "building": "building house church",
    "place": "place landscape travel mountain", "sport": "sport ball athlete medal", "tool": "tool weapon lock",
    "office": "office pen paper clip", "plant": "plant flower tree leaf", "heart": "heart love",
    "household": "household clean bathroom", "game": "game play toy card", "shape": "shape geometric square circle",
    "bird": "bird animal", "celebration": "celebration festival christmas party", "drink": "drink bar beverage glass",
    "fruit": "fruit berry", "music": "music instrument note", "vegetable": "vegetable salad", "body": "body part bone",
    "book": "book paper read", "fish": "fish ocean sea", "bug": "bug insect",
}  # fmt: skip
GROUPS = {  # the same of the groups
    "activities": "activity sport game ball celebration", "animals-nature": "animal nature plant flower bird insect",
    "food-drink": "food drink fruit vegetable sweet", "objects": "object tool clothing music book money",
    "people-body": "person body hand man woman", "smileys-emotion": "face emotion smile heart",
    "symbols": "symbol sign zodiac shape", "travel-places": "travel place vehicle building weather",
}  # fmt: skip


def ranks(s: Tensor) -> Tensor:
    """(n,) how many columns are more similar to each row than its own, of which ties count half.

    Args:
        s: (n, n) similarities; column i is the right answer to row i.
    """
    right = s.diagonal()[:, None]
    found = (s > right).sum(1) + ((s == right).sum(1) - 1) / 2
    return found.masked_fill(right[:, 0] == -torch.inf, len(s))  # found by nobody, however few there are


def recall(s: Tensor, k: int) -> float:
    """R@k: the share of rows whose own column is among the ``k`` most similar, in [0, 1]; see :func:`ranks`.

    Raises:
        CompanionError: if ``s`` is not square or has NaN, or k is not from 1 to n.
    """
    if s.ndim != 2 or s.shape[0] != s.shape[1] or not len(s):
        raise CompanionError(f"Similarities have shape {tuple(s.shape)}: expected (n, n), a text for each image.")
    if s.isnan().any():
        raise CompanionError("Similarities have NaN: an encoder gave embeddings that are not finite.")
    if whole(k, "k", least=1) > len(s):
        raise CompanionError(f"k is {k} and there are {len(s)} to choose from: expected at most as many.")
    return (ranks(s) < k).double().mean().item()


def both_ways(s: Tensor, prefix: str) -> dict[str, float]:
    """R@1 and R@5 of (n, n) similarities of images (rows) and texts (columns), under names with ``prefix``."""
    k = min(5, len(s))
    found = {"image_r1": recall(s, 1), "image_r5": recall(s, k), "text_r1": recall(s.T, 1), "text_r5": recall(s.T, k)}
    return {f"{prefix}_{name}": value for name, value in found.items()}


def text_embeddings(encode: Callable[[list[str]], Tensor], knows, texts: list[str]) -> tuple[Tensor, Tensor]:
    """(n, d) normalised embeddings of texts, 0 where no word is known, and (n,) which those are."""
    known = knows(texts)
    found = F.normalize(encode([text for text, yes in zip(texts, known, strict=True) if yes]), dim=1)
    embeddings = found.new_zeros(len(texts), found.shape[1])
    embeddings[known] = found
    return embeddings, known


def similarities(images: Tensor, texts: Tensor, known: Tensor) -> Tensor:
    """(n, n) cosines of normalised embeddings; a text without a known word is found by nobody, and finds nothing."""
    return (images @ texts.T).masked_fill(~known, -torch.inf)


def prompts(classes: dict[str, str], vocabulary) -> dict[str, list[str]]:
    """The words for each class that are known; a class without one is left out, and nothing is ever taken for it.

    Raises:
        CompanionError: if no word of any class is known.
    """
    known = {name: [word for word in words.split() if word in vocabulary.numbers] for name, words in classes.items()}
    known = {name: words for name, words in known.items() if words}
    if not known:
        raise CompanionError(f"No word for a class is known: expected one of {', '.join(classes.values())}.")
    return known


def zero_shot(images: Tensor, encode, prompts_of: dict[str, list[str]], *, ensemble: bool) -> list[str]:
    """The class of each image, of which the text is most similar.

    Args:
        images: (n, d) normalised embeddings.
        encode: texts → (k, d).
        prompts_of: for each class its texts.
        ensemble: take the mean of the normalised embeddings of all texts of a class; else its first text.
    """
    means = [F.normalize(encode(texts if ensemble else texts[:1]), dim=1).mean(0) for texts in prompts_of.values()]
    nearest = (images @ F.normalize(torch.stack(means), dim=1).T).argmax(1)
    return [list(prompts_of)[i] for i in nearest.tolist()]


def gap(u: Tensor, v: Tensor) -> float:
    """The modality gap (Liang et al. 2022): distance of the means of normalised embeddings, in [0, 2]."""
    return (F.normalize(u, dim=1).mean(0) - F.normalize(v, dim=1).mean(0)).norm().item()


def share_right(data: Emoji, part: str, column: str, found: list[str]) -> float:
    """Of the concepts whose class is one of those asked for, the share of right answers."""
    classes = KINDS if column == "kind" else GROUPS
    right = [a == b for a, b in zip(data.parts[part].table[column], found, strict=True) if a in classes]
    return float(np.mean(right)) if right else 0.0


def mean_of(results) -> dict[str, float]:
    """The mean of each value over several results, which have the same names."""
    results = list(results)
    return {name: float(np.mean([found[name] for found in results])) for name in results[0]}
