"""What a training leaves on disk to go on from: the last checkpoint, and the one before it."""

import contextlib
import copy
import functools
import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from companion import store
from companion.errors import DAMAGED, CompanionError, positive
from companion.losses._gather import world
from companion.training.config import Config
from companion.training.methods import Method

SECONDS = "60"  # between checkpoints; writing those of a large network after every short epoch would take longer
TERMINATED = 128 + signal.SIGTERM  # the exit status of a process that SIGTERM ended
HELD = {"config", "history", "part", "method", "optimizer"}  # by each checkpoint


class Checkpoints:
    """The state of a training, saved to ``path`` and restored from there; the one before it lies beside it.

    Args:
        path: of the last checkpoint; None: nothing is saved, and there is nothing to go on from.
        config: of the training: a checkpoint of another one is refused.
        method, optimizer: whose state it is.

    Raises:
        CompanionError: if ``CONTRASTIVE_CHECKPOINT_SECONDS``, the least time between two checkpoints, is no number.
    """

    def __init__(self, path: Path | None, config: Config, method: Method, optimizer: torch.optim.Optimizer):
        self.path, self.config, self.method, self.optimizer = path, config, method, optimizer
        given = os.environ.get("CONTRASTIVE_CHECKPOINT_SECONDS", "").strip() or SECONDS
        with contextlib.suppress(ValueError):
            given = float(given)
        self.seconds, self.saved = positive(given, "CONTRASTIVE_CHECKPOINT_SECONDS", zero=True), time.monotonic()
        self.sound = False  # whether the file at `path` is known to be whole, and of the end of an epoch
        self.part = None  # what was done of the epoch that the checkpoint was saved in

    def restore(self) -> list[dict]:
        """Take the last checkpoint that is whole and of this run, and return the history up to it; what is wrong with
        another is printed, and it is not used."""
        if self.path is None:
            return []
        there = [path for path in (self.path, self._previous) if path.exists()]
        for number, path in enumerate(there):
            try:
                history = self._load(path)
            except DAMAGED as error:
                then = "The one before it is used" if number + 1 < len(there) else "The run starts anew"
                why = (str(error).splitlines() or [type(error).__name__])[0][:200]
                print(f"The checkpoint {path} cannot be used ({why}). {then}.", file=sys.stderr)
                continue
            self.sound = path == self.path and self.part is None
            if world() == 1 or dist.get_rank() == 0:
                self._count(history)
            return history
        return []

    def _load(self, path: Path) -> list[dict]:
        with zipfile.ZipFile(path) as packed:  # torch itself does not look at the checksums
            if damaged := packed.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or not state.keys() >= HELD:
            raise ValueError(f"it lacks part of what a checkpoint holds: {', '.join(sorted(HELD))}")
        if not (isinstance(state["history"], list) and all(isinstance(row, dict) for row in state["history"])):
            raise ValueError("its history is not a list of what was noted after each epoch")
        if state["config"] != _described(self.config):
            raise ValueError("it is of a run with other settings")
        if state["part"] and len(state["part"]["processes"]) != world():
            count = len(state["part"]["processes"])
            raise ValueError(f"it was saved in the middle of an epoch by {count} processes, and there are {world()}")
        before = copy.deepcopy((self.method.state_dict(), self.optimizer.state_dict()))
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except DAMAGED:  # what fits of another architecture was taken already
            self.method.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            raise
        self.part = state["part"]
        return state["history"]

    def rest(self, batches: Iterator, total: Tensor) -> Iterator:
        """The batches of an epoch that are not done yet, all but once; ``total`` gets the loss of those that are."""
        part, self.part = self.part, None
        if part:
            mine = part["processes"][dist.get_rank() if world() > 1 else 0]
            # They are drawn again but not trained on, so that the source's generators are where they were.
            for _ in itertools.islice(batches, part["steps"]):
                pass
            total += mine["total"].to(total)
            torch.set_rng_state(mine["generators"]["cpu"])
            if "cuda" in mine["generators"] and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(mine["generators"]["cuda"])
        return batches

    def after_epoch(self, history: list[dict]) -> None:
        """Save if the last checkpoint is old enough, or this is the last epoch."""
        if self.path is None:
            return
        if len(history) == self.config.epochs or time.monotonic() - self.saved >= self.seconds:
            self._save(history, None)
        self._count(history)

    def stop(self, history: list[dict], steps: int, total: Tensor) -> None:
        """Save in the middle of an epoch, after so many of its steps and with their summed loss, and leave; of several
        processes each leaves when the first has saved what all of them gave."""
        if self.path is None:
            raise SystemExit(TERMINATED)
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            generators["cuda"] = torch.cuda.get_rng_state()
        given = [{"total": total.cpu(), "generators": generators}] * world()
        if world() > 1:
            dist.all_gather_object(given, given[0])
        if world() == 1 or dist.get_rank() == 0:
            self._save(history, {"steps": steps, "processes": given})
            run = self.path.parent.name.removeprefix(".partial-")
            with contextlib.suppress(OSError):  # whoever would read it may be gone
                print(
                    f"Stopped: {run} is saved after step {steps} of epoch {len(history) + 1}, and goes on from there "
                    "when it is asked for again.",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        if world() > 1:
            dist.barrier()  # when one has left, the others are ended
        raise SystemExit(TERMINATED)

    def _save(self, history: list[dict], part: dict | None) -> None:
        state = {"config": _described(self.config), "history": history, "part": part}
        buffer = io.BytesIO()
        torch.save(state | {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        if self.sound and self.path.exists():
            try:
                os.replace(self.path, self._previous)
            except OSError as error:
                raise CompanionError(f"Cannot rename {self.path} ({error.strerror or error}).") from error
        store.write(self.path, buffer.getvalue())
        # One in the middle of an epoch does not push out the one before: only as many processes can go on from it.
        self.sound, self.saved = part is None, time.monotonic()

    def _count(self, history: list[dict]) -> None:
        store.write(self.path.with_name("epochs"), "." * len(history))  # for whoever watches: a byte an epoch

    @property
    def _previous(self) -> Path:
        return self.path.with_suffix(".previous")


def _described(config: Config) -> dict:
    """The config without the folder of its images: they may be moved between two sittings."""
    name, colon, _ = config.dataset.partition(":")
    return config.to_dict() | {"dataset": name + colon}


@contextlib.contextmanager
def terminable() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM, a cluster's notice, only makes the function that is yielded true, so that a step ends and is
    saved; afterwards the signal goes to whoever handled it before, which by default ends the process.

    Only a process's main thread can listen. In another, and where SIGTERM is ignored already, the function stays false
    and the signal does what it did.
    """
    asked = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) in (signal.SIG_IGN, None):
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    except Exception as error:
        if asked.is_set():  # the signal is going to end the process before anybody else can tell this
            with contextlib.suppress(OSError):
                print(f"Stopped, and not saved: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked.is_set():
            signal.raise_signal(signal.SIGTERM)


@functools.cache
def leave_with_parent() -> None:
    """Send SIGTERM to this process, which multiprocessing or joblib has started, once whoever started it is gone: what
    it trains is saved, and nobody waits for it. A process with no such parent is left alone."""

    def watch() -> None:
        while not _orphaned():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if multiprocessing.parent_process():
        threading.Thread(target=watch, daemon=True).start()


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    if os.getppid() == parent.pid:
        return False
    try:
        return not parent.is_alive()  # a fork server may stand between
    except ValueError:  # joblib's workers have nothing to ask it by, and nothing between
        return True
