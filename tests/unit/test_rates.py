"""How long a run takes: what was recorded, what multiply-adds make of it, and what is timed but once."""

import pytest
import torch
import torchvision

from companion.course import profiles
from companion.training import Clip, Config, MoCo, Supervised, planned, rates
from companion.training.methods import METHODS, Labelled


@pytest.fixture
def gpu(monkeypatch):
    """The base of the profile `gpu`, on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with planned.dry_run(lambda config: {}):
        yield profiles.load("gpu").base


@pytest.mark.parametrize(
    ("size", "precision", "views"), [(32, "bf16-mixed", 22_800), (512, "bf16-mixed", 53_100), (256, "32-true", 30_100)]
)
def test_what_was_recorded_comes_out_again(gpu, size, precision, views):
    """results/reference/README.md, On a GPU."""
    step, _, end = rates.recorded(gpu.replace(batch_size=size, precision=precision))
    assert 2 * size / step == pytest.approx(views)
    assert end == 1.6


def test_a_step_grows_on_a_line_and_a_run_is_its_steps(gpu):
    few, middle, many = (rates.recorded(gpu.replace(batch_size=m))[0] for m in (32, 272, 512))
    assert middle == pytest.approx((few + many) / 2)
    assert rates.seconds(gpu.replace(batch_size=512)) == pytest.approx(15 * (45_000 // 512) * many + 1.6)
    assert rates.seconds(gpu.replace(encoder="pixels", epochs=0)) == 1.6


def test_multiply_adds_are_torchvisions():
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["_ops"]  # in units of 1e9, at 224 pixels
    classifier, projector = 2048 * 1000, 2048 * 128  # ours has the second in place of the first
    found = rates._forward("resnet50", 224, 24, 0)
    assert found == pytest.approx(published * 1e9 - classifier + projector, rel=2e-3)


def test_other_networks_and_methods_are_scaled(gpu):
    def growth(config):
        """Seconds that an image more in the batch takes."""
        a, b = (rates.recorded(config.replace(batch_size=m))[0] for m in (64, 128))
        return (b - a) / 64

    plain = growth(gpu)
    assert growth(gpu.replace(method=MoCo(queue=512))) == pytest.approx(plain * 4 / 6)  # keys take no gradient
    assert growth(gpu.replace(method=Supervised())) == pytest.approx(plain)
    larger = rates._forward("resnet50", 32, 24, 512) / rates._forward("resnet18", 32, 24, 512)
    assert growth(gpu.replace(encoder="resnet50")) == pytest.approx(plain * larger)
    assert larger > 2
    assert growth(gpu.replace(method=Clip())) == pytest.approx(plain / 2)  # the second view is a text
    ends = [rates.recorded(gpu.replace(encoder=name))[2] for name in ("resnet18", "resnet50")]
    assert ends[1] == pytest.approx(ends[0] * larger)  # features are measured by the same network


def test_on_a_cpu_it_is_timed_and_what_makes_no_difference_once(results, tiny, monkeypatch):
    timed = []
    monkeypatch.setattr(rates, "_clock", lambda fabric, work: timed.append(work()) or 6.0)
    for cache in (rates._timed_step, rates._timed_end):
        cache.cache_clear()
    before = torch.get_rng_state()
    for changes in ({}, {"seed": 4}, {"temperature": 0.7}, {"learning_rate": 0.1}, {"epochs": 3}):
        steps_of_both_chunks = 2 * (1024 // 32)
        step = 6 / steps_of_both_chunks
        assert rates.seconds(tiny.replace(**changes)) == pytest.approx(3 * (3 * step + 6) + 6)
    assert len(timed) == 3  # steps, the look after an epoch, the measuring at the end
    rates.seconds(tiny.replace(vrns=3.0))
    rates.seconds(tiny.replace(vrns=30.0))
    rates.seconds(tiny.replace(batch_size=16))
    assert len(timed) == 3 + 2 + 2  # with VRNS, whatever its weight, and other batches: steps, and the look
    assert torch.equal(torch.get_rng_state(), before)
    assert not results.exists()
    for cache in (rates._timed_step, rates._timed_end):
        cache.cache_clear()


@pytest.mark.parametrize("method", [cls() for cls in METHODS.values() if cls is not MoCo] + [MoCo(queue=64)])
def test_every_method_can_be_timed(method, results):
    small = {"width": 4, "batch_size": 16, "epochs": 1, "measured_pairs": 32, "warmup_epochs": 0}
    if isinstance(method, Clip):
        small |= {"dataset": "emoji", "n_validation": 100}
    config = Config(**small, n_train=300, image_size=16, method=method, accelerator="cpu")
    step, epoch, end = rates.timed(config)
    assert min(step, epoch, end) > 0


def test_alike_is_alike_for_every_loss():
    for loss in ("sincere", "sup_con"):
        a, b = (Config(method=Labelled(loss=loss, temperature=t), seed=s) for t, s in ((0.3, 1), (0.5, 2)))
        assert rates._alike(a) == rates._alike(b)
    assert rates._alike(Config()) != rates._alike(Config(batch_size=32))
