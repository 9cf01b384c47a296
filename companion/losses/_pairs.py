"""The two sums over pairs that all losses are made of: a log-sum-exp for each anchor, and a plain total.

Few pairs make one matrix; where there are many, or `tile` is given, :mod:`companion.losses.tiled` takes over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.losses import tiled
from companion.losses._inputs import is_plain
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
    return _log_sum_exp(a, b, temperature, similarity, skip, tile, (1,))[0]


def log_sum_exp_both_ways(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip: Skip, tile: int | None
) -> tuple[Tensor, Tensor]:
    """The same for each row a_i over all b_j, (n,), and for each b_j over all a_i, (k,)."""
    return _log_sum_exp(a, b, temperature, similarity, skip, tile, (1, 0))


def _log_sum_exp(a, b, temperature, similarity, skip, tile, dims) -> tuple[Tensor, ...]:
    keep = tiled.KEPT if tile is None else 0
    if (tile := tiled.side(a, b, tile, similarity)) is not None:
        return tiled.log_sum_exp(a, b, temperature, similarity, skip, tile, keep=keep)
    # The value of a tensor is not asked for: under torch.func it has none, and a GPU would have to be waited for.
    safe = not isinstance(temperature, Tensor) and tiled.bounded(similarity, temperature, a.dtype)
    left, right = similarity.prepare(a), similarity.prepare(b)
    if is_plain() or not safe:
        logits = tiled.whole_logits(left, right, temperature, similarity, skip)
        return tuple(logits.logsumexp(dim) for dim in dims)
    logits = similarity.logits(left, right, temperature)
    with torch.no_grad():  # the gradient need not know: that of e^-∞ is 0
        logits = tiled.without(skip, logits, range(len(a)), range(len(b)), -torch.inf)
    exponentials = logits.exp()  # once for all sums and the gradient, where logsumexp takes three passes and one more
    sums = [exponentials.sum(dim) for dim in dims]
    if isinstance(skip, SameLabel):  # there may be no pair that counts
        return tuple(x.masked_fill(x == 0, 1).log().masked_fill(x == 0, -torch.inf) for x in sums)
    return tuple(x.log() for x in sums)


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
        tile: the side of a tile, None for what is fastest.
    """
    if (tile := tiled.side(a, b, tile, similarity)) is not None:
        return tiled.total(term, a, b, similarity, skip, rows, shared, tile)
    return tiled.whole_total(term, similarity.prepare(a), similarity.prepare(b), similarity, skip, rows, shared)


def mean_of_negatives(term, u: Tensor, v: Tensor, similarity: Similarity, *, shared=(), tile: int | None) -> Tensor:
    """Mean of `term` over the n(n-1) pairs of different instances; arguments as :func:`total`."""
    n = len(u)
    return total(term, u, v, similarity, SameInstance(n), shared=shared, tile=tile) / (n * (n - 1))
