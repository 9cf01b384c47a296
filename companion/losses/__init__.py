"""Contrastive losses as plain functions of raw embeddings.

``u, v`` are (n, d): two views of n instances. ``z`` is (n, d) with labels ``y`` (n,). Every loss L2-normalises inside
(except with Euclidean similarity), computes in float32 or better whatever autocast says, and returns a scalar: the mean
over anchors. Hyperparameters are keyword-only.
"""

from companion.losses.additive import siglip, spectral
from companion.losses.auxiliary import vrns
from companion.losses.hypersphere import align, uniform
from companion.losses.softmax import (
    LogitScale,
    clip,
    dcl,
    dclw,
    dhel,
    hard_contrastive,
    info_nce,
    nt_xent,
    simple,
)

__all__ = [
    "LogitScale",
    "align",
    "clip",
    "dcl",
    "dclw",
    "dhel",
    "hard_contrastive",
    "info_nce",
    "nt_xent",
    "siglip",
    "simple",
    "spectral",
    "uniform",
    "vrns",
]
