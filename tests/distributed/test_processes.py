"""Several processes, one run store."""

import dataclasses
import json
import subprocess
import sys
import time

from companion import pretrain, runs, store

SWEEP = """
import json, sys
from companion import pretrain
from companion.config import Config
original = pretrain._train
def counted(config, final):
    print("trained", config.seed, flush=True)
    original(config, final)
pretrain._train = counted
for seed in json.loads(sys.argv[2]):
    pretrain.run(Config(**json.loads(sys.argv[1]) | {"seed": seed}))
"""

HOLD = """
import sys, time
from companion import store
with store.slot(2):
    print("start", time.monotonic(), flush=True)
    time.sleep(1.0)
    print("stop", time.monotonic(), flush=True)
"""

LOCK = """
import time
from companion import store
with store.lock("run"):
    print("held", flush=True)
    time.sleep(600)
"""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_the_same_runs_train_each_once(tiny, results):
    config = tiny.replace(n_train=1000, epochs=6)
    fields = json.dumps(dataclasses.asdict(config))
    processes = [start(SWEEP, fields, json.dumps([0, 1, 2])) for _ in range(2)]
    trained = [line for process in processes for line in process.communicate(timeout=200)[0].splitlines()]
    assert sorted(trained) == ["trained 0", "trained 1", "trained 2"]
    assert [process.returncode for process in processes] == [0, 0]
    for seed in range(3):
        assert runs.folder(config.replace(seed=seed)).exists()


def test_no_more_processes_compute_at_once_than_there_are_slots(results):
    processes = [start(HOLD) for _ in range(5)]
    events = []
    for process in processes:
        for line in process.communicate(timeout=100)[0].splitlines():
            kind, moment = line.split()
            events.append((float(moment), 1 if kind == "start" else -1))
    busy = most = 0
    for _, change in sorted(events):
        busy += change
        most = max(most, busy)
    assert len(events) == 10
    assert most <= 2


def test_a_lock_vanishes_with_its_process(results):
    holder = start(LOCK)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with store.lock("run"):
        assert time.monotonic() - began < 60


def test_a_sweep_of_processes_gives_what_one_process_gives(tiny, results, monkeypatch):
    configs = [tiny.replace(seed=seed) for seed in range(3)]
    together = pretrain.sweep(configs, jobs=2)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(results.parent / "alone"))
    for config, run in zip(configs, together, strict=True):
        alone = pretrain.run(config)
        assert alone.path != run.path
        for name in ("encoder.safetensors", "history.csv", "metrics.json"):
            assert (alone.path / name).read_bytes() == (run.path / name).read_bytes(), name
