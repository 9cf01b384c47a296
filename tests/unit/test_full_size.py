"""What was recorded at the papers' size: read by settings, never mixed, said as it is, and deciding nothing here."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from companion import paths
from companion.course import profiles
from companion.course.full_size import TABLE_1, full_size
from companion.ledger import Ledger, Observed, identity, load, over_seeds, scoreboard, verdict

CLAIM = "lee2025.table1.trend"


@pytest.fixture
def reference(results, monkeypatch, forget):
    """Recorded results of the test's own."""
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    return results / "reference"


def write(folder, data, runs):
    """A table of these runs, (changes to the base, variance) each."""
    base = profiles.named(folder.name.partition("-")[0]).base
    rows = []
    for changes, variance in runs:
        config = base.replace(**changes)
        row = {"key": config.key(data), "data": data, "config": json.dumps(config.to_dict()), "linear_accuracy": 0.5}
        rows.append(row | {"negative_variance": variance, "device": "a GPU"})
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)


def test_a_cell_has_the_mean_and_n_and_an_interval_from_three_runs_on(reference):
    values = {32: [0.041, 0.042, 0.046], 64: [0.03, 0.04], 128: [0.0375]}
    runs = [({"batch_size": m, "seed": s}, x) for m, column in values.items() for s, x in enumerate(column)]
    others = [({"batch_size": 256, "vrns": 30.0}, 9), ({"batch_size": 256, "temperature": 0.5}, 9),
              ({"batch_size": 256, "epochs": 30}, 9), ({"batch_size": 512, "loss_batch_size": 256}, 9)]  # fmt: skip
    write(reference / "gpu-x", "imagefolder:x:0123", [*runs, *others])
    found = full_size([{"batch_size": m} for m in (32, 64, 128, 256)])
    assert found.column("negative_variance") == [
        f"{over_seeds(values[32])}, n = 3", "0.035, n = 2", "0.0375, n = 1", "not run",
    ]  # fmt: skip
    assert found.column("no_such_metric") == ["not run"] * 4
    assert str(found) == "Full size: 6 recorded runs of `gpu-x` (resnet18, 45,000 images, 15 epochs; a GPU)."


def test_where_nothing_is_recorded_it_says_so(reference):
    found = full_size([{"batch_size": 32}])
    assert found.column("negative_variance") == ["not run"]
    assert str(found) == "Full size: none of these settings has been recorded."
    assert full_size([]).column("negative_variance") == []


def test_a_table_never_mixes_data_sets_or_schedules(reference):
    """One column, one folder: that with most of the settings; of equals the paper's own schedule."""
    one, both = [({"batch_size": 32}, 0.1)], [({"batch_size": 32}, 0.2), ({"batch_size": 64}, 0.3)]
    write(reference / "gpu", "cifar10", both)
    write(reference / "paper", "cifar100", one)
    write(reference / "cpu", "eurosat-subset", [({"batch_size": 128}, 9)])
    assert paths.full_size() == ["paper", "gpu"]
    settings = [{"batch_size": 32}, {"batch_size": 64}]
    assert full_size(settings).column("negative_variance") == ["0.2, n = 1", "0.3, n = 1"]
    assert full_size(settings[:1]).column("negative_variance") == ["0.1, n = 1"]
    assert full_size([{"batch_size": 128}]).folder == ""  # what a laptop recorded is no full size


def test_a_cell_may_share_the_runs_of_several_settings_but_those_that_chose_one(reference):
    steps = [{"learning_rate": rate, "temperature": tau} for rate in (0.15, 0.3) for tau in (0.05, 0.1)]
    runs = [(steps[0] | {"seed": 1000}, 9), (steps[1] | {"seed": 0}, 0.2), (steps[1] | {"seed": 1}, 0.4)]
    write(reference / "gpu", "cifar10", runs)
    assert full_size([steps]).column("negative_variance") == ["0.3, n = 2"]


def test_the_committed_runs_are_found_by_the_settings_of_table_1():
    """Counted in the file itself."""
    settings = [(weight, m) for weight, row in TABLE_1.items() for m in row]
    found = full_size([{"vrns": weight, "batch_size": m} for weight, m in settings])
    rows = pd.read_csv(paths.reference() / found.folder / "runs.csv")
    configs = [json.loads(text) for text in rows["config"]]
    schedules = {"gpu": {"epochs": 15, "n_train": 45_000}, "paper": {"epochs": 200, "n_train": 50_000}}
    schedule = {"learning_rate": 0.3, "encoder": "resnet18"} | schedules[found.folder.partition("-")[0]]
    for (weight, m), cell in zip(settings, found.column("negative_variance"), strict=True):
        usual = {"batch_size": m} | schedule
        plain = {"loss": "nt_xent", "temperature": 0.2, "vrns": weight, "loss_batch_size": None, "heads": 1}
        fits = [usual.items() <= config.items() and plain.items() <= config["method"].items() for config in configs]
        mine = rows["negative_variance"][fits]
        assert cell == "not run" if not len(mine) else cell.endswith(f"n = {len(mine)}")
        if len(mine):
            assert float(cell.split()[0].rstrip(",")) == pytest.approx(mine.mean(), rel=1e-2)


# ---- the scoreboard ------------------------------------------------------------------------------------------------


def file(folder, observed, id=CLAIM):
    folder.mkdir(parents=True, exist_ok=True)
    record = dataclasses.asdict(observed) | {"verdict": verdict(load()[id], observed), "runs": ["a", "b", "c"]}
    path = folder / "claims.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {id: record}))


def test_the_scoreboard_shows_what_was_found_at_full_size_and_where(reference):
    large = over_seeds([0.18, 0.19, 0.21])
    file(reference / "gpu-x", large)
    file(reference / "gpu-x", identity(0.0), "lee2025.equation6")
    table = scoreboard.table(Ledger(profiles.load("cpu")))
    assert table.loc[CLAIM, "full size"] == f"{large}, n = 3 (gpu-x)"
    assert table.loc["lee2025.equation6", "full size"] == ""  # it has no size
    assert set(table.loc[table["kind"] != "identity", "full size"].drop(CLAIM)) == {"not run"}
    columns = list(table.columns)
    assert columns[columns.index("recorded n") :][:3] == ["recorded n", "full size", "agrees"]
    own = over_seeds([0.11, 0.12, 0.13])
    file(reference / "paper", own)
    assert scoreboard.table(Ledger(profiles.load("cpu"))).loc[CLAIM, "full size"] == f"{own}, n = 3 (paper)"


def test_full_size_decides_no_verdict_of_a_smaller_profile(reference, results):
    """Neither of a claim that was tested here, nor of one that was not, nor what survives chance."""
    ids = [claim.id for claim in load().values() if claim.kind == "trained"]
    file(results / "cpu", Observed(-0.2, -0.25, -0.15, 3))
    before = Ledger(profiles.load("cpu"))
    verdicts, deciding, words = scoreboard.table(before)["verdict"], before.deciding(), scoreboard.summary(before)
    for id in ids:
        middle = np.clip(1.0, load()[id].at_least, load()[id].at_most)
        file(reference / "gpu", Observed(middle, middle, middle, 3), id)
    after = Ledger(profiles.load("cpu"))
    table = scoreboard.table(after)
    assert table["verdict"].equals(verdicts)
    assert after.deciding() == deciding
    assert scoreboard.summary(after) == words
    assert (table.loc[ids, "full size"].str.endswith("(gpu)")).all()
    assert "(gpu)" in (scoreboard.write(after), (results / "cpu" / "scoreboard.md").read_text())[1]
