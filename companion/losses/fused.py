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

from companion.errors import CompanionError
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
_TOP_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.8 on
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
    if times * u.shape[0] * v.shape[0] > largest or is_plain() or is_transformed():
        return None
    given = [arguments[name] for name in names]

    def again(u, v, *learned):
        numbers = (number if x is None else x for x, number in zip(learned, given, strict=True))
        with plain():
            return formula(u=u, v=v, **dict(zip(names, numbers, strict=True)))

    numbers = [_as(u, x) if isinstance(x, Tensor) else x for x in given]
    return function.apply(u, v, *numbers, (again, torch.is_grad_enabled(), *kind))


def _as(u: Tensor, number: Tensor) -> Tensor:
    """The number in the dtype of the embeddings. One that is not learned may stay on the CPU, where operations on a GPU
    take it from without a wait."""
    return scalar(number, like=u) if number.requires_grad else number.to(u.dtype)


def _as_usual(arguments: dict, names: tuple[str, ...]) -> bool:
    """Whether the similarity is the cosine, and there is neither a queue nor are there labels, a tile, …"""
    rare = (x for name, x in arguments.items() if name not in ("u", "v", "similarity", *names))
    return arguments.get("similarity", cosine) is cosine and all(x is None or x is False for x in rare)


class _Fused(torch.autograd.Function):
    """Inputs: embeddings u and v; numbers, or tensors that hold one; and what is no tensor."""

    @staticmethod
    def keep(ctx, again, inputs, of_units, units, lengths, of_numbers) -> None:
        """For the backward pass: the gradients that are wanted, of the views from those of what they are on the sphere.

        Args:
            of_units: (2n, d), or for each view (n, d) or, where it is not wanted, None.
            of_numbers: None where it is not wanted.
        """
        if isinstance(of_units, Tensor):
            of_views = within_sphere(of_units, units, lengths).chunk(2)
        else:
            parts = zip(of_units, units.chunk(2), lengths.chunk(2), strict=True)
            of_views = [None if of is None else within_sphere(of, *its) for of, *its in parts]
        grads = *of_views, *of_numbers
        ctx.save_for_backward(*grads)
        # Not saved, since one gradient needs no inputs: they may be changed in place, or come from inference mode. They
        # go with a gradient, which the backward pass frees, where it is kept as it is.
        inputs = [x if isinstance(x, Tensor) else None for x in inputs]
        holder = ctx if _packed() else next(grad for grad in grads if grad is not None)
        holder.recipe = again, inputs, list(map(_version, inputs))

    @staticmethod
    def backward(ctx, of_value):
        grads = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *[None if grad is None else of_value * grad for grad in grads], None
        holder = ctx if hasattr(ctx, "recipe") else next(grad for grad in grads if grad is not None)
        again, inputs, versions = holder.recipe
        if list(map(_version, inputs)) != versions:
            raise CompanionError(
                "An embedding or a hyperparameter was changed in place after the loss was computed of it, and the "
                "gradient is to be differentiated (create_graph=True): expected the values that the loss had. Change "
                "a clone, or change it later."
            )
        with without_autocast(of_value):
            return *tiled.differentiable(again, inputs, of_value), None


def _packed() -> bool:
    """Whether what is saved for a backward pass goes through hooks, as on its way to the CPU, or may do so."""
    return _TOP_HOOKS is None or _TOP_HOOKS(False) is not None


def _version(x: Tensor | None) -> int:
    """How often it was changed in place, as far as torch counts that."""
    return 0 if x is None or x.is_inference() else x._version


class _Softmax(_Fused):
    @staticmethod
    def forward(ctx, u, v, temperature, form):
        again, differentiate, both_ways, all_views, competes = form
        n, (of_u, of_v, of_temperature, _) = u.shape[0], ctx.needs_input_grad
        units, lengths = unit_length(torch.cat([u, v]))
        a, b = (units, units) if all_views else units.chunk(2)
        slope = cosine.logits(a, b, temperature)  # (anchors, candidates): logits, then exponentials, then ∂ value / ∂ s
        twins = [slope.diagonal(k) for k in ((n, -n) if all_views else (0,))]
        positives = torch.cat(twins) if all_views else twins[0].clone()  # (anchors,)
        for pairs in [*twins, slope.diagonal()] if all_views else twins:
            pairs.fill_(-torch.inf)
        # The value of a tensor is not asked for: a GPU would have to be waited for.
        bounded = not isinstance(temperature, Tensor) and tiled.bounded(cosine, temperature, u.dtype)
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
        x = sums.log().sub_(positives)
        if not bounded:
            x += torch.stack([top, top_of_columns]) if both_ways else top
        value = (F.softplus(x, threshold=LINEAR) if competes else x).mean()
        if not differentiate or not any(ctx.needs_input_grad):
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
        for pairs in twins:  # until here 0
            pairs.sub_(of_twins)
        of_a = slope @ b if of_u or of_temperature or all_views else None
        of_temperature = -(a * of_a).sum() / temperature if of_temperature else None
        if all_views:  # where each pair was counted twice
            of_temperature, of_units = None if of_temperature is None else of_temperature / 2, of_a
        elif of_u and of_v:
            of_units = torch.cat([of_a, slope.T @ a])
        else:
            of_units = of_a if of_u else None, slope.T @ a if of_v else None
        _Fused.keep(ctx, again, (u, v, temperature), of_units, units, lengths, [of_temperature])
        return value


class _Sigmoid(_Fused):
    @staticmethod
    def forward(ctx, u, v, scale, bias, form):
        again, differentiate = form
        n = len(u)
        units, lengths = unit_length(torch.cat([u, v]))
        a, b = units.chunk(2)
        x = cosine.matrix(a * scale, b).add_(bias)
        positives = x.diagonal()
        positives.neg_()
        value = F.softplus(x, threshold=LINEAR).sum() / n
        if not differentiate or not any(ctx.needs_input_grad):
            return value

        of_u, of_v, of_scale, of_bias, _ = ctx.needs_input_grad
        slope = x.sigmoid_()  # n ∂ value / ∂ x
        positives.neg_()
        of_a = slope @ b if of_u or of_scale else None
        of_numbers = (a * of_a).sum() / n if of_scale else None, slope.sum() / n if of_bias else None
        factor = scale / n
        if of_u and of_v:
            of_units = torch.cat([of_a, slope.T @ a]).mul_(factor)
        else:
            of_units = of_a.mul_(factor) if of_u else None, (slope.T @ a).mul_(factor) if of_v else None
        _Fused.keep(ctx, again, (u, v, scale, bias), of_units, units, lengths, of_numbers)
        return value
