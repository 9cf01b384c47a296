"""Emoji: what a split promises, what a caption is made of, and which pairs a batch holds."""

import shutil

import pytest
import torch

from companion import paths
from companion.errors import CompanionError
from companion.training import Config, Contrastive, Unchanged, emoji, load_data, run
from companion.training.data import load as load_images

SIZES = {"n_train": 900, "n_validation": 173}


@pytest.fixture(scope="module")
def data():
    return emoji.load(**SIZES)


@pytest.fixture
def as_it_is():
    return Unchanged().build(32)


def test_every_concept_has_three_drawings_a_name_of_its_own_and_no_rude_keyword():
    whole = emoji.concepts()
    assert len(whole) == 1273
    assert whole.images.shape == (1273, 3, 3, 32, 32)
    assert whole.images.dtype == torch.uint8
    assert len(set(whole.names)) == len(set(whole.table["code"])) == 1273
    assert (whole.images.flatten(2).float().std(dim=2) > 0).all()  # nothing is blank
    words = {word for keywords in whole.table["keywords"] for keyword in keywords for word in keyword.split()}
    assert not words & {"fuck", "shit", "wtf", "lmao", "sexy"}
    assert {"dog face", "red apple", "rocket"} <= set(whole.names)


def test_an_artist_s_drawings_are_where_the_name_says():
    """Noto's, Fluent's and Twemoji's red apples are red, their frogs green."""
    whole = emoji.concepts()
    for name, channel in (("red apple", 0), ("frog", 1), ("blue heart", 2)):
        for artist in emoji.ARTISTS:
            mean = whole.drawn(artist)[whole.names.index(name)].float().mean(dim=(1, 2))
            assert mean.argmax() == channel, (name, artist)
    assert not torch.equal(whole.drawn("noto"), whole.drawn("twemoji"))


def test_a_split_parts_the_concepts_and_its_validation_concepts_are_always_the_same(data):
    codes = {name: set(part.table["code"]) for name, part in data.parts.items()}
    assert [len(codes[name]) for name in ("train", "validation", "test")] == [900, 173, 200]
    assert not codes["train"] & codes["test"]
    assert not codes["validation"] & (codes["train"] | codes["test"])
    again, other = emoji.load(**SIZES), emoji.load(**SIZES, number=1)
    assert set(again.parts["test"].table["code"]) == codes["test"]
    assert set(other.parts["validation"].table["code"]) == codes["validation"]
    assert len(set(other.parts["test"].table["code"]) & codes["test"]) < 60  # of 200; by chance 36
    groups = [part.table["group"].value_counts(normalize=True) for part in data.parts.values()]
    assert (groups[0] - groups[2]).abs().max() < 0.01


def test_a_split_may_have_no_concepts_to_choose_settings_on():
    train, validation, test = (set(part.tolist()) for part in emoji.split(200, 0, 0))
    assert (len(train), validation) == (200, set())
    assert train | test == set(range(len(emoji.concepts())))
    assert not train & test


def test_as_images_it_serves_any_method(data, tiny, results):
    assert data.train.images.shape == (1800, 3, 32, 32)
    assert torch.equal(data.train.images[0], data.parts["train"].drawn("noto")[0])
    assert torch.equal(data.train.images[1], data.parts["train"].drawn("twemoji")[0])
    assert torch.equal(data.train.labels[::2], data.parts["train"].labels())
    found = run(tiny.replace(dataset="emoji", epochs=1, method=Contrastive()))
    assert 0 < found.metrics["linear_accuracy"] < 1
    assert len(found.data().train) == 2 * 96


def test_the_vocabulary_has_the_words_of_the_training_captions_alone(data):
    table = data.parts["train"].table
    words = {word for texts in [table["name"], *table["keywords"]] for text in texts for word in text.split()}
    assert set(data.vocabulary.numbers) == words
    assert sorted(data.vocabulary.numbers.values()) == list(range(1, len(words) + 1))
    known = data.vocabulary.knows(data.parts["test"].names)
    naive = [any(word in words for word in name.split()) for name in data.parts["test"].names]
    assert known.tolist() == naive
    assert 0.5 < known.float().mean() < 0.9  # a split that leaks its names would know them all


def test_a_text_is_the_numbers_of_its_known_words(data):
    numbers = data.vocabulary.numbers
    encoded = data.vocabulary.encode(["Face, smiling!", "zzyzx face"])
    assert encoded[:, :3].tolist() == [[numbers["face"], numbers["smiling"], 0], [numbers["face"], 0, 0]]
    with pytest.raises(CompanionError, match=r"No word of 'zzyzx' is known.*2,\d\d\d words of the training captions"):
        data.vocabulary.encode(["face", "zzyzx"])


def test_captions_are_names_keywords_or_both_drawn_anew_each_epoch(data, as_it_is):
    source = emoji.Captions(data, as_it_is, 100, seed=0)
    words = {number: word for word, number in data.vocabulary.numbers.items()}
    table, seen, named = data.parts["train"].table, {}, 0
    drawings = {
        drawing.numpy().tobytes(): row
        for artist in data.artists
        for row, drawing in enumerate(data.parts["train"].drawn(artist))
    }
    counts, total, keyworded = [0] * 5, 0, 0
    for epoch in range(2):
        rows = []
        for batch in source.batches(epoch):
            for image, text in zip((batch.first * 255).round().to(torch.uint8), batch.second.tolist(), strict=True):
                row = drawings[image.contiguous().numpy().tobytes()]
                rows.append(row)
                name = [words[x] for x in text[: emoji.NAME] if x]
                keywords = [text[i : i + 3] for i in range(emoji.NAME, len(text), 3)]
                keywords = [" ".join(words[x] for x in given if x) for given in keywords if any(given)]
                assert name in ([], table["name"][row].split())
                assert set(keywords) <= set(table["keywords"][row])
                assert len(set(keywords)) == len(keywords)
                assert name or keywords
                seen.setdefault(row, set()).add((tuple(name), tuple(sorted(keywords))))
                if len(table["keywords"][row]) >= 4:
                    counts[len(keywords)] += 1
                if keywords:
                    keyworded, named = keyworded + 1, named + bool(name)
                total += 1
        assert sorted(rows) == list(range(900))  # each concept once an epoch
    assert total == 1800
    assert 0.45 < named / keyworded < 0.55
    shares = [count / sum(counts) for count in counts]
    assert all(0.15 < share < 0.25 for share in shares), shares
    assert sum(len(captions) == 2 for captions in seen.values()) > 600
    again = [batch.second for batch in emoji.Captions(data, as_it_is, 100, seed=0).batches(1)]
    assert all(torch.equal(a, b.second) for a, b in zip(again, source.batches(1), strict=True))


def test_a_pair_is_two_drawings_of_one_concept_by_two_artists_or_twice_the_same(data, as_it_is):
    part, wide = data.parts["train"], emoji.load(**SIZES, artists="noto+fluent+twemoji")
    where = {
        part.drawn(artist)[row].numpy().tobytes(): (row, artist) for artist in emoji.ARTISTS for row in range(len(part))
    }

    def origins(source):
        for batch in source.batches(0):
            pairs = zip(batch.first, batch.second, strict=True)
            yield from (
                [where[(x * 255).round().to(torch.uint8).contiguous().numpy().tobytes()] for x in p] for p in pairs
            )

    two = list(origins(emoji.Drawings(wide, as_it_is, 100, seed=0, two_artists=True)))
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in two)
    assert {(a[1], b[1]) for a, b in two} == {(x, y) for x in emoji.ARTISTS for y in emoji.ARTISTS if x != y}
    one = list(origins(emoji.Drawings(data, as_it_is, 100, seed=0)))
    assert all(a == b for a, b in one)
    assert {a[1] for a, _ in one} == {"noto", "twemoji"}  # Fluent's are kept for tests


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: emoji.load(**SIZES, artists="noto+picasso"), "Unknown artist 'picasso': expected one of noto, flu"),
        (lambda: emoji.load(**SIZES, artists="noto+noto"), "expected each artist once"),
        (lambda: emoji.load(n_train=1200, n_validation=173), r"1,200 concepts to train on.*of 1,273 that there are"),
        # Of eight groups, so that each has a concept to test on.
        (lambda: emoji.load(n_train=1273 - 173 - 7, n_validation=173), "expected 1,265 at most together"),
        (lambda: load_data(Config(dataset="emoji")), r"4,000 concepts to train on and 2,000 for validation"),
        (lambda: emoji.load(**SIZES, number=-1), "number of the split is -1"),
        (lambda: load_images("emoji", image_size=32, n_train=9), "drawings with names: load them with companion"),
        (lambda: emoji.load(n_train=3, n_validation=0), "Cannot choose 3 concepts with every group in proportion"),
        (lambda: emoji.concepts().drawn("noto2"), "Unknown artist 'noto2'.*Did you mean 'noto'"),
        (lambda: emoji.Drawings(emoji.load(**SIZES, artists="noto"), None, 10, two_artists=True, seed=0),
         "Pairs of two artists need two, and there is noto alone"),
    ],
)  # fmt: skip
def test_bad_input_is_told(call, expected):
    with pytest.raises(CompanionError, match=expected):
        call()


@pytest.mark.parametrize("name", ["emoji.webp", "emoji.tsv"])
def test_a_damaged_file_is_told(tmp_path, monkeypatch, name):
    for file in emoji.SHA256:
        shutil.copy(paths.ROOT / "data" / file, tmp_path / file)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(raw))
    monkeypatch.setenv("CONTRASTIVE_DATA", str(tmp_path))
    emoji.concepts.cache_clear()
    with pytest.raises(CompanionError, match=rf"{name} is damaged \(its SHA-256 is not .*Restore it"):
        emoji.concepts()
    emoji.concepts.cache_clear()
