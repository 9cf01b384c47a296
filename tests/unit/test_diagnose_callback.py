"""The numbers along a training: the dictionary, and the callback in a real Trainer of Lightning's."""

import csv
import importlib
import importlib.util
import logging
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

from companion.diagnose import SimilarityLogger, diagnose, log_similarities
from companion.diagnose.callback import PACKAGES
from companion.errors import CompanionError, MissingExtraError


@pytest.fixture
def views():
    u, v = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    return u, u + v


def test_the_dictionary_has_the_numbers_of_the_reading(views):
    found, r = log_similarities(*views, n=100), diagnose(*views, n=100)
    assert {name.removeprefix("similarity/"): value for name, value in found.items()} == {
        "positive_mean": r.positive.mean, "positive_std": r.positive.std, "negative_mean": r.negative.mean,
        "negative_variance": r.negative.variance, "negative_std": r.negative.std, "alignment": r.alignment,
        "uniformity": (r.u.uniformity.value + r.v.uniformity.value) / 2, "gap": r.gap, "bound": 1,
        "participation_ratio": r.both.participation_ratio, "vrns": r.target.vrns,
        "negative_mean_off_target": r.target.distance,
    }  # fmt: skip
    assert all(type(value) is float for value in found.values())
    assert set(log_similarities(*views, prefix="")) == {
        name.removeprefix("similarity/") for name in found if "vrns" not in name and "target" not in name
    }
    opposite = log_similarities(views[0] + 9, -views[0] - 9)
    assert opposite["similarity/bound"] == diagnose(views[0] + 9, -views[0] - 9).bound < 0


def test_uniformity_is_exact_up_to_724_instances(views):
    u = torch.randn(725, 3, generator=torch.Generator().manual_seed(0))
    names = ("similarity/uniformity", "similarity/negative_mean")
    for n, exact in ((724, True), (725, False)):
        first, second = ([log_similarities(u[:n], u[:n], seed=seed)[name] for name in names] for seed in (0, 1))
        assert (first[0] == second[0]) == exact
        assert first[1] == second[1]


# --- the callback ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=PACKAGES)
def lightning(request, monkeypatch):
    """Either package by itself, as in a program that has imported no other."""
    if not importlib.util.find_spec(request.param.partition(".")[0]):
        pytest.skip(f"{request.param} is not installed")
    for name in set(PACKAGES) & set(sys.modules) - {request.param}:
        monkeypatch.delitem(sys.modules, name)
    module = pytest.importorskip(request.param, exc_type=ImportError)  # beside a lightning_fabric of another version
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return module


def toy(lightning):
    """A module with all that a measurement could disturb: batch norm, dropout, and noise from the global generator."""

    class Toy(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))
            self.frozen = nn.Dropout(0.5).eval()

        def training_step(self, batch, _):
            u, v = (self.net(x + 0.1 * torch.randn_like(x)) for x in batch)
            return (u - v).square().mean()

        def validation_step(self, batch, _):
            self.log("loss", (self.net(batch[0]) - self.net(batch[1])).square().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(1)
    return Toy()


def fit(lightning, folder, callbacks, logger=None, size=51, **options):
    """Two epochs of batches of 10, and one of 1 at the end."""
    module, generator = toy(lightning), torch.Generator().manual_seed(2)
    data = torch.utils.data.TensorDataset(*torch.randn(2, size, 6, generator=generator))
    loader = torch.utils.data.DataLoader(data, batch_size=10, drop_last=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train = torch.utils.data.DataLoader(data, batch_size=10, drop_last=True)
        lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=logger or False, callbacks=callbacks, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1, default_root_dir=folder,
            **options,
        ).fit(module, train, loader)  # fmt: skip
    return module, list(loader)


def embeddings(module, batch):
    assert not torch.is_grad_enabled()
    assert not module.training
    torch.rand(5)  # as an augmentation would
    return module.net(batch[0]), module.net(batch[1])


def rows(folder):
    with open(next(folder.rglob("metrics.csv"))) as file:
        return list(csv.DictReader(file))


def test_a_trainer_logs_what_the_dictionary_says(lightning, tmp_path):
    logger = lightning.loggers.CSVLogger(tmp_path)
    callback = SimilarityLogger(embeddings, every=1, n=51)
    assert isinstance(callback, SimilarityLogger | lightning.Callback)
    assert isinstance(callback, lightning.Callback)
    module, batches = fit(lightning, tmp_path, [callback], logger)
    module.eval()
    with torch.no_grad():
        found = [log_similarities(module.net(u), module.net(v), n=51) for u, v in batches if len(u) > 1]
    assert len(found) == len(batches) - 1 == 5
    logged = [row for row in rows(tmp_path) if row["similarity/validation/gap"]]
    assert len(logged) == 2  # an epoch, without the sanity check before the training
    for name in found[0]:
        mean = sum(x[name] for x in found) / 5
        assert float(logged[-1][name.replace("/", "/validation/")]) == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert not [name for name in logged[0] if "train" in name]


def test_a_training_without_validation_is_told_that_nothing_is_logged(lightning):
    data = torch.utils.data.TensorDataset(*torch.randn(2, 16, 6))
    module, batches = toy(lightning), torch.utils.data.DataLoader(data, batch_size=8)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    for when in ("validation", "both"):
        callback = SimilarityLogger(embeddings, when=when)
        trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], enable_model_summary=False, **options)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer.fit(module, batches)
        assert any("SimilarityLogger logs nothing" in str(warning.message) for warning in told) == (
            when == "validation"
        )


def test_it_logs_every_k_th_batch_of_the_training(lightning, tmp_path):
    logger = lightning.loggers.CSVLogger(tmp_path)
    fit(lightning, tmp_path, [SimilarityLogger(embeddings, every=2, when="train", prefix="")], logger)
    steps = [int(row["step"]) for row in rows(tmp_path) if row["train/positive_mean"]]
    assert steps == [1, 3, 5, 6, 8, 10]  # after batches 0, 2, 4 of two epochs of five
    assert not [name for name in rows(tmp_path)[0] if name.startswith("validation/")]


def test_the_sanity_check_before_a_training_is_not_measured(lightning, tmp_path):
    measured = []
    fit(lightning, tmp_path, [SimilarityLogger(lambda *given: measured.append(1) or embeddings(*given), every=1)])
    assert len(measured) == 2 * 6  # every batch of two epochs


def test_tensorboard_gets_them_too(lightning, tmp_path):
    if not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        pytest.skip("neither tensorboard nor tensorboardX is installed")
    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    fit(lightning, tmp_path, [SimilarityLogger(embeddings, when="both")], logger)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events.*"))
    assert b"similarity/train/negative_variance" in written
    assert b"similarity/validation/negative_variance" in written


def test_a_training_is_the_same_with_it(lightning, tmp_path):
    plain, _ = fit(lightning, tmp_path, [])
    watched, _ = fit(lightning, tmp_path, [SimilarityLogger(embeddings, every=1, when="both")])
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [part.training for part in plain.modules()] == [part.training for part in watched.modules()]
    assert not watched.frozen.training


def test_embeddings_that_are_not_sound_stop_the_training(lightning, tmp_path):
    with pytest.raises(CompanionError, match="u has NaN or infinite values in 10 of 10 rows"):
        fit(lightning, tmp_path, [SimilarityLogger(lambda module, batch: (batch[0] * torch.nan, batch[1]))])


def test_it_can_be_sent_to_other_processes(lightning):
    again = pickle.loads(pickle.dumps(SimilarityLogger(embeddings, every=7, when="both", n=9, prefix="x/")))
    assert isinstance(again, lightning.Callback)
    assert (again.embeddings, again.every, again.when, again.n, again.prefix) == (embeddings, 7, "both", 9, "x/")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"embeddings": 3}, "embeddings is 3: expected a function"), ({"every": 0}, "every is 0"),
     ({"when": "test"}, "Unknown time to log 'test': expected one of train, validation, both"), ({"n": 1}, "n is 1")],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_told(lightning, options, expected):
    with pytest.raises(CompanionError, match=expected):
        SimilarityLogger(**{"embeddings": embeddings, **options})


def test_without_lightning_it_says_what_is_missing(monkeypatch):
    for name in PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Neither lightning nor pytorch-lightning is installed.*pip install"):
        SimilarityLogger(embeddings)
