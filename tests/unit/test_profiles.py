import pytest
import torch

from companion import profiles
from companion.errors import CompanionError


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(CompanionError, match=r"Unknown profile 'gpus'.*smoke, cpu, gpu, paper.*Did you mean 'gpu'"):
        profiles.load("gpus")


def test_auto_follows_the_hardware_unless_told(monkeypatch):
    monkeypatch.delenv("CONTRASTIVE_PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profiles.load("auto").name == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert profiles.load("auto").name == "gpu"
    monkeypatch.setenv("CONTRASTIVE_PROFILE", "smoke")
    assert profiles.load("auto").name == "smoke"


def test_gpu_profiles_refuse_to_crawl_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompanionError, match="needs a CUDA device"):
        profiles.load("paper")


@pytest.mark.parametrize("name", profiles.NAMES)
def test_every_setting_of_every_profile_is_a_sound_config(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    profile = profiles.load(name)
    for m in (*profile.batch_sizes, *profile.dcl_batch_sizes, profile.small_batch):
        profile.configs(batch_size=m)
    for m in profile.sub_batches:
        profile.configs(batch_size=profile.optimiser_batch, loss_batch_size=m)
    for temperature in profile.temperatures:
        profile.configs(temperature=temperature)
    for weight in (*profile.weights, profile.paper_weight):
        profile.configs(vrns=weight)
    assert profile.small_batch in profile.batch_sizes
    assert profile.small_batch in profile.sub_batches
    assert profile.optimiser_batch in profile.sub_batches
    assert profile.paper_weight in profile.weights
    assert profile.base.temperature in profile.temperatures
    assert len(profile.seeds) >= 3


def test_overrides_go_to_a_folder_of_their_own():
    profile = profiles.load("cpu", dataset="imagefolder:/some/Images", seed=10)
    assert profile.seeds == (10, 11, 12)
    assert profile.folder == "cpu-imagefolder-some-images-seed10"
    assert profiles.load("cpu").folder == "cpu"
