"""Recorded runs: what goes into the table that is committed comes out of it, and nothing else does."""

import io
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from companion import paths
from companion.course import execute
from companion.errors import CompanionError
from companion.training import Config, baselines, recorded, run, sweep, table
from companion.training.config import from_json


@pytest.fixture
def quick(tiny):
    return tiny.replace(epochs=1, warmup_epochs=0, n_train=64, n_validation=0)


@pytest.fixture
def path(tmp_path, monkeypatch, results, forget):
    """The table of the folder ``cpu`` of a reference of the test's own."""
    monkeypatch.setattr(paths, "reference", lambda: tmp_path / "reference")
    return tmp_path / "reference" / "cpu" / "runs.csv"


def test_what_was_recorded_is_read_as_a_table_of_runs(quick, path):
    found = sweep([quick.replace(seed=seed) for seed in (101, 100)])
    assert recorded.record(found, path) == 2
    rows, expected = recorded.read(path), table(found)
    assert list(rows["key"]) == sorted(expected["key"])
    joined = rows.set_index("key").loc[expected["key"]]
    for column in expected.columns.drop("key"):
        if expected[column].isna().all():
            assert joined[column].isna().all(), column
        elif expected[column].dtype == float:
            np.testing.assert_allclose(joined[column].astype(float), expected[column], rtol=1e-6)
        else:
            assert list(joined[column]) == list(expected[column]), column
    assert set(rows["data"]) == {"eurosat-subset"}
    assert {"torch", "commit", "device", "seconds"} <= set(rows)
    assert sorted(from_json(text).seed for text in rows["config"]) == [100, 101]


def test_runs_that_came_out_with_other_numbers_than_are_recorded_are_told(quick, path, capsys):
    same, other = sweep([quick, quick.replace(seed=1)])
    execute.record_in(path, quick.dataset, "01_x", [same.key, other.key])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("01_x: 2 runs are recorded\n", "")
    before = path.read_bytes()
    (other.path / "metrics.json").write_text(json.dumps(other.metrics | {"negative_variance": 0.5}))
    execute.record_in(path, quick.dataset, "01_x", [same.key, other.key])
    told = capsys.readouterr().err
    assert f"01_x: 1 runs, such as {other.key}, came out with other numbers than are recorded" in told
    assert path.read_bytes() == before


def test_runs_are_added_and_stay_as_they_were_recorded(quick, path, forget):
    first, second = sweep([quick, quick.replace(seed=1)])
    assert recorded.record([first], path) == 1
    before = path.read_bytes()
    assert recorded.record([first, first], path) == 1
    assert path.read_bytes() == before  # and in one way
    assert recorded.record([second], path) == 2
    assert set(recorded.read(path)["key"]) == {first.key, second.key}
    accuracy = first.metrics["linear_accuracy"]
    (first.path / "metrics.json").write_text(json.dumps(first.metrics | {"linear_accuracy": 0.5}))
    assert recorded.record([first], path) == 2
    assert recorded.read(path).set_index("key").loc[first.key, "linear_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(first.key)]
    path.write_text("\n".join(lines) + "\n")
    assert recorded.record([first], path) == 2
    assert recorded.read(path).set_index("key").loc[first.key, "linear_accuracy"] == 0.5


def test_what_was_recorded_is_not_trained_again(quick, path, results, monkeypatch):
    recorded.record(sweep([quick, quick.replace(loss="dcl")]), path)
    shutil.rmtree(results / "runs")
    trained = []
    monkeypatch.setattr(recorded, "sweep", lambda configs: trained.extend(configs) or sweep(configs))
    found = recorded.table_of([quick, quick.replace(seed=1), quick, quick.replace(loss="dcl")], "cpu")
    assert trained == [quick.replace(seed=1)]
    assert sorted(zip(found["loss"], found["seed"], strict=True)) == [("dcl", 0), ("nt_xent", 0), ("nt_xent", 1)]
    assert found[["linear_accuracy", "untrained_accuracy", "negative_variance"]].notna().all(axis=None)
    assert found.index.tolist() == [0, 1, 2]
    assert len(recorded.table_of([quick], "cpu")) == 1
    assert len(recorded.table_of([], "cpu")) == 0


def test_recording_nothing_leaves_everything_as_it_is(quick, path):
    assert recorded.record([], path) == 0
    assert len(recorded.read(path)) == 0
    recorded.record([run(quick)], path)
    before = path.read_bytes()
    assert recorded.record([], path) == 1
    assert path.read_bytes() == before


def test_a_baseline_may_be_recorded_too(quick, path):
    """It has a row like any other, without baselines of its own."""
    pixels = run(baselines(quick)["pixels"])
    assert recorded.record([pixels], path) == 1
    assert recorded.record([pixels, run(quick)], path) == 2
    rows = recorded.read(path).set_index("key")
    assert math.isnan(rows.loc[pixels.key, "pixels_accuracy"])
    assert rows.loc[run(quick).key, "pixels_accuracy"] == pytest.approx(pixels.metrics["linear_accuracy"])


DAMAGE = {
    "edited key": lambda row: row | {"key": row["key"][:-1] + ("0" if row["key"][-1] != "0" else "1")},
    "edited config": lambda row: row | {"config": row["config"].replace('"epochs": 1', '"epochs": 2')},
    "edited data": lambda row: row | {"data": "cifar10"},
    "no accuracy": lambda row: row | {"linear_accuracy": math.nan},
    "infinite variance": lambda row: row | {"negative_variance": math.inf},
    "words for a number": lambda row: row | {"linear_accuracy": "high"},
    "a slip of the finger": lambda row: row | {"pixels_accuracy": ".4o1"},
    "garbage config": lambda row: row | {"config": "{half"},
    "no config": lambda row: row | {"config": math.nan},
    "a list for a config": lambda row: row | {"config": "[1, 2]"},
    "a config of another version": lambda row: row | {"config": row["config"].replace('"heads"', '"tails"')},
    "a data set that is a number": lambda row: row | {"config": row["config"].replace('"eurosat-subset"', "5")},
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The text of a table of three runs, two of which differ in their seed alone; and the config of these."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("recorded")
        for name, value in (("RESULTS", folder / "results"), ("PROGRESS", "off"), ("JOBS", "1")):
            patch.setenv(f"CONTRASTIVE_{name}", str(value))
        config = Config(
            image_size=16, n_train=64, n_validation=0, width=4, projector_hidden=16, projector_dim=8, batch_size=32,
            epochs=1, warmup_epochs=0, measured_pairs=64, accelerator="cpu",
        )  # fmt: skip
        found = sweep([config.replace(seed=seed) for seed in (100, 101)] + [config.replace(loss="dcl", seed=100)])
        recorded.record(found, folder / "runs.csv")
        return (folder / "runs.csv").read_text(), config


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_is_left_out_and_told_once(three, path, capsys, damage):
    text, config = three
    rows = pd.read_csv(io.StringIO(text)).to_dict("records")
    keys = [row["key"] for row in rows]
    rows[1] = DAMAGE[damage](rows[1])
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    kept = recorded.read(path)
    assert list(kept["key"]) == [keys[0], keys[2]]
    assert np.isfinite(kept[["linear_accuracy", "pixels_accuracy"]].mean()).all()  # they are numbers still
    recorded.matching([config])
    told = capsys.readouterr().out
    assert told.startswith("runs.csv, line 3 is ignored: ")
    assert not told.endswith("..\n")
    assert told.count("\n") == 1


BROKEN_LINES = {
    "an extra cell": lambda line: line + ",1",
    "cut short": lambda line: line[: len(line) // 2],
    "a cell too few": lambda line: line.rpartition(",")[0],
    "an open quote": lambda line: line + ',"',
    "an open quote within": lambda line: line.replace('}"', "}"),
}


@pytest.mark.parametrize("damage", BROKEN_LINES)
def test_a_line_that_is_no_row_is_left_out_alone(three, path, capsys, damage, forget):
    text, _ = three
    lines = text.splitlines()
    lines[2] = BROKEN_LINES[damage](lines[2])
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    assert list(recorded.read(path)["key"]) == [lines[n].partition(",")[0] for n in (1, 3)]
    told = capsys.readouterr().out
    assert told.startswith("runs.csv, line 3 is ignored: ")
    assert told.count("\n") == 1


def test_a_run_counts_once_however_often_it_stands_there(three, path, capsys):
    text, config = three
    lines = text.splitlines()
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([*lines, lines[2], lines[2]]))
    assert recorded.read(path)["key"].is_unique
    assert len(recorded.matching([config, config.replace(loss="dcl")])) == 3
    told = capsys.readouterr().out
    assert [line.partition(" is")[0] for line in told.splitlines()] == ["runs.csv, line 5", "runs.csv, line 6"]


def test_runs_are_taken_from_the_folder_that_is_named(three, path, monkeypatch):
    text, config = three
    other = path.parent.with_name("cpu-other") / "runs.csv"
    other.parent.mkdir(parents=True)
    other.write_text(text)
    trained = []
    monkeypatch.setattr(recorded, "sweep", lambda configs: trained.extend(configs) or [])
    found = recorded.table_of([config.replace(seed=101), config.replace(loss="dcl", seed=100)], "cpu-other")
    assert not trained
    assert sorted(zip(found["loss"], found["seed"], strict=True)) == [("dcl", 100), ("nt_xent", 101)]
    assert found.index.tolist() == [0, 1]
    assert len(recorded.table_of([config.replace(seed=101)], "cpu")) == 0
    assert trained == [config.replace(seed=101)]


def test_a_run_whose_line_is_damaged_is_recorded_again_in_its_place(quick, path, capsys):
    first, second = sweep([quick, quick.replace(seed=1)])
    recorded.record([first, second], path)
    before = path.read_bytes()
    path.write_bytes(before.replace(b'""seed"": 1', b'""seed"": 7'))
    assert path.read_bytes() != before
    assert recorded.record([first, second], path) == 2
    assert path.read_bytes() == before


def test_nothing_is_recorded_into_what_is_no_table(quick, path):
    path.parent.mkdir(parents=True)
    path.write_text("not,a\ntable,of runs\n")
    with pytest.raises(CompanionError, match="is not a table of recorded runs"):
        recorded.record([run(quick)], path)
    assert path.read_text() == "not,a\ntable,of runs\n"


@pytest.mark.parametrize("content", ["", "not,a\ntable,of runs\n", "\0\1\2", "key,data,config\na,b,c\n"])
def test_a_file_that_is_no_table_of_runs_is_told(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(CompanionError, match=r"runs\.csv is not a table of recorded runs .*: restore it"):
        recorded.read(path)


def test_where_nothing_was_recorded_there_are_no_rows(quick, path):
    assert len(recorded.read(path)) == 0
    assert len(recorded.matching([quick])) == 0


def test_matching_ignores_seeds_and_no_other_setting(three, path):
    text, config = three
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert sorted(recorded.matching([config])["seed"]) == [100, 101]
    assert sorted(recorded.matching([config.replace(seed=seed) for seed in (0, 1, 2)])["seed"]) == [100, 101]
    assert list(recorded.matching([config.replace(loss="dcl")])["loss"]) == ["dcl"]
    assert len(recorded.matching([config, config.replace(loss="dcl")])) == 3
    changes = {
        "epochs": 2, "batch_size": 16, "width": 8, "n_train": 60, "n_validation": 5, "image_size": 8, "momentum": 0.8,
        "learning_rate": 0.1, "weight_decay": 0.0, "warmup_epochs": 1, "measured_pairs": 60, "temperature": 0.3,
        "vrns": 1.0, "flip": 0.1, "jitter": 0.3, "heads": 2, "loss_batch_size": 16, "encoder": "resnet18",
        "precision": "bf16-mixed", "accelerator": "auto", "schedule": "steps",
    }  # fmt: skip
    for name, value in changes.items():
        assert len(recorded.matching([config.replace(**{name: value})])) == 0, name
    assert len(recorded.matching([config], "cpu-cifar10")) == 0
    assert len(recorded.matching([config.replace(dataset="cifar10")])) == 2  # the folder says which
    assert len(recorded.matching([config.replace(dataset="emoji")])) == 0  # these stand in any table


def test_matching_leaves_out_the_runs_that_a_setting_was_chosen_by(quick, path):
    recorded.record(sweep([quick.replace(seed=seed) for seed in (100, *recorded.CHOOSING)]), path)
    assert len(recorded.read(path)) == 4
    assert list(recorded.matching([quick.replace(seed=1000)])["seed"]) == [100]
    assert list(recorded.matching([quick.replace(loss="dcl")]).columns) == list(recorded.read(path).columns)
    assert list(recorded.table_of([quick.replace(seed=1000)])["seed"]) == [1000]  # who asks for it by name gets it


@pytest.fixture
def own_images(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for label in range(2):
            (tmp_path / "secret" / "own" / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "secret" / "own" / split / str(label) / f"{i}.png")
    return tmp_path / "secret" / "own"


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_where_an_image_folder_lies_is_nobodys_business(quick, path, own_images, storage):
    config = quick.replace(dataset=f"imagefolder:{own_images}/", storage=storage)
    found = run(config)
    recorded.record([found], path.parent.with_name("cpu-own") / "runs.csv")
    text = (path.parent.with_name("cpu-own") / "runs.csv").read_text()
    assert "secret" not in text
    assert str(own_images.anchor) + "tmp" not in text
    assert "imagefolder:own" in text
    rows = recorded.matching([config], "cpu-own")
    assert list(rows["key"]) == [found.key]  # though it lies elsewhere for whoever reads it


def test_no_committed_row_has_lost_its_key():
    """A field that was added since with a default, or renamed, would show here: such rows are left out when read."""
    for path in sorted(paths.reference().glob("*/runs.csv")):
        lines = path.read_text().count("\n") - 1
        assert len(recorded.read(path)) == lines > 0, path
