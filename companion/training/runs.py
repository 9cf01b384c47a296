"""Runs: what a finished training left behind, and how it is measured."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from companion import data, encoders, metrics, paths, probe
from companion.augment import TwoViews
from companion.config import Config

AUGMENTED = 1024  # images that are augmented at once


@dataclass(frozen=True)
class Run:
    """A finished run, read from the store when asked."""

    config: Config
    path: Path

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch: ``step``, ``loss``, and the similarity statistics of :mod:`companion.metrics`."""
        return pd.read_csv(self.path / "history.csv")

    @property
    def metrics(self) -> dict[str, float]:
        """What :func:`measure` found at the end of the training."""
        return json.loads((self.path / "metrics.json").read_text())

    def model(self) -> encoders.Model:
        """The trained encoder and projector, in evaluation mode, on the CPU."""
        weights = safetensors.torch.load_file(self.path / "encoder.safetensors")
        first = next(value for value in weights.values() if value.ndim == 4)  # the first convolution
        model = encoders.build(self.config, channels=first.shape[1])
        model.load_state_dict(weights)
        return model.eval()

    def data(self) -> data.Data:
        """The images that the run was trained, tuned and tested on."""
        return load_data(self.config)

    def two_views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Projections u, v (k, d) of two augmented views of k training images, and their labels (k,)."""
        return two_views(self.model(), self.config, self.data().train, self.config.measured_pairs)


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run: the fields of its config, ``m``, and its metrics."""
    return pd.DataFrame([dataclasses.asdict(run.config) | {"m": run.config.m} | run.metrics for run in runs])


def folder(config: Config) -> Path:
    """Where the run of ``config`` is stored once it is complete."""
    return paths.runs() / config.key(data.identity(config.dataset))


def load_data(config: Config) -> data.Data:
    """The data set that ``config`` names, cut and resized as it says."""
    return data.load(
        config.dataset, image_size=config.image_size, n_train=config.n_train, n_validation=config.n_validation
    )


def two_views(model: torch.nn.Module, config: Config, images: data.Split, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections u, v (k, d) of two augmented views of the first k = ``pairs`` images, and their labels (k,).

    Always the same views for the same ``config.seed``.
    """
    images = images[:pairs]
    augment = TwoViews(config, images.images.shape[1])
    with seeded(config.seed, 1):
        parts = [_project(model, *augment(batch)) for batch in images.images.split(AUGMENTED)]
    u, v = (torch.cat(views) for views in zip(*parts, strict=True))
    return u, v, images.labels


@torch.no_grad()
def measure(model: encoders.Model, config: Config, images: data.Data) -> dict[str, float]:
    """Everything that the notebooks report about a trained model, as one flat dictionary.

    Similarity statistics, alignment and uniformity on the projections of augmented training images, as the papers have
    it; probes and tolerance on the encoder's features of unaugmented images. Accuracies are in [0, 1].
    """
    u, v, y = two_views(model, config, images.train, config.measured_pairs)
    (train, y_train), validation, test = (_features(model, s) for s in (images.train, images.validation, images.test))
    held_out = [s for s in (validation, test) if len(s[1])]
    linear = probe.linear_probe(train, y_train, *held_out)
    (nearest,) = probe.knn(train, y_train, test)
    result = metrics.similarity_statistics(u, v)
    result |= {f"variance_{name}": value for name, value in metrics.variance_parts(u, v, y).items()}
    result |= {
        "alignment": metrics.alignment(u, v),
        "uniformity": metrics.uniformity(u),
        "tolerance": metrics.tolerance(*test),
    }
    for name, correct in (("linear", linear[-1]), ("knn", nearest)):
        result[f"{name}_accuracy"] = correct.mean()
        result[f"{name}_low"], result[f"{name}_high"] = probe.bootstrap_interval(correct)
    if len(held_out) == 2:
        result["linear_validation_accuracy"] = linear[0].mean()
    return {name: float(value) for name, value in result.items()}


@torch.no_grad()
def _project(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Projections of first and second views in evaluation mode, on the CPU and in float32 whatever the model is in."""
    model.eval()
    return model(x).float().cpu(), model(y, second=True).float().cpu()


def _features(model: encoders.Model, images: data.Split) -> tuple[Tensor, Tensor]:
    """Encoder outputs of unaugmented images (n, features) and their labels, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    parts = [model.encoder(batch.to(device).float() / 255).float().cpu() for batch in images.images.split(AUGMENTED)]
    return (torch.cat(parts) if parts else torch.empty(0)), images.labels.cpu()


@contextlib.contextmanager
def seeded(*key: int):
    """Inside, torch draws from generators seeded by ``key``; outside, nothing has changed."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield
