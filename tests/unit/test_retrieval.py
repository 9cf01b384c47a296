"""Retrieval and zero-shot classes against naive loops, and what a run of pairs is measured by."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from companion.errors import CompanionError
from companion.training import Clip, Config, SimCLR, baselines, emoji, pairs, pixels, retrieval, run, runs, table
from companion.training.recorded import read, record


@pytest.fixture(scope="module")
def data():
    return emoji.load(n_train=200, n_validation=40)


@pytest.fixture
def quick():
    return Config(
        dataset="emoji", image_size=32, n_train=120, n_validation=40, width=4, projector_dim=16, batch_size=40,
        epochs=2, warmup_epochs=0, optimizer="adamw", weight_decay=0.5, accelerator="cpu", method=Clip(),
        augmentation=SimCLR(crop_scale=0.8, flip=0.0),
    )  # fmt: skip


def drawn(data, kinds=("features", "projection")):
    """Embeddings of noise beside the real pixels."""
    generator, found = torch.Generator().manual_seed(0), {}
    for part, concepts in data.parts.items():
        for artist in emoji.ARTISTS:
            found[part, artist] = {kind: torch.randn(len(concepts), 8, generator=generator) for kind in kinds}
            found[part, artist]["pixels"] = concepts.drawn(artist).flatten(1).float() / 255
    return found


def test_recall_is_the_share_of_rows_that_find_their_own_among_the_first_k():
    s = torch.randn(40, 40, generator=torch.manual_seed(0), dtype=torch.float64)
    s.diagonal().add_(1)
    for k in (1, 5, 40):
        naive = np.mean([i in np.argsort(-row)[:k] for i, row in enumerate(s.numpy())])
        assert retrieval.recall(s, k) == pytest.approx(naive)
    assert retrieval.recall(torch.eye(5), 1) == 1
    assert retrieval.recall(torch.ones(5, 5), 1) == 0  # all alike: nothing is found


@pytest.mark.parametrize(
    ("s", "k", "expected"),
    [(torch.ones(3, 4), 1, r"shape \(3, 4\): expected \(n, n\)"), (torch.eye(3), 4, "k is 4 and there are 3"),
     (torch.eye(3), 0, "k is 0")],
)  # fmt: skip
def test_bad_similarities_are_told(s, k, expected):
    with pytest.raises(CompanionError, match=expected):
        retrieval.recall(s, k)


def test_a_text_without_a_known_word_is_a_miss_both_ways():
    images = F.normalize(torch.randn(30, 4, generator=torch.manual_seed(1)), dim=1)
    known = torch.ones(30, dtype=torch.bool)
    known[:12] = False
    s = retrieval.similarities(images, images.where(known[:, None], 0), known)
    found = retrieval.both_ways(s, "x")
    assert found["x_image_r1"] == found["x_text_r1"] == found["x_image_r5"] == found["x_text_r5"] == 18 / 30


def test_the_gap_is_the_distance_of_the_means():
    u, v = torch.randn(2, 50, 6, generator=torch.manual_seed(2))
    mean = [np.mean([x / np.linalg.norm(x) for x in z.numpy()], axis=0) for z in (u, v)]
    assert retrieval.gap(u, v) == pytest.approx(np.linalg.norm(mean[0] - mean[1]), rel=1e-5)
    assert retrieval.gap(u, 3 * u) == pytest.approx(0, abs=1e-6)


def test_zero_shot_takes_the_nearest_class_by_one_prompt_or_by_the_mean_of_all():
    texts = {"a": [1.0, 0.0], "b": [0.0, 1.0], "far": [-1.0, -1.0]}
    images = F.normalize(torch.tensor([[1.0, 0.9], [0.2, 1.0]]), dim=1)

    def encode(given):
        return torch.tensor([texts[x] for x in given])

    prompts = {"first": ["a", "far"], "second": ["b"]}
    assert retrieval.zero_shot(images, encode, prompts, ensemble=False) == ["first", "second"]
    assert retrieval.zero_shot(images, encode, prompts, ensemble=True) == ["second", "second"]


def test_every_class_has_a_known_prompt_in_any_split_and_one_without_is_left_out(data):
    for number in range(3):
        vocabulary = emoji.load(n_train=900, n_validation=173, number=number).vocabulary
        for classes in (retrieval.KINDS, retrieval.GROUPS):
            found = retrieval.prompts(classes, vocabulary)
            assert set(found) == set(classes)
            assert all(set(words) <= set(vocabulary.numbers) for words in found.values())
    counts = emoji.concepts().table["kind"].value_counts()
    assert set(retrieval.KINDS) == set(counts[counts >= 15].index)
    assert set(retrieval.GROUPS) == set(emoji.concepts().table["group"])
    assert retrieval.prompts({"x": "zzyzx", "y": "zzyzx face"}, data.vocabulary) == {"y": ["face"]}
    with pytest.raises(CompanionError, match="No word for a class is known: expected one of zzyzx"):
        retrieval.prompts({"x": "zzyzx"}, data.vocabulary)


def test_ridge_is_scikit_learns(data):
    draw = drawn(data)
    x = torch.cat([draw["train", artist]["pixels"] for artist in data.artists])
    y = torch.randn(200, 3, generator=torch.manual_seed(3))
    mean, scale = x.mean(0), x.std(0) + 1e-3
    expected = Ridge(alpha=1e4).fit(((x - mean) / scale).numpy(), y.repeat(2, 1).numpy())
    test = draw["test", "fluent"]["pixels"]
    found = pixels.Ridge(draw, data).to(y)(test, 1e4)
    np.testing.assert_allclose(found, expected.predict(((test - mean) / scale).numpy()), atol=1e-3)


def test_the_nearest_drawing_is_that_of_a_naive_search(data):
    draw = drawn(data)
    found = pixels.neighbours(draw, data, "test", "fluent")
    seen = {a: draw["train", a]["pixels"].numpy() for a in data.artists}
    mean = np.concatenate(list(seen.values())).mean(0)
    for i in (0, 7, 30):
        x = draw["test", "fluent"]["pixels"][i].numpy() - mean
        for j in (0, 3, 199):
            y = [seen[a][j] - mean for a in data.artists]
            best = max(x @ z / np.linalg.norm(x) / np.linalg.norm(z) for z in y)
            assert found[i, j] == pytest.approx(best, abs=1e-4)


def test_across_artists_what_is_alike_is_found_and_noise_is_not(data):
    draw = drawn(data)
    for part in data.parts:
        for artist in emoji.ARTISTS[1:]:
            draw[part, artist]["projection"] = draw[part, "noto"]["projection"]
    found = pairs._cross(draw, data)
    assert found["test_cross_projection_r1"] == found["validation_cross_projection_r1"] == 1
    assert found["test_cross_features_r1"] < 0.02
    assert 0.1 < found["test_cross_pixels_r1"] < 0.6


def test_a_run_has_what_the_notebook_reports_and_comes_back_from_the_table(quick, results, tmp_path, forget):
    found = run(quick)
    ways = [f"{way}_r{k}" for way in ("image", "text") for k in (1, 5)]
    for prefix in ("test", "test_new", "validation", "artist", "pixels_artist", "ridge_test", "ridge_test_new"):
        assert {f"{prefix}_{way}" for way in ways} <= set(found.metrics), prefix
    for column in ("kind", "group"):
        for name in ("prompt", "ensemble", "pixels", "neighbour"):
            assert {f"{name}_{column}", f"{name}_new_{column}"} <= set(found.metrics)
    assert {"gap", "test_gap", "scale", "bias", "linear_accuracy", "negative_variance"} <= set(found.metrics)
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert {"gap", "validation_gap", "scale", "loss"} <= set(found.history)
    assert baselines(quick) == {}
    assert record([found], tmp_path / "cpu" / "runs.csv") == 1
    (row,) = read(tmp_path / "cpu" / "runs.csv").to_dict("records")
    assert row["test_image_r1"] == pytest.approx(table([found])["test_image_r1"][0])
    assert runs.stored(found.path, dataset="eurosat-subset").config == quick  # whatever the profile's own


def test_drawings_of_two_artists_too(quick, results):
    method = Clip(loss="nt_xent", second="artist", artists="noto+fluent", learned=False, temperature=0.2)
    found = run(quick.replace(method=method))
    assert {"test_cross_features_r1", "test_cross_pixels_r1", "alignment", "uniformity"} <= set(found.metrics)
    assert "test_image_r1" not in found.metrics
    assert found.method().model.second_projector is None


def test_what_is_not_finite_is_no_hit():
    with pytest.raises(CompanionError, match="Similarities have NaN"):
        retrieval.recall(torch.full((5, 5), torch.nan), 1)
    texts, known = torch.eye(8), torch.tensor([True] * 4 + [False] * 4)
    found = retrieval.both_ways(retrieval.similarities(texts, texts, known), "x")
    assert found == {"x_image_r1": 0.5, "x_image_r5": 0.5, "x_text_r1": 0.5, "x_text_r5": 0.5}
