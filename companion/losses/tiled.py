"""The same sums over pairs in square tiles: exact value and gradient in O(n d + tile²) memory, never an n×n matrix.

Where the two sides are the same embeddings, only the tiles on and above the diagonal are computed, and serve both
their rows and their columns. A loss gets here by itself where that is faster (:func:`side`); then a log-sum-exp keeps
exponentials for its gradient, up to ``KEPT`` bytes, and computes those of other tiles again. Or it gets here by its
keyword ``tile=``, for the least memory; then nothing is kept.

Several processes that hold the same embeddings divide the tiles among them inside :func:`companion.losses.divided`.

Gradients are exact. One that is to be differentiated again (``create_graph=True``) is formed from the whole matrix;
several at once (``is_grads_batched=True``) can be had inside :func:`companion.losses.plain` alone.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from companion.errors import CompanionError
from companion.losses._gather import add_up, add_up_exponentials, check_same, part
from companion.losses._inputs import is_mapped, is_plain, is_transformed, scalar, without_autocast
from companion.similarity import Similarity

# By kind of device: pairs up to which the whole matrix is as fast, and the side of the tiles beyond that. A CPU's cache
# holds one of these, 1 MiB of float32; to a GPU a matrix of 256 MiB is no burden.
LARGEST, SIDE = {"cpu": 2**19, "cuda": 2**26}, {"cpu": 512, "cuda": 8192}
LEAST = 128  # the side that tiles have at least, however many processes divide them
NARROW = 2**23  # pairs up to which a few anchors against many candidates are one matrix: their tiles would be slivers
KEPT = 2**28  # bytes of exponentials that one log-sum-exp keeps from its forward to its backward pass: 256 MiB


def side(a: Tensor, b: Tensor, tile: int | None, similarity: Similarity, *, largest: int = 0) -> int | None:
    """The side of the tiles to compute the pairs of a and b in: ``tile`` if it is given, else what is fastest for so
    many; None is the whole matrix, taken up to ``LARGEST`` pairs, or ``largest`` if that is more, for a narrow matrix,
    and for a similarity that may depend on more than its two embeddings. The matrix alone can be mapped by
    ``torch.func``, and is taken there even if a tile is given; also where nothing is given and it is differentiated
    forwards or compiled. Where processes divide the tiles, a CPU's bounds hold everywhere, and each process gets a few.
    """
    _, processes = part()
    kind = a.device.type if a.device.type in SIDE else "cpu"
    like = kind if processes == 1 else "cpu"
    pairs, narrow = len(a) * len(b), min(len(a), len(b)) < SIDE[like] // 4
    most = max(LARGEST[like], largest, NARROW if narrow else 0)
    if is_mapped():
        return None
    if tile is not None or is_plain() or not similarity.pairwise or pairs <= most:
        return tile
    if is_transformed():
        return None
    few = max(LEAST, -(-max(len(a), len(b)) // (2 * processes)))  # some for each, in the triangle too
    return SIDE[kind] if processes == 1 else min(SIDE[kind], few)


def bounded(similarity: Similarity, temperature: float, dtype: torch.dtype) -> bool:
    """Whether every exponential of a logit, and the sum of any number of them, is in the range of the dtype."""
    return max(abs(similarity.low), abs(similarity.high)) / temperature < _largest_logit(dtype)


@functools.cache
def _largest_logit(dtype: torch.dtype) -> float:
    return 0.7 * math.log(torch.finfo(dtype).max)


def log_sum_exp(
    a: Tensor, b: Tensor, temperature, similarity: Similarity, skip, tile: int, *, keep: int = 0
) -> tuple[Tensor, Tensor]:
    """(n,) log Σ_j exp(s(a_i, b_j)/τ) over the pairs that count, and (k,) log Σ_i exp(s(a_i, b_j)/τ), from one pass.

    The gradient takes a second pass, since a softmax can be formed only after its sum is known. Exponentials of the
    first are kept for it, as many as fit in ``keep`` bytes.
    """
    check_same(a, b, tile, temperature)
    left, right = _prepared(a, b, similarity)
    # Before it moves to the device: there it would have to be waited for.
    number = temperature.detach().item() if isinstance(temperature, Tensor) else temperature
    keep = keep if torch.is_grad_enabled() else 0
    form = similarity, skip, tile, keep, bounded(similarity, number, left.dtype), part()
    rows, columns = _LogSumExp.apply(left, right, scalar(temperature, like=a), form)
    return rows, rows if columns is None else columns


def total(term, a: Tensor, b: Tensor, similarity: Similarity, skip, rows, shared, tile: int) -> Tensor:
    """Σ ``term(s(a_i, b_j), *rows_i, *shared)`` over the pairs that count; the gradient is formed in the same pass."""
    check_same(a, b, tile, *shared)
    left, right = _prepared(a, b, similarity)
    form = (term, similarity, skip, tile, part(), len(rows), torch.is_grad_enabled())
    return _Total.apply(form, left, right, *rows, *shared)


def in_row_blocks(function, u: Tensor, tile: int) -> Tensor:
    """``cat([function(range of rows), …])``, each block forgotten after use and computed again for its gradient."""
    blocks = [range(i, min(i + tile, len(u))) for i in range(0, len(u), tile)]
    return torch.cat([checkpoint(function, rows, use_reentrant=False) for rows in blocks])


def whole_logits(a: Tensor, b: Tensor, temperature, similarity: Similarity, skip) -> Tensor:
    """(n, k) logits of prepared embeddings, -∞ where a pair does not count."""
    logits = similarity.logits(a, b, temperature)
    return without(skip, logits, range(len(a)), range(len(b)), -torch.inf)


def whole_total(term, a: Tensor, b: Tensor, similarity: Similarity, skip, rows, shared) -> Tensor:
    """:func:`total` of prepared embeddings, from the matrix of all pairs."""
    s = similarity.matrix(a, b)  # (n, k)
    values = term(s, *(row[:, None] for row in rows), *shared)
    mask = skip.mask(range(len(a)), range(len(b)), s.device)
    return (values if mask is None else values.masked_fill(mask, 0)).sum()


def differentiable(whole, inputs, of_outputs) -> list[Tensor | None]:
    """The gradient of ``whole(*inputs)``, which can be differentiated in turn."""
    # Copies, since an input may be a function of another one, whose gradient shall not go through it here.
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    outputs = whole(*inputs)
    found = iter(torch.autograd.grad(outputs, wanted, of_outputs, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


class _LogSumExp(torch.autograd.Function):
    """Inputs: prepared embeddings a and b; b = None stands for a with itself, and its columns are None then; the
    temperature; the similarity, the pairs to skip, the side of a tile, bytes to keep, whether the exponentials are
    bounded, and this process's part of the tiles."""

    @staticmethod
    def forward(ctx, a, b, temperature, form):
        similarity, skip, tile, keep, bounded, share = form
        symmetric, right = b is None, a if b is None else b
        rows = a.new_full((len(a),), 0 if bounded else -torch.inf)
        columns = rows if symmetric else a.new_full((len(b),), 0 if bounded else -torch.inf)
        kept, room = [], keep if bounded and similarity.bilinear and any(ctx.needs_input_grad) else 0
        for i, j in _tiles(len(a), len(right), tile, symmetric, share):
            logits = similarity.logits(a[_slice(i)], right[_slice(j)], temperature)
            sides = [(rows[_slice(i)], 1)] if symmetric and i == j else [(rows[_slice(i)], 1), (columns[_slice(j)], 0)]
            if bounded:
                exponentials = without(skip, logits.exp_(), i, j, 0)
                for sums, dim in sides:
                    sums += exponentials.sum(dim)
                room -= exponentials.nbytes
                if room >= 0:
                    kept.append(exponentials)
            else:
                logits = without(skip, logits, i, j, -torch.inf)
                for sums, dim in sides:
                    torch.logaddexp(sums, logits.logsumexp(dim), out=sums)
        alone, all_sums = share == (0, 1), [rows] if symmetric else [rows, columns]
        if bounded and not alone:
            add_up(*all_sums)
        if bounded:
            all_sums = [sums.log() for sums in all_sums]
        elif not alone:
            all_sums = [add_up_exponentials(sums) for sums in all_sums]
        rows, columns = all_sums[0], all_sums[-1]
        # The exponentials too: what is saved so is set free by the backward pass.
        ctx.save_for_backward(a, b, temperature, rows, columns, *kept)
        ctx.form = form
        return rows, None if symmetric else columns

    @staticmethod
    def backward(ctx, of_rows, of_columns):
        with without_autocast(of_rows):
            if not torch.is_grad_enabled():
                return _LogSumExp._gradients(ctx, of_rows, of_columns)
            similarity, skip, *_ = ctx.form

            def whole(a, b, temperature):
                logits = whole_logits(a, a if b is None else b, temperature, similarity, skip)
                return [logits.logsumexp(dim) for dim in ((1,) if b is None else (1, 0))]

            of_outputs = [x for x in (of_rows, of_columns) if x is not None]
            return *differentiable(whole, ctx.saved_tensors[:3], of_outputs), None

    @staticmethod
    def _gradients(ctx, of_rows, of_columns):
        a, b, temperature, rows, columns, *all_kept = ctx.saved_tensors
        similarity, skip, tile, _, bounded, share = ctx.form
        symmetric, right = b is None, a if b is None else b
        of_columns = of_rows if symmetric else of_columns
        grad_a, grad_t = torch.zeros_like(a), torch.zeros_like(temperature)
        grad_b = grad_a if symmetric else torch.zeros_like(b)
        # A queue needs no gradient; that of τ comes from a's.
        of_a, of_b = ctx.needs_input_grad[0] or ctx.needs_input_grad[2], symmetric or ctx.needs_input_grad[1]
        # ∂ log Σ_j e^x_ij / ∂ x_ij = e^(x_ij - log Σ); a sum over no pairs is -∞ and has no gradient
        rows, columns = (sums.masked_fill(sums == -torch.inf, 0) for sums in (rows, columns))
        if bounded:
            weight_rows, weight_columns = of_rows * (-rows).exp(), of_columns * (-columns).exp()
        for number, (i, j) in enumerate(_tiles(len(a), len(right), tile, symmetric, share)):
            leaves = [x.detach().requires_grad_() for x in (a[_slice(i)], right[_slice(j)], temperature)]
            kept = all_kept[number] if number < len(all_kept) else None
            with torch.set_grad_enabled(not similarity.bilinear):
                logits = similarity.logits(*leaves) if kept is None else None
            once = symmetric and i == j  # a tile on the diagonal holds each pair in both orders already
            if bounded:
                weight = weight_rows[_slice(i), None]
                weight = weight if once else weight + weight_columns[_slice(j)]
                slope = weight * (logits.detach().exp() if kept is None else kept)
            else:
                x = logits.detach()
                slope = (x - rows[_slice(i), None]).exp_().mul_(of_rows[_slice(i), None])
                if not once:
                    slope += (x - columns[_slice(j)]).exp_().mul_(of_columns[_slice(j)])
            slope = without(skip, slope, i, j, 0)
            if similarity.bilinear:
                if of_a:
                    grad_a[_slice(i)].addmm_(slope, right[_slice(j)])
                if of_b:
                    grad_b[_slice(j)].addmm_(slope.T, a[_slice(i)])
            else:
                parts = torch.autograd.grad(logits, leaves, slope)
                for grad, part in zip((grad_a[_slice(i)], grad_b[_slice(j)], grad_t), parts, strict=True):
                    grad += part
        if similarity.bilinear:  # of logits aᵀb/τ; where b is a, a's gradient is that of both
            grad_t -= (a * grad_a).sum() / temperature.square() / (2 if symmetric else 1)
            for grad in {id(grad): grad for grad in (grad_a, grad_b)}.values():
                grad /= temperature
        if share != (0, 1):
            add_up(grad_a, *([] if symmetric else [grad_b]), grad_t)
        return grad_a, None if symmetric else grad_b, grad_t, None


class _Total(torch.autograd.Function):
    """Inputs: what is no tensor, this process's part of the tiles among it; prepared embeddings a and b (None: a with
    itself), the rows, the shared scalars."""

    @staticmethod
    def forward(ctx, form, a, b, *tensors):
        term, similarity, skip, tile, share, n_rows, differentiate = form
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
        for i, j in _tiles(len(a), len(inputs[1]), tile, symmetric, share):
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
        if share != (0, 1):
            add_up(value, *{id(grad): grad for grad in grads}.values())
        ctx.save_for_backward(a, b, *tensors, *grads)
        ctx.form = form
        return value

    @staticmethod
    def backward(ctx, of_value):
        term, similarity, skip, _, _, n_rows, _ = ctx.form
        half = len(ctx.saved_tensors) // 2
        inputs, grads = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        if not torch.is_grad_enabled():
            a, b, *rest = (of_value * grad for grad in grads)
            return None, a, None if inputs[1] is None else b, *rest

        def whole(a, b, *tensors):
            right = a if b is None else b
            return whole_total(term, a, right, similarity, skip, tensors[:n_rows], tensors[n_rows:])

        with without_autocast(of_value):
            return None, *differentiable(whole, inputs, of_value)


def _prepared(a: Tensor, b: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor | None]:
    left, right = similarity.prepare(a), None if b is a and similarity.symmetric else similarity.prepare(b)
    if not similarity.pairwise and torch.is_grad_enabled():
        alone = similarity.matrix(left[:1].detach(), (left if right is None else right)[:1].detach())
        if alone.requires_grad:
            raise CompanionError(
                "This similarity uses something that is learned beside its two embeddings, which would get no gradient "
                "in tiles: leave out tile=, so that the whole matrix is taken."
            )
    return left, right


def _tiles(n: int, k: int, tile: int, symmetric: bool, share: tuple[int, int]) -> Iterator[tuple[range, range]]:
    """Ranges of rows and columns that cover an (n, k) matrix, or its upper triangle with the diagonal; of these, every
    count-th for a share (which, count) of them."""
    starts = ((i, j) for i in range(0, n, tile) for j in range(i if symmetric else 0, k, tile))
    for i, j in itertools.islice(starts, share[0], None, share[1]):
        yield range(i, min(i + tile, n)), range(j, min(j + tile, k))


def _slice(indices: range) -> slice:
    return slice(indices.start, indices.stop)


def without(skip, values: Tensor, rows: range, columns: range, by: float) -> Tensor:
    """A tile of values with those that ``skip`` leaves out replaced by ``by``; unchanged if it is None."""
    return values if skip is None else skip.fill_(values, rows, columns, by)
