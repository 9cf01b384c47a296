"""What happens when a run is stopped in the middle, by whatever means."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from companion import store, training
from companion.errors import CompanionError
from companion.training import runs, sweeps
from companion.training.methods.contrastive import ContrastiveMethod

# Slow enough to be caught in the middle, at an epoch that the parent waits for.
TRAIN = """
import sys
import threading
from companion import training
from companion.training.config import from_json
training.run(from_json(sys.argv[1]))
"""


@pytest.fixture
def config(tiny):
    return tiny.replace(n_train=1000, epochs=9, width=16)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A results folder for the same run, trained once for all tests and never stopped."""
    return tmp_path_factory.mktemp("uninterrupted")


def start(config) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(config.to_dict())],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts its background jobs with Ctrl-C ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_epoch(config, epoch: int, process: subprocess.Popen) -> None:
    marker = sweeps._partial(runs.folder(config)) / "epochs"
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.stat().st_size >= epoch):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_and_wait(config, *, epoch: int) -> subprocess.Popen:
    process = start(config)
    wait_for_epoch(config, epoch, process)
    return process


def assert_same(one, other):
    """Two runs in two folders, bit for bit."""
    assert one.path != other.path
    for name in ("weights.safetensors", "history.csv", "metrics.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


@pytest.mark.parametrize("means", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_and_ends_bit_identical(config, results, uninterrupted, monkeypatch, means):
    process = start_and_wait(config, epoch=3)
    os.killpg(process.pid, means)
    process.communicate(timeout=60)
    assert not runs.folder(config).exists()  # whole or absent
    partial = sweeps._partial(runs.folder(config))
    last = next(path for name in ("checkpoint.pt", "checkpoint.previous") if (path := partial / name).exists())
    done = len(torch.load(last, weights_only=True)["history"])
    assert 3 <= done < config.epochs
    assert (partial / "epochs").stat().st_size in (done - 1, done)  # it may have been stopped between the two files
    trained = []
    original = ContrastiveMethod.loss
    monkeypatch.setattr(ContrastiveMethod, "loss", lambda *a: trained.append(1) or original(*a))
    leftover = sweeps._partial(runs.folder(config)) / ".checkpoint.pt.12345"  # of a write that was killed
    leftover.write_bytes(b"half")
    resumed = training.run(config)
    steps = config.n_train // config.batch_size
    assert len(trained) == (config.epochs - done) * steps  # it did not start over

    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(uninterrupted))
    whole = training.run(config)
    assert not [path for path in resumed.path.iterdir() if path.name.startswith(".")]
    assert_same(resumed, whole)


def test_sigterm_saves_the_step_at_hand_tells_it_and_ends_the_process(config, results, uninterrupted, monkeypatch):
    """A cluster's notice, which leaves seconds; so it does not depend on when the last checkpoint was written."""
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", "1e9")
    process = start_and_wait(config, epoch=3)
    process.terminate()
    told = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGTERM  # 143 to a shell
    key, step, epoch = re.search(
        r"^Stopped: (\S+) is saved after step (\d+) of epoch (\d+), and goes on", told
    ).groups()
    partial, steps = sweeps._partial(runs.folder(config)), config.n_train // config.batch_size
    assert key == runs.folder(config).name
    assert partial.joinpath("epochs").stat().st_size == int(epoch) - 1 >= 3
    assert sorted(path.name for path in partial.iterdir()) == ["checkpoint.pt", "epochs"]  # nothing half-written
    trained = []
    original = ContrastiveMethod.loss
    monkeypatch.setattr(ContrastiveMethod, "loss", lambda *a: trained.append(1) or original(*a))
    resumed = training.run(config)
    assert len(trained) == config.epochs * steps - (int(epoch) - 1) * steps - int(step)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(uninterrupted))
    whole = training.run(config)
    assert sorted(path.name for path in resumed.path.iterdir()) == sorted(runs.FILES)
    assert_same(resumed, whole)


GUARDLESS = """
import sys
import threading
from companion import training
from companion.training.config import from_json
training.run(from_json(open(sys.argv[1]).read()))
"""


def test_a_script_without_a_guard_is_told_and_does_not_wait_for_itself(config, results, monkeypatch, tmp_path):
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", "2")
    script, described = tmp_path / "script.py", tmp_path / "config.json"
    script.write_text(GUARDLESS)
    described.write_text(json.dumps(config.to_dict()))
    done = subprocess.run([sys.executable, script, described], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "put what the script does under `if __name__ == '__main__':`" in done.stderr


FULL_DISK = """
import resource, sys
from companion import training
from companion.errors import CompanionError
from companion.training.config import from_json
training.load_data(config := from_json(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the kernel refuses to write more, as on a full disk
try:
    training.run(config)
except CompanionError as error:
    print(error)
    sys.exit(3)
"""


def test_a_full_disk_is_told_and_leaves_nothing_half_written(config, results):
    command = [sys.executable, "-c", FULL_DISK, json.dumps(config.to_dict())]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 3, process.stderr
    assert "free some space" in process.stdout
    assert not runs.folder(config).exists()
    assert not list(sweeps._partial(runs.folder(config)).glob(".*"))  # no temporary file either
    training.run(config.replace(epochs=1))  # with space again, all is well


def test_a_results_folder_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path / "occupied"))
    with pytest.raises(CompanionError, match=r"Cannot write to .*occupied/runs .* let it be a link"):
        training.run(tiny)


def test_two_threads_write_one_file_and_neither_loses_its_own(tmp_path, monkeypatch):
    """They have one process id, as two containers may that share a disk."""
    replace, both = os.replace, threading.Barrier(2)
    monkeypatch.setattr(os, "replace", lambda *paths: (both.wait(10), replace(*paths)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda text: store.write(tmp_path / "file", text), ("first", "second")))
    assert (tmp_path / "file").read_text() in ("first", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.write(path, "before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompanionError, match="No space left on device"):
        store.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
