"""What an accuracy must be held against, and tables of runs that hold it so."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from companion.training.config import Config
from companion.training.methods import Clip, Supervised
from companion.training.runs import Run
from companion.training.sweeps import sweep

BATCH_SIZE = 128  # of the encoder trained with labels, whatever the batch of the run beside it


def baselines(config: Config) -> dict[str, Config]:
    """The runs that stand beside the run of ``config``, on the same images and measured the same way.

    Returns:
        ``pixels``: the raw images; ``colours``: mean and standard deviation of each channel, and their products;
        ``untrained``: the same encoder with the weights that the same seed starts it with, and the statistics of batch
        norm from the training images; ``supervised``: that encoder trained with labels, for as many epochs, no upper
        bound. Only what makes a difference to them is taken over from ``config``, so that many runs share them. Of
        :class:`~companion.training.Clip` none: its own stand among its metrics.
    """
    if isinstance(config.method, Clip):
        return {}
    images = {
        name: getattr(config, name)
        for name in ("dataset", "image_size", "n_train", "n_validation", "storage", "measured_pairs", "accelerator")
    }
    images["batch_size"] = min(BATCH_SIZE, config.n_train)
    model = {
        name: getattr(config, name)
        for name in ("augmentation", "encoder", "width", "projector_hidden", "projector_dim", "precision", "seed")
    }
    schedule = {
        name: getattr(config, name)
        for name in ("epochs", "learning_rate", "momentum", "weight_decay", "warmup_epochs", "schedule", "optimizer")
    }
    return {
        "pixels": Config(**images, encoder="pixels", epochs=0),
        "colours": Config(**images, encoder="colour_moments", epochs=0),
        "untrained": Config(**images, **model, epochs=0, calibrate_batch_norm=True),
        "supervised": Config(**images, **model, **schedule, method=Supervised()),
    }


def probed(configs: list[Config]) -> list[float]:
    """The accuracy on test images of a linear probe of each of these runs; those that are not in the store are
    trained."""
    return [run.metrics["linear_accuracy"] for run in sweep(configs)]


def table(
    runs: Iterable[Run], *, beside: bool = True, accuracies: Callable[[list[Config]], list[float]] = probed
) -> pd.DataFrame:
    """One row a run: its ``key``, the values of its config, its metrics, and the accuracies of its baselines as
    ``pixels_accuracy`` and so on, linear probes all. Baselines that are not in the store are trained.

    Args:
        runs: finished runs.
        beside: with False, no baselines, and so none of the encoder's own accuracies (``linear_…``, ``knn_…``), which
            would say nothing without them.
        accuracies: of the baselines, if not from the store.
    """
    runs = list(runs)
    if not beside:
        rows = pd.DataFrame([{"key": run.key} | run.config.flat() | run.metrics for run in runs])
        return rows.drop(columns=[name for name in rows if name.startswith(("linear_", "knn_"))])
    others = [baselines(run.config) for run in runs]
    found = iter(accuracies([config for configs in others for config in configs.values()]))
    rows = []
    for run, configs in zip(runs, others, strict=True):
        of_baselines = {f"{name}_accuracy": next(found) for name in configs}
        rows.append({"key": run.key} | run.config.flat() | run.metrics | of_baselines)
    return pd.DataFrame(rows)


def differing(runs: dict[str, Run], rows: pd.DataFrame) -> list[str]:
    """Keys of the runs that stand in the table with other numbers, beyond the digits that are recorded."""
    found = []
    for key in sorted(set(runs) & set(rows.index)):
        metrics, row = runs[key].metrics, rows.loc[key]
        pairs = [(float(row[name]), value) for name, value in metrics.items() if name in row.index]
        if not np.allclose(*zip(*pairs, strict=True), rtol=1e-6, atol=0, equal_nan=True):
            found.append(key)
    return found
