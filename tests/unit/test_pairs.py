import numpy as np
import pytest
import torch
import torch.nn.functional as F

from companion.errors import CompanionError
from companion.training import Batch, Clip, Config, MoCo, SimCLR, emoji, pairs, pixels, retrieval, runs
from companion.training.loop import optimizer_of
from companion.training.sources import seed as seed_of

QUICK = Config(
    dataset="emoji", image_size=32, n_train=200, n_validation=40, width=4, projector_dim=8, batch_size=40, epochs=2,
    warmup_epochs=0, optimizer="adamw", weight_decay=0.5, accelerator="cpu", method=Clip(),
)  # fmt: skip
NOISE = {"noto": 0.02, "twemoji": 0.05, "fluent": 0.15}


@pytest.fixture(scope="module")
def data():
    return emoji.load(n_train=200, n_validation=40)


@pytest.fixture(scope="module")
def planted(data):
    """Drawings that lie near their names, each artist's at a distance of its own; and the text encoder."""
    method = runs.initial(QUICK)

    @torch.no_grad()
    def encode(texts):
        return F.normalize(method.model.second_projector(data.vocabulary.encode(texts)), dim=1)

    draw, g = {}, torch.Generator().manual_seed(0)
    for part, concepts in data.parts.items():
        known = data.vocabulary.knows(concepts.names)
        at = torch.zeros(len(concepts), 8)
        at[known] = encode([x for x, yes in zip(concepts.names, known, strict=True) if yes])
        for artist in emoji.ARTISTS:
            noise = NOISE[artist] * torch.randn(at.shape, generator=g)
            draw[part, artist] = {
                "projection": F.normalize(at + noise, dim=1), "features": at + noise,
                "pixels": concepts.drawn(artist).flatten(1).float() / 255,
            }  # fmt: skip
    with torch.no_grad():
        return method, encode, draw, pairs._with_texts(method, draw, data)


def by_hand(s, k):
    return np.mean([(row > row[i]).sum() + ((row == row[i]).sum() - 1) / 2 < k for i, row in enumerate(s)])


@pytest.mark.parametrize(
    ("prefix", "part", "artists", "described"),
    [
        ("test", "test", ("noto", "twemoji"), False), ("test_new", "test", ("fluent",), False),
        ("test_described", "test", ("noto", "twemoji"), True), ("test_new_described", "test", ("fluent",), True),
        ("validation", "validation", ("noto", "twemoji"), False), ("artist", "train", ("fluent",), False),
        ("validation_new_described", "validation", ("fluent",), True),
    ],
)  # fmt: skip
def test_each_recall_is_that_of_its_own_part_artist_and_text(data, planted, prefix, part, artists, described):
    _, encode, draw, found = planted
    concepts = data.parts[part]
    texts = concepts.described() if described else concepts.names
    s = []
    for artist in artists:
        x = torch.full((len(texts), len(texts)), -torch.inf)
        for j, text in enumerate(texts):
            if data.vocabulary.knows([text])[0]:
                x[:, j] = draw[part, artist]["projection"] @ encode([text])[0]
        s.append(x.numpy())
    for k in (1, 5):
        for way, turn in (("image", lambda x: x), ("text", np.transpose)):
            expected = np.mean([by_hand(turn(x), k) for x in s])
            assert found[f"{prefix}_{way}_r{k}"] == pytest.approx(expected, abs=0.003), (way, k)


def test_each_gap_is_that_of_its_own_part_and_of_known_names(data, planted):
    _, encode, draw, found = planted
    for prefix, part, artists in (("", "train", data.artists), ("test_", "test", data.artists),
                                  ("test_new_", "test", ("fluent",))):  # fmt: skip
        names = data.parts[part].names
        known = [i for i, name in enumerate(names) if data.vocabulary.knows([name])[0]]
        u = torch.cat([draw[part, a]["projection"][known] for a in artists]).mean(0)
        assert found[f"{prefix}gap"] == pytest.approx(
            (u - encode([names[i] for i in known]).mean(0)).norm().item(), abs=1e-4
        )


@pytest.mark.parametrize(("column", "classes"), [("kind", retrieval.KINDS), ("group", retrieval.GROUPS)])
def test_each_zero_shot_accuracy_is_that_of_its_own_part_artist_and_prompts(data, planted, column, classes):
    _, encode, draw, found = planted
    given = retrieval.prompts(classes, data.vocabulary)

    def share(part, answers):
        truth = data.parts[part].table[column]
        return np.mean([a == b for a, b in zip(truth, answers, strict=True) if a in classes])

    for name, many in (("prompt", 1), ("ensemble", None)):
        at = torch.stack([F.normalize(encode(words[:many]).mean(0), dim=0) for words in given.values()])
        for of, part in (("", "test"), ("validation_", "validation")):
            for new, artists in (("", data.artists), ("new_", ("fluent",))):
                answers = [[list(given)[i] for i in (draw[part, a]["projection"] @ at.T).argmax(1)] for a in artists]
                expected = np.mean([share(part, x) for x in answers])
                assert found[f"{of}{name}_{new}{column}"] == pytest.approx(expected, abs=0.003), (name, part, new)
    train = data.parts["train"].table[column]
    common = max(classes, key=lambda c: (train == c).sum())
    assert found[f"majority_{column}"] == pytest.approx(share("test", [common] * len(data.parts["test"])))
    near = pixels.neighbours(draw, data, "test", "fluent").argmax(1)
    assert found[f"neighbour_new_{column}"] == pytest.approx(share("test", [train[int(i)] for i in near]))


def test_ridge_is_chosen_on_validation_concepts_and_tested_on_others(data, planted):
    *_, draw, found = planted
    words, model = data.vocabulary, pixels.Ridge(draw, data)

    def hot(texts):
        rows = torch.zeros(len(texts), len(words) - 1)
        for row, text in enumerate(texts):
            for word in text.split():
                if word in words.numbers:
                    rows[row, words.numbers[word] - 1] = 1
        return F.normalize(rows, dim=1)

    def s(predict, penalty, part, artist):
        names = data.parts[part].names
        u = F.normalize(predict(draw[part, artist]["pixels"], penalty), dim=1)
        return (u @ hot(names).T).masked_fill(~words.knows(names), -torch.inf)

    tried = {}
    for targets in (data.parts["train"].names, data.parts["train"].described()):
        predict = model.to(hot(targets))
        for penalty in pixels.PENALTIES:
            ranks = torch.cat([retrieval.ranks(s(predict, penalty, "validation", a)) for a in data.artists])
            tried[(1 + ranks).log().mean().item()] = predict, penalty
    best = tried[min(tried)]
    for prefix, artists in (("ridge_test", data.artists), ("ridge_test_new", ("fluent",))):
        for k in (1, 5):
            expected = np.mean([by_hand(s(*best, "test", a).numpy(), k) for a in artists])
            assert found[f"{prefix}_image_r{k}"] == pytest.approx(expected, abs=0.003)


def test_the_probe_of_pairs_is_tested_on_unseen_concepts_by_seen_artists(data):
    """Features that tell a group in training and its neighbour in a test: nothing is right."""
    draw = {}
    for part, concepts in data.parts.items():
        told = F.one_hot((concepts.labels() + (part == "test")) % 8, 8).float()
        for artist in emoji.ARTISTS:
            draw[part, artist] = {"features": told}
    assert pairs._probe(draw, data)["linear_accuracy"] == 0
    for artist in data.artists:
        draw["test", artist] = {"features": F.one_hot(data.parts["test"].labels(), 8).float()}
    assert pairs._probe(draw, data)["linear_accuracy"] == 1


def test_drawings_are_matched_about_the_mean_of_what_was_trained_on(data):
    """By a loop over the ordered pairs of artists; all lies far from the origin, on one side."""
    g, draw = torch.Generator().manual_seed(0), {}
    for part, concepts in data.parts.items():
        at = torch.randn(len(concepts), 6, generator=g)
        for artist in emoji.ARTISTS:
            of = {
                kind: at + 0.5 * torch.randn(at.shape, generator=g) + 5 for kind in ("features", "projection", "pixels")
            }
            draw[part, artist] = of
    found = pairs._cross(draw, data)
    for kind in ("features", "projection", "pixels"):
        mean = np.concatenate([draw["train", artist][kind].numpy() for artist in data.artists]).mean(0)
        for part in ("validation", "test"):
            z = {artist: draw[part, artist][kind].numpy() - mean for artist in emoji.ARTISTS}
            z = {artist: x / np.linalg.norm(x, axis=1, keepdims=True) for artist, x in z.items()}
            for k in (1, 5):
                expected = np.mean([by_hand(z[a] @ z[b].T, k) for a in z for b in z if a != b])
                assert 0.1 < expected < 0.98
                assert found[f"{part}_cross_{kind}_r{k}"] == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("artists", "compared"), [("noto+twemoji", ("noto", "twemoji")), ("fluent", ("fluent",) * 2)])
def test_the_similarities_of_a_run_on_drawings_are_those_of_its_artists(artists, compared):
    config = QUICK.replace(second="artist", artists=artists)
    data, method = emoji.load(image_size=32, n_train=200, n_validation=40, artists=artists), runs.initial(config)
    found = pairs.measure(method, config, data)
    with torch.no_grad():
        images = [data.parts["test"].drawn(artist).float() / 255 for artist in compared]
        u, v = (F.normalize(method.model.projector(method.embed(x)), dim=1) for x in images)
    assert found["positive_mean"] == pytest.approx((u * v).sum(1).mean().item(), abs=1e-5)
    assert found["alignment"] == pytest.approx((u - v).square().sum(1).mean().item(), abs=1e-4)
    assert "scale" not in found


def test_the_history_holds_recalls_of_validation_concepts_beside_those_of_training(data):
    method = runs.initial(QUICK)
    found, part = pairs.track(method, QUICK, data), data.parts["validation"]
    known = data.vocabulary.knows(part.names)
    images = part.drawn("noto")[known].float() / 255
    texts = data.vocabulary.encode([x for x, yes in zip(part.names, known, strict=True) if yes])
    with torch.no_grad():
        u, v = method.project(images, texts)
    assert found["validation_gap"] == pytest.approx(retrieval.gap(u, v), abs=1e-5)
    assert found["gap"] != pytest.approx(found["validation_gap"], abs=1e-3)
    assert pairs.track(method, QUICK.replace(second="view"), data) == {}


def test_ties_count_half_and_the_two_ways_are_rows_and_columns():
    assert retrieval.ranks(torch.ones(5, 5)).tolist() == [2.0] * 5
    s = torch.zeros(7, 7)
    s[:, :5] = 1
    s.diagonal().add_(0.5)
    found = retrieval.both_ways(s, "x")
    assert found == {"x_image_r1": 5 / 7, "x_image_r5": 5 / 7, "x_text_r1": 1.0, "x_text_r5": 1.0}


def test_embeddings_of_texts_have_length_one_and_stay_in_their_rows():
    known = torch.tensor([False, True, True])
    found, yes = retrieval.text_embeddings(
        lambda x: torch.tensor([[float(t), 0.0] for t in x]), lambda x: known, ["?", "3", "-2"]
    )
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    assert yes is known


def test_zero_shot_prompts_and_means_have_length_one():
    texts = {"a": [9.0, 0.0], "b": [0.0, 1.0], "c": [0.6, 0.6]}
    encode = lambda given: torch.tensor([texts[x] for x in given])  # noqa: E731
    image = F.normalize(torch.tensor([[0.6, 1.0]]), dim=1)
    # the mean of a and b, each of length one, points to 45°, as c does: a tie of one direction goes to the first
    assert retrieval.zero_shot(image, encode, {"x": ["a", "b"], "y": ["b"]}, ensemble=True) == ["x"]
    image = F.normalize(torch.tensor([[0.5, 1.0]]), dim=1)  # 63°: nearer to 45° than to 90°
    assert retrieval.zero_shot(image, encode, {"x": ["a", "b"], "y": ["b"]}, ensemble=True) == ["x"]


def test_classes_that_are_not_asked_for_do_not_count(data):
    truth = list(data.parts["test"].table["kind"])
    other = [i for i, kind in enumerate(truth) if kind not in retrieval.KINDS]
    assert other
    answers = ["x" if i in other else kind for i, kind in enumerate(truth)]
    assert retrieval.share_right(data, "test", "kind", answers) == 1


def test_who_is_unseen_what_is_described_and_which_number_a_group_has(data):
    assert data.unseen_artists == ["fluent"]
    assert emoji.load(n_train=200, n_validation=40, artists="fluent").unseen_artists == ["noto", "twemoji"]
    part = data.parts["train"]
    row = next(i for i, words in enumerate(part.table["keywords"]) if len(words) > 6)
    assert part.described()[row] == " ".join([part.names[row], *part.table["keywords"][row][:6]])
    whole = emoji.concepts()
    last = torch.where(whole.labels() == whole.labels().max())[0]
    assert set(whole[last].labels().tolist()) == {len(set(whole.table["group"])) - 1}
    first = data.vocabulary.encode(["face smiling"], length=1)
    assert first.tolist() == [[data.vocabulary.numbers["face"]]]


def test_every_keyword_comes_into_a_caption(data):
    source = emoji.Captions(data, SimCLR().build(32), 100, seed=0)
    seen = {int(x) for epoch in range(40) for b in source.batches(epoch) for x in b.second[:, emoji.NAME :].flatten()}
    words = {w for words in data.parts["train"].table["keywords"] for keyword in words for w in keyword.split()}
    assert seen - {0} == {data.vocabulary.numbers[w] for w in words}


def test_optimiser_pool_dropout_and_a_learned_scale_of_nt_xent():
    method = runs.initial(QUICK)
    assert {g["betas"] for g in optimizer_of(method, QUICK).param_groups} == {(0.9, 0.98)}
    assert method.model.projector[1].in_features == 4 * 4 * 4**2  # channels × pool²
    assert runs.initial(QUICK.replace(pool=2)).model.projector[1].in_features == 4 * 4 * 2**2
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(method.model(x), method.model(x))
    method.model.projector.train()  # not the encoder, whose batch norm changes
    assert not torch.allclose(method.model(x), method.model(x))
    method = runs.initial(QUICK.replace(loss="nt_xent", second="view"))
    method.loss(Batch(x, x.flip(3), torch.zeros(4))).backward()
    assert method.scale.logarithm.grad.abs() > 0


def test_unshuffled_keys_lie_in_the_groups_of_their_queries():
    import test_moco

    method, given = test_moco.build(batch_norm_groups=2, shuffle=False).train(), test_moco.batch()
    alone = test_moco.build().train().key_model
    torch.manual_seed(3)  # an order that would move images between the groups
    method.loss(given)
    expected = torch.cat([alone(given.second[:2]), alone(given.second[2:])])
    torch.testing.assert_close(method.keys, F.normalize(expected, dim=1))
    titles = {MoCo(**x).title for x in ({}, {"batch_norm_groups": 2}, {"batch_norm_groups": 2, "shuffle": False})}
    assert titles == {"moco-t0.2-K1024-0.99", "moco-t0.2-K1024-0.99-groups2", "moco-t0.2-K1024-0.99-groups2-unshuffled"}


def test_a_rotation_is_a_share():
    with pytest.raises(CompanionError, match=r"rotate is 1\.5: expected a number from 0 to 1"):
        SimCLR(rotate=1.5)


def test_a_run_on_texts_has_no_two_views_and_one_on_drawings_has_those_of_training_images(tmp_path):
    with pytest.raises(CompanionError, match=r"has no two views of an image: take `run\.method\(\)\.project"):
        runs.Run(QUICK, tmp_path).two_views()
    drawn = QUICK.replace(second="view", measured_pairs=200)
    run = runs.Run(drawn, tmp_path)
    object.__setattr__(run, "method", lambda: runs.initial(drawn))
    images = runs.load_data(drawn).labelled
    assert sorted(run.two_views()[2].tolist()) == sorted(images.labels[chosen(len(images), 200)].tolist())


def chosen(n, k):
    """The fixed choice that every run is measured on."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(1)))[:k]


def test_the_seed_of_a_run_splits_the_emoji():
    zero, one = (runs.load_data(QUICK.replace(seed=seed)) for seed in (0, 1))
    for found, seed in ((zero, 0), (one, 1)):
        expected = emoji.load(n_train=200, n_validation=40, number=seed)
        assert found.parts["test"].names == expected.parts["test"].names
    assert zero.parts["test"].names != one.parts["test"].names


def test_a_run_of_an_image_folder_is_read_with_the_folder_that_is_given(tmp_path):
    import json

    from companion.store import TRAINING_VERSION

    config = Config(dataset="imagefolder:/elsewhere")
    (tmp_path / "config.json").write_text(json.dumps({"training_version": TRAINING_VERSION} | config.to_dict()))
    assert runs.stored(tmp_path, dataset="imagefolder:/here").config == config.replace(dataset="imagefolder:/here")


def test_drawings_are_clamped_after_resizing_and_the_template_holds_the_name():
    from companion.training.checkpoint import Encoders, evaluate

    asked = []
    encoders = Encoders(
        lambda x: x.flatten(1), lambda texts: asked.extend(texts) or torch.randn(len(texts), 3 * 32 * 32)
    )
    concepts = emoji.concepts()[torch.arange(6)]
    evaluate(encoders, concepts, "noto", template="an emoji of a {}")
    assert asked == [f"an emoji of a {name}" for name in concepts.names]


@pytest.mark.parametrize(
    ("second", "kind", "other"),
    [("text", emoji.Captions, 0), ("artist", emoji.Drawings, 1), ("view", emoji.Drawings, 0)],
)
def test_a_run_takes_the_source_of_its_second(second, kind, other):
    from companion.training.sweeps import source_of

    config = QUICK.replace(second=second)
    source = source_of(config, runs.load_data(config), "cpu")
    assert (type(source), source.second) == (kind, other)


def test_weights_are_cosines_and_never_count_against_a_class():
    from companion.similarity import euclidean
    from companion.training import probe

    query = torch.tensor([[1.0, 0.0]])
    # nearest two by place: cosine 1 for class 0 (at 2), .1 for class 1 twice (nearer)
    train, labels = torch.tensor([[2.0, 0.0], [0.1, 0.995], [0.1, -0.995]]), torch.tensor([0, 1, 1])
    assert probe.weighted_knn(train, labels, (query, torch.tensor([0])), k=3, similarity=euclidean)[0].tolist() == [
        True
    ]
    # all neighbours point away: of class 1 they are, and class 0, of which there is none, must not win with 0
    train, labels = torch.tensor([[-1.0, 0.1], [-1.0, -0.1]]), torch.tensor([1, 1])
    assert probe.weighted_knn(train, labels, (query, torch.tensor([1])), k=2)[0].tolist() == [True]


def test_ridge_looks_at_validation_concepts_alone_to_choose(data, planted, monkeypatch):
    sizes = []
    monkeypatch.setattr(pixels, "ranks", lambda s: sizes.append(len(s)) or retrieval.ranks(s))
    pixels.ridge_regression(planted[2], data)
    assert set(sizes) == {len(data.parts["validation"])}
