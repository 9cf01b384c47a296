"""The two sums over pairs that all losses are made of: a log-sum-exp for each anchor, and a plain total.

The dense form works on the whole matrix of pairs; where `tile` is given, :mod:`companion.losses.tiled` takes over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.losses import tiled
from companion.similarity import Similarity


class Skip:
    """Which pairs do not count; a rule for any block of the matrix of all pairs."""

    def mask(self, rows: range, columns: range, device) -> Tensor | None:
        """(len(rows), len(columns)) booleans, true where a pair does not count; None if all count."""
        raise NotImplementedError

    def fill_(self, values: Tensor, rows: range, columns: range, by: float) -> Tensor:
        """Put `by` in place of the values of the pairs that do not count."""
        mask = self.mask(rows, columns, values.device)
        return values if mask is None else values.masked_fill_(mask, by)


class SameInstance(Skip):
    """Skip the pairs of one instance, where rows and columns count instances 0 … n-1, again and again.

    On (n, n) views u, v that is the diagonal; on (2n, 2n) views of cat([u, v]) an anchor's self and its twin.
    """

    def __init__(self, n: int):
        self.n = n

    def mask(self, rows, columns, device):
        mask = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=device)
        return self.fill_(mask, rows, columns, True) if self._diagonals(rows, columns) else None

    def fill_(self, values, rows, columns, by):
        for diagonal in self._diagonals(rows, columns):  # far faster than a mask
            values.diagonal(diagonal).fill_(by)
        return values

    def _diagonals(self, rows: range, columns: range) -> list[int]:
        least, most = rows.start - columns.stop + 1, rows.stop - 1 - columns.start  # of i - j in this block
        return [rows.start - columns.start - k * self.n for k in range(-(-least // self.n), most // self.n + 1)]


class SameLabel(Skip):
    """Skip the pairs of equal labels, so keep the negatives."""

    def __init__(self, y: Tensor):
        self.y = y

    def mask(self, rows, columns, device):
        return self.y[rows.start : rows.stop, None] == self.y[columns.start : columns.stop]


class NoPositive(SameLabel):
    """Skip the pairs of different labels and an anchor's self, so keep the positives."""

    def mask(self, rows, columns, device):
        return SameInstance(len(self.y)).fill_(~super().mask(rows, columns, device), rows, columns, True)


def log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding for every x (torch's own softplus is linear beyond 20)."""
    return -F.logsigmoid(-x)


def log_sum_exp(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip: Skip | None = None, tile: int | None = None
) -> Tensor:
    """(n,) log Σ_j exp(s(a_i, b_j)/τ) over the kept pairs; -∞ for an anchor without any.

    Where b *is* a, `skip` must be symmetric.
    """
    if tile is not None:
        return tiled.log_sum_exp(a, b, temperature, similarity, skip, tile)[0]
    return _logits(a, b, temperature, similarity, skip).logsumexp(dim=1)


def log_sum_exp_both_ways(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip: Skip, tile: int | None
) -> tuple[Tensor, Tensor]:
    """The same for each row a_i over all b_j, (n,), and for each b_j over all a_i, (k,)."""
    if tile is not None:
        return tiled.log_sum_exp(a, b, temperature, similarity, skip, tile)
    logits = _logits(a, b, temperature, similarity, skip)
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0)


def total(term, a: Tensor, b: Tensor, similarity: Similarity, skip: Skip, *, rows=(), shared=(), tile=None) -> Tensor:
    """Σ over the kept pairs of ``term(s(a_i, b_j), *rows_i, *shared)``; `term` works elementwise.

    Args:
        term: the summand; tensors that it needs a gradient for come by `rows` and `shared`.
        a: (n, d) anchors.
        b: (k, d) candidates; where b *is* a, `skip` must be symmetric.
        similarity: a similarity function.
        skip: which pairs do not count.
        rows: tensors of shape (n,), one value an anchor.
        shared: scalar tensors.
        tile: None for the dense form, else the side of a tile.
    """
    if tile is not None:
        return tiled.total(term, a, b, similarity, skip, rows, shared, tile)
    s = similarity(a, b)  # (n, k)
    values = term(s, *(row[:, None] for row in rows), *shared)
    mask = skip.mask(range(len(a)), range(len(b)), s.device)
    return (values if mask is None else values.masked_fill(mask, 0)).sum()


def mean_of_negatives(term, u: Tensor, v: Tensor, similarity: Similarity, *, shared=(), tile: int | None) -> Tensor:
    """Mean of `term` over the n(n-1) pairs of different instances; arguments as :func:`total`."""
    n = len(u)
    return total(term, u, v, similarity, SameInstance(n), shared=shared, tile=tile) / (n * (n - 1))


def _logits(a: Tensor, b: Tensor, temperature, similarity: Similarity, skip: Skip | None) -> Tensor:
    """(n, k) logits, -∞ where a pair does not count."""
    logits = similarity.logits(similarity.prepare(a), similarity.prepare(b), temperature)
    return logits if skip is None else skip.fill_(logits, range(len(a)), range(len(b)), -torch.inf)
