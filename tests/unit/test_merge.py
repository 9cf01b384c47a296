"""Results of another machine become recorded ones: whole, sound, once, and with the claims that rest on them."""

import contextlib
import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from companion import paths, store
from companion.course import merge, profiles
from companion.errors import CompanionError
from companion.ledger import identity, load, over_seeds, verdict
from companion.training import baselines, recorded, sweep, table
from companion.training.provenance import NAMES, provenance

SIZES = {
    "image_size": 16, "n_train": 64, "n_validation": 10, "width": 4, "projector_hidden": 16, "projector_dim": 8,
    "batch_size": 32, "epochs": 2, "warmup_epochs": 0, "measured_pairs": 64,
}  # fmt: skip
SEEDS = (0, 1, 2)
CLAIM = "lee2025.table1.trend"


@pytest.fixture(scope="module", autouse=True)
def small():
    """A profile ``gpu`` that any machine can train in a second."""
    tiny = dataclasses.replace(profiles.named("gpu"), accelerator="cpu", settings=SIZES, augmentation={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles._PROFILES, "gpu", tiny)
        yield tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """The results of another machine: three seeds with their baselines, and what its notebooks filed."""
    folder = tmp_path_factory.mktemp("there") / "results"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RESULTS", folder), ("PROGRESS", "off"), ("JOBS", "1")):
            patch.setenv(f"CONTRASTIVE_{name}", str(value))
        runs = sweep(small.configs())
        table(runs)
    claim = load()[CLAIM]
    observed = over_seeds([0.2, 0.21, 0.22])
    record = dataclasses.asdict(observed) | {"verdict": verdict(claim, observed), "runs": sorted(r.key for r in runs)}
    (folder / "gpu").mkdir()
    (folder / "gpu" / "claims.json").write_text(json.dumps({CLAIM: record}))
    (folder / "gpu" / "scoreboard.md").write_text("nothing that is fetched")
    (folder / "runs" / ".partial-x").mkdir()
    return folder


@pytest.fixture
def there(trained, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(trained, tmp_path / "there")


@pytest.fixture
def here(results, tmp_path, monkeypatch, forget):
    """Recorded results of the test's own, and an empty run store; in which nothing may be trained."""
    monkeypatch.setattr(paths, "reference", lambda: tmp_path / "reference")
    monkeypatch.setattr(merge, "sweep", lambda configs: pytest.fail("trained again") if configs else [])
    return tmp_path / "reference"


def names(folder, prefix="nt_xent"):
    return sorted(path.name for path in (folder / "runs").glob(f"{prefix}*"))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_merged_is_what_would_have_been_recorded_there(there, here, trained, small, tmp_path, monkeypatch):
    told = merge.merge(str(there), "gpu")
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(trained))
    others = [config for name in small.configs() for config in baselines(name).values()]
    recorded.record(sweep(small.configs() + others), tmp_path / "recorded" / "runs.csv")
    assert (here / "gpu" / "runs.csv").read_bytes() == (tmp_path / "recorded" / "runs.csv").read_bytes()
    rows = recorded.read(here / "gpu" / "runs.csv").set_index("key")
    beside = ["pixels_accuracy", "colours_accuracy", "untrained_accuracy", "supervised_accuracy"]
    assert rows.loc[names(there), beside].notna().all(axis=None)
    assert told.startswith(f"gpu: {len(rows)} runs are new, 0 were there; {len(rows)} rows now, histories of 6.\n")
    assert "Claims: 1 taken over, 0 left as they were." in told
    assert json.loads((here / "gpu" / "claims.json").read_text()) == json.loads((there / "gpu/claims.json").read_text())


def test_what_is_no_folder_is_no_run(there, here):
    (there / "runs" / "notes.txt").write_text("mine")
    assert "Refused" not in merge.merge(str(there), "gpu")


def test_a_history_is_that_of_the_run(there, here):
    merge.merge(str(there), "gpu")
    histories = pd.read_csv(here / "gpu" / "histories.csv")
    assert sorted(set(histories["key"])) == sorted(names(there) + names(there, "supervised"))
    for key, rows in histories.groupby("key"):
        original = pd.read_csv(there / "runs" / key / "history.csv")
        assert rows["epoch"].tolist() == [1, 2]
        np.testing.assert_allclose(rows["loss"], original["loss"], rtol=1e-6)
        np.testing.assert_allclose(rows["negative_std"], original["negative_std"], rtol=1e-6)


def test_merged_again_it_changes_nothing_and_later_runs_are_added(there, here):
    later = there / "runs" / names(there)[0]
    later.rename(there / "later")
    first = merge.merge(str(there), "gpu")
    assert "Refused, 1 claim, 1 of its 3 runs are not recorded" in first
    assert f": {CLAIM}." in first
    assert not (here / "gpu" / "claims.json").exists()
    before = contents(here)
    assert "gpu: 0 runs are new," in merge.merge(str(there), "gpu")
    assert contents(here) == before
    (there / "later").rename(later)
    assert "gpu: 1 runs are new," in merge.merge(str(there), "gpu")
    assert set(recorded.read(here / "gpu" / "runs.csv")["key"]) == {
        path.name for path in (there / "runs").glob("[!.]*")
    }
    assert set(pd.read_csv(here / "gpu" / "histories.csv")["key"]) >= {later.name}
    assert set(json.loads((here / "gpu" / "claims.json").read_text())) == {CLAIM}


def test_runs_that_were_recorded_before_do_not_vouch_for_claims_that_come_with_damaged_ones(there, here):
    """Nobody knows then with which numbers those were made. Runs that did not come along are taken as recorded: they
    may have been read from the table there too."""
    merge.merge(str(there), "gpu")
    (here / "gpu" / "claims.json").unlink()
    first, second, _ = (there / "runs" / name for name in names(there))
    metrics = (first / "metrics.json").read_text()
    (first / "metrics.json").write_text("{")
    shutil.rmtree(second)
    assert "Refused, 1 claim, 1 of its 3 runs are not recorded, or came damaged" in merge.merge(str(there), "gpu")
    assert not (here / "gpu" / "claims.json").exists()
    (first / "metrics.json").write_text(metrics)
    merge.merge(str(there), "gpu")
    assert set(json.loads((here / "gpu" / "claims.json").read_text())) == {CLAIM}


def edit(name, **changes):
    def damage(run):
        values = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(values | changes))

    return damage


def cut_short(run):
    lines = (run / "history.csv").read_text().splitlines()
    (run / "history.csv").write_text("\n".join(lines[:-1]) + "\n")


def rename_column(run):
    text = (run / "history.csv").read_text()
    (run / "history.csv").write_text(text.replace("step,", "key,", 1))


ONE_LINE = "expected a line of at most 200 characters"
DAMAGE = {
    "no metrics": (lambda run: (run / "metrics.json").unlink(), "not complete: it has no metrics.json"),
    "half-written": (
        lambda run: (run / "metrics.json").write_text('{"linear_acc'),
        "missing or damaged .* once it is whole there: ",
    ),
    "no number": (edit("metrics.json", linear_accuracy=float("nan")), "its metrics are damaged"),
    "words": (edit("metrics.json", alignment="high"), "its metrics are damaged"),
    "a truth value": (edit("metrics.json", alignment=True), "its metrics are damaged"),
    "an infinity": (edit("metrics.json", alignment=float("inf")), "its metrics are damaged"),
    "an integer beyond every float": (edit("metrics.json", alignment=10**400), "alignment is 1000"),
    "an accuracy of 7": (edit("metrics.json", linear_accuracy=7.0), "linear_accuracy is 7.0, expected a .* 0 to 1"),
    "a share below 0": (edit("metrics.json", test_image_r5=-0.1), "test_image_r5 is -0.1, expected .* from 0 to 1"),
    "a variance of -7": (edit("metrics.json", variance_total=-7), "variance_total is -7, expected .* from 0 to 1"),
    "an accuracy left out": (edit("metrics.json", linear_accuracy=None), "linear_accuracy is None, expected"),
    "a key among the metrics": (edit("metrics.json", key=1.0), "'key' is no name of a metric"),
    "a setting among them": (edit("metrics.json", epochs=1.0), "'epochs' is no name of a metric"),
    "a baseline among them": (edit("metrics.json", pixels_accuracy=0.5), "'pixels_accuracy' is no name of a metric"),
    "a name of two lines": (edit("metrics.json", **{"a\nb": 1.0}), r"'a\\nb' is no name of a metric"),
    "two lines": (edit("environment.json", device="cpu\n, one thread"), rf"device is 'cpu\\n, one thread', {ONE_LINE}"),
    "an old line break": (edit("environment.json", commit="1\r2"), rf"commit is '1\\r2', {ONE_LINE}"),
    "half a character": (edit("environment.json", device="\ud800"), ONE_LINE),
    "more than csv reads": (edit("environment.json", device="x" * 200_000), ONE_LINE),
    "a list of devices": (edit("environment.json", device=["cpu"]), ONE_LINE),
    "a metric made with": (edit("environment.json", linear_accuracy=0.99), "has 'linear_accuracy': expected only det"),
    "a key made with": (edit("environment.json", key="x"), "has 'key': expected only deterministic, python"),
    "a time that is none": (edit("environment.json", seconds=-1), "seconds is -1, expected a number of at least 0"),
    "nested deeply": (lambda run: (run / "config.json").write_text("[" * 100_000), "nested too deeply to be read"),
    "metrics nested deeply": (lambda run: (run / "metrics.json").write_text('{"a":' * 100_000), "nested too deeply"),
    "a key in its history": (rename_column, "its history is damaged"),
    "unknown origin": (lambda run: (run / "environment.json").write_text("{}"), "does not say what it was made with"),
    "an epoch lost": (cut_short, "its history is damaged: expected 2 epochs"),
    "binary": (lambda run: (run / "history.csv").write_bytes(b"\xff\x00\xff"), "missing or damaged"),
    "edited": (edit("config.json", momentum=0.8), "its name is not that of its config"),
    "renamed": (lambda run: run.rename(run.with_name(run.name[:-1] + "z")), "its name is not that of its config"),
    "outdated": (edit("config.json", training_version=1), "it is of version 1 of the training code"),
    "of a later version": (edit("config.json", colour="red"), "Unknown parameter 'colour'"),
    "of other images": (edit("config.json", dataset="cifar10"), "it was trained on cifar10, and gpu is of eurosat"),
    "of another profile": (edit("config.json", n_train=60), "it is not of profile gpu: .*images 70 and not 74"),
    "of another device": (edit("config.json", accelerator="cuda"), "it is not of profile gpu: accelerator cuda"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_sound_or_not_of_this_table_is_refused_by_name(there, here, damage, capsys):
    harm, why = DAMAGE[damage]
    run = there / "runs" / names(there)[1]
    harm(run)
    (name,) = {path.name for path in (there / "runs").glob("nt_xent*seed1*")}
    told = merge.merge(str(there), "gpu")
    (line,) = [line for line in told.splitlines() if line.startswith("Refused, 1 run")]
    assert name in line
    assert re.search(why, line), line
    assert [key for key in recorded.read(here / "gpu" / "runs.csv")["key"] if key.startswith("nt_xent")] == [
        names(there)[0], names(there)[2],
    ]  # fmt: skip
    assert run.name not in (here / "gpu" / "histories.csv").read_text()
    assert "Refused, 1 claim" in told  # it rests on the refused run
    assert "and its run is trained again" not in told  # by nobody here
    assert "is ignored" not in capsys.readouterr().out  # the table has no line that is none


def test_what_provenance_tells_is_recorded(monkeypatch):
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: True)
    assert tuple(provenance(torch.device("cpu"))) == NAMES


def test_what_is_recorded_is_possible():
    """The numbers of the repository's own tables."""
    for path in paths.reference().glob("*/runs.csv"):
        numbers = pd.read_csv(path).select_dtypes("number")
        for name in numbers:
            low, high = recorded._range(name)
            assert numbers[name].dropna().between(low - 1e-6, high + 1e-6).all(), f"{name} of {path}"


def test_a_run_that_is_recorded_with_other_numbers_stays_and_carries_no_claim(there, here):
    key = names(there)[0]
    merge.merge(str(there), "gpu")
    (here / "gpu" / "claims.json").unlink()
    histories = (here / "gpu" / "histories.csv").read_text().splitlines(True)
    (here / "gpu" / "histories.csv").write_text("".join(line for line in histories if not line.startswith(key)))
    before = contents(here)
    edit("metrics.json", negative_variance=0.5)(there / "runs" / key)
    told = merge.merge(str(there), "gpu")
    assert f"Recorded before with other numbers, and left so: {key}." in told
    assert "1 of its 3 runs are not recorded, or came damaged or with other numbers" in told
    assert contents(here) == before


@pytest.mark.parametrize(("change", "other"), [(1e-4, True), (-3e-6, True), (1e-8, False)])
def test_numbers_are_others_if_they_differ_in_a_digit_that_is_recorded(there, here, change, other):
    """Seven are."""
    key = names(there)[0]
    merge.merge(str(there), "gpu")
    value = json.loads((there / "runs" / key / "metrics.json").read_text())["negative_variance"]
    edit("metrics.json", negative_variance=value * (1 + change))(there / "runs" / key)
    told = merge.merge(str(there), "gpu")
    assert (f"Recorded before with other numbers, and left so: {key}." in told) == other
    assert ("Recorded before with other numbers" in told) == other


def test_histories_follow_a_line_that_was_removed_to_record_the_run_again(there, here):
    merge.merge(str(there), "gpu")
    path, key = here / "gpu" / "runs.csv", names(there)[0]
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(key)))
    history = pd.read_csv(there / "runs" / key / "history.csv").assign(loss=[7.0, 8.0])
    history.to_csv(there / "runs" / key / "history.csv", index=False)
    merge.merge(str(there), "gpu")
    histories = pd.read_csv(here / "gpu" / "histories.csv")
    assert histories.loc[histories["key"] == key, "loss"].tolist() == [7.0, 8.0]
    assert len(histories) == 12


CLAIMS = {
    "more seeds": ({"n": 4}, "1 taken over"),
    "as many": ({"value": 0.2}, "0 taken over, 1 left"),
    "fewer": ({"n": 2}, "rests on 2 observations, and a claim of kind 'trained' needs 3"),
    "no runs": ({"n": 4, "runs": []}, "does not say on which runs it rests"),
    "a run that nobody has": ({"n": 4, "runs": ["x"]}, "1 of its 1 runs are not recorded.*the first is x"),
    "another range": ({"n": 4, "verdict": "inconclusive"}, "its verdict is 'inconclusive', and by .* 'reproduced'"),
}


@pytest.mark.parametrize("change", CLAIMS)
def test_a_record_gives_way_only_to_a_sound_one_of_more_observations(there, here, change):
    merge.merge(str(there), "gpu")
    before = (here / "gpu" / "claims.json").read_bytes()
    values, expected = CLAIMS[change]
    filed = json.loads((there / "gpu" / "claims.json").read_text())
    (there / "gpu" / "claims.json").write_text(json.dumps({CLAIM: filed[CLAIM] | values}))
    told = merge.merge(str(there), "gpu")
    assert re.search(expected, told), told
    if change == "more seeds":
        assert json.loads((here / "gpu" / "claims.json").read_text())[CLAIM]["n"] == 4
    else:
        assert (here / "gpu" / "claims.json").read_bytes() == before


def test_a_claim_that_the_profile_does_not_test_is_refused(there, here):
    other = "lee2025.table1.simclr.m32"
    assert "gpu" not in load()[other].profiles
    filed = json.loads((there / "gpu" / "claims.json").read_text())
    (there / "gpu" / "claims.json").write_text(json.dumps({other: filed[CLAIM]}))
    assert "it is not tested at gpu, but at paper" in merge.merge(str(there), "gpu")
    assert not (here / "gpu" / "claims.json").exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000], ids=["half", "nested deeply"])
def test_runs_are_recorded_though_the_claims_are_damaged(there, here, text):
    (there / "gpu" / "claims.json").write_text(text)
    told = merge.merge(str(there), "gpu")
    assert told.startswith("gpu: 11 runs are new")
    assert f"No claim was taken over: {there / 'gpu' / 'claims.json'} is damaged" in told
    assert "make reproduce" not in told  # that makes none there
    assert len(recorded.read(here / "gpu" / "runs.csv"))
    assert not (here / "gpu" / "claims.json").exists()


def test_what_was_cut_off_between_two_files_is_made_good(there, here, monkeypatch):
    follow = recorded._follow
    monkeypatch.setattr(recorded, "_follow", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge.merge(str(there), "gpu")
    assert len(pd.read_csv(here / "gpu" / "histories.csv")) == 0 < len(pd.read_csv(here / "gpu" / "runs.csv"))
    monkeypatch.setattr(recorded, "_follow", follow)
    assert "0 runs are new, 11 were there; 11 rows now, histories of 6." in merge.merge(str(there), "gpu")
    assert set(pd.read_csv(here / "gpu" / "histories.csv")["key"]) == {*names(there), *names(there, "supervised")}
    assert (here / "gpu" / "claims.json").exists()


def test_another_writer_in_between_loses_nothing(there, here, tmp_path, monkeypatch):
    """Two machines' results, of which the second is recorded while the first is about to be."""
    other = shutil.copytree(there, tmp_path / "other")
    shutil.rmtree(there / "runs" / names(there)[0])
    shutil.rmtree(other / "runs" / names(other)[1])
    shared = names(other)[1]
    edit("metrics.json", negative_variance=0.5)(other / "runs" / shared)
    lock, inner = store.lock, []

    @contextlib.contextmanager
    def interrupted(name):
        if name == "recorded-gpu" and (here / "gpu" / "histories.csv").exists() and not inner:
            inner.append(True)
            merge.merge(str(other), "gpu")
        with lock(name):
            yield

    monkeypatch.setattr(store, "lock", interrupted)
    told = merge.merge(str(there), "gpu")
    assert inner
    rows = recorded.read(here / "gpu" / "runs.csv")
    assert rows.set_index("key").loc[shared, "negative_variance"] == 0.5  # who comes first
    assert f"Recorded before with other numbers, and left so: {shared}." in told
    assert "Claims: 0 taken over" in told
    assert set(rows["key"]) == {path.name for folder in (there, other) for path in (folder / "runs").glob("[!.]*")}
    assert (here / "gpu" / "runs.csv").read_text().count("\n") == len(rows) + 1
    assert pd.read_csv(here / "gpu" / "histories.csv").groupby("key")["epoch"].apply(list).map(len).eq(2).all()


# ---- baselines, and images that are not here -----------------------------------------------------------------------


def test_a_baseline_that_did_not_come_is_trained_where_images_and_device_are(there, here, monkeypatch):
    expected = {name: json.loads((there / "runs" / name / "metrics.json").read_text())["linear_accuracy"]
                for name in names(there, "supervised")}  # fmt: skip
    for name in expected:
        shutil.rmtree(there / "runs" / name)
    monkeypatch.setattr(merge, "sweep", sweep)
    told = merge.merge(str(there), "gpu")
    rows = recorded.read(here / "gpu" / "runs.csv")
    found = rows[rows["method"] == "contrastive"].dropna(subset="supervised_accuracy").set_index("seed")
    assert "No supervised_accuracy" not in told
    assert found["supervised_accuracy"].round(6).tolist() == [round(x, 6) for x in expected.values()]


def test_where_they_cannot_be_had_the_cells_stay_empty_and_that_is_told(there, here, monkeypatch):
    for name in names(there, "supervised"):
        shutil.rmtree(there / "runs" / name)
    monkeypatch.setattr(merge.Merge, "_can_be_trained", lambda self, config: False)
    told = merge.merge(str(there), "gpu")
    assert "No supervised_accuracy in 3 rows: none came with them, and none could be trained here." in told
    rows = recorded.read(here / "gpu" / "runs.csv").set_index("key").loc[names(there)]
    assert rows["supervised_accuracy"].isna().all()
    assert rows[["pixels_accuracy", "colours_accuracy", "untrained_accuracy"]].notna().all(axis=None)


def test_a_baseline_that_comes_later_fills_the_cells_of_the_runs_that_wait_for_it(there, here, tmp_path, monkeypatch):
    complete = merge.merge(str(there), "gpu")
    expected = contents(here / "gpu")
    shutil.rmtree(here / "gpu")
    recorded.read.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(merge.Merge, "_can_be_trained", lambda self, config: False)
        for name in [*names(there, "supervised"), *names(there, "pixels")]:
            shutil.move(there / "runs" / name, tmp_path / name)
        told = merge.merge(str(there), "gpu")
        assert "No pixels_accuracy in 3 rows" in told
        waiting = contents(here)
        assert "could be filled" not in merge.merge(str(there), "gpu")
        assert contents(here) == waiting
        shutil.move(next(tmp_path.glob("pixels*")), there / "runs")
        assert "Empty cells of baselines that could be filled now: 3." in (told := merge.merge(str(there), "gpu"))
        assert "No supervised_accuracy in 3 rows" in told
        assert "pixels_accuracy" not in told
        for path in tmp_path.glob("supervised*"):
            shutil.move(path, there / "runs")
        assert "could be filled now: 3." in merge.merge(str(there), "gpu")
    assert contents(here / "gpu") == expected
    assert "No " not in complete


def test_a_baseline_whose_training_fails_is_tried_once_a_merge(there, here, monkeypatch, capsys):
    tried = []

    def fails(configs):
        tried.extend(configs)
        if configs:
            raise CompanionError("the training failed")

    for name in names(there, "supervised"):
        shutil.rmtree(there / "runs" / name)
    monkeypatch.setattr(merge, "sweep", fails)
    for merges in (1, 2):
        assert "No supervised_accuracy in 3 rows" in merge.merge(str(there), "gpu")
        assert len(tried) == 3 * merges
        assert capsys.readouterr().out.count("the training failed") == 1


def test_filling_leaves_lines_that_do_not_count_and_the_table_free_meanwhile(there, here, monkeypatch):
    for name in names(there, "supervised"):
        shutil.rmtree(there / "runs" / name)
    monkeypatch.setattr(merge.Merge, "_can_be_trained", lambda self, config: False)
    merge.merge(str(there), "gpu")
    path = here / "gpu" / "runs.csv"
    header, *lines = path.read_text().splitlines()
    first = next(line for line in lines if line.startswith(names(there)[0]))
    strange = first.replace(names(there)[0], "edited")
    path.write_text("\n".join([header, *lines, first, strange]) + "\n")  # repeated, and of another key

    def accuracies(configs):
        with store._lock("recorded-gpu").acquire(timeout=5):  # raises where somebody holds it
            pass
        return [0.25] * len(configs)

    assert recorded.fill(path, accuracies) == 3
    after = path.read_text().splitlines()
    assert after[-2:] == [first, strange]
    filled = [bool(re.search(r",0\.25(,|$)", line)) for line in after[1:-2]]
    assert filled == [line.startswith("nt_xent") for line in lines]
    stamp = path.stat().st_mtime_ns
    assert recorded.fill(path, accuracies) == 0
    assert recorded.fill(here / "nowhere" / "runs.csv", accuracies) == 0
    assert path.stat().st_mtime_ns == stamp


def test_a_baseline_that_is_recorded_serves_the_runs_that_come_later(there, here):
    later = there / "runs" / names(there)[0]
    later.rename(there / "later")
    merge.merge(str(there), "gpu")
    shutil.rmtree(there / "runs")
    (there / "runs").mkdir()
    (there / "later").rename(later)
    assert "_accuracy" not in merge.merge(str(there), "gpu")
    rows = recorded.read(here / "gpu" / "runs.csv").set_index("key")
    assert rows.loc[later.name, "pixels_accuracy"] == rows.loc[names_of_pixels(rows), "linear_accuracy"]


def names_of_pixels(rows):
    (key,) = [key for key in rows.index if key.startswith("pixels")]
    return key


@pytest.fixture
def own_images(tmp_path, monkeypatch, small, here):
    """Results on an image folder ``own`` of the other machine, and where its images lie."""
    generator, images = np.random.default_rng(0), tmp_path / "elsewhere" / "own"
    for split, count in (("train", 40), ("test", 12)):
        for label in range(2):
            (images / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(256, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / str(label) / f"{i}.png")
    with monkeypatch.context() as patch:
        patch.setenv("CONTRASTIVE_RESULTS", str(tmp_path / "far"))
        table(sweep([small.config(dataset=f"imagefolder:{images}", seed=seed) for seed in (0, 1)]))
    return tmp_path / "far", images


def test_images_need_not_be_here_once_a_row_tells_what_they_are(own_images, here, monkeypatch, forget):
    far, images = own_images
    second = next((far / "runs").glob("nt_xent*seed1*"))
    second.rename(far / "later")
    shutil.move(images.parent, images.parent.with_name("data"))
    assert "own, are not here, and no recorded run tells what they are: name a folder" in merge.merge(
        str(far), "gpu-own"
    )
    assert not list(here.rglob("*.csv"))
    forget()
    monkeypatch.setenv("CONTRASTIVE_DATA", str(images.parent.with_name("data")))
    assert "gpu-own: 7 runs are new" in merge.merge(str(far), "gpu-own")
    shutil.rmtree(images.parent.with_name("data"))
    forget()
    (far / "later").rename(second)
    assert "gpu-own: 1 runs are new" in merge.merge(str(far), "gpu-own")
    text = (here / "gpu-own" / "runs.csv").read_text()
    assert "elsewhere" not in text
    assert text.count("imagefolder:own:") == 8
    assert text.count('""dataset"": ""imagefolder:own""') == 8


def test_other_images_of_the_same_name_are_refused(own_images, here, monkeypatch, forget):
    far, images = own_images
    monkeypatch.setenv("CONTRASTIVE_DATA", str(images.parent))
    next(images.rglob("*.png")).unlink()
    told = merge.merge(str(far), "gpu-own")
    assert "gpu-own: 0 runs are new" in told
    assert "Refused, 8 runs, its name is not that of its config on the images of this table" in told


# ---- what a name means ---------------------------------------------------------------------------------------------


def test_what_is_recorded_of_cpu_has_other_seeds_than_its_notebooks(there, here, monkeypatch):
    """Its claims are those that `make reference` filed, not those of its notebooks."""
    for name in ("cpu", "reference"):
        tiny = dataclasses.replace(profiles.named(name), settings=SIZES)
        monkeypatch.setitem(profiles._PROFILES, name, tiny)
    (there / "gpu").rename(there / "cpu")
    formula = {"lee2025.equation6": dataclasses.asdict(identity(0.0)) | {"verdict": "reproduced"}}
    (there / "reference" / "cpu").mkdir(parents=True)
    (there / "reference" / "cpu" / "claims.json").write_text(json.dumps(formula))
    told = merge.merge(str(there), "cpu")
    rows = recorded.read(here / "cpu" / "runs.csv")
    assert sorted(rows["encoder"]) == ["colour_moments", "pixels"]  # which have no seed
    assert "Refused, 9 runs, its seed is one of the notebooks' own, (0, 1, 2): recorded runs have others" in told
    assert "Claims: 1 taken over, 0 left as they were." in told
    assert json.loads((here / "cpu" / "claims.json").read_text()) == formula
    assert not (here / "cpu" / "histories.csv").exists()


def test_a_longer_training_is_recorded_apart_with_the_seeds_of_its_own_profile(there, here, monkeypatch):
    tiny = dataclasses.replace(profiles.named("long"), settings=SIZES, seeds=SEEDS)
    monkeypatch.setitem(profiles._PROFILES, "long", tiny)
    (there / "reference").mkdir()
    (there / "gpu").rename(there / "reference" / "cpu-long")
    told = merge.merge(str(there), "cpu-long")
    assert len(recorded.read(here / "cpu-long" / "runs.csv")) == 11
    assert "Claims: 1 taken over, 0 left as they were." in told
    assert not (here / "cpu-long" / "histories.csv").exists()
    refused = merge.merge(str(there), "cpu")  # where a run of another size has no place
    assert "Refused, 11 runs, it is not of profile cpu: images 74 and not 6000: " in refused
    assert merge.Merge("cpu-long-own").images == "own"


def test_what_a_longer_training_is_compared_with_may_stand_beside_it(there, here, monkeypatch):
    def of(name, **changes):
        tiny = dataclasses.replace(profiles.named(name), settings=SIZES | changes, seeds=seeds)
        monkeypatch.setitem(profiles._PROFILES, name, tiny)

    (there / "gpu").rename(there / "cpu-long")
    for size, seeds, refused in ((12, SEEDS, 11), (16, (7, 8, 9), 9), (16, SEEDS[1:], 3), (16, SEEDS, 0)):
        of("long", image_size=20)
        of("cpu", image_size=size)
        told = merge.merge(str(there), "cpu-long")
        why = f"Refused, {refused} runs, it is not of profile long: image_size 16 and not 20: "
        assert why in told if refused else "Refused" not in told
        rows = recorded.read(here / "cpu-long" / "runs.csv")
        assert len(rows) == 11 - refused
        assert set(rows.loc[rows["epochs"] > 0, "seed"] if len(rows) else ()) <= set(seeds)


@pytest.mark.parametrize(
    "into", ["", "smoke", "reference", "long", "GPU", "gpu/..", "../gpu", "gpu-", "tpu", "gpu-a b"]
)
def test_a_folder_is_named_after_a_profile(there, here, into):
    with pytest.raises(CompanionError, match="expected cpu, cpu-long, gpu or paper"):
        merge.merge(str(there), into)
    assert not here.exists()


@pytest.mark.parametrize("source", ["", "nowhere", "-e sh:x"])
def test_a_source_that_there_is_not_is_told(here, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompanionError, match="which has no folder runs/: expected the results folder"):
        merge.merge(source, "gpu")


# ---- from another machine ------------------------------------------------------------------------------------------


@pytest.fixture
def remote(there, tmp_path, monkeypatch):
    """``host:…``, where the other machine is this one: rsync speaks to itself through a shell in ssh's place."""
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/sh\necho "$2@$3" >> "$0.hosts"\nshift 3  # -l user host\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    return f"user@host:{there}"


def test_a_remote_store_is_fetched_without_its_weights(remote, there, here, tmp_path):
    told = merge.merge(remote, "gpu")
    assert (tmp_path / "ssh.hosts").read_text() == "user@host\n"
    (copy,) = (paths.results() / "fetched").iterdir()
    fetched = contents(copy)
    assert {name.rpartition("/")[2] for name in fetched} == {
        "config.json", "environment.json", "history.csv", "metrics.json", "claims.json",
    }  # fmt: skip
    assert fetched == {name: text for name, text in contents(there).items() if name in fetched}
    assert set(recorded.read(here / "gpu" / "runs.csv")["key"]) == set(names(there, "[!.]"))
    assert "1 taken over" in told
    before = contents(here)
    shutil.rmtree(there / "runs" / names(there)[0])
    merge.merge(remote, "gpu")
    assert contents(here) == before  # what was recorded stays
    assert len(names(copy)) == 2  # and the copy is what is there now


def test_weights_come_where_they_are_asked_for(remote, there, here):
    merge.merge(remote, "gpu", weights=True)
    (copy,) = (paths.results() / "fetched").iterdir()
    assert len(list(copy.rglob("weights.safetensors"))) == len(names(there, "[!.]"))


def test_what_rsync_says_is_told(remote, here, tmp_path):
    with pytest.raises(CompanionError, match=r"Fetching user@host:.*nowhere failed; rsync says: .*No such file"):
        merge.merge(f"user@host:{tmp_path}/nowhere", "gpu")
    assert not here.exists()


def test_without_rsync_it_is_told_what_to_do(here, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompanionError, match="rsync, which is not installed: install it here and there, or copy"):
        merge.merge("user@host:results", "gpu")


def test_the_command_tells_what_was_done_or_what_is_wrong(there, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["merge", "--", str(there), "gpu"])
    assert merge.main() == 0
    assert capsys.readouterr().out.startswith("gpu: 11 runs are new, 0 were there; 11 rows now")
    monkeypatch.setattr(sys, "argv", ["merge", "--", "", "gpu"])
    assert merge.main() == 2
    assert capsys.readouterr().err.startswith("FROM is ''")
