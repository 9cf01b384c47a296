"""Runs: what a finished training left behind, and how it is measured."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from companion import metrics, paths
from companion.errors import CompanionError
from companion.store import TRAINING_VERSION
from companion.training import data, emoji, encoders, planned, probe
from companion.training.config import EMOJI, Config, from_json
from companion.training.loop import seeded
from companion.training.methods import Clip, Method
from companion.training.pairs import measure as measure_pairs
from companion.training.sources import CHUNK, seed

FILES = ("config.json", "environment.json", "history.csv", "metrics.json", "weights.safetensors")  # of a run
VOTERS = (1, 5)  # neighbours that vote on a projection
CS = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # inverse L2 penalties for the probe of a baseline
FEW = 50  # features of a baseline that Newton's method fits: there are 27 of colours


@dataclass(frozen=True)
class Run:
    """A finished run, read from the store when asked."""

    config: Config
    path: Path

    @property
    def key(self) -> str:
        """The run's name in the store."""
        return self.path.name

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch: ``step``, ``loss``, and the similarity statistics of :mod:`companion.metrics`."""
        return self._read("history.csv", pd.read_csv)

    @property
    def metrics(self) -> dict[str, float]:
        """What :func:`~companion.training.runs.measure` found at the end of the training."""
        return self._read("metrics.json", _metrics)

    @property
    def provenance(self) -> dict[str, str]:
        """Versions, device, commit and seconds of the training."""
        return self._read("environment.json", _json)

    def method(self) -> Method:
        """What was trained, in evaluation mode, on the CPU."""
        method = initial(self.config)
        self._read("weights.safetensors", lambda path: method.load_state_dict(safetensors.torch.load_file(path)))
        return method

    def model(self) -> encoders.Model:
        """Its encoder and projector."""
        return self.method().model

    def data(self) -> data.Data:
        """The images that the run was trained, tuned and tested on."""
        return load_data(self.config)

    def two_views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Projections u, v (k, d) of two augmented views of k training images, and their labels (k,).

        Raises:
            CompanionError: for a run on images with texts, whose second projector takes no image.
        """
        if getattr(self.config.method, "second", "") == "text":
            raise CompanionError(
                f"{self.key} was trained on drawings with texts and has no two views of an image: take "
                "`run.method().project(images, texts)`, with texts from the vocabulary of `run.data()`."
            )
        return two_views(self.method(), self.config, self.data().labelled, self.config.measured_pairs)

    def _read(self, name: str, parse):
        return _read(self.path / name, parse)


def folder(config: Config) -> Path:
    """Where the run of ``config`` is stored once it is complete."""
    return paths.runs() / config.key(data.identity(config.dataset))


def complete(path: Path) -> bool:
    """Whether nobody has deleted a file of the run in this folder, or all of it."""
    return all((path / name).is_file() for name in FILES)


def stored(path: Path, *, dataset: str) -> Run:
    """The run in a folder of the store; if its data set is an image folder, ``dataset`` says where that lies.

    Raises:
        CompanionError: if its description is missing or damaged, or of another version of the training code.
    """
    values = _read(path / "config.json", _json)
    version = values.pop("training_version", None)
    if version != TRAINING_VERSION:
        raise CompanionError(
            f"{path} is of version {version} of the training code, and this is version {TRAINING_VERSION}: train it "
            "again."
        )
    if all(str(name).startswith("imagefolder:") for name in (values.get("dataset"), dataset)):
        values["dataset"] = dataset
    return Run(from_json(json.dumps(values)), path)


def _read(path: Path, parse):
    try:
        return parse(path)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise CompanionError(
            f"{path} is missing or damaged ({why}): remove the folder {path.parent}, and its run is trained again."
        ) from error


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no values by name")
    return found


def _metrics(path: Path) -> dict[str, float]:
    found = _json(path)
    if "linear_accuracy" not in found:
        raise ValueError("it has no accuracy")
    return found


def load_data(config: Config) -> data.Data:
    """The data set that ``config`` names, cut and resized as it says; of the emoji, its seed splits them."""
    if config.dataset == EMOJI:
        artists = {"artists": config.method.artists} if isinstance(config.method, Clip) else {}
        return emoji.load(
            image_size=config.image_size, n_train=config.n_train, n_validation=config.n_validation, number=config.seed,
            **artists,
        )  # fmt: skip
    if planned.current() and config.dataset not in planned.LOCAL:
        return planned.noise(config.image_size, config.n_train, config.n_validation)
    return data.load(
        config.dataset, image_size=config.image_size, n_train=config.n_train, n_validation=config.n_validation,
        storage=config.storage,
    )  # fmt: skip


def initial(config: Config) -> Method:
    """The method of ``config`` before its first step, in evaluation mode, on the CPU; its seed decides the weights."""
    with seeded(config.seed, 0):
        method = config.method.build(config, load_data(config).train)
    return method.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def two_views(method: Method, config: Config, images, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections u, v (k, d) of two augmented views of k = ``pairs`` images, and their labels (k,).

    They are float32 and lie on the method's device. The images are a fixed random choice, for data sets are sorted by
    class; always the same views for the same ``config.seed``.
    """
    device = _device(method)
    augment = config.augmentation.build(config.image_size)
    draws = torch.Generator(device).manual_seed(seed(config.seed, 1))
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed(1)))[:pairs]
    images, parts = images.subset(chosen)[:], []
    for batch in images.images.split(CHUNK):
        views = (augment(batch.to(device), draws) for _ in range(2))
        parts.append(method.project(*views))
    u, v = (torch.cat(views).float() for views in zip(*parts, strict=True))
    return u, v, images.labels.to(device)


@torch.no_grad()
def features(method: Method, images, *, projected: bool = False, view=None) -> tuple[Tensor, Tensor]:
    """Encoder outputs of images (n, features) in float32, and their labels (n,), on the method's device; or, if
    ``projected``, their projections (n, d), not normalised. Of no images they are (0,), on the CPU. The
    images are not augmented, unless ``view`` does it: (n, c, h, w) uint8 → (n, c, s, s) in [0, 1]."""
    device, embed = _device(method), method.model if projected else method.embed
    view = view or (lambda images: images.float() / 255)
    chunks = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    parts = [embed(view(chunk.images.to(device))).float() for chunk in chunks]
    return (torch.cat(parts) if parts else torch.empty(0)), images.labels.to(device)


def measure(method: Method, config: Config, images: data.Data) -> dict[str, float]:
    """Everything that the notebooks report about a trained model, as one flat dictionary.

    Similarity statistics, alignment and uniformity on the projections of augmented training images, as Lee et al. have
    it; Wang & Isola take alignment and uniformity on their validation set. Probes and tolerance on the encoder's
    features of unaugmented images. Accuracies are in [0, 1]. What a method with ``votes`` has beside, see
    :func:`projection_votes`. Of a method that is trained on pairs of images and texts, or of drawings, what
    :func:`companion.training.pairs.measure` says.
    """
    if isinstance(config.method, Clip):
        return measure_pairs(method, config, images)
    u, v, y = two_views(method, config, images.labelled, config.measured_pairs)
    (train, y_train), validation, test = (
        features(method, s) for s in (images.labelled, images.validation, images.test)
    )
    held_out = [s for s in (validation, test) if len(s[1])]
    if config.encoder in encoders.FIXED:
        linear = baseline_probe(train, y_train, *held_out)
    else:
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
        result[f"{name}_low"], result[f"{name}_high"] = probe.accuracy_interval(correct)
    if len(held_out) == 2:
        result["linear_validation_accuracy"] = linear[0].mean()
    if method.votes:
        result |= projection_votes(method, images)
    return {name: float(value) for name, value in result.items()}


def projection_votes(method: Method, images: data.Data) -> dict[str, float]:
    """Accuracies of the cosine-weighted vote of 1 and of 5 neighbours among the projections of unaugmented images:
    ``projection_1nn_accuracy`` and ``projection_5nn_accuracy`` on test images, the same with ``_validation_`` on
    held-out ones if there are any."""
    train, *tests = (features(method, s, projected=True) for s in (images.labelled, images.test, images.validation))
    result = {}
    for k in VOTERS:
        for part, test in zip(("", "_validation"), tests, strict=True):
            if len(test[1]):
                (correct,) = probe.weighted_knn(*train, test, k=k)
                result[f"projection_{k}nn{part}_accuracy"] = correct.mean()
    return result


def baseline_probe(train: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor]) -> list[np.ndarray]:
    """The linear probe of fixed features, with the penalty that suits the first of two test sets, the held-out one;
    with one test set, scikit-learn's default.

    From strong to weak, until a weaker penalty does worse: beyond that the fits only get slow.
    """
    fit = functools.partial(probe.linear_probe, train, labels, normalise=False, newton=train.shape[1] <= FEW)
    if len(tests) < 2:
        return fit(*tests)
    best = None
    for c in CS:
        correct = fit(*tests, C=c)
        if best and correct[0].mean() < best[0].mean():
            break
        best = correct
    return best


def _device(method: Method) -> torch.device:
    return next(method.parameters()).device
