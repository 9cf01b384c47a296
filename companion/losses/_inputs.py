"""What every loss does to its input first: check it, and leave half precision behind."""

import contextlib
import functools
import inspect
import math
from contextvars import ContextVar

import torch
from torch import Tensor

from companion.errors import CompanionError, known_arguments, positive, whole
from companion.similarity import InTiles, OfPrepared, Similarity, cosine

_EMBEDDINGS = ("u", "v", "z", "queue")
_SINGLE = {torch.float32}
SHORTEST = 1e-12  # what F.normalize divides by at least
_checking = ContextVar("checking", default=True)
_plain = ContextVar("plain", default=False)
_divided = ContextVar("divided", default=False)


@contextlib.contextmanager
def _within(variable: ContextVar, value: bool):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def unchecked():
    """Losses called inside do not check tensors: embeddings, labels, and hyperparameters that are tensors.

    For where nothing may look at values, as under :func:`torch.func.vmap`, and for loops whose input is checked
    already: every look makes a GPU wait. Plain numbers are checked even so.
    """
    return _within(_checking, False)


def plain():
    """Losses called inside, unless ``tile=`` is given, are computed in the plainest way: one matrix of pairs at any
    size, summed by ``torch.logsumexp``, and embeddings normalised wherever a similarity is taken.

    Runs are trained so, in one process: the faster ways round differently, and recorded runs are to repeat bit by bit.
    """
    return _within(_plain, True)


def is_checked() -> bool:
    """Whether this is outside of :func:`unchecked`."""
    return _checking.get()


def is_plain() -> bool:
    """Whether this is inside :func:`plain`."""
    return _plain.get()


def is_transformed() -> bool:
    """Whether ``torch.func`` maps what is computed, forward mode differentiates it or the compiler traces it: all three
    take plain torch operations only."""
    return torch.compiler.is_compiling() or is_mapped() or torch.autograd.forward_ad._current_level >= 0


def is_mapped() -> bool:
    """Whether this is inside of a transform of ``torch.func``."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def divided():
    """Losses called inside share their work among the processes of ``torch.distributed``, where they are computed in
    tiles: each process computes its part of the tiles, and all add up what they found, in both passes.

    Every process must call the same losses of the same embeddings, which :func:`companion.losses.gather` makes of their
    parts, in the same order, and take the gradient of each or of none: else they wait for each other until one gives
    up. Value and gradient are those of one process, and every process has both whole. What is not computed in tiles is
    computed by every process from the whole matrix: few pairs, losses for small batches, similarities of your own, a
    backward pass that is to be differentiated again (:mod:`companion.losses.tiled`); the hardest negatives are looked
    for by every process, of many pairs in blocks of rows. Without processes nothing changes.

    ``torch.utils.checkpoint`` computes a loss again in its backward pass, which must be called inside too then, on the
    CPU, and in the same thread: another, as a GPU's backward pass has, knows nothing of it. Leave the loss out of what
    is checkpointed there.

    Raises:
        CompanionError: by a loss that is computed in tiles, where the embeddings differ between the processes, as far
            as a few of their sums tell; not inside :func:`unchecked`.
    """
    return _within(_divided, True)


def without_autocast(x: Tensor):
    """On the device of x; nothing where there is none, since small batches would feel that."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def is_divided() -> bool:
    """Whether this is inside :func:`divided`."""
    return _divided.get()


def _check_form(name: str, z: Tensor, least: int) -> None:
    """Raise a :class:`CompanionError` unless ``z`` is (n, d), floating point, with n >= ``least``."""
    if not isinstance(z, Tensor):
        raise CompanionError(f"{name} is a {type(z).__name__}: expected a torch.Tensor of shape (n, d).")
    if z.ndim != 2:
        raise CompanionError(f"{name} has shape {tuple(z.shape)}: expected 2 dimensions, (n, d).")
    if not z.is_floating_point():
        raise CompanionError(f"{name} has dtype {z.dtype}: expected floating point embeddings.")
    if z.shape[0] < least:
        raise CompanionError(f"{name} has {z.shape[0]} rows: expected at least {least}, or there is no negative pair.")
    if z.shape[1] < 1:
        raise CompanionError(f"{name} has shape {tuple(z.shape)}: expected embeddings of at least one dimension.")


def _check_finite(name: str, z: Tensor) -> None:
    # A sum is the fastest look; whether one that is not finite has only overflowed, the values themselves say.
    if not math.isfinite(z.detach().sum()) and not torch.isfinite(z).all():
        bad = (~torch.isfinite(z)).any(dim=1).sum().item()
        raise CompanionError(
            f"{name} has NaN or infinite values in {bad} of {z.shape[0]} rows: the network has diverged; "
            "lower the learning rate, or check the input images."
        )


def check_embeddings(name: str, z: Tensor, *, least: int = 2) -> None:
    """Raise a :class:`CompanionError` unless ``z`` is (n, d), floating point, finite, with n >= ``least``."""
    _check_form(name, z, least)
    _check_finite(name, z)


def check_views(u: Tensor, v: Tensor) -> None:
    """Raise unless ``u`` and ``v`` are finite embeddings of one shape on one device, of at least two instances."""
    _check_views(u, v, least=2)
    _check_finite("u", u)
    _check_finite("v", v)


def _check_views(u: Tensor, v: Tensor, least: int) -> None:
    _check_form("u", u, least)
    if not isinstance(v, Tensor) or v.dtype != u.dtype or v.shape != u.shape:
        _check_form("v", v, least)
    if u.shape != v.shape:
        raise CompanionError(f"u has shape {tuple(u.shape)} and v {tuple(v.shape)}: expected two views of one shape.")
    if u.device != v.device:
        raise CompanionError(f"u lies on {u.device} and v on {v.device}: move both to one device.")


def check_labels(y: Tensor, z: Tensor, *, anywhere: bool = False, name: str = "y") -> None:
    """Raise unless ``y`` holds one whole number for each row of ``z``, on its device, or ``anywhere``."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        given = f"dtype {y.dtype}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise CompanionError(f"{name} has {given}: expected a torch.Tensor of whole numbers, one label per embedding.")
    if y.shape != z.shape[:1]:
        raise CompanionError(
            f"{name} has shape {tuple(y.shape)}, the embeddings {tuple(z.shape)}: expected {name} of shape {(len(z),)}."
        )
    if y.device != z.device and not anywhere:
        raise CompanionError(f"{name} lies on {y.device} and the embeddings on {z.device}: move both to one device.")


def _check_queue(queue: Tensor, u: Tensor) -> None:
    """Raise unless ``queue`` holds at least one embedding of the dimension and on the device of ``u``."""
    _check_form("queue", queue, least=1)
    if queue.shape[1] != u.shape[1] or queue.device != u.device:
        raise CompanionError(
            f"queue has shape {tuple(queue.shape)} on {queue.device}: expected (k, {u.shape[1]}) on {u.device}."
        )


not_negative = functools.partial(positive, zero=True)


def loss(function=None, *, prepare: bool = True, fused=None, **checks):
    """Make a formula a public loss, as ``@loss``, or ``@loss(margin=number)`` to check hyperparameters by that name.

    The decorated function may rely on this: its embeddings (`u`, `v`, `z`, `queue`) and labels (`y`) are sound; all
    embeddings have one dtype, float32 or float64; autocast is off; `temperature` is positive; a hyperparameter with a
    check of :mod:`companion.errors` has passed it, and holds one number if it is a tensor; `similarity` is a
    :class:`~companion.similarity.Similarity`; `tile` is None or a positive whole number. Inside :func:`unchecked`
    nothing has looked at the values of tensors. What ``fused`` makes of the function and its arguments, unless it is
    None, is the loss, and the function is not called.
    """
    if function is None:
        return functools.partial(loss, prepare=prepare, fused=fused, **checks)
    checks = {"temperature": positive, **checks}
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    positional = [x.name for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
    required, known = {x.name for x in parameters if x.default is x.empty}, set(signature.parameters)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        arguments = dict(zip(positional, args, strict=False))  # faster than signature.bind, which words the errors
        n = len(args) + len(kwargs)
        arguments |= kwargs
        if not required <= arguments.keys() <= known or len(arguments) < n:
            known_arguments(function.__name__, arguments, known)
            signature.bind(*args, **kwargs)
        checking = _checking.get()
        if checking:
            _check_forms(arguments)
        for name, check in checks.items():
            if name in arguments:
                arguments[name] = _one_number(arguments[name], name, check)
        if arguments.get("tile") is not None:
            whole(arguments["tile"], "tile", least=1)
        if "similarity" in arguments:
            arguments["similarity"] = _similarity(arguments["similarity"], arguments.get("tile"))
        given = [name for name in _EMBEDDINGS if arguments.get(name) is not None]
        dtypes = {arguments[name].dtype for name in given}
        with without_autocast(arguments[given[0]]):
            if dtypes != _SINGLE:
                dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
                arguments |= {name: arguments[name].to(dtype) for name in given}
            value = None if fused is None else fused(function, arguments)
            # One look at a value that every embedding goes into is less than a look at each of them.
            if checking and (value is None or not math.isfinite(value.item())):
                for name in given:
                    _check_finite(name, arguments[name])
            if value is not None:
                return value
            similarity = arguments.get("similarity", cosine if "similarity" in signature.parameters else None)
            if prepare and similarity is not None and similarity.pairwise and not is_plain():  # once for all uses
                prepared = {id(arguments[name]): _prepared(arguments[name], similarity) for name in given}
                arguments |= {name: prepared[id(arguments[name])] for name in given}
                arguments["similarity"] = OfPrepared(similarity)
            return function(**arguments)

    return checked


def _check_forms(arguments: dict) -> None:
    """Of embeddings and labels, whose values are not looked at."""
    queued = arguments.get("queue") is not None
    if "u" in arguments:
        _check_views(arguments["u"], arguments["v"], least=1 if queued else 2)
    else:
        _check_form("z", arguments["z"], least=2)
    if arguments.get("y") is not None or ("z" in arguments and "y" in arguments):
        check_labels(arguments["y"], arguments.get("z", arguments.get("u")))
    if queued:
        _check_queue(arguments["queue"], arguments["u"])


def _one_number(value, name: str, check):
    """The hyperparameter, checked; of a tensor that holds one number the shape is left out."""
    number = value
    if isinstance(value, Tensor):
        if value.numel() != 1:  # it would broadcast against embeddings or similarities, whichever it happens to fit
            raise CompanionError(
                f"{name} has shape {tuple(value.shape)}: expected a number, or a tensor that holds one."
            )
        value = value.reshape(()) if value.ndim else value
        if not _checking.get():
            return value
        number = value.item()
    check(number, name)
    return value if isinstance(value, Tensor | float | int) else float(value)


def scalar(x, like: Tensor) -> Tensor:
    """A hyperparameter as a tensor of the dtype and on the device of ``like``; a number is not copied there from the
    CPU, which would make a GPU wait."""
    if isinstance(x, Tensor):
        return x.to(device=like.device, dtype=like.dtype)
    return torch.full((), float(x), dtype=like.dtype, device=like.device)


def unit_length(z: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) embeddings on the sphere, as ``F.normalize(z, dim=1)``, and (n, 1) what they were divided by."""
    lengths = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(SHORTEST)
    return z / lengths, lengths


def within_sphere(of_unit: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
    """(n, d) gradient of embeddings, from that of what :func:`unit_length` makes of them."""
    radial = (of_unit * unit).sum(dim=1, keepdim=True)  # changes the length, and so nothing
    radial.masked_fill_(lengths <= SHORTEST, 0)  # but an embedding so short is only scaled
    return torch.addcmul(of_unit, radial, unit, value=-1).div_(lengths)


class _UnitLength(torch.autograd.Function):
    """``F.normalize(z, dim=1)`` in one step."""

    @staticmethod
    def forward(ctx, z):
        unit, lengths = unit_length(z)
        ctx.save_for_backward(z, unit, lengths)
        return unit

    @staticmethod
    def backward(ctx, of_unit):
        z, *known = ctx.saved_tensors
        return within_sphere(of_unit, *(unit_length(z) if torch.is_grad_enabled() else known))


def _prepared(z: Tensor, similarity: Similarity) -> Tensor:
    return _UnitLength.apply(z) if similarity.spherical and not is_transformed() else similarity.prepare(z)


def _similarity(similarity, tile: int | None) -> Similarity:
    if isinstance(similarity, Similarity):
        own = type(similarity) is Similarity
        return InTiles(similarity.matrix, tile) if own and tile is not None else similarity
    if not callable(similarity):
        raise CompanionError(
            f"similarity is {similarity!r}: expected companion.similarity.cosine, arc_length or euclidean, "
            "or a function of (n, d) and (k, d) tensors that returns their (n, k) similarities."
        )
    return Similarity(similarity) if tile is None else InTiles(similarity, tile)
