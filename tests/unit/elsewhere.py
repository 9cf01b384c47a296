"""A second device for machines that have none: its tensors compute on the CPU, call themselves `meta`, and refuse to
meet the CPU's, as a GPU's do. Whoever forgets a `device=` is found out without a GPU.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=DEVICE, requires_grad=real.requires_grad,
        )  # fmt: skip

    def __init__(self, real):
        self.held = real

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Machine(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    asked, name = kwargs.get("device"), function._schema.name.removeprefix("aten::")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]  # a number may come along
    moves = name in ("copy_", "_to_copy")
    picks = name in ("index", "index_put", "index_put_") and isinstance(args[0], Elsewhere)  # by numbers on the CPU
    written = [args[0]] if function._schema.is_mutable and isinstance(args[0], torch.Tensor) else []
    if there and (here + [x for x in written if not isinstance(x, Elsewhere)]) and not moves and not picks:
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found at least two devices")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    unwrapped = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    out = function(*unwrapped[0], **unwrapped[1])
    if not (torch.device(asked).type == DEVICE.type if asked is not None else there):
        return out
    out = tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)
    return out if asked is not None else return_and_correct_aliasing(function, args, kwargs, out)


@contextlib.contextmanager
def second_device(monkeypatch):
    """Inside, :data:`DEVICE` can be computed on, and draws the numbers that the CPU draws."""
    generator, autocast, as_tensor = torch.Generator, torch.autocast, torch.as_tensor
    with monkeypatch.context() as patch, _Machine():
        patch.setattr(torch, "Generator", lambda device="cpu": generator())
        patch.setattr(torch, "autocast", lambda device_type, *a, **options: autocast("cpu", *a, **options))
        # Of a number torch makes a tensor below what a dispatch mode sees.
        patch.setattr(torch, "as_tensor", lambda x, dtype=None, device="cpu": as_tensor(x, dtype=dtype).to(device))
        yield DEVICE


def here(x: torch.Tensor) -> torch.Tensor:
    """What a tensor of the second device holds."""
    assert isinstance(x, Elsewhere)
    return x.held
