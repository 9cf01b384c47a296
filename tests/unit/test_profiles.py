import types

import pytest
import torch

from companion.course import profiles
from companion.errors import CompanionError


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(CompanionError, match=r"Unknown profile 'gpus'.*smoke, cpu, gpu, paper.*Did you mean 'gpu'"):
        profiles.load("gpus")


def test_the_emoji_are_no_data_set_for_every_notebook():
    with pytest.raises(CompanionError, match=r"DATASET is 'emoji'.*Leave it out: notebook 11"):
        profiles.load("cpu", dataset="emoji")


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_that_is_none_is_told(seed):
    with pytest.raises(CompanionError, match=f"seed is {seed}"):
        profiles.load("cpu", seed=seed)


def test_auto_follows_the_hardware_unless_told(monkeypatch):
    monkeypatch.delenv("CONTRASTIVE_PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profiles.load("auto").name == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gib, name in ((8, "cpu"), (24, "cpu"), (39.4, "gpu"), (80, "gpu")):
        memory = types.SimpleNamespace(total_memory=int(gib * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
        assert profiles.load("auto").name == name
    monkeypatch.setenv("CONTRASTIVE_PROFILE", "smoke")
    assert profiles.load("auto").name == "smoke"


def test_gpu_profiles_refuse_to_crawl_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompanionError, match="needs a CUDA device"):
        profiles.load("paper")


def test_overrides_go_to_a_folder_of_their_own():
    profile = profiles.load("cpu", dataset="imagefolder:/some/My Images/", seed=10)
    assert profile.seeds == (10, 11, 12)
    assert profile.folder == "cpu-my-images-seed10"
    assert profile.recorded == "cpu-my-images"
    assert profiles.load("cpu").folder == profiles.load("cpu").recorded == "cpu"


def test_the_reference_is_the_cpu_profile_with_other_seeds_and_more():
    reference, cpu = profiles.load("reference"), profiles.load("cpu")
    assert reference.base == cpu.base
    assert len(reference.seeds) == 10
    assert not set(reference.seeds) & set(cpu.seeds)
    assert (reference.folder, reference.tests_as, reference.second) == ("reference/cpu", "cpu", False)
    other = profiles.load("reference", dataset="imagefolder:cifar10-jpeg")
    assert (other.folder, other.recorded) == ("reference/cpu-cifar10-jpeg", "cpu-cifar10-jpeg")
    assert other.second


def test_a_longer_training_is_recorded_beside_cpu_and_held_to_nothing():
    long, cpu = profiles.load("long"), profiles.load("cpu")
    assert long.base == cpu.config(image_size=32, n_train=6000, epochs=40)
    assert long.seeds == profiles.load("reference").seeds
    assert (long.folder, long.recorded, long.tests_as) == ("reference/cpu-long", "cpu-long", "cpu")
    assert (long.records, long.second, long.tag) == (True, True, "-long")
    assert not cpu.records
    other = profiles.load("long", dataset="cifar10", seed=7)
    assert (other.folder, other.recorded) == ("reference/cpu-long-cifar10-seed7", "cpu-long-cifar10")
    assert long.pick(cpu=1, reference=2, second=3) == 3


def test_a_notebook_picks_its_own_grid():
    grids = {"smoke": 1, "cpu": 2, "second": 3}
    assert profiles.load("smoke").pick(**grids) == 1
    assert profiles.load("reference").pick(**grids) == 2
    assert profiles.load("reference").pick(**grids, reference=4) == 4
    assert profiles.load("reference", dataset="cifar10").pick(**grids) == 3
    with pytest.raises(CompanionError, match="Unknown grid of profile 'cpu': expected one of smoke"):
        profiles.load("cpu").pick(smoke=1)


def test_the_papers_own_setting(monkeypatch):
    """Lee et al. 2025: CIFAR-100, all 50,000 images, ResNet-18, 200 epochs, 10 of warm-up, SimCLR's augmentation."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    base, augmentation = profiles.load("paper").base, profiles.load("paper").base.augmentation
    assert (base.dataset, base.n_train, base.n_validation) == ("cifar100", 50_000, 0)
    assert (base.encoder, base.projector_hidden, base.projector_dim) == ("resnet18", 512, 128)
    assert (base.epochs, base.warmup_epochs, base.learning_rate, base.weight_decay) == (200, 10, 0.3, 1e-4)
    assert (augmentation.crop_scale, augmentation.flip, augmentation.jitter) == (0.08, 0.5, 0.4)
    assert (augmentation.jitter_probability, augmentation.grayscale, augmentation.blur) == (0.8, 0.2, 0.5)


@pytest.mark.parametrize("name", profiles.NAMES)
def test_every_profile_has_seeds_for_an_interval(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    profile = profiles.load(name)
    assert len(set(profile.seeds)) >= 3
    assert [config.seed for config in profile.configs(temperature=0.3)] == list(profile.seeds)
