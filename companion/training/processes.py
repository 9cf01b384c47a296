"""One run on several processes: each sees a part of every batch, the loss sees all of it."""

import inspect
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from companion import losses
from companion.errors import CompanionError, whole
from companion.losses._gather import world
from companion.training.config import Config
from companion.training.methods import Method
from companion.training.resume import TERMINATED, leave_with_parent, terminable

ASKED_EVERY = 8  # steps, at most, after which the processes agree whether to stop
SOON = 3  # seconds within which they do, unless a step takes longer
PATIENCE = timedelta(days=1)  # with a process that measures; one that has failed is noticed by who started it
TOLD = f"{CompanionError.__module__}.{CompanionError.__name__}: "  # how a traceback ends on one


def number() -> int:
    """Processes that train one run together: ``CONTRASTIVE_PROCESSES``, or 1.

    Raises:
        CompanionError: for what is no whole number of at least 1; and in a new process that imports a script which
            trains without ``if __name__ == "__main__"``.
    """
    given = os.environ.get("CONTRASTIVE_PROCESSES", "").strip() or "1"
    count = whole(int(given) if given.isdecimal() else given, "PROCESSES (or CONTRASTIVE_PROCESSES)", least=1)
    # Python asks so too when a process is started, but by then this one would wait for a lock that its parent holds.
    if count > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise CompanionError(
            "A process that is to train a run has come to the line of your script that started it: put what the script "
            "does under `if __name__ == '__main__':`."
        )
    return count


def alone(config: Config) -> Fabric:
    """Fabric with the device and the precision of ``config`` in this process alone, whatever has started it: left to
    itself, Fabric takes a process in a job of Slurm for one of the job's tasks, which train together."""
    options = {"accelerator": config.accelerator, "precision": config.precision}
    return Fabric(devices=1, plugins=[LightningEnvironment()], **options)


def check_alone(fabric: Fabric) -> None:
    """Raise a :class:`~companion.errors.CompanionError` unless the processes of ``torch.distributed`` are those of
    ``fabric``: the losses would gather embeddings of other trainings, or wait for them."""
    if world() != fabric.world_size:
        raise CompanionError(
            f"torch.distributed has {world()} processes here, this training {fabric.world_size}: its loss would see "
            "the embeddings of the others. Train before torch.distributed.init_process_group or after "
            "destroy_process_group; PROCESSES (or CONTRASTIVE_PROCESSES) lets several processes train a run together."
        )


def launch(function: Callable, *arguments, count: int, accelerator: str = "auto", precision: str = "32-true") -> None:
    """Call ``function(fabric, *arguments)`` in ``count`` new processes of this machine at once, by gloo on the CPU and
    by NCCL with a GPU each. If one fails, the others are ended. SIGTERM is handed on to them, and waited for.

    Args:
        function: importable by its name, since it is sent to the processes, as the arguments are.
        arguments: of the function.
        count: processes.
        accelerator: ``auto`` is CUDA where there is any, else the CPU.
        precision: as Fabric names it.

    Raises:
        CompanionError: for more processes than CUDA devices, in a process that may not start any, and with what a
            process told before it failed.
        SystemExit: with the status of a process that SIGTERM ended, 143, after SIGTERM.
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and torch.cuda.device_count() < count:
        raise CompanionError(
            f"{count} processes were asked for and there are {torch.cuda.device_count()} CUDA devices: expected one "
            "for each. Lower PROCESSES, or set accelerator='cpu'."
        )
    if multiprocessing.current_process().daemon:
        raise CompanionError(
            f"{count} processes were asked for, and this one is a daemon, which may not start any: start Dask workers "
            "with `--no-nanny`, or with DASK_DISTRIBUTED__WORKER__DAEMON=False in their environment."
        )
    with tempfile.TemporaryDirectory() as folder, terminable() as asked:
        given = (count, accelerator, precision, Path(folder, "met"), function, arguments)
        started = spawn(_start, given, nprocs=count, join=False)
        try:
            while not started.join(timeout=0.5, grace_period=1):
                for process in started.processes if asked() else ():
                    process.terminate()
        except ProcessException as error:
            if asked():
                raise SystemExit(TERMINATED) from error
            *_, last = str(error).strip().splitlines()
            told = str(error).rpartition(TOLD)[2].strip() if TOLD in str(error) else last
            raise CompanionError(
                f"Process {error.error_index} of {count} failed, and all were ended: {told}"
            ) from error
        finally:
            for process in started.processes:  # after Ctrl-C too: whoever comes next may train this run
                process.kill()
                process.join()


def _start(rank: int, count: int, accelerator: str, precision: str, meeting: Path, function, arguments) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it sees to Ctrl-C
    leave_with_parent()
    os.environ["LOCAL_RANK"] = str(rank)  # by which Fabric knows that its processes are there already
    # They meet by a file, for a port that is free now may be taken when they need it.
    on = {"device_id": torch.device("cuda", rank)} if accelerator == "cuda" else {}
    backend = "nccl" if accelerator == "cuda" else "gloo"
    place = dist.FileStore(str(meeting), count)
    place.set_timeout(PATIENCE)  # torch sets that of its own stores alone
    dist.init_process_group(backend, store=place, rank=rank, world_size=count, timeout=PATIENCE, **on)
    # Every process computes the same buffers of the same numbers: none, MoCo's queue least, is sent at each step.
    sync = "forward_sync_buffers"  # as newer versions of torch have it
    sync = sync if sync in inspect.signature(nn.parallel.DistributedDataParallel).parameters else "broadcast_buffers"
    strategy = DDPStrategy(**{sync: False})
    options = {"devices": count, "strategy": strategy, "plugins": [LightningEnvironment()]}
    fabric = Fabric(accelerator=accelerator, precision=precision, **options)
    fabric.launch()
    function(fabric, *arguments)
    dist.destroy_process_group()


def any_of_them(stop: Callable[[], bool]) -> Callable[[], bool]:
    """A function that all processes call after every step, and that becomes true in all of them after the same step,
    soon after ``stop`` did in one.

    They ask each other by the CPU, so that no GPU is waited for, and not every time: asking takes some 0.1 ms at best,
    and as long as the last of them is late.
    """
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    left = every = 1  # steps until they ask again, and from one time to the next: the same numbers in all of them
    then = time.monotonic()

    def agreed() -> bool:
        nonlocal left, every, then
        left -= 1
        if left:
            return False
        now = time.monotonic()
        most = torch.tensor([float(stop()), (now - then) / every])
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        asked, seconds = most.tolist()
        left = every = max(1, min(ASKED_EVERY, int(SOON / max(seconds, 1e-9))))
        then = now
        return bool(asked)

    return agreed


def synchronise(method: Method, device: torch.device) -> None:
    """Let batch norm, in place, see the whole batch of all processes; or, if the method sees its batches in as many
    groups as there are processes, let each process see its own.

    Running statistics are those of one process in both cases.

    Raises:
        CompanionError: for another number of groups than 1 and that of the processes.
    """
    groups, count = method.batch_norm_groups, world()
    if groups not in (1, count):
        raise CompanionError(
            f"batch_norm_groups is {groups} and there are {count} processes: expected 1 group, or one a process."
        )
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Another class, and the same parameters, buffers and names.
            module.__class__ = nn.SyncBatchNorm if device.type == "cuda" and groups == 1 else BatchNorm
            module.alone, module.process_group = groups > 1, None


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What ``nn.SyncBatchNorm`` does, which refuses tensors on the CPU, by the mean and the variance of each process's
    equally many rows; and where every process normalises its part ``alone``, the running statistics of all parts."""

    alone = False

    def _check_input_dim(self, x: Tensor) -> None:
        """Any shape (m, c, …)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count, rows = world(), x.numel() // x.shape[1]
        dtype = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(dtype), [i for i in range(x.ndim) if i != 1], correction=0)  # (c,)
        with losses.unchecked():
            means, variances = losses.gather(torch.stack([mean, variance])[None]).unbind(1)  # (processes, c)
        if self.alone:
            seen = zip(means, variances, strict=True)
        else:
            rows, mean = rows * count, means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            seen = [(mean, variance)]
        for statistics in seen:  # one process would have seen one after the other
            self._remember(*statistics, rows)
        shape = [1, -1] + [1] * (x.ndim - 2)
        normal = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * rows / max(rows - 1, 1), share)
