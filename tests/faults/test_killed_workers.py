"""A sweep by processes of this machine, or on a real Ray or Dask cluster of it, a part of which is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

from companion import paths, store, training
from companion.errors import CompanionError
from companion.training import runs, sweeps


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results folder of the same runs, trained in this process, once for all tests."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def configs(tiny):
    """Slow enough to be caught in the middle."""
    return [tiny.replace(n_train=1000, epochs=6, width=16, seed=seed) for seed in range(6)]


@pytest.fixture
def engine(results, monkeypatch):
    def choose(name: str, **settings) -> None:
        monkeypatch.setenv("CONTRASTIVE_JOBS", "")
        for setting, value in {"engine": name, **settings}.items():
            monkeypatch.setenv(f"CONTRASTIVE_{setting.upper()}", value)

    return choose


def holder(config) -> int | None:
    """The process that trains a run: it has the run's lock open."""
    lock = store._lock(runs.folder(config).name).lock_file
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has gone, or is somebody else's
            if os.readlink(descriptor) == lock and descriptor.parts[2] != str(os.getpid()):
                return int(descriptor.parts[2])


def parent(process: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def in_the_middle(config) -> bool:
    marker = sweeps._partial(runs.folder(config)) / "epochs"
    with contextlib.suppress(OSError):
        return 1 <= marker.stat().st_size < config.epochs - 2
    return False


@contextlib.contextmanager
def killing(configs, kill):
    """Inside, ``kill`` is called with processes that are in the middle of a run, until it does not return False."""
    killed, over = [], threading.Event()

    def watch():
        while not (killed or over.wait(0.02)):
            for config in filter(in_the_middle, configs):
                process = holder(config)
                if process and in_the_middle(config) and kill(process) is not False:
                    killed.append(process)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        assert killed, "the runs were over before one was caught"
    finally:
        over.set()
        thread.join()


def assert_all_there_once(found, configs, alone, monkeypatch):
    assert [run.config for run in found] == configs
    assert {path.name for path in paths.runs().iterdir()} == {".locks", *(run.key for run in found)}  # no half ones
    for run in found:
        assert sorted(path.name for path in run.path.iterdir()) == sorted(runs.FILES)
        assert len(run.history) == run.config.epochs
    for setting in ("ENGINE", "ADDRESS"):
        monkeypatch.delenv(f"CONTRASTIVE_{setting}", raising=False)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(alone))
    for run, same in zip(found, training.sweep(configs, jobs=1), strict=True):
        assert run.path != same.path
        for name in ("weights.safetensors", "history.csv", "metrics.json"):
            assert (run.path / name).read_bytes() == (same.path / name).read_bytes(), name


@pytest.mark.parametrize("means", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_is_trained_again_whose_process_is_killed(configs, engine, alone, monkeypatch, means):
    engine("loky", jobs="2")
    with killing(configs, lambda process: os.kill(process, means)):
        found = training.sweep(configs)
    assert_all_there_once(found, configs, alone, monkeypatch)


def test_processes_that_are_killed_again_and_again_are_told(configs, engine, monkeypatch):
    def broken(**_):
        asked.append(True)
        return lambda tasks: deque(tasks, maxlen=0) or (_ for _ in ()).throw(TerminatedWorkerError)

    asked = []
    engine("loky", jobs="2")
    monkeypatch.setattr(sweeps.joblib, "Parallel", broken)
    with pytest.raises(CompanionError, match=r"were killed 4 times.*: 6 of 6 runs are left\. Lower JOBS \(now 2\)"):
        training.sweep(configs)
    assert len(asked) == 4


@pytest.mark.parametrize("means", [signal.SIGKILL, signal.SIGTERM])
def test_ray_trains_a_run_again_whose_worker_is_killed(configs, engine, alone, monkeypatch, means):
    ray = pytest.importorskip("ray")
    engine("ray", jobs="2")
    with killing(configs, lambda process: os.kill(process, means)):
        found = training.sweep(configs)
    assert not ray.is_initialized()
    assert_all_there_once(found, configs, alone, monkeypatch)


@pytest.fixture
def two_machines():
    """A Ray cluster of two machines with a core each, which are two groups of processes of this one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_ray_trains_a_run_again_whose_machine_is_lost(configs, engine, alone, monkeypatch, two_machines):
    engine("ray", address=two_machines.address)

    (raylet,) = two_machines.second.all_processes["raylet"]

    def lose(process):
        if parent(process) != raylet.process.pid:
            return False
        two_machines.remove_node(two_machines.second, allow_graceful=False)

    with killing(configs, lose):
        found = training.sweep(configs)
    assert_all_there_once(found, configs, alone, monkeypatch)


@pytest.fixture
def two_workers(tmp_path):
    """The address of a Dask scheduler, and its two workers, which die when they are killed."""
    pytest.importorskip("dask")  # `distributed` is a folder of tests, too
    file, processes = tmp_path / "scheduler.json", []

    def start(*arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(file), "--no-dashboard"]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    start("scheduler", "--host", "127.0.0.1", "--port", "0")
    for _ in range(2):
        start("worker", "--nthreads", "1", "--no-nanny")
    while not file.exists():
        assert processes[0].poll() is None
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"], processes[1:]
    for process in processes:
        process.kill()
        process.wait()


def test_dask_trains_a_run_again_whose_worker_is_killed(configs, engine, alone, monkeypatch, two_workers):
    address, workers = two_workers
    engine("dask", address=address)
    with killing(configs, lambda process: os.kill(process, signal.SIGKILL)):
        found = training.sweep(configs)
    assert sorted(str(worker.poll()) for worker in workers) == ["-9", "None"]
    assert_all_there_once(found, configs, alone, monkeypatch)


def test_dask_of_this_machine_trains_a_run_again_whose_worker_is_killed(configs, engine, alone, monkeypatch):
    pytest.importorskip("dask")  # `distributed` is a folder of tests, too
    engine("dask", jobs="2")
    with killing(configs, lambda process: os.kill(process, signal.SIGKILL)):
        found = training.sweep(configs)
    assert_all_there_once(found, configs, alone, monkeypatch)
