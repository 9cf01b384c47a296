"""The parts of a training run, each against its definition."""

import itertools
import math

import pytest
import torch

from companion import augment, encoders, losses, metrics, pretrain, runs
from companion.config import Config
from companion.errors import CompanionError


def test_two_views_differ_repeat_and_stay_images():
    config = Config(image_size=14)
    images = torch.randint(256, (64, 1, 20, 20), dtype=torch.uint8, generator=torch.manual_seed(0))
    torch.manual_seed(1)
    x, y = augment.TwoViews(config, 1)(images)
    torch.manual_seed(1)
    again, _ = augment.TwoViews(config, 1)(images)
    assert x.shape == y.shape == (64, 1, 14, 14)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(x, again)
    assert not torch.equal(x, y)


def test_switched_off_augmentation_leaves_the_image():
    config = Config(image_size=16, crop_scale=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    augmentation = augment.TwoViews(config, 3)
    augmentation.steps[0] = torch.nn.Identity()  # a crop of the whole area still changes the aspect
    x, y = augmentation(images)
    assert torch.allclose(x, images / 255, atol=1e-4)
    assert torch.equal(x, y)


def test_each_image_is_augmented_on_its_own():
    images = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0)).expand(
        32, -1, -1, -1
    )
    torch.manual_seed(0)
    x, _ = augment.TwoViews(Config(image_size=16, blur=0.5), 3)(images)
    assert len({view.numpy().tobytes() for view in x}) == 32


@pytest.mark.parametrize(
    ("config", "channels", "features"),
    [
        (Config(), 1, 96),
        (Config(width=8), 3, 32),
        (Config(encoder="resnet18", image_size=32), 3, 512),
        (Config(encoder="resnet18", image_size=64), 1, 512),
        (Config(encoder="resnet50", image_size=32), 3, 2048),
    ],
)
def test_encoders_have_the_shapes_they_promise(config, channels, features):
    model = encoders.build(config, channels).eval()
    images = torch.rand(2, channels, config.image_size, config.image_size)
    with torch.no_grad():
        assert model.encoder(images).shape == (2, features)
        assert model(images).shape == (2, config.projector_dim)
    if config.encoder == "resnet18" and config.image_size == 32:  # the CIFAR stem keeps the resolution
        assert model.encoder.conv1.stride == (1, 1)
        assert isinstance(model.encoder.maxpool, torch.nn.Identity)


def test_objective_averages_over_sub_batches():
    u, v = torch.randn(2, 12, 6, generator=torch.manual_seed(0), dtype=torch.float64)
    config = Config(batch_size=12, loss_batch_size=4, temperature=0.3, vrns=7.0, n_train=100, loss="dcl")
    expected = 0.0
    for k in range(3):
        a, b = u[4 * k : 4 * k + 4], v[4 * k : 4 * k + 4]
        expected += (losses.dcl(a, b, temperature=0.3) + 7.0 * losses.vrns(a, b, n=100)) / 3
    assert torch.allclose(pretrain.objective(u, v, config), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "clip", "within_view": True}, lambda u, v: losses.nt_xent(u, v, temperature=0.2)),
        ({"loss": "siglip", "bias": -3.0}, lambda u, v: losses.siglip(u, v, scale=5, bias=-3)),
        (
            {"loss": "siglip", "within_view": True},
            lambda u, v: losses.siglip(u, v, scale=5, bias=-10, within_view=True),
        ),
        ({"loss": "spectral"}, losses.spectral),
        ({"loss": "spectral", "within_view": True}, lambda u, v: losses.spectral(u, v, within_view=True)),
    ],
)
def test_objective_hands_each_loss_its_hyperparameters(changes, expected):
    u, v = torch.randn(2, 12, 6, generator=torch.manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(pretrain.objective(u, v, Config(batch_size=12, **changes)), expected(u, v))


def test_the_second_head_serves_the_second_views_alone():
    model = encoders.build(Config(heads=2), 1).eval()
    images = torch.rand(4, 1, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.projector(model.encoder(images)))
        torch.testing.assert_close(model(images, second=True), model.second_projector(model.encoder(images)))
        assert not torch.allclose(model(images), model(images, second=True))
        alone = encoders.build(Config(), 1).eval()
        assert torch.equal(alone(images), alone(images, second=True))


def test_a_run_with_two_heads_trains_both_and_comes_back(results, tiny):
    config = tiny.replace(loss="siglip", heads=2, bias=-5.0)
    run = pretrain.run(config)
    with runs.seeded(config.seed, 0):
        before = encoders.build(config, 1).state_dict()
    after = run.model().state_dict()
    for name in ("projector.0.weight", "second_projector.0.weight"):
        assert not torch.equal(before[name], after[name])
    u, v, _ = run.two_views()
    assert metrics.similarity_statistics(u, v)["negative_mean"] == pytest.approx(run.metrics["negative_mean"], abs=1e-6)


def test_learning_rate_follows_the_schedule():
    config = Config(batch_size=64, learning_rate=0.4, epochs=5, warmup_epochs=2)
    rates = [pretrain.learning_rate(config, step, steps_per_epoch=10) for step in range(50)]
    peak = 0.4 * 64 / 256
    assert rates[0] == pytest.approx(peak / 20)
    assert rates[19] == rates[20] == pytest.approx(peak)
    assert rates[35] == pytest.approx(peak / 2)  # half of the cosine
    assert rates[49] < 0.01 * peak
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))
    assert pretrain.learning_rate(config.replace(warmup_epochs=0), 0, 10) == pytest.approx(peak)


def test_a_run_is_stored_whole_and_loaded_the_next_time(tiny, results):
    run = pretrain.run(tiny)
    assert sorted(p.name for p in run.path.iterdir()) == [
        "config.json", "encoder.safetensors", "environment.json", "history.csv", "metrics.json",
    ]  # fmt: skip
    assert list(run.history["step"]) == [3, 6, 9]
    assert all(math.isfinite(value) for value in run.metrics.values())
    modified = (run.path / "metrics.json").stat().st_mtime_ns
    assert pretrain.run(tiny).metrics == run.metrics
    assert (run.path / "metrics.json").stat().st_mtime_ns == modified
    u, v, y = run.two_views()
    assert u.shape == v.shape == (64, 8)
    assert len(y) == 64
    stored = runs.measure(run.model(), tiny, run.data())
    assert stored == pytest.approx(run.metrics, abs=1e-5)  # what was stored is the model that was measured


def test_sweep_trains_equal_configs_once_and_keeps_the_order(tiny, results):
    configs = [tiny.replace(seed=1), tiny, tiny.replace(seed=1)]
    found = pretrain.sweep(configs, jobs=2)
    assert [run.config.seed for run in found] == [1, 0, 1]
    assert len([p for p in (results / "runs").iterdir() if not p.name.startswith(".")]) == 2
    table = runs.table(found)
    assert list(table["seed"]) == [1, 0, 1]
    assert list(table["m"]) == [32, 32, 32]


def test_training_learns(tiny, results):
    """More than chance, on ten classes of real images."""
    config = tiny.replace(n_train=1000, n_validation=100, width=16, epochs=5, batch_size=50)
    run = pretrain.run(config)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0] - 0.1
    assert run.metrics["positive_mean"] > run.metrics["negative_mean"] + 0.3
    assert run.metrics["linear_accuracy"] > 0.5
    assert run.metrics["linear_low"] < run.metrics["linear_accuracy"] < run.metrics["linear_high"]


def test_a_diverged_run_is_told_and_leaves_nothing(tiny, results):
    with pytest.raises(CompanionError, match=r"NaN or infinite values.*lower the learning rate"):
        pretrain.run(tiny.replace(learning_rate=1e30, warmup_epochs=0))
    assert not [p for p in (results / "runs").iterdir() if not p.name.startswith(".")]


def test_the_caller_keeps_its_random_numbers_and_threads(tiny, results):
    torch.manual_seed(5)
    expected = torch.rand(3)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    pretrain.run(tiny)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_the_gpu_profiles_network_and_precision_train_on_a_cpu_too(tiny, results):
    """ResNet-18 with the CIFAR stem under bfloat16 autocast: the GPU's path, as far as a CPU goes."""
    config = tiny.replace(
        encoder="resnet18", precision="bf16-mixed", image_size=16, n_train=48, batch_size=24, epochs=1
    )
    run = pretrain.run(config)
    assert all(math.isfinite(value) for value in run.metrics.values())
    assert run.model().projector[0].weight.dtype == torch.float32  # the weights stay in full precision
