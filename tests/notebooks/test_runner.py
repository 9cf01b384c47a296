"""`make reproduce` on a small project of three notebooks: what runs when, and what is told when something fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from companion import paths
from companion.course import execute
from companion.errors import CompanionError

PARAMETERS = 'PROFILE = "auto"\nDATASET = ""\nSEED = 0'
TRAINS = """
from companion import training
from companion.course import profiles
profile = profiles.load(PROFILE, dataset=DATASET, seed=SEED)
small = {"n_train": 64, "n_validation": 20, "width": 4, "epochs": 1, "warmup_epochs": 0, "batch_size": 32}
for run in training.sweep(profile.configs(**small)[:3]):
    print(run.path.name)
"""
SCOREBOARD = """
from companion.course import profiles
from companion.ledger import Ledger, scoreboard
scoreboard.write(Ledger(profiles.load(PROFILE, dataset=DATASET, seed=SEED)))
print("written")
"""


def write(path: Path, source: str) -> None:
    cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), v4.new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("a project")  # with a space in its path
    shutil.copytree(paths.ROOT / "companion", root / "companion", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, root)
    (root / "data").mkdir()
    shutil.copy(paths.ROOT / "data" / "eurosat-subset.jpg", root / "data")
    (root / "notebooks").mkdir()
    write(root / "notebooks" / "01_trains.ipynb", TRAINS)
    write(root / "notebooks" / "02_prints.ipynb", "print(1 + 1)")
    write(root / "notebooks" / "13_scoreboard.ipynb", SCOREBOARD)
    return root


def make(project, *arguments) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONTRASTIVE_", "MAKE"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(project)
    command = ["make", "VENV=", "JOBS=1", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


def executed(done: subprocess.CompletedProcess) -> list[str]:
    """Names of the notebooks that ran, sorted: two run at a time, so the first two start in any order."""
    return sorted(re.findall(r"(\w+) …", done.stdout))


def runs(project) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in project.glob("results/runs/[!.]*/metrics.json")}


def test_what_runs_when(project):
    first = make(project, "PROFILE=smoke", "reproduce")
    assert first.returncode == 0, first.stderr
    assert executed(first) == ["01_trains", "02_prints", "13_scoreboard"]
    assert "Scoreboard, profile smoke" in first.stdout
    trained = runs(project)
    assert len(trained) == 3

    again = make(project, "PROFILE=smoke", "reproduce")
    assert (again.returncode, executed(again)) == (0, [])
    assert "Scoreboard, profile smoke" in again.stdout

    (project / "notebooks" / "02_prints.ipynb").touch()
    assert executed(make(project, "PROFILE=smoke", "reproduce")) == ["02_prints", "13_scoreboard"]
    assert runs(project) == trained

    gone = sorted(trained)[1]
    shutil.rmtree(project / "results" / "runs" / gone)
    assert executed(make(project, "PROFILE=smoke", "reproduce")) == ["01_trains", "13_scoreboard"]
    now = runs(project)
    assert set(now) == set(trained)
    assert [name for name in now if now[name] != trained[name]] == [gone]  # only that run was trained again

    other = make(project, "PROFILE=smoke", "SEED=5", "NOTEBOOKS=02", "reproduce")
    assert executed(other) == ["02_prints"]
    assert (project / "results" / "smoke-seed5" / "notebooks" / "02_prints.ipynb").exists()


def test_a_failing_cell_is_told_and_the_others_still_run(project):
    write(project / "notebooks" / "02_prints.ipynb", "print('so far')\nraise RuntimeError('the reason')")
    (project / "notebooks" / "01_trains.ipynb").touch()
    failed = make(project, "PROFILE=smoke", "reproduce")
    write(project / "notebooks" / "02_prints.ipynb", "print(1 + 1)")
    assert failed.returncode != 0
    assert "02_prints: cell [" in failed.stderr
    assert "RuntimeError" in failed.stderr
    assert "the reason" in failed.stderr
    assert "01_trains done" in failed.stdout
    partial = project / "results" / "smoke" / "notebooks" / "02_prints.failed.ipynb"
    assert "so far" in partial.read_text()
    mended = make(project, "PROFILE=smoke", "reproduce")
    assert executed(mended) == ["02_prints", "13_scoreboard"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["PROFILE=gpus", "reproduce"], "Unknown PROFILE 'gpus': expected one of auto smoke cpu gpu paper reference"),
        (["NOTEBOOKS=77", "reproduce"], "Unknown notebook '77'"),
        (["CLAIMS=lee2025.table9", "reproduce"], "Unknown claim 'lee2025.table9'"),
        (["PROFILE=smoke", "DATASET=mnist", "NOTEBOOKS=02", "reproduce"], "Unknown data set 'mnist'"),
        (["PROFILE=smoke", "SEED=-1", "NOTEBOOKS=02", "reproduce"], "seed is -1"),
    ],
)
def test_bad_settings_stop_it_before_anything_runs(project, arguments, expected):
    done = make(project, *arguments)
    assert done.returncode != 0
    assert expected in done.stderr
    assert executed(done) == []


def test_an_unknown_parameter_stops_it_before_anything_runs(project, tmp_path, monkeypatch):
    with pytest.raises(CompanionError, match=r"Unknown parameter of 02_prints.ipynb 'PROFIL'.*Did you mean 'PROFILE'"):
        execute.execute(project / "notebooks" / "02_prints.ipynb", tmp_path / "out.ipynb", {"PROFIL": "cpu"})
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_target(project):
    text = make(project).stdout
    for target in ("setup", "lab", "reproduce", "test", "freeze", "bench", "clean"):
        assert f"\n  {target} " in text


def test_a_claim_names_the_notebook_that_tests_it(project):
    (project / "notebooks" / "08_small_batch_variance.ipynb").write_bytes(
        (project / "notebooks" / "02_prints.ipynb").read_bytes()
    )
    done = make(project, "PROFILE=smoke", "SEED=6", "CLAIMS=lee2025.table1.trend companion.steps.longer", "reproduce")
    (project / "notebooks" / "08_small_batch_variance.ipynb").unlink()
    assert executed(done) == ["08_small_batch_variance"], done.stderr


def test_a_failure_does_not_hide_behind_an_old_scoreboard(project):
    write(project / "notebooks" / "02_prints.ipynb", "raise RuntimeError('the reason')")
    failed = make(project, "PROFILE=smoke", "NOTEBOOKS=02", "reproduce")
    write(project / "notebooks" / "02_prints.ipynb", "print(1 + 1)")
    assert failed.returncode != 0
    assert "Some notebooks failed" in failed.stderr
    assert "Scoreboard, profile smoke" in failed.stdout


def test_the_reference_records_a_row_a_run(project):
    done = make(project, "NOTEBOOKS=01", "reference")
    assert done.returncode == 0, done.stderr
    lines = (project / "results" / "reference" / "cpu" / "runs.csv").read_text().splitlines()
    assert lines[0].startswith("key,data,config")
    assert len(lines) == 1 + 3
    assert str(project) not in "".join(lines)
