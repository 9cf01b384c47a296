"""The embeddings of all processes, with their gradient."""

import zlib

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from companion.errors import CompanionError
from companion.losses._inputs import is_checked, is_divided


def gather(x: Tensor) -> Tensor:
    """The rows of all processes of ``torch.distributed``, so that a loss sees the whole batch: under data-parallel
    training each process holds a part of it, and would compare its instances with each other only.

    ``losses.nt_xent(losses.gather(u), losses.gather(v), temperature=0.2)`` has the same value on every process, that of
    one process with the whole batch. So has its gradient after ``DistributedDataParallel``, which takes the mean over
    processes: the backward pass of ``gather`` sums what every process asks of these rows. Do not multiply the loss by
    the number of processes. Each of them computes the whole loss, in O(n²) time; or, inside
    :func:`companion.losses.divided`, its part of the tiles.

    Gather whatever goes with the rows alike: labels, the second view. Of a loss that is a mean over instances, each on
    its own, as cross entropy, nothing needs to be gathered.

    Args:
        x: (m, …) of any dtype, the same shape and dtype on every process: drop an incomplete last batch. Every process
            has to call this, in the same order.

    Returns:
        (m · processes, …), the first process's rows first; ``x`` itself where no process group is initialised.

    Raises:
        CompanionError: if x is not a tensor with rows; in all processes, if one has another shape or dtype, which is
            not looked at inside :func:`companion.losses.unchecked`.
    """
    if not isinstance(x, Tensor) or x.ndim == 0:
        given = "a number" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise CompanionError(f"gather was given {given}: expected a torch.Tensor of shape (m, …), a row an instance.")
    if world() == 1:
        return x
    if is_checked():
        _check_alike(x)
    return _Gather.apply(x)


def _check_alike(x: Tensor) -> None:
    """Raise, in all processes, unless each hands in the same shape and dtype: the backend would abort, or wait."""
    ours = torch.zeros(2 + 8, dtype=torch.int64)  # its dtype, and at most eight dimensions, of any number
    ours[:2] = torch.tensor([zlib.crc32(str(x.dtype).encode()), x.ndim])
    ours[2 : 2 + x.ndim] = torch.tensor(x.shape[:8])
    ours = ours.to(x.device)
    parts = [torch.empty_like(ours) for _ in range(world())]
    dist.all_gather(parts, ours)
    dtypes, counts, sizes = zip(*((part[0], part[1], part[2:]) for part in torch.stack(parts).tolist()), strict=True)
    shapes = [tuple(size[:count]) for count, size in zip(counts, sizes, strict=True)]
    if len({*shapes}) > 1 or len({*dtypes}) > 1:
        given = ", ".join(f"{shape} by process {rank}" for rank, shape in enumerate(shapes))
        given += ", of different dtypes" if len({*dtypes}) > 1 else ""
        raise CompanionError(
            f"gather was given {given}: expected one shape and one dtype. Drop an incomplete last batch "
            "(`drop_last=True`)."
        )


def world() -> int:
    """Processes that share a batch: those of ``torch.distributed``, or 1."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(x: Tensor) -> Tensor:
    """This process's rows of those of all, which :func:`gather` would put together again."""
    return x.chunk(world())[dist.get_rank()] if world() > 1 else x


def part() -> tuple[int, int]:
    """Which of the equal parts of all work is this process's, counted from 0, and how many there are."""
    return (dist.get_rank(), world()) if is_divided() and world() > 1 else (0, 1)


def check_same(a: Tensor, b: Tensor, tile: int, *hyperparameters) -> None:
    """Raise, in all processes, unless those that divide the pairs of ``a`` and ``b`` have the same of both, as far as
    some sums tell, and the same hyperparameters, numbers or tensors of one; nothing is looked at inside
    :func:`companion.losses.unchecked`."""
    if part()[1] == 1 or not is_checked():
        return
    wants = [torch.is_grad_enabled() and x.requires_grad for x in (a, b)]
    counts = [len(a), len(b), tile, *wants]
    given = [float(x.detach() if isinstance(x, Tensor) else x) for x in hyperparameters]
    numbers = torch.tensor([*counts, *given], dtype=torch.float64, device=a.device)
    sums = torch.stack([x for z in (a, b) for x in (z[0].sum(), z[-1].sum(), z.abs().sum())]).detach()
    ours = torch.cat([numbers, sums.double()])
    most = torch.cat([ours, -ours])
    dist.all_reduce(most, dist.ReduceOp.MAX)
    largest, least = most.chunk(2)
    same = torch.equal(largest[: len(counts)], -least[: len(counts)])
    if not (same and torch.allclose(largest, -least, rtol=1e-4, atol=1e-5)):  # each processor rounds sums its way
        raise CompanionError(
            "Inside losses.divided() the processes have other embeddings, other numbers of them, another tile=, other "
            "hyperparameters, or not all want a gradient: expected the same of all. Hand the loss what losses.gather "
            "makes of their parts."
        )


def add_up(*sums: Tensor) -> None:
    """Add, in place, what the other processes of :func:`part` have found."""
    for x in sums:
        dist.all_reduce(x)


def add_up_exponentials(x: Tensor) -> Tensor:
    """The same of logarithms: log Σ e^x over the processes, -∞ where every x is."""
    most = x.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    most = most.masked_fill(most == -torch.inf, 0)
    x = (x - most).exp()
    dist.all_reduce(x)
    return x.log() + most


class _Gather(torch.autograd.Function):
    """``torch.distributed.nn.functional.all_gather``, which newer versions of torch deprecate for a private one."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_all):
        of_all = of_all.clone(memory_format=torch.contiguous_format)  # summed in place
        dist.all_reduce(of_all)
        return share(of_all)
