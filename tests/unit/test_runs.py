"""A finished run: what is stored of it, and that each of its numbers is what its name says."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from companion import paths, store
from companion.errors import CompanionError
from companion.training import Config, Labelled, probe, run, runs, table
from companion.training.augment import Unchanged
from companion.training.data import Data, Split
from companion.training.methods.base import Method
from companion.training.provenance import provenance

FILES = ["config.json", "environment.json", "history.csv", "metrics.json", "weights.safetensors"]


def visible(results):
    return sorted(path.name for path in (results / "runs").glob("[!.]*"))


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def test_a_run_is_stored_whole_and_loaded_the_next_time(tiny, results):
    found = run(tiny)
    assert visible(results) == [found.key] == [tiny.key("eurosat-subset")]
    assert sorted(path.name for path in found.path.iterdir()) == FILES  # no scaffold is left
    assert list(found.history["step"]) == [3, 6, 9]
    assert {"loss", "positive_mean", "negative_variance"} <= set(found.history)
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert {"python", "torch", "torchvision", "device", "commit", "seconds"} == set(found.provenance)
    assert json.loads((found.path / "config.json").read_text())["training_version"] == store.TRAINING_VERSION
    modified = (found.path / "metrics.json").stat().st_mtime_ns
    assert run(tiny).metrics == found.metrics
    assert (found.path / "metrics.json").stat().st_mtime_ns == modified
    assert runs.stored(found.path, dataset=tiny.dataset) == found
    assert runs.stored(found.path, dataset="imagefolder:elsewhere") == found  # that is for image folders alone


def test_what_was_stored_is_the_method_that_was_measured(tiny, results):
    config = tiny.replace(heads=2, loss="siglip", bias=-5)
    found = run(config)
    method = found.method()
    assert not method.training
    assert runs.measure(method, config, found.data()) == pytest.approx(found.metrics, abs=1e-5)
    last = found.history.iloc[-1]
    u, v, _ = runs.two_views(method, config, found.data().train, 256)
    assert last["positive_mean"] == pytest.approx(np.mean([cosine(a, b) for a, b in zip(u, v, strict=True)]), abs=1e-5)


def test_a_run_moves_every_part_away_from_where_its_seed_starts_it(tiny, results):
    config = tiny.replace(loss="siglip", heads=2, bias=-5.0)
    before, after = runs.initial(config).state_dict(), run(config).method().state_dict()
    for name in ("encoder.0.weight", "encoder.6.weight", "projector.0.weight", "second_projector.0.weight"):
        assert not torch.equal(before[f"model.{name}"], after[f"model.{name}"]), name


def test_the_seed_decides_the_weights(tiny):
    same, again, other = (runs.initial(tiny.replace(seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(same.values(), again.values(), strict=True))
    assert not torch.equal(same["model.encoder.0.weight"], other["model.encoder.0.weight"])


def test_equal_configs_give_equal_runs_to_the_last_bit(tiny, results, monkeypatch):
    one = run(tiny)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(results.parent / "elsewhere"))
    other = run(tiny)
    assert one.path != other.path
    for name in ("history.csv", "metrics.json", "weights.safetensors"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


# ---- What is measured ------------------------------------------------------------------------------------------------


class Fixed(Method):
    """Features are the image's three channel means; the two views are projected each in its own way."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.weight = nn.Parameter(torch.zeros(1))

    def embed(self, images):
        return images.mean((2, 3))

    def project(self, first, second):
        return first.mean((2, 3)) - 0.5, second.mean((2, 3)).square() + 0.1


def coloured(labels, seed, noise=0.05):
    """Images whose class is their colour: red, green or blue."""
    g = torch.Generator().manual_seed(seed)
    colour = torch.eye(3)[labels] * 0.5 + 0.25 + noise * torch.randn(len(labels), 3, generator=g)
    pixels = colour[:, :, None, None] + 0.02 * torch.randn(len(labels), 3, 8, 8, generator=g)
    return (pixels.clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture
def images():
    """Training and validation images are as they should be; of the test images only a quarter is labelled rightly."""
    train, validation, test = torch.arange(90) % 3, torch.arange(30) % 3, torch.arange(80) % 3
    told = torch.where(torch.arange(80) % 4 == 0, test, (test + 1) % 3)
    return Data(
        Split(coloured(train, 0), train),
        Split(coloured(validation, 1), validation),
        Split(coloured(test, 2), told),
        "x",
    )


CONFIG = Config(image_size=8, n_train=90, n_validation=30, batch_size=30, measured_pairs=40, augmentation=Unchanged())


def test_the_reported_accuracy_is_that_of_the_test_images(images):
    found = runs.measure(Fixed(), CONFIG, images)
    assert found["linear_accuracy"] == 0.25
    assert found["knn_accuracy"] == 0.25
    assert found["linear_validation_accuracy"] == 1.0
    assert (found["linear_low"], found["linear_high"]) == probe.accuracy_interval(np.arange(80) % 4 == 0)
    swapped = runs.measure(Fixed(), CONFIG, Data(images.train, images.test, images.validation, "x"))
    assert (swapped["linear_accuracy"], swapped["linear_validation_accuracy"]) == (1.0, 0.25)


def test_without_validation_images_there_is_no_validation_accuracy(images):
    nothing = Data(images.train, images.validation[:0], images.test, "x")
    found = runs.measure(Fixed(), CONFIG, nothing)
    assert found["linear_accuracy"] == 0.25
    assert "linear_validation_accuracy" not in found
    fixed = runs.measure(Fixed(), CONFIG.replace(encoder="colour_moments"), nothing)
    assert fixed["linear_accuracy"] == 0.25


def measured(images, pairs):
    """Numbers of the images that similarities are measured on: a fixed random choice, whatever the run's seed."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(runs.seed(1)))[:pairs]


def test_similarities_alignment_and_uniformity_by_loops(images):
    """All of them of the projections of two views of training images; uniformity of the first views alone."""
    found = runs.measure(Fixed(), CONFIG, images)
    pixels = images.train.images[measured(images.train, 40)].float() / 255
    u, v = Fixed().project(pixels, pixels)
    u, v = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (u, v))
    negatives = [cosine(u[i], v[j]) for i in range(40) for j in range(40) if i != j]
    distances = [(u[i] - u[j]).square().sum().item() for i in range(40) for j in range(i)]
    both = torch.cat([u, v])
    of_both = [(both[i] - both[j]).square().sum().item() for i in range(80) for j in range(i)]
    uniformity = math.log(np.mean(np.exp(-2 * np.array(distances))))
    assert found["uniformity"] == pytest.approx(uniformity, abs=1e-5)
    assert abs(uniformity - math.log(np.mean(np.exp(-2 * np.array(of_both))))) > 0.1
    assert found["alignment"] == pytest.approx(
        np.mean([(a - b).square().sum() for a, b in zip(u, v, strict=True)]), abs=1e-5
    )
    assert found["positive_mean"] == pytest.approx(np.mean([cosine(a, b) for a, b in zip(u, v, strict=True)]), abs=1e-5)
    assert found["negative_mean"] == pytest.approx(np.mean(negatives), abs=1e-5)
    assert found["negative_variance"] == pytest.approx(np.var(negatives), abs=1e-5)
    assert found["variance_total"] == pytest.approx(np.var(negatives), abs=1e-5)
    assert found["negative_std"] == pytest.approx(np.std(negatives), abs=1e-5)


def test_tolerance_is_of_the_features_of_test_images(images):
    features = images.test.images.float().mean((2, 3))
    y = images.test.labels
    same = [cosine(features[i], features[j]) for i in range(80) for j in range(80) if i != j and y[i] == y[j]]
    assert runs.measure(Fixed(), CONFIG, images)["tolerance"] == pytest.approx(np.mean(same), abs=1e-5)


def test_features_are_of_whole_images_without_augmentation_however_they_are_read(images, monkeypatch):
    config = CONFIG.replace(width=4)
    method = config.method.build(config, images.train).eval()
    with torch.no_grad():
        expected = method.model.encoder(images.test.images.float() / 255)
    found, labels = runs.features(method, images.test)
    torch.testing.assert_close(found, expected)
    assert torch.equal(labels, images.test.labels)
    monkeypatch.setattr(runs, "CHUNK", 7)
    torch.testing.assert_close(runs.features(method, images.test)[0], expected)


def test_two_views_are_of_a_fixed_choice_of_images_and_always_the_same(tiny, monkeypatch):
    images = runs.load_data(tiny).train
    method = runs.initial(tiny)
    u, v, y = runs.two_views(method, tiny, images, 40)
    assert u.shape == v.shape == (40, 8)
    assert torch.equal(y, images.labels[measured(images, 40)])
    assert not torch.allclose(u, v)
    torch.rand(3)
    again = runs.two_views(method, tiny, images, 40)
    assert torch.equal(again[0], u)
    other = runs.two_views(method, tiny.replace(seed=1), images, 40)
    assert not torch.allclose(other[0], u)
    everything = runs.two_views(method, tiny, images, 10_000)
    assert len(everything[0]) == len(images)
    plain = tiny.replace(augmentation=Unchanged())
    monkeypatch.setattr(runs, "CHUNK", 7)
    u, v, _ = runs.two_views(method, plain, images, 40)
    with torch.no_grad():
        expected = method.model(images.images[measured(images, 40)].float() / 255)
    torch.testing.assert_close(u, expected)
    torch.testing.assert_close(v, expected)


def test_a_baseline_takes_the_penalty_that_suits_the_validation_images(images, monkeypatch):
    """And reports what that penalty gives on the test images, better or worse."""
    right = {
        0.01: (10, 70),
        0.1: (25, 20),
        1.0: (20, 60),
        10.0: (19, 70),
        100.0: (0, 80),
    }  # penalty → validation and test images classified correctly

    def stub(features, labels, validation, test, *, C, normalise, newton):
        assert newton
        assert not normalise
        return [np.arange(len(s[1])) < count for s, count in zip((validation, test), right[C], strict=True)]

    monkeypatch.setattr(probe, "linear_probe", stub)
    found = runs.measure(Fixed(), CONFIG.replace(encoder="colour_moments"), images)
    assert (found["linear_accuracy"], found["linear_validation_accuracy"]) == (20 / 80, 25 / 30)


def test_a_baseline_without_images_held_out_takes_scikit_learns_penalty(images, monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "linear_probe", lambda *_, **options: asked.append(options) or [np.ones(80, dtype=bool)])
    nothing = Data(images.train, images.validation[:0], images.test, "x")
    runs.measure(Fixed(), CONFIG.replace(encoder="colour_moments"), nothing)
    assert asked == [{"normalise": False, "newton": True}]  # few features


def test_the_probe_of_an_encoder_is_scikit_learns_on_features_of_length_one(images):
    """Standardised after that, as the probe says; written anew with NumPy."""
    train, test = (s.images.float().mean((2, 3)).numpy() / 255 for s in (images.train, images.test))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    mean, std = train.mean(0), train.std(0)
    fitted = LogisticRegression(max_iter=1000).fit((train - mean) / std, images.train.labels)
    accuracy = fitted.score((test - mean) / std, images.test.labels)
    assert runs.measure(Fixed(), CONFIG, images)["linear_accuracy"] == accuracy


# ---- Around the store ------------------------------------------------------------------------------------------------


def test_a_run_of_another_version_is_named_and_told_once(tiny, results, capsys, forget):
    assert store.outdated() == []
    store.say_outdated()
    assert capsys.readouterr().out == ""
    forget()
    good = run(tiny.replace(epochs=0))
    assert store.outdated() == []
    for name, text in (
        ("older", json.dumps({"training_version": store.TRAINING_VERSION - 1})), ("without", "{}"), ("broken", "{half"),
        ("list", "[1]"), ("empty", None),
    ):  # fmt: skip
        (results / "runs" / name).mkdir()
        if text is not None:
            (results / "runs" / name / "config.json").write_text(text)
    assert store.outdated() == ["broken", "empty", "list", "older", "without"]
    assert good.key not in store.outdated()
    store.say_outdated()
    store.say_outdated()
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "5 runs in" in told
    assert "another version of the training code; they are ignored" in told
    assert "the first is broken" in told


@pytest.mark.parametrize("name", FILES)
def test_a_run_that_lacks_a_file_is_trained_again(tiny, results, name):
    config = tiny.replace(epochs=1, warmup_epochs=0)
    expected = run(config).metrics
    (runs.folder(config) / name).unlink()
    found = run(config)
    assert sorted(path.name for path in found.path.iterdir()) == FILES
    assert found.metrics == expected


@pytest.mark.parametrize(
    "damage", ["", "{half", "[1]", "\\0\\1", "[" * 100_000, None], ids=lambda damage: str(damage)[:9]
)
def test_a_damaged_file_of_a_run_is_told_with_what_to_do(tiny, results, damage):
    found = run(tiny.replace(epochs=0))
    readers = {
        "config.json": lambda: runs.stored(found.path, dataset=tiny.dataset),
        "environment.json": lambda: found.provenance, "metrics.json": lambda: found.metrics,
        "weights.safetensors": found.method,
    }  # fmt: skip
    if damage in ("", None):
        readers["history.csv"] = lambda: found.history
    for name, read in readers.items():
        (found.path / name).unlink() if damage is None else (found.path / name).write_text(damage)
        with pytest.raises(
            CompanionError, match=rf"{name} is missing or damaged .*: remove the folder .*{found.key}, and"
        ):
            read()


def test_weights_of_another_network_are_told(tiny, results):
    found, other = (run(tiny.replace(epochs=0, width=width)) for width in (4, 8))
    (other.path / "weights.safetensors").rename(found.path / "weights.safetensors")
    with pytest.raises(
        CompanionError, match=r"weights\.safetensors is missing or damaged .*size mismatch.*: remove the"
    ):
        found.method()


def test_metrics_without_accuracies_are_no_metrics(tiny, results):
    found = run(tiny.replace(epochs=0))
    (found.path / "metrics.json").write_text('{"negative_variance": 0.1}')
    with pytest.raises(CompanionError, match=r"metrics\.json is missing or damaged \(it has no accuracy\)"):
        table([found])


def test_a_run_of_another_version_is_not_taken_for_one_of_this(tiny, results):
    found = run(tiny.replace(epochs=0))
    described = json.loads((found.path / "config.json").read_text())
    for version in ({"training_version": store.TRAINING_VERSION - 1}, {}):
        described.pop("training_version", None)
        (found.path / "config.json").write_text(json.dumps(described | version))
        expected = f"is of version {version.get('training_version')} of the training code, and this is version"
        with pytest.raises(CompanionError, match=expected):
            runs.stored(found.path, dataset=tiny.dataset)


def test_the_caller_keeps_its_random_numbers_and_threads(tiny, results):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        run(tiny)
        assert torch.equal(torch.rand(3), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_gpu_profiles_network_and_precision_train_on_a_cpu_too(tiny, results):
    """ResNet-18 with the CIFAR stem under bfloat16 autocast: the GPU's path, as far as a CPU goes."""
    config = tiny.replace(
        encoder="resnet18", precision="bf16-mixed", image_size=8, n_train=32, batch_size=16, epochs=1, n_validation=0
    )
    found = run(config)
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.model().projector[0].weight.dtype == torch.float32  # the weights stay in full precision


def test_images_in_files_give_the_run_that_images_in_memory_give(tmp_path, results, tiny):
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for label in range(2):
            (tmp_path / "own" / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(100, size=(16, 16, 3), dtype=np.uint8) + 100 * np.uint8(label)
                Image.fromarray(pixels).save(tmp_path / "own" / split / str(label) / f"{i}.png")
    config = tiny.replace(dataset=f"imagefolder:{tmp_path / 'own'}", n_train=64, n_validation=10)
    memory, files = run(config), run(config.replace(storage="files"))
    assert memory.path != files.path
    for name in ("history.csv", "metrics.json", "weights.safetensors"):
        assert (memory.path / name).read_bytes() == (files.path / name).read_bytes(), name
    assert str(tmp_path) not in memory.key


def test_the_commit_is_told_only_where_git_knows_this_project(monkeypatch, tmp_path):
    def commit():
        return provenance(torch.device("cpu"))["commit"]

    def git(*arguments):
        return subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True)

    (tmp_path / "installed").mkdir()
    git("init", "--quiet")
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "--allow-empty", "--quiet", "--message", "somebody else's")
    head = git("rev-parse", "HEAD").stdout
    monkeypatch.setattr(paths, "ROOT", tmp_path / "installed")
    assert commit() == "unknown"
    (tmp_path / "installed" / "pyproject.toml").touch()  # now it is a checkout
    assert head.startswith(commit().removesuffix("-dirty"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"


def test_neighbours_vote_on_the_projections_of_a_labelled_method_alone(tiny, results):
    found = run(tiny.replace(method=Labelled(loss="sincere", similarity="euclidean")))
    images, model = found.data(), found.model()

    def projections(split):
        with torch.no_grad():
            return torch.nn.functional.normalize(model(split.images.float() / 255), dim=1)

    train = projections(images.train)
    for part, split in (("", images.test), ("_validation", images.validation)):
        nearest = (projections(split) @ train.T).argmax(dim=1)
        expected = (images.train.labels[nearest] == split.labels).float().mean().item()
        assert found.metrics[f"projection_1nn{part}_accuracy"] == pytest.approx(expected, abs=0.002)
        assert 0 <= found.metrics[f"projection_5nn{part}_accuracy"] <= 1
    assert {"near_share", "near_pull_share", "near_pull", "far_pull"} <= set(found.history)
    assert not [name for name in run(tiny).metrics if name.startswith("projection")]
