"""What is measured of a method trained on pairs of emoji, beside what needs no training."""

import numpy as np
import torch
import torch.nn.functional as F

from companion import metrics
from companion.training import emoji, probe
from companion.training.emoji import Emoji
from companion.training.pixels import neighbours, ridge_regression
from companion.training.retrieval import (
    GROUPS,
    KINDS,
    both_ways,
    gap,
    mean_of,
    prompts,
    recall,
    share_right,
    similarities,
    text_embeddings,
    zero_shot,
)  # fmt: skip

TRACKED = 256  # most concepts of a part behind what is noted after every epoch


@torch.no_grad()
def measure(method, config, data: Emoji) -> dict[str, float]:
    """Everything that is reported of a method trained on pairs of emoji, as one flat dictionary.

    ``test`` and ``validation`` are unseen concepts drawn by artists that were seen, a mean over these;
    ``test_new`` unseen concepts drawn by an unseen artist; ``artist`` seen concepts drawn by an unseen artist;
    ``cross`` an unseen concept's drawing finds that of another artist. Recalls and accuracies are in [0, 1].
    """
    device = next(method.parameters()).device
    draw = {}
    for part, concepts in data.parts.items():
        for artist in emoji.ARTISTS:
            images = concepts.drawn(artist).float() / 255
            features = method.embed(images.to(device)).float()
            draw[part, artist] = {
                "pixels": images.flatten(1), "features": features.cpu(),
                "projection": F.normalize(method.model.projector(features), dim=1).cpu(),
            }  # fmt: skip
    result = _cross(draw, data) | _probe(draw, data)
    if config.method.second == "text":
        result |= _with_texts(method, draw, data)
        result |= {"scale": method.scale().item(), "bias": method.bias.item()}
    else:
        first, second = data.artists[:2] if len(data.artists) > 1 else data.artists * 2
        u, v = (draw["test", artist]["projection"] for artist in (first, second))
        result |= metrics.similarity_statistics(u, v)
        result |= {"alignment": metrics.alignment(u, v), "uniformity": metrics.uniformity(u)}
    return {name: float(value) for name, value in result.items()}


@torch.no_grad()
def track(method, config, data: Emoji) -> dict[str, float]:
    """What is noted after every epoch of pairs with texts: the gap and the similarities of training pairs, the gap and
    the recall of validation concepts, scale and bias; of other pairs nothing."""
    if config.method.second != "text":
        return {}
    device, result = next(method.parameters()).device, {}
    for part in ("train", "validation"):
        concepts = data.parts[part]
        concepts = concepts[torch.linspace(0, len(concepts) - 1, min(TRACKED, len(concepts))).long()]
        known = data.vocabulary.knows(concepts.names)
        if known.sum() < 2:
            continue
        images = concepts.drawn(data.artists[0])[known].to(device).float() / 255
        texts = data.vocabulary.encode([name for name, yes in zip(concepts.names, known, strict=True) if yes])
        u, v = (x.float().cpu() for x in method.project(images, texts.to(device)))
        prefix = "" if part == "train" else "validation_"
        result |= {f"{prefix}{name}": value for name, value in metrics.similarity_statistics(u, v).items()}
        result |= {f"{prefix}gap": gap(u, v), f"{prefix}image_r1": recall(F.normalize(u) @ F.normalize(v).T, 1)}
    return result | {"scale": method.scale().item(), "bias": method.bias.item()}


def _cross(draw: dict, data: Emoji) -> dict[str, float]:
    """A drawing of one artist finds the same concept among those of another: mean over the ordered pairs of all."""
    result = {}
    for kind in ("features", "projection", "pixels"):
        mean = torch.cat([draw["train", artist][kind] for artist in data.artists]).mean(0)
        for part in ("validation", "test"):
            if len(data.parts[part]):
                z = {a: F.normalize(draw[part, a][kind] - mean, dim=1) for a in emoji.ARTISTS}
                s = [z[a] @ z[b].T for a in z for b in z if a != b]
                for k in (1, 5):
                    result[f"{part}_cross_{kind}_r{k}"] = np.mean([recall(x, min(k, len(x))) for x in s])
    return result


def _probe(draw: dict, data: Emoji) -> dict[str, float]:
    """A linear probe of the groups on the features, tested on unseen concepts by seen artists."""
    found = {}
    for part in ("train", "test"):
        features = torch.cat([draw[part, artist]["features"] for artist in data.artists])
        found[part] = features, data.parts[part].labels().repeat(len(data.artists))
    (correct,) = probe.linear_probe(*found["train"], found["test"])
    return {"linear_accuracy": correct.mean()}


def _with_texts(method, draw: dict, data: Emoji) -> dict[str, float]:
    device = next(method.parameters()).device

    def encode(texts):
        return method.model.second_projector(data.vocabulary.encode(texts).to(device)).float().cpu()

    names = {p: text_embeddings(encode, data.vocabulary.knows, c.names) for p, c in data.parts.items() if len(c)}
    long = {p: text_embeddings(encode, data.vocabulary.knows, c.described()) for p, c in data.parts.items() if len(c)}
    u = torch.cat([draw["train", artist]["projection"] for artist in data.artists])
    result = metrics.similarity_statistics(draw["train", data.artists[0]]["projection"], names["train"][0])
    result |= {"gap": gap(u, names["train"][0])}
    for part in set(names) - {"train"}:
        for prefix, artists in ((part, data.artists), (f"{part}_new", data.unseen_artists)):
            images = [draw[part, artist]["projection"] for artist in artists]
            if images:
                result |= mean_of(both_ways(similarities(x, *names[part]), prefix) for x in images)
                result |= mean_of(both_ways(similarities(x, *long[part]), f"{prefix}_described") for x in images)
                known = names[part][1]
                result[f"{prefix}_gap"] = gap(torch.cat([x[known] for x in images]), names[part][0][known])
        result[f"{part}_known"] = names[part][1].double().mean().item()
    seen = [draw["train", artist]["projection"] for artist in data.unseen_artists]
    if seen:
        result |= mean_of(both_ways(similarities(x, *names["train"]), "artist") for x in seen)
        s = torch.stack([neighbours(draw, data, "train", artist) for artist in data.unseen_artists])
        result |= mean_of(both_ways(x, "pixels_artist") for x in s)
    return result | ridge_regression(draw, data) | _classes(draw, data, encode)


def _classes(draw: dict, data: Emoji, encode) -> dict[str, float]:
    """Zero-shot accuracies, of kinds and of groups, with one prompt a class and with an ensemble; the share of the
    class that is most frequent in training; and the class of the nearest seen drawing."""
    result = {}
    for column, words in (("kind", KINDS), ("group", GROUPS)):
        texts, table = prompts(words, data.vocabulary), data.parts["train"].table
        common = table[column][table[column].isin(list(words))].mode()[0]
        result[f"majority_{column}"] = share_right(data, "test", column, [common] * len(data.parts["test"]))
        for prefix, artists in (("", data.artists), ("new_", data.unseen_artists)):
            for name, ensemble in (("prompt", False), ("ensemble", True)):
                for part, of in (("test", ""), ("validation", "validation_")):
                    found = [zero_shot(draw[part, a]["projection"], encode, texts, ensemble=ensemble) for a in artists]
                    shares = [share_right(data, part, column, x) for x in found]
                    result |= {f"{of}{name}_{prefix}{column}": np.mean(shares)} if shares else {}
            near = [neighbours(draw, data, "test", a).argmax(1).tolist() for a in artists]
            shares = [share_right(data, "test", column, [table[column][i] for i in x]) for x in near]
            result |= {f"neighbour_{prefix}{column}": np.mean(shares)} if shares else {}
    return result
