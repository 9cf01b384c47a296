import pytest
import torch
from hypothesis import settings

from companion import store
from companion.training import Config, data, recorded

settings.register_profile("companion", deadline=None)  # timing never decides a test
settings.load_profile("companion")


def pytest_configure(config):
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other
    config.addinivalue_line("markers", "cuda: runs on a CUDA device; skipped where torch sees none")


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(autouse=True)
def saved_after_every_epoch(monkeypatch):
    """However short it is."""
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", "0")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder of the test's own."""
    folder = tmp_path / "results"
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(folder))
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", "off")
    monkeypatch.setenv("CONTRASTIVE_JOBS", "1")  # in this process: workers take seconds to start
    monkeypatch.delenv("CONTRASTIVE_USED_RUNS", raising=False)
    return folder


@pytest.fixture
def forget():
    """Nothing that was read or told in this process is remembered, neither from before the test nor after it."""
    caches = (data._load_whole, data.identity, recorded.read, store.say_outdated)

    def clear():
        for cache in caches:
            cache.cache_clear()

    clear()
    yield clear
    clear()


@pytest.fixture
def tiny():
    """A run of a second: colour images of 16×16 pixels."""
    return Config(
        image_size=16, n_train=96, n_validation=20, width=4, projector_hidden=16, projector_dim=8, batch_size=32,
        epochs=3, warmup_epochs=1, measured_pairs=64, accelerator="cpu",
    )  # fmt: skip


@pytest.fixture
def quick(tiny):
    """One of a single epoch."""
    return tiny.replace(epochs=1, warmup_epochs=0, n_validation=0)
