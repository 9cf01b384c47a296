"""Similarity functions: how alike two embeddings are. Greater is more alike; a loss takes any of them as `similarity=`.

``cosine(a, b)`` is the (n, k) matrix of every row of ``a`` with every row of ``b``; ``cosine.paired(a, b)`` the (n,)
vector of row i with row i. The same for ``arc_length`` and ``euclidean``, and for a function of your own, see
:class:`Similarity`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import CompanionError


class Similarity:
    """A similarity function of your own, from a function of two (n, d) and (k, d) tensors that returns (n, k).

    The losses turn such a function into a `Similarity` themselves: ``nt_xent(u, v, temperature=1, similarity=f)``.
    With ``tile=`` it is called with parts of the two, and may use nothing else that is learned.
    """

    low, high = -math.inf, math.inf  # what a similarity lies between
    symmetric = False  # whether s(a, b) = s(b, a) is known; then tiles compute such pairs once
    bilinear = False  # whether it is aᵀb of prepared embeddings; then tiles know its gradient
    spherical = False  # whether to prepare an embedding is to give it unit length
    pairwise = False  # whether it depends on its two embeddings alone; then a loss may take tiles unasked

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor] | None = None):
        self._function = function

    def prepare(self, a: Tensor) -> Tensor:
        """(n, d) → (n, d): what is done to each embedding alone."""
        return a

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, k) similarities of prepared embeddings.

        Raises:
            CompanionError: if a function of your own returns anything else.
        """
        s = self._function(a, b)
        if not isinstance(s, Tensor) or s.shape != (len(a), len(b)):
            given = f"shape {tuple(s.shape)}" if isinstance(s, Tensor) else f"type {type(s).__name__}"
            raise CompanionError(
                f"The similarity of {len(a)} and {len(b)} embeddings has {given}: expected a torch.Tensor of shape "
                f"{(len(a), len(b))}, of every row of the first with every row of the second."
            )
        return s

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """(n,) similarities of prepared embeddings, row i with row i."""
        return self.matrix(a, b).diagonal()

    def logits(self, a: Tensor, b: Tensor, temperature) -> Tensor:
        """(n, k) similarities of prepared embeddings, over τ."""
        return self.matrix(a, b) / temperature

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.matrix(self.prepare(a), self.prepare(b))

    def paired(self, a: Tensor, b: Tensor) -> Tensor:
        """(n,) similarities of the rows of a and b (n, d), each to its partner, whatever their lengths."""
        return self.pairs(self.prepare(a), self.prepare(b))


class OfPrepared(Similarity):
    """A similarity that takes its embeddings as prepared already."""

    def __init__(self, similarity: Similarity):
        for name in ("low", "high", "symmetric", "bilinear", "pairwise", "matrix", "pairs", "logits"):
            setattr(self, name, getattr(similarity, name))


class InTiles(Similarity):
    """A function of your own, called with at most ``tile`` rows at once."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], tile: int):
        super().__init__(function)
        self.tile = tile

    def pairs(self, a, b):
        parts = zip(a.split(self.tile), b.split(self.tile), strict=True)
        return torch.cat([self.matrix(*part).diagonal() for part in parts])


class _Named(Similarity):
    """One of this module's own, of which there is one only: a copy of it is itself."""

    def __init__(self, name: str):
        super().__init__()
        self._name = name

    def __reduce__(self):
        return self._name

    def __repr__(self):
        return f"companion.similarity.{self._name}"


class _Cosine(_Named):
    """Cosine similarity, aᵀb / (‖a‖ ‖b‖), in [-1, 1].

    Its gradient with respect to the angle θ is -sin θ: the pull on an almost aligned pair vanishes. It is not derived
    from a metric: 1 - cosine breaks the triangle inequality.
    """

    low, high, symmetric, bilinear, spherical, pairwise = -1.0, 1.0, True, True, True, True

    def prepare(self, a):
        return F.normalize(a, dim=1)

    def matrix(self, a, b):
        return a @ b.T

    def pairs(self, a, b):
        return (a * b).sum(dim=1)

    def logits(self, a, b, temperature):
        return self.matrix(a / temperature, b)  # n·d divisions instead of n·k


class _ArcLength(_Named):
    """Negative arc length, 1 - θ/π for the angle θ between a and b, in [0, 1]: proposed by Koishekenov et al. (2023,
    Geometric Contrastive Learning) and taken up in Feeney & Hughes' post of 2024.

    Its pull does not fade with the angle, but d arccos(s)/ds = -1/√(1 - s²) is unbounded at a cosine s of ±1. The
    guard: s is clamped to ±(1 - eps), eps the machine epsilon of the dtype. So the gradient is finite everywhere (zero
    for pairs that are aligned or antipodal to within rounding, where its direction is undefined), and the similarity is
    off by at most arccos(1 - eps)/π: 1.6e-4 in float32, 6.8e-9 in float64.
    """

    low, high, symmetric, spherical, pairwise = 0.0, 1.0, True, True, True

    def prepare(self, a):
        return F.normalize(a, dim=1)

    def matrix(self, a, b):
        return self._of_cosine(a @ b.T)

    def pairs(self, a, b):
        return self._of_cosine((a * b).sum(dim=1))

    @staticmethod
    def _of_cosine(c: Tensor) -> Tensor:
        guard = 1 - torch.finfo(c.dtype).eps
        return 1 - c.clamp(-guard, guard).arccos() / math.pi


class _Euclidean(_Named):
    """Negative Euclidean distance, -‖a - b‖₂, in (-∞, 0]; the embeddings keep their length.

    Distances are taken from the differences, not from inner products, which would lose the digits of near pairs. The
    gradient of two equal embeddings, which has no direction, is zero.
    """

    high, symmetric, pairwise = 0.0, True, True

    def matrix(self, a, b):
        return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    def pairs(self, a, b):
        return -(a - b).norm(dim=1)


cosine = _Cosine("cosine")
arc_length = _ArcLength("arc_length")
euclidean = _Euclidean("euclidean")


def off_diagonal(s: Tensor) -> Tensor:
    """The n(n-1) entries of a square matrix beside its diagonal: the negatives, where the diagonal holds positives.

    Args:
        s: (..., n, n) pairwise similarities.

    Returns:
        (..., n, n-1): row i without its entry i.
    """
    n = s.shape[-1]
    return s.flatten(-2)[..., 1:].unflatten(-1, (n - 1, n + 1))[..., :-1].reshape(*s.shape[:-1], n - 1)
