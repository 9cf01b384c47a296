"""Contrastive losses as plain functions of raw embeddings.

``u, v`` are (n, d): two views of the n instances that the loss sees, m in the notebooks, where n is the training set.
``z`` is (n, d) with labels ``y`` (n,), N in the notebooks. Every loss L2-normalises inside with cosine, the default,
and arc length, as ``F.normalize`` does (an embedding of length 0, or of one that its dtype cannot hold, becomes 0),
computes in float32 or better whatever autocast says, and returns a scalar: the mean over anchors. Hyperparameters are
keyword-only. Input is checked, except inside :func:`unchecked`. Few pairs are computed as one matrix, some losses with
their gradient in one step (``companion/losses/fused.py``), many in tiles (:mod:`companion.losses.tiled`).
"""

from companion.losses._gather import gather
from companion.losses._inputs import divided, plain, unchecked
from companion.losses.additive import siglip, spectral
from companion.losses.auxiliary import vrns, vrns_parts
from companion.losses.hypersphere import align, align_uniform, uniform
from companion.losses.margin import batch_hard, contrastive_margin, lifted, triplet
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
from companion.losses.supervised import eps_sup_info_nce, sincere, sup_con

from companion.losses import families  # isort: skip  # last, since it takes the others from here

__all__ = [
    "LogitScale",
    "align",
    "align_uniform",
    "batch_hard",
    "clip",
    "contrastive_margin",
    "dcl",
    "dclw",
    "dhel",
    "divided",
    "eps_sup_info_nce",
    "families",
    "gather",
    "hard_contrastive",
    "info_nce",
    "lifted",
    "nt_xent",
    "plain",
    "siglip",
    "simple",
    "sincere",
    "spectral",
    "sup_con",
    "triplet",
    "unchecked",
    "uniform",
    "vrns",
    "vrns_parts",
]
