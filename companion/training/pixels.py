"""What retrieval and classes get without any training of a network: from raw pixels."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.training.emoji import Emoji
from companion.training.retrieval import (
    GROUPS,
    KINDS,
    both_ways,
    mean_of,
    ranks,
    share_right,
    similarities,
    text_embeddings,
)  # fmt: skip

PENALTIES = (1e3, 1e4, 1e5)  # of ridge regression, on standardised pixels; the validation concepts choose


def neighbours(draw: dict, data: Emoji, part: str, artist: str) -> Tensor:
    """(n, concepts) similarity of a drawing and the nearest of the seen drawings of a training concept, in pixels."""
    mean = torch.cat([draw["train", a]["pixels"] for a in data.artists]).mean(0)
    x = F.normalize(draw[part, artist]["pixels"] - mean, dim=1)
    seen = [F.normalize(draw["train", a]["pixels"] - mean, dim=1) for a in data.artists]
    return torch.stack([x @ y.T for y in seen]).amax(0)


class Ridge:
    """Ridge regression from standardised pixels of the seen drawings of training concepts to (concepts, k) targets, for
    any penalty at once."""

    def __init__(self, draw: dict, data: Emoji):
        x = torch.cat([draw["train", artist]["pixels"] for artist in data.artists])
        self.mean, self.scale, self.copies = x.mean(0), x.std(0) + 1e-3, len(data.artists)
        self.x = (x - self.mean) / self.scale
        self.values, self.vectors = torch.linalg.eigh(self.x @ self.x.T)

    def to(self, targets: Tensor) -> Callable[[Tensor, float], Tensor]:
        """A function of (n, pixels) and a penalty that predicts (n, k)."""
        y = targets.repeat(self.copies, 1)
        rotated = self.vectors.T @ (y - y.mean(0))

        def predict(pixels: Tensor, penalty: float) -> Tensor:
            onto = (pixels - self.mean) / self.scale @ self.x.T @ self.vectors  # (n, drawings)
            return onto / (self.values + penalty) @ rotated + y.mean(0)

        return predict


def ridge_regression(draw: dict, data: Emoji) -> dict[str, float]:
    """Retrieval by ridge regression from pixels to the words of names, or of names and keywords, and accuracies of
    classes by the same; what does best on the validation concepts."""
    model, words = Ridge(draw, data), data.vocabulary
    chosen_on = "validation" if len(data.parts["validation"]) else "test"

    def vectors(texts):
        return text_embeddings(lambda known: _hot(words, known), words.knows, texts)

    def cosines(part, artist, predict, penalty):
        return similarities(F.normalize(predict(draw[part, artist]["pixels"], penalty), dim=1), *names[part])

    def quality(predict, penalty):
        found = [cosines(chosen_on, artist, predict, penalty) for artist in data.artists]
        return np.mean([-(1 + ranks(s)).log().mean().item() for s in found])

    names = {part: vectors(concepts.names) for part, concepts in data.parts.items()}
    targets = [model.to(names["train"][0]), model.to(vectors(data.parts["train"].described())[0])]
    best = max(((t, p) for t in targets for p in PENALTIES), key=lambda x: quality(*x))
    result = {}
    for prefix, artists in (("ridge_test", data.artists), ("ridge_test_new", data.unseen_artists)):
        s = [cosines("test", artist, *best) for artist in artists]
        result |= mean_of(both_ways(x, prefix) for x in s) if s else {}
    return result | _ridge_classes(model, draw, data, chosen_on)


def _ridge_classes(model: Ridge, draw: dict, data: Emoji, chosen_on: str) -> dict[str, float]:
    result = {}
    for column, classes in (("kind", list(KINDS)), ("group", list(GROUPS))):
        labels = data.parts["train"].table[column]
        predict = model.to(torch.tensor([[float(label == name) for name in classes] for label in labels]))

        def accuracy(part, artists, penalty, predict=predict, column=column, classes=classes):
            found = [predict(draw[part, artist]["pixels"], penalty).argmax(1).tolist() for artist in artists]
            return np.mean([share_right(data, part, column, [classes[i] for i in x]) for x in found])

        penalty = max(PENALTIES, key=lambda p, a=accuracy: a(chosen_on, data.artists, p))
        for prefix, artists in (("", data.artists), ("new_", data.unseen_artists)):
            result |= {f"pixels_{prefix}{column}": accuracy("test", artists, penalty)} if artists else {}
    return result


def _hot(vocabulary, texts: list[str]) -> Tensor:
    """(n, words) which words a text has."""
    numbers = vocabulary.encode(texts)
    return torch.zeros(len(texts), len(vocabulary)).scatter_(1, numbers, 1)[:, 1:]
