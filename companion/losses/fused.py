"""Value and gradient in one step, for few pairs: what a small batch spends on a loss is the number of its operations.

``@loss(fused=softmax())`` has a loss computed so where that can be: from one matrix of pairs, its gradient already with
its value. Everywhere else the formula itself is called; it also gives the gradient that is to be differentiated again
(``create_graph=True``).
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.losses import tiled
from companion.losses._gather import part
from companion.losses._inputs import (
    is_plain,
    is_transformed,
    plain,
    scalar,
    unit_length,
    within_sphere,
    without_autocast,
)
from companion.similarity import cosine

# By kind of device: pairs up to which one matrix is no slower than tiles, which a softmax has to see twice, and which a
# sum leaves to autograd.
SOFTMAX, SIGMOID = {"cpu": 2**20, "cuda": 2**26}, {"cpu": 2**22, "cuda": 2**26}
LINEAR = 40  # from here on log(1 + e^x) is x, in float64 too; torch's own softplus takes x from 20 on


def softmax(*, both_ways: bool = False, all_views: bool = False, competes: bool = True) -> Callable:
    """For a mean over anchors of log(1 + e^x), or without ``competes`` of x, where x = log Σ exp(s⁻/τ) - s⁺/τ.

    The u_i are anchors, with all v_j, j ≠ i, as negatives; ``both_ways``: the v_j too, with all u_i; ``all_views``: all
    2n views, with all views of other instances. ``competes``: the positive stands in the denominator too.
    """
    kind = both_ways, all_views, competes
    return functools.partial(_in_one_step, _Softmax, SOFTMAX, ("temperature",), 4 if all_views else 1, kind)


def sigmoid() -> Callable:
    """For the sum over all pairs of log(1 + e^x) / n, where x is scale·s + bias of a negative, -(scale·s + bias) of a
    positive."""
    return functools.partial(_in_one_step, _Sigmoid, SIGMOID, ("scale", "bias"), 1, ())


def _in_one_step(
    function, few: dict[str, int], names, times: int, kind: tuple, formula: Callable, arguments: dict
) -> Tensor | None:
    """The value, or None where the formula is to be called.

    Args:
        function: a subclass of :class:`_Fused`.
        few: the pairs that it serves, by kind of device.
        names: of the numbers that it takes.
        times: entries of its matrix for each pair of a u and a v.
        kind: what else it takes.
        formula: the loss as it is written, of the arguments.
    """
    if len(arguments) > 2 + len(names) and not _as_usual(arguments, names):
        return None
    u, v = arguments["u"], arguments["v"]
    divided = part()[1] > 1  # a matrix of more pairs is divided among processes, in tiles
    largest = tiled.LARGEST["cpu"] if divided else few.get(u.device.type, few["cpu"])
    if times * len(u) * len(v) > largest or is_plain() or is_transformed():
        return None
    given = [arguments[name] for name in names]

    def again(u, v, *learned):
        numbers = (number if x is None else x for x, number in zip(learned, given, strict=True))
        with plain():
            return formula(u=u, v=v, **dict(zip(names, numbers, strict=True)))

    numbers = [scalar(x, like=u) if isinstance(x, Tensor) else x for x in given]
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in (u, v, *given) if isinstance(x, Tensor))
    return function.apply(u, v, *numbers, (again, differentiate, *kind))


def _as_usual(arguments: dict, names: tuple[str, ...]) -> bool:
    """Whether the similarity is the cosine, and there is neither a queue nor are there labels, a tile, …"""
    rare = (x for name, x in arguments.items() if name not in ("u", "v", "similarity", *names))
    return arguments.get("similarity", cosine) is cosine and all(x is None or x is False for x in rare)


class _Fused(torch.autograd.Function):
    """Inputs: embeddings u and v; numbers, or tensors that hold one; and what is no tensor."""

    @staticmethod
    def keep(ctx, u, v, numbers, again, of_units, units, lengths, of_numbers) -> None:
        """For the backward pass: the gradient of both views, from that of what they are on the sphere, and of numbers
        that are learned, None for others."""
        of_views = within_sphere(of_units, units, lengths).split(len(u))
        numbers = (x if isinstance(x, Tensor) else None for x in numbers)
        ctx.save_for_backward(u, v, *numbers, *of_views, *of_numbers)
        ctx.again = again

    @staticmethod
    def backward(ctx, of_value):
        saved = ctx.saved_tensors
        inputs, grads = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        if torch.is_grad_enabled():
            with without_autocast(of_value):
                return *tiled.differentiable(ctx.again, inputs, of_value), None
        return *(None if grad is None else of_value * grad for grad in grads), None


class _Softmax(_Fused):
    @staticmethod
    def forward(ctx, u, v, temperature, form):
        again, differentiate, both_ways, all_views, competes = form
        learned, n = isinstance(temperature, Tensor), len(u)
        units, lengths = unit_length(torch.cat([u, v]))
        a, b = (units, units) if all_views else (units[:n], units[n:])
        slope = cosine.logits(a, b, temperature)  # (anchors, candidates): logits, then exponentials, then ∂ value / ∂ s
        twins = [slope.diagonal(k) for k in ((n, -n) if all_views else (0,))]
        positives = torch.cat(twins)  # (anchors,)
        for pairs in [*twins, slope.diagonal()] if all_views else twins:
            pairs.fill_(-torch.inf)
        # The value of a tensor is not asked for: a GPU would have to be waited for.
        bounded = not learned and tiled.bounded(cosine, temperature, u.dtype)
        columns = slope
        if not bounded and both_ways:
            top_of_columns = slope.amax(dim=0)
            columns = (slope - top_of_columns).exp_()
        if not bounded:
            top = slope.amax(dim=1)
            slope.sub_(top[:, None])
        sums = slope.exp_().sum(dim=1)  # (anchors,), both ways (2, anchors)
        if both_ways:
            sums = torch.stack([sums, columns.sum(dim=0)])
        x = sums.log() - positives
        if not bounded:
            x += torch.stack([top, top_of_columns]) if both_ways else top
        value = (F.softplus(x, threshold=LINEAR) if competes else x).mean()
        if not differentiate:
            return value

        share = x.sigmoid() if competes else torch.ones_like(x)
        share /= temperature * x.numel()  # ∂ value / ∂ x, and the 1/τ of every logit
        weights = share / sums
        rows = weights[0, :, None] if both_ways else weights[:, None]
        if not all_views and not both_ways:
            slope.mul_(rows)
        elif bounded:  # with all views an entry is the slope of its mirror image too
            slope.mul_(rows + (weights[1] if both_ways else weights))
        elif both_ways:
            slope.mul_(rows).addcmul_(columns, weights[1])
        else:
            slope.mul_(rows).add_(slope.T.clone())
        of_twins = share.view(2, n).sum(dim=0) if all_views or both_ways else share
        for pairs in twins:
            pairs.copy_(of_twins).neg_()
        of_units = slope @ a if all_views else torch.cat([slope @ b, slope.T @ a])
        of_temperature = None
        if learned:
            of_temperature = -(units * of_units).sum() / (2 * temperature)
        _Fused.keep(ctx, u, v, [temperature], again, of_units, units, lengths, [of_temperature])
        return value


class _Sigmoid(_Fused):
    @staticmethod
    def forward(ctx, u, v, scale, bias, form):
        again, differentiate = form
        n = len(u)
        units, lengths = unit_length(torch.cat([u, v]))
        a, b = units[:n], units[n:]
        x = cosine.matrix(a * scale, b).add_(bias)
        positives = x.diagonal()
        positives.neg_()
        value = F.softplus(x, threshold=LINEAR).sum() / n
        if not differentiate:
            return value

        slope = x.sigmoid_()  # n ∂ value / ∂ x
        positives.neg_()
        of_units = torch.cat([slope @ b, slope.T @ a]).div_(n)
        of_numbers = [None, None]
        if isinstance(scale, Tensor):
            of_numbers[0] = (units * of_units).sum() / 2
        if isinstance(bias, Tensor):
            of_numbers[1] = slope.sum() / n
        _Fused.keep(ctx, u, v, [scale, bias], again, of_units.mul_(scale), units, lengths, of_numbers)
        return value
