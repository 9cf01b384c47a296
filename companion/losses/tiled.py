"""The same sums over pairs in square tiles: exact value and gradient in O(n d + tile²) memory, never an n×n matrix.

Where the two sides are the same embeddings, only the tiles on and above the diagonal are computed, and serve both
their rows and their columns. A loss gets here by its keyword ``tile=``. It pays from some thousand views on, and makes
any number of them fit: 512 suits a CPU's cache, a GPU wants its tiles as large as its memory allows.

Gradients are exact but cannot be differentiated again; for a second derivative use the dense form.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from companion.losses._inputs import scalar
from companion.similarity import Similarity


def log_sum_exp(a: Tensor, b: Tensor, temperature, similarity: Similarity, skip, tile: int) -> tuple[Tensor, Tensor]:
    """(n,) log Σ_j exp(s(a_i, b_j)/τ) over the pairs that count, and (k,) log Σ_i exp(s(a_i, b_j)/τ), from one pass.

    The gradient takes a second pass, since a softmax can be formed only after its sum is known.
    """
    left, right = _prepared(a, b, similarity)
    # Before it moves to the device: there it would have to be waited for.
    number = temperature.detach().item() if isinstance(temperature, Tensor) else temperature
    extent = max(abs(similarity.low), abs(similarity.high)) / number
    rows, columns = _LogSumExp.apply(left, right, scalar(temperature, like=a), extent, similarity, skip, tile)
    return rows, rows if columns is None else columns


def total(term, a: Tensor, b: Tensor, similarity: Similarity, skip, rows, shared, tile: int) -> Tensor:
    """Σ ``term(s(a_i, b_j), *rows_i, *shared)`` over the pairs that count; the gradient is formed in the same pass."""
    left, right = _prepared(a, b, similarity)
    form = (term, similarity, skip, tile, len(rows), torch.is_grad_enabled())
    return _Total.apply(form, left, right, *rows, *shared)


def in_row_blocks(function, u: Tensor, tile: int) -> Tensor:
    """``cat([function(range of rows), …])``, each block forgotten after use and computed again for its gradient."""
    blocks = [range(i, min(i + tile, len(u))) for i in range(0, len(u), tile)]
    return torch.cat([checkpoint(function, rows, use_reentrant=False) for rows in blocks])


class _LogSumExp(torch.autograd.Function):
    """Inputs: prepared embeddings a and b; b = None stands for a with itself, and its columns are None then;
    the extent of the logits, |x| at most."""

    @staticmethod
    def forward(ctx, a, b, temperature, extent, similarity, skip, tile):
        symmetric, right = b is None, a if b is None else b
        bounded = extent < 0.7 * math.log(torch.finfo(a.dtype).max)  # every exponential, and their sum, is in range
        rows = a.new_full((len(a),), 0 if bounded else -torch.inf)
        columns = rows if symmetric else a.new_full((len(b),), 0 if bounded else -torch.inf)
        for i, j in _tiles(len(a), len(right), tile, symmetric):
            logits = similarity.logits(a[_slice(i)], right[_slice(j)], temperature)
            sides = [(rows[_slice(i)], 1)] if symmetric and i == j else [(rows[_slice(i)], 1), (columns[_slice(j)], 0)]
            if bounded:
                exponentials = _without(skip, logits.exp_(), i, j, 0)
                for sums, dim in sides:
                    sums += exponentials.sum(dim)
            else:
                logits = _without(skip, logits, i, j, -torch.inf)
                for sums, dim in sides:
                    torch.logaddexp(sums, logits.logsumexp(dim), out=sums)
        if bounded:
            rows, columns = rows.log(), columns.log()
        ctx.save_for_backward(a, b, temperature, rows, rows if symmetric else columns)
        ctx.form = similarity, skip, tile, bounded
        return rows, None if symmetric else columns

    @staticmethod
    @once_differentiable
    def backward(ctx, of_rows, of_columns):
        with torch.autocast(of_rows.device.type, enabled=False):
            return _LogSumExp._gradients(ctx, of_rows, of_columns)

    @staticmethod
    def _gradients(ctx, of_rows, of_columns):
        a, b, temperature, rows, columns = ctx.saved_tensors
        similarity, skip, tile, bounded = ctx.form
        symmetric, right = b is None, a if b is None else b
        of_columns = of_rows if symmetric else of_columns
        grad_a, grad_t = torch.zeros_like(a), torch.zeros_like(temperature)
        grad_b = grad_a if symmetric else torch.zeros_like(b)
        # ∂ log Σ_j e^x_ij / ∂ x_ij = e^(x_ij - log Σ); a sum over no pairs is -∞ and has no gradient
        rows, columns = (sums.masked_fill(sums == -torch.inf, 0) for sums in (rows, columns))
        if bounded:
            weight_rows, weight_columns = of_rows * (-rows).exp(), of_columns * (-columns).exp()
        for i, j in _tiles(len(a), len(right), tile, symmetric):
            leaves = [x.detach().requires_grad_() for x in (a[_slice(i)], right[_slice(j)], temperature)]
            with torch.enable_grad():
                logits = similarity.logits(*leaves)
            once = symmetric and i == j  # a tile on the diagonal holds each pair in both orders already
            x = logits.detach()
            if bounded:
                weight = weight_rows[_slice(i), None]
                slope = x.exp().mul_(weight if once else weight + weight_columns[_slice(j)])
            else:
                slope = (x - rows[_slice(i), None]).exp_().mul_(of_rows[_slice(i), None])
                if not once:
                    slope += (x - columns[_slice(j)]).exp_().mul_(of_columns[_slice(j)])
            parts = torch.autograd.grad(logits, leaves, _without(skip, slope, i, j, 0))
            for grad, part in zip((grad_a[_slice(i)], grad_b[_slice(j)], grad_t), parts, strict=True):
                grad += part
        return grad_a, None if symmetric else grad_b, grad_t, None, None, None, None


class _Total(torch.autograd.Function):
    """Inputs: what is no tensor, prepared embeddings a and b (None: a with itself), the rows, the shared scalars."""

    @staticmethod
    def forward(ctx, form, a, b, *tensors):
        term, similarity, skip, tile, n_rows, differentiate = form
        symmetric, inputs = b is None, (a, a if b is None else b, *tensors)
        differentiate = differentiate and any(ctx.needs_input_grad)
        grads = [torch.zeros_like(x) for x in inputs] if differentiate else []
        if symmetric and differentiate:
            grads[1] = grads[0]
        used = []  # input, slice of it, and the leaf made of them

        def leaf(k: int, part) -> Tensor:
            used.append((k, part, inputs[k][part].detach().requires_grad_(differentiate)))
            return used[-1][2]

        def sum_of_terms(s, mask, part, shared):
            values = term(s, *(leaf(k, part)[:, None] for k in range(2, 2 + n_rows)), *shared)
            return (values if mask is None else values.masked_fill(mask, 0)).sum()

        value = a.new_zeros(())
        for i, j in _tiles(len(a), len(inputs[1]), tile, symmetric):
            used.clear()
            mask = skip.mask(i, j, a.device)
            with torch.set_grad_enabled(differentiate):
                s = similarity.matrix(leaf(0, _slice(i)), leaf(1, _slice(j)))
                shared = [leaf(k, ...) for k in range(2 + n_rows, len(inputs))]
                part = sum_of_terms(s, mask, _slice(i), shared)
                if symmetric and i != j:  # the mirror tile, below the diagonal
                    part = part + sum_of_terms(s.T, None if mask is None else mask.T, _slice(j), shared)
            value += part.detach()
            if differentiate:
                slopes = torch.autograd.grad(part, [x for _, _, x in used], allow_unused=True)
                for (k, where, _), slope in zip(used, slopes, strict=True):
                    if slope is not None:
                        grads[k][where] += slope
        ctx.save_for_backward(*grads)
        ctx.symmetric = symmetric
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, of_value):
        a, b, *rest = (of_value * grad for grad in ctx.saved_tensors)
        return None, a, None if ctx.symmetric else b, *rest


def _prepared(a: Tensor, b: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor | None]:
    return similarity.prepare(a), None if b is a and similarity.symmetric else similarity.prepare(b)


def _tiles(n: int, k: int, tile: int, symmetric: bool):
    """Ranges of rows and columns that cover an (n, k) matrix, or its upper triangle with the diagonal."""
    for i in range(0, n, tile):
        for j in range(i if symmetric else 0, k, tile):
            yield range(i, min(i + tile, n)), range(j, min(j + tile, k))


def _slice(indices: range) -> slice:
    return slice(indices.start, indices.stop)


def _without(skip, values: Tensor, rows: range, columns: range, by: float) -> Tensor:
    return values if skip is None else skip.fill_(values, rows, columns, by)
