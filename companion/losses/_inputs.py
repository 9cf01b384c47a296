"""What every loss does to its input first: check it, and leave half precision behind."""

import contextlib
import functools
import inspect
from contextvars import ContextVar

import torch
from torch import Tensor

from companion.errors import CompanionError, positive


_checking = ContextVar("checking", default=True)


@contextlib.contextmanager
def unchecked():
    """Losses called inside do not check their embeddings: for torch.func.vmap, which cannot look at values."""
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def check_embeddings(name: str, z: Tensor, *, least: int = 2) -> None:
    """Raise a :class:`CompanionError` unless ``z`` is (n, d), floating point, finite, with n >= ``least``."""
    if not isinstance(z, Tensor):
        raise CompanionError(f"{name} is a {type(z).__name__}: expected a torch.Tensor of shape (n, d).")
    if z.ndim != 2:
        raise CompanionError(f"{name} has shape {tuple(z.shape)}: expected 2 dimensions, (n, d).")
    if not z.is_floating_point():
        raise CompanionError(f"{name} has dtype {z.dtype}: expected floating point embeddings.")
    if z.shape[0] < least:
        raise CompanionError(f"{name} has {z.shape[0]} rows: expected at least {least}, or there is no negative pair.")
    if not torch.isfinite(z).all():
        bad = (~torch.isfinite(z)).any(dim=1).sum().item()
        raise CompanionError(
            f"{name} has NaN or infinite values in {bad} of {z.shape[0]} rows: the network has diverged; "
            "lower the learning rate, or check the input images."
        )


def check_views(u: Tensor, v: Tensor) -> None:
    """Raise unless ``u`` and ``v`` are sound embeddings of one shape on one device."""
    check_embeddings("u", u)
    check_embeddings("v", v)
    if u.shape != v.shape:
        raise CompanionError(f"u has shape {tuple(u.shape)} and v {tuple(v.shape)}: expected two views of one shape.")
    if u.device != v.device:
        raise CompanionError(f"u lies on {u.device} and v on {v.device}: move both to one device.")


def loss(function):
    """Make a formula a public loss.

    The decorated function may rely on this: its embeddings (`u`, `v`, or `z`) are sound, in float32 or float64;
    autocast is off; a `temperature`, if it takes one, is positive.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        if _checking.get():
            if "u" in arguments:
                check_views(arguments["u"], arguments["v"])
            else:
                check_embeddings("z", arguments["z"])
        temperature = arguments.get("temperature")
        if temperature is not None and not isinstance(temperature, Tensor):  # a tensor is learned: no synchronisation
            positive(temperature, "temperature")
        device = next(a for a in arguments.values() if isinstance(a, Tensor)).device
        with torch.autocast(device.type, enabled=False):
            for name in ("u", "v", "z"):
                if name in arguments and arguments[name].dtype in (torch.float16, torch.bfloat16):
                    arguments[name] = arguments[name].float()
            return function(**arguments)

    return checked
