"""The two sums over pairs that all losses are made of: a log-sum-exp for each anchor, and a plain total.

Which pairs count is said by a function `skip(rows, columns, device)` of two ranges of indices: it returns a boolean
(len(rows), len(columns)) mask of the pairs that do not count, or None where all do. The dense form calls it once for
the whole matrix; :mod:`companion.losses.tiled`, which takes over where `tile` is given, once a tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.losses import tiled
from companion.similarity import Similarity


def same_instance(n: int):
    """Skip the pairs of one instance, where rows and columns count instances 0 … n-1, again and again.

    On (n, n) views u, v that is the diagonal; on (2n, 2n) views of cat([u, v]) an anchor's self and its twin.
    """

    def skip(rows: range, columns: range, device) -> Tensor | None:
        least, most = rows.start - columns.stop + 1, rows.stop - 1 - columns.start  # of i - j in this block
        multiples = range(-(-least // n), most // n + 1)  # i - j = multiple · n is a diagonal of the block
        if not multiples:
            return None
        skipped = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=device)
        for multiple in multiples:
            skipped.diagonal(rows.start - columns.start - multiple * n).fill_(True)
        return skipped

    return skip


def same_label(y: Tensor):
    """Skip the pairs of equal labels."""
    return lambda rows, columns, device: y[rows.start : rows.stop, None] == y[columns.start : columns.stop]


def no_positive(y: Tensor):
    """Skip the pairs of different labels, and an anchor's self."""

    def skip(rows: range, columns: range, device) -> Tensor:
        different = y[rows.start : rows.stop, None] != y[columns.start : columns.stop]
        itself = same_instance(len(y))(rows, columns, device)
        return different if itself is None else different | itself

    return skip


def log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding for every x (torch's own softplus is linear beyond 20)."""
    return -F.logsigmoid(-x)


def log_sum_exp(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip=None, tile: int | None = None
) -> Tensor:
    """(n,) log Σ_j exp(s(a_i, b_j)/τ) over the kept pairs; -∞ for an anchor without any.

    Where b *is* a, `skip` must be symmetric.
    """
    if tile is not None:
        return tiled.log_sum_exp(a, b, temperature, similarity, skip, tile)[0]
    return _logits(a, b, temperature, similarity, skip).logsumexp(dim=1)


def log_sum_exp_both_ways(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip, tile: int | None
) -> tuple[Tensor, Tensor]:
    """The same for each row a_i over all b_j, (n,), and for each b_j over all a_i, (k,)."""
    if tile is not None:
        return tiled.log_sum_exp(a, b, temperature, similarity, skip, tile)
    logits = _logits(a, b, temperature, similarity, skip)
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0)


def total(term, a: Tensor, b: Tensor, similarity: Similarity, skip, *, rows=(), shared=(), tile=None) -> Tensor:
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
    mask = skip(range(len(a)), range(len(b)), s.device)
    return (values if mask is None else values.masked_fill(mask, 0)).sum()


def _logits(a: Tensor, b: Tensor, temperature, similarity: Similarity, skip) -> Tensor:
    """(n, k) logits, -∞ where a pair does not count."""
    logits = similarity.logits(similarity.prepare(a), similarity.prepare(b), temperature)
    mask = None if skip is None else skip(range(len(a)), range(len(b)), logits.device)
    return logits if mask is None else logits.masked_fill(mask, -torch.inf)
