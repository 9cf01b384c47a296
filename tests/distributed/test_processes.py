"""Several processes, one run store."""

import json
import os
import subprocess
import sys
import threading

import pytest

from companion import store, training
from companion.errors import CompanionError
from companion.training import runs, sweeps

SWEEP = """
import json, sys
from companion import training
from companion.training import sweeps
from companion.training.config import from_json
original = sweeps._train
def counted(config, final):
    print("trained", config.seed, flush=True)
    original(config, final)
sweeps._train = counted
for seed in json.loads(sys.argv[2]):
    training.run(from_json(sys.argv[1]).replace(seed=seed))
"""

# Says when it is in, and stays until it is told to leave.
HOLD = """
import sys
from companion import store
with store.slot(2):
    print("in", flush=True)
    sys.stdin.readline()
"""

LOCK = """
import time
from companion import store
with store.lock("run"):
    print("held", flush=True)
    time.sleep(600)
"""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_two_processes_that_want_the_same_runs_train_each_once(tiny, results):
    config = tiny.replace(n_train=1000, epochs=6)
    processes = [start(SWEEP, json.dumps(config.to_dict()), json.dumps([0, 1, 2])) for _ in range(2)]
    trained = [line for process in processes for line in process.communicate(timeout=300)[0].splitlines()]
    assert sorted(trained) == ["trained 0", "trained 1", "trained 2"]
    assert [process.returncode for process in processes] == [0, 0]
    for seed in range(3):
        assert runs.folder(config.replace(seed=seed)).exists()


def test_as_many_compute_at_once_as_there_are_slots_and_no_more(results):
    """Five want in: two get in, and stay two until one leaves. A mutex would let one in, no lock all five."""
    processes, inside = [start(HOLD) for _ in range(5)], []
    arrived = threading.Semaphore(0)

    def wait_for(process):
        if process.stdout.readline() == "in\n":
            inside.append(process)
            arrived.release()

    threads = [threading.Thread(target=wait_for, args=(process,), daemon=True) for process in processes]
    for thread in threads:
        thread.start()
    try:
        assert arrived.acquire(timeout=120)
        assert arrived.acquire(timeout=120)  # a second one comes in while the first is still there
        for left in range(3):
            assert not arrived.acquire(timeout=2), "more than two are inside"
            inside[left].communicate("leave\n", timeout=60)
            assert arrived.acquire(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_lock_vanishes_with_its_process(results):
    holder = start(LOCK)
    try:
        assert holder.stdout.readline() == "held\n"
    finally:
        holder.kill()
        holder.wait()
    store._lock("run").acquire(timeout=60)  # raises where the lock is still held


def test_a_sweep_of_processes_gives_what_one_process_gives(tiny, results, monkeypatch):
    configs = [tiny.replace(seed=seed) for seed in range(3)]
    together = training.sweep(configs, jobs=2)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(results.parent / "alone"))
    for config, run in zip(configs, together, strict=True):
        alone = training.run(config)
        assert alone.path != run.path
        for name in ("weights.safetensors", "history.csv", "metrics.json"):
            assert (alone.path / name).read_bytes() == (run.path / name).read_bytes(), name


def test_a_run_that_fails_does_not_stop_the_others(tiny, results):
    bad = tiny.replace(learning_rate=1e30, warmup_epochs=0)
    good = [tiny.replace(seed=seed) for seed in (1, 2)]
    with pytest.raises(CompanionError, match="1 of 3 runs failed; the others are stored") as error:
        training.sweep([bad, *good], jobs=2)
    assert runs.folder(bad).name in str(error.value)
    assert "the network has diverged" in str(error.value)
    assert all(runs.folder(config).exists() for config in good)
    assert not runs.folder(bad).exists()


def test_a_worker_has_the_settings_of_its_task_and_no_others(tiny, results, monkeypatch):
    """joblib reuses workers: what was set for an earlier sweep must not linger."""
    monkeypatch.setenv("CONTRASTIVE_LEFT_OVER", "set once")
    settings = {"CONTRASTIVE_RESULTS": str(results), "CONTRASTIVE_PROGRESS": "off"}
    assert sweeps._ensure_elsewhere(tiny, 1, settings) is None
    assert {name: value for name, value in os.environ.items() if name.startswith("CONTRASTIVE_")} == settings
    assert runs.folder(tiny).exists()
