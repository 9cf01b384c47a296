"""Training on the embedded images learns, with every method: without that no number of the notebooks means anything."""

import re

import pytest

from companion import paths
from companion.training import Config, Contrastive, Labelled, Supervised, baselines, run

GAIN = 0.05  # the ledger's gate for claims about accuracy

# About the smallest setting at which every seed beats its untrained network by twice that; it takes a second.
SMALL = Config(n_train=400, n_validation=0, width=16, batch_size=40, epochs=2, measured_pairs=200, accelerator="cpu")


def gain(config) -> float:
    """By how much the accuracy of the run exceeds that of the network that it started from."""
    untrained = run(baselines(config)["untrained"])
    return run(config).metrics["linear_accuracy"] - untrained.metrics["linear_accuracy"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_learns(results, seed):
    config = SMALL.replace(seed=seed)
    assert gain(config) > GAIN
    found = run(config)
    assert found.history["loss"].iloc[-1] < found.history["loss"].iloc[0] - 0.05
    assert found.metrics["positive_mean"] > found.metrics["negative_mean"] + 0.3
    assert found.metrics["linear_low"] < found.metrics["linear_accuracy"] < found.metrics["linear_high"]
    assert found.metrics["linear_accuracy"] > 0.4  # chance is 0.1


@pytest.mark.parametrize(
    "method",
    [
        Contrastive(loss="clip", heads=2), Contrastive(loss="dcl"), Contrastive(loss="dhel"), Contrastive(vrns=30),
        Contrastive(loss="siglip", bias=-3), Contrastive(loss="spectral"), Contrastive(loss_batch_size=20),
        Labelled(loss="triplet"), Labelled(loss="sup_con"), Labelled(loss="sincere"), Supervised(),
    ],
    ids=lambda m: f"{m.title} {getattr(m, 'loss_batch_size', '')}",
)  # fmt: skip
def test_every_method_learns(results, method):
    assert gain(SMALL.replace(method=method, epochs=8, seed=1)) > GAIN


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_encoder_trained_with_labels_beats_the_untrained_one(results, seed):
    beside = baselines(SMALL.replace(seed=seed, epochs=6))
    accuracy = {name: run(config).metrics["linear_accuracy"] for name, config in beside.items()}
    assert accuracy["supervised"] > accuracy["untrained"] + GAIN


def test_colour_alone_says_as_much_as_the_readme_of_the_data_says(results):
    readme = (paths.ROOT / "data" / "README.md").read_text()
    said = (
        r"gets ([\d.]+) % of the test images right at 16×16 pixels \(4,000 training images\), and ([\d.]+) % at 32×32"
    )
    (percents,) = re.findall(said, readme)
    for percent, size, n in zip(percents, (16, 32), (4000, 6000), strict=True):
        config = Config(encoder="colour_moments", epochs=0, n_train=n, image_size=size, accelerator="cpu")
        assert run(config).metrics["linear_accuracy"] == pytest.approx(float(percent) / 100, abs=0.002)
