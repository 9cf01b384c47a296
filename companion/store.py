"""The run store: a run is whole or absent, and nobody trains what somebody else is training.

A run is trained in a hidden folder and renamed into place when it is complete. Locks are the operating system's file
locks: they vanish with the process that holds them, even after ``kill -9``.
"""

import contextlib
import functools
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from companion import paths
from companion.errors import CompanionError, whole

# Raise this when a change to the training code, or of a default of `companion.training.Config`, changes the numbers
# that a run gives: stored runs are then trained anew.
TRAINING_VERSION = 2


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: under a temporary name, flushed to disk, renamed.

    Raises:
        CompanionError: if the folder cannot be written or the disk is full; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CompanionError(
            f"Cannot write {path} ({error.strerror or error}): free some space or make the folder writable, then run "
            "again. Nothing was left half-written."
        ) from error


def _lock(name: str) -> FileLock:
    folder = paths.runs() / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.lock").touch()
    except OSError as error:
        raise CompanionError(
            f"Cannot write to {paths.runs()} ({error.strerror or error}): make it writable, or let it be a link to a "
            "folder that is. (CONTRASTIVE_RESULTS names another results folder, but make goes by the project's own.)"
        ) from error
    return FileLock(folder / f"{name}.lock")


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock ``name``, shared by every process that uses this run store; wait for it as long as it takes."""
    with _lock(name):
        yield


@contextlib.contextmanager
def slot(count: int) -> Iterator[None]:
    """Hold one of ``count`` places to compute in: whatever runs in parallel, never more than ``count`` are busy.

    Raises:
        CompanionError: if ``count`` is no whole number of at least 1, or the run store cannot be written.
    """
    whole(count, "The number of places to compute in", least=1)
    places = [_lock(f"slot-{i}") for i in range(count)]
    while True:
        for place in places:
            try:
                place.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield
                return
            finally:
                place.release()
        time.sleep(0.1)


@contextlib.contextmanager
def sign() -> Iterator[Path]:
    """A file in the run store, as long as the block lasts, by which another machine recognises it."""
    path = Path(_lock(f"sign-{uuid.uuid4().hex}").lock_file)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def recognise(sign: Path) -> None:
    """Do nothing where the run store is the one that ``sign`` is in.

    Raises:
        CompanionError: on a machine that has another disk at its place.
    """
    if not sign.exists():
        raise CompanionError(
            f"{socket.gethostname()} does not see what is in {paths.runs()} on the machine that asks for this run: let "
            "it be a link to a folder that all machines share, or the whole project lie on such a disk."
        )


def publish(partial: Path, final: Path) -> None:
    """Rename a complete run into place, instead of what somebody left of an earlier one.

    Raises:
        CompanionError: if the folder cannot be written.
    """
    try:
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
    except OSError as error:
        raise CompanionError(f"Cannot store {final} ({error.strerror or error}).") from error


def outdated() -> list[str]:
    """Names of the runs in the store that another version of the training code made. Nothing reads them any more."""
    found = []
    for path in sorted(paths.runs().glob("[!.]*")):
        try:
            version = json.loads((path / "config.json").read_text()).get("training_version")
        except (OSError, ValueError, AttributeError, RecursionError):
            version = None
        if version != TRAINING_VERSION:
            found.append(path.name)
    return found


@functools.cache
def say_outdated() -> None:
    """Tell once where runs of another version lie."""
    names = outdated()
    if names:
        print(
            f"{len(names)} runs in {paths.runs()} come from another version of the training code; they are ignored. "
            f"Remove them to free space, the first is {names[0]}."
        )
