import pytest
from hypothesis import settings

from companion.config import Config

settings.register_profile("companion", deadline=None)  # timing never decides a test
settings.load_profile("companion")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder of the test's own."""
    folder = tmp_path / "results"
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(folder))
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", "off")
    return folder


@pytest.fixture
def tiny():
    """A run of a second."""
    return Config(
        n_train=96, n_validation=20, width=4, projector_hidden=16, projector_dim=8, batch_size=32, epochs=3,
        warmup_epochs=1, measured_pairs=64, accelerator="cpu",
    )  # fmt: skip
