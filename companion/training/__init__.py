"""Training: from a description to a finished, measured run. Needs the extra ``train``."""

from companion.errors import extra

with extra("train"):
    from companion.training.augment import SimCLR, Unchanged
    from companion.training.baselines import baselines, table
    from companion.training.config import Config
    from companion.training.loop import train
    from companion.training.methods import Batch, Clip, Contrastive, Labelled, Method, MoCo, Supervised
    from companion.training.runs import Run, initial, load_data
    from companion.training.sources import Pairs, Views
    from companion.training.sweeps import run, sweep

__all__ = [
    "Batch",
    "Clip",
    "Config",
    "Contrastive",
    "Labelled",
    "Method",
    "MoCo",
    "Pairs",
    "Run",
    "SimCLR",
    "Supervised",
    "Unchanged",
    "Views",
    "baselines",
    "initial",
    "load_data",
    "run",
    "sweep",
    "table",
    "train",
]
