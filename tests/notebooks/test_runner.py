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
from companion.course import execute, report
from companion.errors import CompanionError
from companion.ledger import load

PARAMETERS = 'PROFILE = "auto"\nDATASET = ""\nSEED = 0'
TRAINS = """
from companion import training
from companion.course import profiles
profile = profiles.load(PROFILE, dataset=DATASET, seed=SEED)
small = {"n_train": 64, "n_validation": 20, "width": 4, "epochs": 1, "warmup_epochs": 0, "batch_size": 32}
for run in training.sweep(profile.configs(**small)[:3]):
    print(run.path.name)
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
    write(root / "notebooks" / "14_scoreboard.ipynb", "print('the scoreboard')")
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


def due(project, *arguments) -> list[str]:
    """Names of the notebooks that Make would run now."""
    done = make(project, "--dry-run", "notebooks", *arguments)
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r"companion\.course\.execute notebooks/(\w+)\.ipynb", done.stdout))


def runs(project) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in project.glob("results/runs/[!.]*/metrics.json")}


def test_what_runs_when(project):
    assert due(project, "PROFILE=smoke") == ["01_trains", "02_prints", "14_scoreboard"]
    first = make(project, "PROFILE=smoke", "reproduce")
    assert first.returncode == 0, first.stderr
    assert executed(first) == ["01_trains", "02_prints", "14_scoreboard"]
    assert first.stdout.index("14_scoreboard …") > first.stdout.index("01_trains done")
    assert "Scoreboard, profile smoke" in first.stdout
    trained = runs(project)
    assert len(trained) == 3

    again = make(project, "PROFILE=smoke", "NOTEBOOKS=01", "reproduce")
    assert (again.returncode, executed(again)) == (0, [])
    assert "Scoreboard, profile smoke" in again.stdout  # printed fresh, though nothing was to be done

    assert due(project, "PROFILE=smoke") == []
    table = project / "results" / "reference" / "gpu" / "runs.csv"
    table.parent.mkdir(parents=True)
    table.touch()  # as by `make merge`: any notebook may show what is recorded
    assert due(project, "PROFILE=smoke") == ["01_trains", "02_prints", "14_scoreboard"]
    shutil.rmtree(table.parent.parent)
    assert due(project, "PROFILE=smoke") == []
    (project / "notebooks" / "02_prints.ipynb").touch()
    assert due(project, "PROFILE=smoke") == ["02_prints", "14_scoreboard"]
    assert due(project, "PROFILE=smoke", "NOTEBOOKS=01") == []
    assert due(project, "PROFILE=smoke", "NOTEBOOKS=02") == ["02_prints"]
    assert due(project, "PROFILE=smoke", "SEED=5", "NOTEBOOKS=01 14") == ["01_trains", "14_scoreboard"]

    gone = sorted(trained)[1]
    shutil.rmtree(project / "results" / "runs" / gone)
    assert due(project, "PROFILE=smoke") == ["01_trains", "02_prints", "14_scoreboard"]
    assert executed(make(project, "PROFILE=smoke", "NOTEBOOKS=01", "reproduce")) == ["01_trains"]
    now = runs(project)
    assert set(now) == set(trained)
    assert [name for name in now if now[name] != trained[name]] == [gone]  # only that run was trained again

    for file in ("companion/training/loop.py", "companion/ledger/claims.yaml", "data/eurosat-subset.jpg"):
        (project / file).touch()
        assert "01_trains" in due(project, "PROFILE=smoke"), file


def test_a_failing_cell_is_told_the_others_still_run_and_the_scoreboard_is_printed(project):
    write(project / "notebooks" / "02_prints.ipynb", "print('so far')\nraise RuntimeError('the reason')")
    (project / "notebooks" / "01_trains.ipynb").touch()
    failed = make(project, "PROFILE=smoke", "reproduce")
    write(project / "notebooks" / "02_prints.ipynb", "print(1 + 1)")
    assert failed.returncode != 0
    assert "02_prints: cell [" in failed.stderr
    assert "RuntimeError" in failed.stderr
    assert "the reason" in failed.stderr
    assert "01_trains done" in failed.stdout
    assert "Some notebooks failed" in failed.stderr
    assert "Scoreboard, profile smoke" in failed.stdout
    partial = project / "results" / "smoke" / "notebooks" / "02_prints.failed.ipynb"
    assert "so far" in partial.read_text()
    assert due(project, "PROFILE=smoke") == ["02_prints", "14_scoreboard"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["PROFILE=gpus", "reproduce"],
            "Unknown PROFILE 'gpus': expected one of auto smoke cpu gpu paper reference long",
        ),
        (["NOTEBOOKS=77", "reproduce"], "Unknown notebook '77'"),
        (["CLAIMS=lee2025.table9", "reproduce"], "Unknown claim 'lee2025.table9'"),
        (["CLAIMS=lee2025.table1.tr", "reproduce"], "Unknown claim 'lee2025.table1.tr'"),  # no whole part of an id
        (["CLAIMS=o'hara", "reproduce"], "*** Unknown claim 'o'hara': companion/ledger/claims.yaml has the"),
        (["PROFILE=smoke", "DATASET=mnist", "NOTEBOOKS=02", "notebooks"], "Unknown data set 'mnist'"),
    ],
)
def test_bad_settings_stop_it_before_anything_runs(project, arguments, expected):
    done = make(project, *arguments)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "syntax error" not in done.stderr
    assert "unexpected" not in done.stderr
    assert executed(done) == []


@pytest.mark.parametrize(
    ("seed", "target"),
    [("01", "reproduce"), ("01", "reference"), ("01", "notebooks"),
     *((seed, "notebooks") for seed in ("00", "-1", "+1", "1.0", "1 2", "0 1", "one", "", "1'", "1;ls", "١"))],
)  # fmt: skip
def test_a_seed_that_would_name_another_folder_than_is_looked_into_is_told(project, seed, target):
    done = make(project, "--dry-run", "PROFILE=smoke", f"SEED={seed}", target)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"SEED is '{seed}': expected a whole number of at least 0, written plainly, such as" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("seed", ["0", "10", "1020"])
def test_a_seed_that_is_a_whole_number_is_taken(project, seed):
    assert due(project, "PROFILE=smoke", f"SEED={seed}", "NOTEBOOKS=01", "DATASET=digits") == ["01_trains"]


@pytest.mark.parametrize("module", [execute, report])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--profile", "gpus"], "Unknown profile 'gpus'"),
        (["--profile", "smoke", "--dataset", "mnist"], "Unknown data set 'mnist'"),
        (["--profile", "smoke", "--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_options_are_told_without_a_traceback(project, results, monkeypatch, capsys, module, options, expected):
    notebook = [str(project / "notebooks" / "02_prints.ipynb")] if module is execute else []
    monkeypatch.setattr(sys, "argv", ["module", *notebook, *options])
    assert module.main() == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert not results.exists()


def test_an_unknown_parameter_stops_it_before_anything_runs(project, tmp_path, monkeypatch):
    with pytest.raises(CompanionError, match=r"Unknown parameter of 02_prints.ipynb 'PROFIL'.*Did you mean 'PROFILE'"):
        execute.execute(project / "notebooks" / "02_prints.ipynb", tmp_path / "out.ipynb", {"PROFIL": "cpu"})
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_that_is_not_there_is_told(project, tmp_path):
    with pytest.raises(CompanionError, match=r"There is no notebook nope\.ipynb: expected the path of one"):
        execute.execute(Path("nope.ipynb"), tmp_path / "out.ipynb", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["prerequisites", "runs"])
def test_a_notebook_of_which_not_all_can_be_written_does_not_count_as_executed(what, project, tmp_path, monkeypatch):
    def full(*_):
        raise CompanionError("The disk is full.")

    then = full if what == "runs" else None
    if what == "prerequisites":
        monkeypatch.setattr(execute.store, "write", full)
    monkeypatch.setattr(execute.papermill, "execute_notebook", lambda source, out, *_, **__: shutil.copy(source, out))
    for name in ("CONTRASTIVE_USED_RUNS", "CONTRASTIVE_NOTEBOOK", "CONTRASTIVE_PROGRESS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # it sets them itself; they go back afterwards
    with pytest.raises(CompanionError, match="full"):
        execute.execute(project / "notebooks" / "02_prints.ipynb", tmp_path / "out.ipynb", {"PROFILE": "cpu"}, then)
    assert not (tmp_path / "out.ipynb").exists()
    assert len(list(tmp_path.glob("*.d"))) == (what == "runs")


def test_help_names_every_target(project):
    text = make(project).stdout
    for target in ("setup", "lab", "reproduce", "test", "freeze", "bench", "clean"):
        assert f"\n  {target} " in text


def test_clean_leaves_what_somebody_has_written_or_recorded(project):
    kept = ["build/student/01_trains.ipynb", "build/nbgrader/source/01/01.ipynb", "results/reference/cpu/kept.csv"]
    gone = ["build/book/index.html", "build/slides/01.html", "results/runs/a/metrics.json", ".ruff_cache/a"]
    root = project.with_name("to clean")
    for name in (*kept, *gone):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    shutil.copy(project / "Makefile", root)
    assert make(root, "clean").returncode == 0
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(
        ["Makefile", *kept]
    )
    assert make(root, "clean").returncode == 0


def test_claims_name_the_notebooks_that_test_them(project):
    """Those of the ledger, in a project that has their notebooks."""
    others = [
        project / "notebooks" / f"{name}.ipynb" for name in ("07_full_batch_misalignment", "08_small_batch_variance")
    ]
    for path in others:
        path.write_bytes((project / "notebooks" / "02_prints.ipynb").read_bytes())
    try:
        chosen = "CLAIMS=lee2025.table1.trend companion.steps.longer"
        assert due(project, "SEED=6", chosen) == ["08_small_batch_variance"]
        assert due(project, "SEED=6", chosen, "NOTEBOOKS=02") == ["02_prints", "08_small_batch_variance"]
        assert due(project, "SEED=6", "CLAIMS=lee2025.theorem5.1") == ["07_full_batch_misalignment"]
        assert due(project, "SEED=6", "CLAIMS=lee2025.table1.simclr") == ["08_small_batch_variance"]  # begins several
    finally:
        for path in others:
            path.unlink()


def test_every_claim_can_be_named(project):
    """Make reads claims.yaml line by line: it must find every id and its notebook."""
    script = project / "which.mk"
    script.write_text("include Makefile\nwhich:\n\t@$(foreach c,$(IDS),echo $(c) $(call tests,$(c));)\n")
    done = make(project, "-f", "which.mk", "which", f"IDS={' '.join(load())}")
    assert dict(line.split() for line in done.stdout.splitlines()) == {c.id: c.notebook for c in load().values()}


def test_a_dry_run_says_what_it_would_cost_and_leaves_no_trace(project):
    def everything():
        return {path: path.stat().st_mtime_ns for path in project.rglob("*") if "__pycache__" not in path.parts}

    before = everything()
    done = make(project, "PROFILE=paper", "DRY_RUN=1", "reproduce")
    assert done.returncode == 0, done.stderr
    assert executed(done) == []
    assert re.search(r"Profile paper: 3 runs to train, about \d+\.\d GPU-hours", done.stdout)
    assert re.search(r"^01_trains +3 +0 +3 ", done.stdout, re.M)
    assert "recorded on one H100" in done.stdout
    assert "Scoreboard" not in done.stdout
    assert everything() == before


def test_a_gpu_profile_says_what_it_costs_before_it_starts(project):
    done = make(project, "--dry-run", "PROFILE=gpu", "reproduce").stdout
    assert "companion.course.estimate notebooks/01_trains.ipynb" in done
    assert done.index("companion.course.estimate") < done.index("companion.course.execute")


@pytest.mark.parametrize(("profile", "folder"), [("auto", "cpu"), ("long", "cpu-long")])
def test_the_reference_records_a_row_a_run(project, profile, folder):
    done = make(project, f"PROFILE={profile}", "NOTEBOOKS=01", "reference")
    assert done.returncode == 0, done.stderr
    lines = (project / "results" / "reference" / folder / "runs.csv").read_text().splitlines()
    assert lines[0].startswith("key,data,config")
    assert len(lines) == 1 + 3
    assert str(project) not in "".join(lines)


@pytest.mark.parametrize(
    ("given", "told"),
    [("JOBS=none", "JOBS .* is 'none': expected a whole number"), ("PROCESSES=0", "PROCESSES .* is 0: expected"),
     ("ENGINE=rai", "Unknown ENGINE .*'rai': expected one of loky, ray"), ("GPUS=1", "GPUS .* and ENGINE is 'loky'"),
     ("ENGINE=dask ADDRESS=127.0.0.1:9", "Nothing of dask answers at 127.0.0.1:9")],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_once_before_a_notebook_starts(project, given, told):
    done = make(project, "reproduce", "PROFILE=smoke", "JOBS=", *given.split())
    assert done.returncode == 2
    assert re.search(told, done.stderr.splitlines()[0])
    assert executed(done) == []


def test_a_dry_run_needs_no_cluster(project):
    done = make(project, "reproduce", "PROFILE=smoke", "DRY_RUN=1", "ENGINE=dask", "ADDRESS=127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert executed(done) == []
