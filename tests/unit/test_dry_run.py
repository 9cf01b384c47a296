"""A dry run: which runs a notebook asks for, what stands in for them, and what that leaves alone."""

import ast

import lightning_fabric
import nbformat
import pandas as pd
import pytest
import torch
from nbformat import v4

from companion import paths, training
from companion.course import dry_run as reading
from companion.course import estimate, profiles
from companion.errors import CompanionError
from companion.ledger import load
from companion.ledger.ledger import read
from companion.training import data, planned, recorded
from companion.training.config import from_json

PARAMETERS = 'PROFILE = "auto"\nDATASET = ""\nSEED = 0'
SMALL = '{"n_train": 96, "n_validation": 20, "width": 4, "epochs": 2, "warmup_epochs": 0, "batch_size": 32}'


def notebook(folder, *cells: str, name="01_asks"):
    path = folder / f"{name}.ipynb"
    begin = f"from companion import training\nfrom companion.course import profiles\nsmall = {SMALL}"
    sources = [PARAMETERS, begin, "profile = profiles.load(PROFILE, dataset=DATASET, seed=SEED)", *cells]
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources]), path)
    return path


def asked(path, numbers=lambda config: {"linear_accuracy": 0.5}, **parameters):
    return reading.asked_for(path, {"PROFILE": "cpu"} | parameters, numbers)


def sliced(source: str) -> list[str]:
    """The lines of a notebook that a dry run executes, but for the import of `training`."""
    imports = "from companion import training"
    code = [reading.Statement(0, node) for node in ast.parse(f"{imports}\n{source}").body]
    lines = [ast.unparse(statement.node) for statement, _ in reading.leading_to_training(code)]
    return [line for line in lines if line != imports]


@pytest.mark.parametrize(
    ("source", "dropped"),
    [
        ("a = 1\nb = 2\ntraining.sweep([a])", ["b = 2"]),
        ("a = 1\na = 2\ntraining.run(a)", ["a = 1"]),  # forgotten
        ("a = 1\na += 2\ntraining.run(a)", []),
        ("a = []\na.append(3)\nprint(a)\ntraining.sweep(a)", ["print(a)"]),
        ("a = {}\na['x'] = 3\ntraining.sweep(a)", []),
        ("x = 7\na = [x for x in 'xyz']\ntraining.sweep(a)", ["x = 7"]),  # another x
        ("x = 7\na = {k: {x for x in k} for k in 'xyz'}\ntraining.sweep(a)", ["x = 7"]),
        ("x = 7\na = [k + x for k in 'xyz']\ntraining.sweep(a)", []),
        ("a = [b := x for x in 'xyz']\ntraining.run(b)", []),  # the name goes on
        ("for x in 'xyz':\n    print(x)\nfor x in 'abc':\n    training.run(x)", ["for x in 'xyz':\n    print(x)"]),
        ("def f(x):\n    return k + x\nk = 1\ng = 2\ntraining.run(f(1))", ["g = 2"]),  # k is used where f is called
        ("def f(x):\n    return training.run(x)\ny = 1\nf(y)\ny = 2", ["y = 2"]),
        ("def f(x):\n    return training.run(x)\ny = 1", None),  # nobody calls it
        ("from companion.training.recorded import table_of\nc = 1\ntable_of([c])", []),
        ("import numpy as np\nnp.run(1)", None),  # somebody else's run
        ("images.train", None),
    ],
)
def test_only_what_leads_to_a_training_is_executed(source, dropped):
    lines = [ast.unparse(node) for node in ast.parse(source).body]
    assert sliced(source) == ([line for line in lines if line not in dropped] if dropped is not None else [])


def test_a_notebook_is_followed_through_its_results_and_nothing_is_written(tmp_path, results, monkeypatch):
    """The second sweep depends on the first, a cell fails for want of weights, and the loop goes on."""
    monkeypatch.chdir(tmp_path)
    path = notebook(
        tmp_path,
        "configs = [c for m in (16, 32) for c in profile.configs(**small | {'batch_size': m})]\n"
        "first = training.table(training.sweep(configs))\n"
        "best = first.groupby('batch_size')['linear_accuracy'].mean().idxmax()",
        "import pathlib\npathlib.Path('never').touch()\n1 / 0",
        "for epochs in (4, 5):\n"
        "    training.run(profile.config(**small | {'epochs': epochs})).method()\n"
        "    training.run(profile.config(**small | {'epochs': epochs, 'batch_size': int(best)}))",
    )
    plan, cut_short = asked(path, lambda config: {"linear_accuracy": config.batch_size / 100})
    trained = [config for config in plan.runs if config.epochs and config.method.name == "contrastive"]
    assert {(c.batch_size, c.epochs, c.seed) for c in trained} == {
        *((m, 2, seed) for m in (16, 32) for seed in (0, 1, 2)), (32, 4, 0), (32, 5, 0),
    }  # fmt: skip
    assert len(plan.runs) == 8 + 2 + 3 + 3  # pixels and colours, untrained and supervised networks of the three seeds
    assert not any(plan.runs.values())
    assert list(cut_short) == [5]
    assert "a dry run has no weights" in cut_short[5]
    assert not results.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_runs_that_are_there_count_as_such_and_speak_for_themselves(tmp_path, results, tiny):
    config = tiny.replace(epochs=1)
    run = training.run(config)
    with planned.dry_run(lambda config: {"linear_accuracy": -1.0}) as plan:
        there, missing = training.sweep([config, config.replace(seed=1)])
    assert plan.runs == {config: True, config.replace(seed=1): False}
    assert there.metrics == run.metrics
    assert missing.metrics == {"linear_accuracy": -1.0}
    assert missing.key == config.replace(seed=1).key(data.identity(config.dataset))
    assert len(list(results.glob("runs/[!.]*"))) == 1
    assert planned.current() is None
    assert len(training.sweep([config])[0].history) == 1  # the run itself


def test_neither_a_device_nor_data_are_needed(tmp_path, results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(data.places, "from_roots", lambda *a: pytest.fail("it looked for the data set"))
    path = notebook(
        tmp_path, "images = training.load_data(profile.base)\ntraining.sweep(profile.configs()[: len(images.test)])"
    )
    plan, cut_short = asked(path, PROFILE="paper")
    assert (len(plan.runs), cut_short) == (5, {})
    assert {config.dataset for config in plan.runs} == {"cifar100"}
    plan, _ = asked(path, PROFILE="cpu", DATASET="imagefolder:nowhere")
    assert plan.runs == dict.fromkeys(plan.runs, False)
    assert len(plan.runs) == 3
    with pytest.raises(CompanionError, match="needs a CUDA device"):
        profiles.load("paper")


def test_a_cell_that_is_not_python_alone_is_told(tmp_path, results):
    with pytest.raises(CompanionError, match="cell 3, is no plain Python"):
        asked(notebook(tmp_path, "%matplotlib inline"))


def test_the_most_alike_of_a_recorded_run_is_that_run():
    known = recorded.read(paths.reference() / "cpu" / "runs.csv")
    one_seed = known[known["seed"] == known["seed"].min()].iloc[:: max(1, len(known) // 40)]
    for _, row in one_seed.iterrows():
        config = from_json(row["config"])
        twins = known[[from_json(text).replace(seed=0) == config.replace(seed=0) for text in known["config"]]]
        assert estimate.most_alike(config)["linear_accuracy"] in set(twins["linear_accuracy"])


def test_the_hours_are_those_of_runs_to_train_and_of_trainings_on_the_device(monkeypatch, tiny):
    monkeypatch.setattr(estimate.rates, "seconds", lambda config: 3600.0 * config.seed)
    there, by_hand = tiny.replace(seed=2), tiny.replace(seed=5)
    assert estimate.Cost("a", 3, 1, [there], [(by_hand, "cpu")], {}).hours == 7
    assert estimate.Cost("a", 3, 1, [there], [(by_hand, "cuda")], {}).hours == 2


def test_why_a_cell_was_not_followed_is_told(tiny):
    found = [estimate.Cost("09_x", 1, 0, [], [], {4: "TypeError: no weights"})]
    told = " ".join(estimate.report(found, profiles.load("cpu")).split())
    assert "09_x: at least these; cell 4 was not followed to its end (TypeError: no weights)." in told


def test_what_takes_long_is_cut_short(tmp_path, results, monkeypatch):
    monkeypatch.setattr(reading, "SECONDS", 0.3)
    path = notebook(
        tmp_path,
        "training.sweep(profile.configs(**small))\nfor x in range(2):\n    while True:\n        training.sweep([])",
        "training.run(profile.config(**small | {'epochs': 9}))",
    )
    plan, cut_short = asked(path)
    assert [config.epochs for config in plan.runs] == [2, 2, 2, 9]
    assert list(cut_short) == [3]
    assert "more than 0.3 s" in cut_short[3]


def test_trainings_outside_of_the_store_are_noted(tmp_path, results):
    path = notebook(
        tmp_path,
        "config = profile.config(**small)\nmethod = training.initial(config)\n"
        "source = training.Views(training.load_data(config).train, config.augmentation.build(16), 32, seed=0)\n"
        "before = method.model.projector[0].weight.sum().item()\n"
        "training.train(method, source, config)\nassert method.model.projector[0].weight.sum().item() == before",
    )
    plan, cut_short = asked(path)
    assert [(config.batch_size, device) for config, device in plan.unstored] == [(32, "cpu")]
    assert (plan.runs, cut_short) == ({}, {})


def test_trainings_of_a_notebook_s_own_need_no_gpu_and_are_counted_as_of_one(tmp_path, results):
    path = notebook(
        tmp_path,
        "from lightning_fabric import Fabric\n"
        "config = profile.config(**small).replace(accelerator='cuda', precision='bf16-mixed')\n"
        "fabric = Fabric(accelerator=config.accelerator, precision=config.precision, devices=1)\n"
        "method = training.initial(config)\n"
        "training.train(method, None, config, fabric=fabric)",
    )
    plan, cut_short = asked(path)
    assert [device for _, device in plan.unstored] == ["cuda"]
    assert (plan.runs, cut_short) == ({}, {})
    assert lightning_fabric.Fabric.__name__ == "Fabric"  # and is itself again


@pytest.mark.parametrize(
    ("folder", "profile", "name", "least"),
    [
        ("cpu", "reference", "08_small_batch_variance", 60),
        ("cpu", "reference", "09_auxiliary_loss", 60),
        ("cpu-long", "long", "08_small_batch_variance", 50),
        ("cpu-long", "long", "09_auxiliary_loss", 60),
    ],
)
def test_every_run_that_the_recorded_claims_rest_on_is_asked_for(folder, profile, name, least, tmp_path, monkeypatch):
    """What `make reference` filed when it trained them, but for claims on the record of another profile (of which some
    have a weight that only trained networks can choose)."""
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path / "results"))
    records = read(paths.reference() / folder / "claims.json")
    filed = {key for id, record in records.items() if load()[id].notebook == name for key in record.get("runs", [])}
    tables = {path.parent.name: set(pd.read_csv(path)["key"]) for path in paths.reference().glob("*/runs.csv")}
    own = filed & tables[folder]
    assert filed <= set().union(*tables.values())
    parameters = {"PROFILE": profile, "DATASET": "", "SEED": 0}
    plan, _ = reading.asked_for(paths.ROOT / "notebooks" / f"{name}.ipynb", parameters, estimate.most_alike)
    assert len(own) >= least
    assert own <= {config.key(data.identity(config.dataset)) for config in plan.runs}


def test_a_run_is_to_train_in_the_first_notebook_that_needs_it(tmp_path, results, capsys, monkeypatch):
    again = "training.sweep(profile.configs(**small))"
    both = [notebook(tmp_path, again, name="01_a"), notebook(tmp_path, again + "\n1 / 0\n[][1]", name="02_b")]
    monkeypatch.setattr("sys.argv", ["estimate", *map(str, both), "--profile", "smoke"])
    assert estimate.main() == 0
    told = capsys.readouterr().out
    assert "Profile smoke: 3 runs to train, about 0.0 core-hours." in told
    rows = [line.split()[:4] for line in told.splitlines() if line.startswith("0")]
    assert rows == [["01_a", "3", "0", "3"], ["02_b", "3", "0", "0"]]
    assert "timed on one core" in told
    assert not results.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--profile", "gpus"], "Unknown profile 'gpus'"),
        (["--profile", "cpu", "--dataset", "mnist"], "Unknown data set 'mnist'"),
    ],
)
def test_what_cannot_be_estimated_is_told(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.setattr("sys.argv", ["estimate", str(tmp_path / "no.ipynb"), *options])
    assert estimate.main() == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "source",
    [
        "run(first)",
        "f = lambda seed: run(first.replace(seed=seed))\nr = f(3)",
        "go = run\nr = go(first)",
        "go = functools.partial(sweep, jobs=1)\nr = go([first])",
        "import companion.training as ct\nr = ct.run(first)",
        "import companion.training\nr = companion.training.run(first)",
        "from companion.training import *\nr = run(first)",
        "class A:\n    def train(self):\n        return run(first)\na = A()\nr = a.train()",
        "class A:\n    def train(self):\n        return training.run(first)\na = A()\nr = a.train()",
        "x = [first, first.replace(seed=1)]\nx.pop()\nsweep(x)",
        "x = [first.replace(seed=1), first]\ndel x[0]\nsweep(x)",
        "x = {0: first, 1: first.replace(seed=1)}\nx.popitem()\nsweep(x.values())",
    ],
)
def test_a_training_is_found_whatever_it_is_called(tmp_path, results, source):
    begin = "import functools\nfrom companion.training import run, sweep\nfirst = profile.config(**small)"
    plan, cut_short = asked(notebook(tmp_path, begin, source))
    assert (len(plan.runs), cut_short) == (1, {})


def test_what_a_training_gave_is_no_training():
    source = "r = training.run(1)\nprint(r)\ns = [r]\nt = sorted(s, key=lambda x: x)"
    assert sliced(source) == ["r = training.run(1)"]
