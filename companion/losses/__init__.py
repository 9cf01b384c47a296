"""Contrastive losses as plain functions of raw embeddings.

``u, v`` are (n, d): two views of n instances. ``z`` is (k, d). Every loss L2-normalises inside, computes in float32 or
better whatever autocast says, and returns a scalar: the mean over anchors. Hyperparameters are keyword-only.
"""

from companion.losses.auxiliary import vrns
from companion.losses.hypersphere import align, uniform
from companion.losses.softmax import clip, dcl, info_nce, nt_xent

__all__ = ["align", "clip", "dcl", "info_nce", "nt_xent", "uniform", "vrns"]
