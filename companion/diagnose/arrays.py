"""Paired embeddings of any floating dtype, checked whole and then read a few rows at a time as float64 unit vectors."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from companion.errors import CompanionError

CHUNK = 2**18  # numbers in memory at once from each array: 2 MiB in float64, which a CPU's cache holds


class Rows:
    """(n, d) embeddings, a NumPy array (memory-mapped too) or a tensor on any device; what is read is float64, on the
    CPU and of length 1.

    Args:
        name: what to call them in an error.
        array: the embeddings.

    Raises:
        CompanionError: unless it is an (n, d) array of floating point numbers with n >= 2, every row finite and not 0.
    """

    def __init__(self, name: str, array):
        self.name, self._array = name, array.detach() if isinstance(array, Tensor) else array
        self._check_form()
        self._check_values()

    def __len__(self) -> int:
        return self._array.shape[0]

    @property
    def dimension(self) -> int:
        return self._array.shape[1]

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        """(k, d) unit vectors. Divided by the largest entry first, so that no square over- or underflows."""
        z = self._double(where)
        z /= _largest(z)[:, None]
        z /= z.norm(dim=1, keepdim=True)
        return z

    def chunks(self, size: int | None = None) -> Iterator[slice]:
        """Slices that cover all rows, so large that a chunk holds about ``CHUNK`` numbers."""
        size = size or max(1, CHUNK // self.dimension)
        return (slice(i, min(i + size, len(self))) for i in range(0, len(self), size))

    def _double(self, where: slice | Tensor) -> Tensor:
        """A copy in float64, which may be divided in place."""
        if isinstance(self._array, Tensor):
            if isinstance(where, Tensor):
                where = where.to(self._array.device)
            return self._array[where].to("cpu").to(torch.float64, copy=True)  # an Apple GPU has no float64
        where = where.numpy() if isinstance(where, Tensor) else where
        return torch.from_numpy(np.array(self._array[where], dtype=np.float64, order="C"))

    def _check_form(self) -> None:
        name, array = self.name, self._array
        if not isinstance(array, np.ndarray | Tensor) or isinstance(array, np.ma.MaskedArray):
            raise CompanionError(
                f"{name} is a {type(array).__name__}: expected a NumPy array or a torch.Tensor of shape (n, d), "
                "nothing of it masked."
            )
        if array.ndim != 2 or array.shape[1] < 1:
            raise CompanionError(
                f"{name} has shape {tuple(array.shape)}: expected 2 dimensions, (n, d), one row a pair."
            )
        floating = array.is_floating_point() if isinstance(array, Tensor) else np.issubdtype(array.dtype, np.floating)
        if not floating:
            raise CompanionError(
                f"{name} has dtype {array.dtype}: expected floating point embeddings. Convert whole numbers with "
                ".astype('float32'); NumPy has no bfloat16, so save that as .safetensors."
            )
        if len(self) < 2:
            raise CompanionError(f"{name} has {len(self)} row(s): expected at least 2, or there is no negative pair.")

    def _check_values(self) -> None:
        bad = zero = 0
        for part in self.chunks():
            largest = _largest(self._double(part))
            bad += (~torch.isfinite(largest)).sum().item()
            zero += (largest == 0).sum().item()
        if bad:
            raise CompanionError(
                f"{self.name} has NaN or infinite values in {bad} of {len(self)} rows: find out where they come from "
                "(a diverged network, half precision that overflowed), or leave these pairs out of u, v and the labels."
            )
        if zero:
            raise CompanionError(
                f"{self.name} has {zero} of {len(self)} rows that are all zeros, and a zero vector has no direction: "
                "leave these pairs out of u, v and the labels, or look for dead units before the last layer."
            )


def _largest(z: Tensor) -> Tensor:
    """(n,) largest |entry| of each row; NaN if the row has one."""
    return torch.maximum(z.amax(dim=1), -z.amin(dim=1))


def paired(u, v) -> tuple[Rows, Rows]:
    """Both sides of the pairs, checked.

    Raises:
        CompanionError: if either is not sound, see :class:`Rows`, or their shapes differ.
    """
    shapes = [tuple(getattr(x, "shape", ())) for x in (u, v)]
    if shapes[0] != shapes[1] and all(len(shape) == 2 for shape in shapes):  # before minutes of reading
        raise CompanionError(
            f"u has shape {shapes[0]} and v {shapes[1]}: expected one shape, row i of v the partner of row i of u."
        )
    return Rows("u", u), Rows("v", v)


def classes(labels, n: int) -> tuple[Tensor, int]:
    """Labels as (n,) class numbers 0 … C-1, and C.

    Args:
        labels: (n,) whole numbers, booleans or strings: array, tensor or sequence.
        n: number of pairs.

    Raises:
        CompanionError: if they are not one such label a pair, or all differ.
    """
    labels = labels.float() if isinstance(labels, Tensor) and labels.dtype is torch.bfloat16 else labels  # not of NumPy
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if y.dtype == object and all(isinstance(label, str) for label in y.flat):  # as tables hold strings
        y = y.astype(str)
    if y.dtype.kind not in "iubUS":
        raise CompanionError(f"The labels have dtype {y.dtype}: expected whole numbers or strings, one a pair.")
    if y.shape != (n,):
        raise CompanionError(f"The labels have shape {y.shape}: expected {(n,)}, one label for each pair.")
    names, index = np.unique(y, return_inverse=True)
    if len(names) == n:
        raise CompanionError(f"All {n} labels differ: expected a class with at least two members.")
    return torch.from_numpy(index.reshape(-1)), len(names)
