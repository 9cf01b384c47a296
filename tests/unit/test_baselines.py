"""What an accuracy is held against, and the tables that hold it so."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures

from companion import paths, training
from companion.course import profiles
from companion.training import Contrastive, Labelled, SimCLR, Supervised, baselines, recorded, run, runs, sweep, table
from companion.training.baselines import BATCH_SIZE
from companion.training.config import from_json
from companion.training.data import Data, Split

NAMES = ("pixels", "colours", "untrained", "supervised")


@pytest.fixture
def quick(tiny):
    return tiny.replace(epochs=1, warmup_epochs=0, n_train=64, n_validation=20)


def test_there_are_four_of_them_and_each_is_what_its_name_says(tiny):
    found = baselines(tiny.replace(seed=4))
    assert tuple(found) == NAMES
    assert (found["pixels"].encoder, found["colours"].encoder) == ("pixels", "colour_moments")
    assert found["untrained"].encoder == found["supervised"].encoder == "small"
    assert [found[name].epochs for name in NAMES] == [0, 0, 0, tiny.epochs]
    assert found["supervised"].method == Supervised()
    assert [found[name].seed for name in NAMES] == [0, 0, 4, 4]  # nothing is drawn for the first two


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "dcl"}, {"temperature": 0.5}, {"vrns": 30}, {"method": Labelled()}, {"batch_size": 16},
        {"loss_batch_size": 16}, {"heads": 2},
    ],
    ids=str,
)  # fmt: skip
def test_runs_that_differ_in_their_loss_alone_share_their_baselines(tiny, changes):
    assert baselines(tiny.replace(**changes)) == baselines(tiny)


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"seed": 1}, ("untrained", "supervised")),
        ({"width": 8}, ("untrained", "supervised")),
        ({"flip": 0.0}, ("untrained", "supervised")),
        ({"epochs": 5}, ("supervised",)),
        ({"learning_rate": 0.1}, ("supervised",)),
        ({"n_train": 64}, NAMES),
        ({"image_size": 8}, NAMES),
        ({"n_validation": 0}, NAMES),
        ({"dataset": "cifar10"}, NAMES),
    ],
    ids=str,
)
def test_what_makes_a_difference_to_a_baseline_gives_another_one(tiny, changes, own):
    before, after = baselines(tiny), baselines(tiny.replace(**changes))
    assert tuple(name for name in NAMES if before[name] != after[name]) == own


def test_the_batch_of_the_encoder_with_labels_never_exceeds_the_images(tiny):
    assert baselines(tiny.replace(n_train=40, batch_size=16))["supervised"].batch_size == 40
    assert baselines(tiny.replace(n_train=4000, batch_size=1024))["supervised"].batch_size == BATCH_SIZE


# Learning rate and seed of the networks with labels, trained for longer, that rows wait for: these, and no others.
TO_BE_TRAINED = {(rate, seed) for rate in (0.125, 0.25, 1.0, 2.0) for seed in (1000, 1001, 1002)}
TO_BE_TRAINED |= {(rate, seed) for rate in (0.125, 1.0) for seed in range(104, 110)}


@pytest.mark.parametrize("folder", ["cpu", "cpu-long", "gpu-cifar10-jpeg"])
def test_the_baselines_of_recorded_runs_are_those_that_were_recorded_with_them(folder):
    rows = recorded.read(paths.reference() / folder / "runs.csv")
    known = {from_json(text) for text in rows["config"]}
    beside = {config for run_ in known if run_.epochs for config in baselines(run_).values()}
    assert len(beside) > 4
    longer = profiles.named("long").config(method=Supervised(), batch_size=BATCH_SIZE)
    to_be_trained = {longer.replace(learning_rate=rate, seed=seed) for rate, seed in TO_BE_TRAINED}
    assert beside - known == (to_be_trained if folder == "cpu-long" else set())


def test_the_untrained_network_is_the_one_that_the_run_starts_from(quick, results):
    config = quick.replace(seed=3, loss="clip", heads=2)
    start = runs.initial(config).model.encoder.state_dict()
    untrained = run(baselines(config)["untrained"]).model().encoder.state_dict()
    weights = [name for name in start if "running" not in name and "tracked" not in name]
    assert len(weights) == 9
    assert all(torch.equal(start[name], untrained[name]) for name in weights)
    trained = run(config).model().encoder.state_dict()
    assert not torch.equal(start["0.weight"], trained["0.weight"])
    with_labels = runs.initial(baselines(config)["supervised"]).model.encoder.state_dict()
    assert all(torch.equal(start[name], value) for name, value in with_labels.items())


def test_the_untrained_network_knows_the_statistics_of_its_images(quick, results):
    """Batch norm's running mean and variance are those of an epoch's views, batch by batch, as a loop takes them."""
    config = baselines(quick.replace(seed=3))["untrained"]
    found = run(config).model().encoder
    images = runs.load_data(config)
    source = training.Views(
        images.train, config.augmentation.build(config.image_size), config.batch_size, seed=config.seed
    )
    first = runs.initial(config).model.encoder[0]
    with torch.no_grad():
        seen = [first(batch.first) for batch in source.batches(0)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(found[1].running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1].running_var, variance, rtol=1e-4, atol=1e-6)


def test_a_table_has_a_row_a_run_with_its_config_its_metrics_and_its_baselines(quick, results):
    configs = [quick, quick.replace(loss="dcl", vrns=5), quick.replace(seed=1)]
    found = sweep(configs)
    rows = table(found)
    assert list(rows["key"]) == [run.key for run in found]
    assert list(rows["loss"]) == ["nt_xent", "dcl", "nt_xent"]
    assert list(rows["vrns"]) == [0.0, 5.0, 0.0]
    assert list(rows["seed"]) == [0, 0, 1]
    assert list(rows["m"]) == [32, 32, 32]
    for run_, (_, row) in zip(found, rows.iterrows(), strict=True):
        assert {name: row[name] for name in run_.metrics} == run_.metrics
        for name, config in baselines(run_.config).items():
            assert row[f"{name}_accuracy"] == run(config).metrics["linear_accuracy"]
    for name in ("pixels", "colours"):
        assert rows[f"{name}_accuracy"].nunique() == 1
    stored = list((results / "runs").glob("[!.]*"))
    assert len(stored) == 3 + 2 + 2 + 2  # runs; pixels and colours; untrained and supervised for each of two seeds


def test_a_table_without_baselines_trains_none_and_shows_no_accuracy(quick, results):
    rows = table([run(quick)], beside=False)
    assert rows["negative_variance"].tolist() == [run(quick).metrics["negative_variance"]]
    measured = run(quick).metrics
    assert {name for name in measured if name not in rows} == {
        "linear_accuracy", "linear_low", "linear_high", "linear_validation_accuracy", "knn_accuracy", "knn_low",
        "knn_high",
    }  # fmt: skip
    assert not [name for name in rows if "accuracy" in name or name.startswith(("linear", "knn"))]
    assert len(list((results / "runs").glob("[!.]*"))) == 1


def test_an_empty_table_is_empty(results):
    assert len(table([])) == 0


def test_colour_statistics_are_scored_as_numpy_and_scikit_learn_score_them(quick, results):
    """The whole way: images of the store, mean and standard deviation of each channel, the best of three penalties."""
    config = baselines(quick.replace(n_train=600, n_validation=200))["colours"]
    data = runs.load_data(config)

    def statistics(split):
        pixels = split.images.numpy().astype(np.float64).reshape(len(split), 3, -1) / 255
        moments = np.concatenate([pixels.mean(2), pixels.std(2, ddof=1)], axis=1)
        return PolynomialFeatures(degree=2, include_bias=False).fit_transform(moments)

    train, validation, test = (statistics(s) for s in (data.train, data.validation, data.test))
    mean, std = train.mean(0), train.std(0)
    scores = []
    for penalty in (0.01, 0.1, 1.0, 10.0, 100.0):
        fitted = LogisticRegression(C=penalty, max_iter=10_000).fit((train - mean) / std, data.train.labels)
        scores.append(
            [fitted.score((x - mean) / std, s.labels) for x, s in ((validation, data.validation), (test, data.test))]
        )
    best = max(scores, key=lambda score: score[0])
    found = run(config).metrics
    assert found["linear_validation_accuracy"] == pytest.approx(best[0], abs=0.02)  # another solver's tolerance
    assert found["linear_accuracy"] == pytest.approx(best[1], abs=0.02)


def test_raw_pixels_are_scored_as_they_are():
    """Brightness is theirs to use: their length is not taken from them."""
    labels = torch.arange(60) % 2
    images = torch.where(labels == 0, 60, 200).to(torch.uint8)[:, None, None, None].expand(60, 3, 8, 8)
    split = Split(images + torch.randint(20, images.shape, generator=torch.Generator().manual_seed(0)).byte(), labels)
    config = baselines(_config(60))["pixels"]
    method = config.method.build(config, split).eval()
    assert runs.measure(method, config, Data(split, split, split, "x"))["linear_accuracy"] == 1.0


def _config(n):
    from companion.training import Config

    return Config(n_train=n, n_validation=n, image_size=8, batch_size=n // 2, measured_pairs=n // 2)


@pytest.mark.parametrize("method", [Supervised(), Contrastive()])
def test_baselines_of_a_baseline(tiny, method):
    """The encoder trained with labels stands in a table too; its own baselines are those of any run."""
    assert baselines(tiny.replace(method=method)) == baselines(tiny)


NETWORKS, LABELS = ("untrained", "supervised"), ("supervised",)
MATTERS = {  # every value of a run → another one, and the baselines to which it makes a difference
    "dataset": ("cifar10", NAMES), "image_size": (8, NAMES), "n_train": (64, NAMES), "n_validation": (0, NAMES),
    "measured_pairs": (50, NAMES), "accelerator": ("auto", NAMES),
    "augmentation": (SimCLR(blur=0.5), NETWORKS), "encoder": ("resnet18", NETWORKS), "width": (8, NETWORKS),
    "projector_hidden": (8, NETWORKS), "projector_dim": (4, NETWORKS), "precision": ("bf16-mixed", NETWORKS),
    "seed": (1, NETWORKS),
    "epochs": (5, LABELS), "learning_rate": (0.1, LABELS), "momentum": (0.5, LABELS), "weight_decay": (0.1, LABELS),
    "warmup_epochs": (0, LABELS), "schedule": ("steps", LABELS), "optimizer": ("adamw", LABELS),
    "calibrate_batch_norm": (True, ()), "method": (Contrastive(temperature=0.5), ()), "batch_size": (16, ()),
}  # fmt: skip


def test_every_value_of_a_run_reaches_the_baselines_to_which_it_matters(tiny):
    """So that a run is never held against an encoder that was trained otherwise."""
    assert {*MATTERS, "storage"} == {field.name for field in dataclasses.fields(tiny)}
    before = baselines(tiny)
    for name, (value, own) in MATTERS.items():
        after = baselines(tiny.replace(**{name: value}))
        assert tuple(other for other in NAMES if before[other] != after[other]) == own, name
    folder = tiny.replace(dataset="imagefolder:x")  # files are for image folders alone
    assert {b.storage for b in baselines(folder.replace(storage="files")).values()} == {"files"}
