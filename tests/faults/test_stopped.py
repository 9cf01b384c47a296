"""What is stopped as a whole saves itself and goes: `make reproduce`, a sweep, a run on several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from nbformat import v4

from companion import paths, training
from companion.training import Contrastive, MoCo, SimCLR, Views, processes, runs, sweeps
from companion.training.data import Split
from companion.training.loop import train

SWEEP = """
import json, sys
from companion import training
from companion.training.config import from_json
if __name__ == "__main__":
    config = from_json(sys.argv[1])
    training.sweep([config.replace(seed=seed) for seed in range(int(sys.argv[2]))], jobs=2)
"""
SENTINEL = 4321.0  # no loss of any training
NEVER = 10**9  # steps


@pytest.fixture
def config(tiny):
    return tiny.replace(n_train=1000, epochs=15, width=16)  # seconds after the first epoch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A results folder for the same runs, trained once for all tests and never stopped."""
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture(autouse=True)
def alone(results, monkeypatch):
    """Nothing is saved but by a stop, and what a test has left running is killed."""
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", "1e9")
    yield
    for process in running(results):
        process.kill()


def running(results: Path) -> list[psutil.Process]:
    """What :func:`start` has started for this results folder, and what that has, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STARTED_FOR") == str(results):
                found.append(process)
        except psutil.Error:  # it is gone, or somebody else's
            continue
    return found


def start(command: list, **options) -> subprocess.Popen:
    environment = os.environ | {"STARTED_FOR": os.environ["CONTRASTIVE_RESULTS"]}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=environment | options.pop("env", {}), **options,
        # A shell starts its background jobs with Ctrl-C ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_until(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_one_trains(configs, process) -> None:
    markers = [sweeps._partial(runs.folder(config)) / "epochs" for config in configs]
    wait_until(lambda: any(marker.exists() and marker.stat().st_size for marker in markers), process)


def mark_what_is_saved(configs) -> list:
    """The runs that are saved in the middle of an epoch, in whose checkpoints the loss of the first is changed."""
    saved = []
    for config in configs:
        path = sweeps._partial(runs.folder(config)) / "checkpoint.pt"
        if path.exists():
            assert {file.name for file in path.parent.iterdir()} <= {"checkpoint.pt", "epochs"}  # nothing half-written
            state = torch.load(path, weights_only=True)
            assert state["part"]["steps"] >= 1
            if state["history"]:
                state["history"][0]["loss"] = SENTINEL
                torch.save(state, path)
                saved.append(config)
    return saved


def assert_as_if_never_stopped(configs, marked, uninterrupted, monkeypatch) -> None:
    """Bit for bit, but for the mark, which shows that the run went on from what was saved."""
    found = [runs.Run(config, runs.folder(config)) for config in configs]
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(uninterrupted / os.environ.get("CONTRASTIVE_PROCESSES", "1")))
    for run in found:
        whole = training.run(run.config)
        assert run.path != whole.path
        for name in ("weights.safetensors", "metrics.json"):
            assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
        ours, theirs = ((r.path / "history.csv").read_text().splitlines() for r in (run, whole))
        assert (str(SENTINEL) in ours[1]) == (run.config in marked)
        assert ours[2:] == theirs[2:]


NOTEBOOK = """
import json
from companion import training
from companion.training.config import from_json
config = from_json({config!r})
print(len(training.sweep([config.replace(seed=seed) for seed in range({count})])))
"""


@pytest.fixture
def project(tmp_path, results):
    """A project of one notebook, which trains."""
    for name in ("companion", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(paths.ROOT / name)
    (tmp_path / "notebooks").mkdir()
    assert results == tmp_path / "results"  # where make puts them
    return tmp_path


def reproduce(project: Path, config, count: int) -> subprocess.Popen:
    parameters = v4.new_code_cell('PROFILE = "auto"\nDATASET = ""\nSEED = 0', metadata={"tags": ["parameters"]})
    source = NOTEBOOK.format(config=json.dumps(config.to_dict()), count=count)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [parameters, v4.new_code_cell(source)]
    path = project / "notebooks" / "01_trains.ipynb"
    if not path.exists():
        nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), path)
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(project)}
    return start(["make", "VENV=", "JOBS=2", "PROFILE=smoke", "reproduce"], cwd=project, env=environment)


def by_a_scheduler(make: subprocess.Popen) -> None:
    make.terminate()


def by_a_terminal(make: subprocess.Popen) -> None:
    os.killpg(make.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("stop", "count"),
    [(by_a_scheduler, 3), (by_a_terminal, 1)],
)
def test_a_stopped_reproduction_saves_itself_ends_and_goes_on(
    config, project, results, uninterrupted, monkeypatch, stop, count
):
    """Trained by two workers of the kernel, or by the kernel itself."""
    configs = [config.replace(seed=seed) for seed in range(count)]
    make = reproduce(project, config, count)
    wait_until_one_trains(configs, make)
    stop(make)
    told = make.communicate(timeout=120)[1]
    assert make.returncode < 0  # it ended by the signal
    assert "01_trains: stopped" in told
    wait_until(lambda: not running(results))
    marked = mark_what_is_saved(configs)
    assert marked

    again = reproduce(project, config, count)
    told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert_as_if_never_stopped(configs, marked, uninterrupted, monkeypatch)


def test_workers_whose_sweep_is_killed_save_what_they_train_and_go(config, results, uninterrupted, monkeypatch):
    """Nobody can hand them a signal then."""
    configs = [config.replace(seed=seed) for seed in range(3)]
    process = start([sys.executable, "-c", SWEEP, json.dumps(config.to_dict()), "3"])
    wait_until_one_trains(configs, process)
    process.kill()
    process.wait()
    wait_until(lambda: not running(results))
    marked = mark_what_is_saved(configs)
    assert marked
    training.sweep(configs)
    assert_as_if_never_stopped(configs, marked, uninterrupted, monkeypatch)


@pytest.mark.parametrize("means", [signal.SIGTERM, signal.SIGKILL])
def test_processes_that_train_together_save_the_step_at_hand(config, results, uninterrupted, monkeypatch, means):
    """Though only the process that started them gets a signal."""
    config = config.replace(epochs=10, method=MoCo(queue=64, batch_norm_groups=2))  # which draws in every process
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", "2")
    process = start([sys.executable, "-c", SWEEP, json.dumps(config.to_dict()), "1"])
    wait_until_one_trains([config.replace(seed=0)], process)
    process.send_signal(means)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == -means
    assert told.count("is saved after step") == 1
    assert "Traceback" not in told
    wait_until(lambda: not running(results))
    configs = [config.replace(seed=0)]
    assert mark_what_is_saved(configs) == configs
    training.sweep(configs)
    assert_as_if_never_stopped(configs, configs, uninterrupted, monkeypatch)


def stopped_in_one(fabric, config, folder: Path, soon: float) -> None:
    """In one of the processes, after step 11 of 30, which is in the second of three epochs."""
    torch.set_num_threads(1)
    processes.SOON = soon
    g = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (160, 3, 16, 16), dtype=torch.uint8, generator=g), torch.arange(160) % 4)
    place = {"rank": fabric.global_rank, "world": fabric.world_size}
    for number, description in enumerate((Contrastive(), MoCo(queue=32, batch_norm_groups=2))):
        changed = config.replace(method=description)
        path, ends, taken = folder / str(number) / "checkpoint.pt", [], []
        for checkpoint, last in ((None, NEVER), (path, 11), (path, NEVER)):
            torch.manual_seed(1)
            method, steps = description.build(changed, split), []
            method.after_step = lambda method=method, steps=steps, after=method.after_step: (after(), steps.append(1))
            asked = lambda steps=steps, last=last: fabric.global_rank == 1 and len(steps) >= last  # noqa: E731
            source = Views(split, SimCLR().build(16), changed.batch_size, seed=changed.seed, **place)
            try:
                history = train(method, source, changed, fabric=fabric, checkpoint=checkpoint, stop=asked)
            except SystemExit as left:
                history = left.code
            taken.append(len(steps))
            ends.append((history, [value.clone() for value in method.state_dict().values()]))
        (whole, weights), (status, _), (resumed, theirs) = ends
        same = all(torch.equal(one, other) for one, other in zip(weights, theirs, strict=True))
        found = {"taken": taken, "status": status, "same": same and whole == resumed}
        (folder / f"found-{number}-{fabric.global_rank}").write_text(json.dumps(found))


@pytest.mark.parametrize(("soon", "expected"), [(1e9, 17), (0, 11)])
def test_what_one_process_is_asked_all_do_after_the_same_step(tiny, tmp_path, soon, expected):
    """Where steps are short they agree after the first and each eighth from there, where they are long after each."""
    config = tiny.replace(n_train=160, batch_size=16, epochs=3, seed=2, learning_rate=0.8)
    processes.launch(stopped_in_one, config, tmp_path, soon, count=2, accelerator="cpu")
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("found-*")}
    assert len(found) == 4
    assert list(found.values()) == [{"taken": [30, expected, 30 - expected], "status": 143, "same": True}] * 4
