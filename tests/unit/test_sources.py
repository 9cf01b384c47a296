"""Batches: every image once an epoch, in an order of its own, the same for however many processes share it."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from companion.errors import CompanionError
from companion.training import Pairs, SimCLR, Unchanged, Views, sources
from companion.training.data import FileSplit, Split, _read_image

N = 50


@pytest.fixture
def split():
    """Fifty grey images; the number of an image is its label and the value of its pixels."""
    numbers = torch.arange(N)
    return Split(numbers.to(torch.uint8)[:, None, None, None].expand(N, 1, 8, 8).contiguous(), numbers)


@pytest.fixture
def files(tmp_path):
    """Twenty photographs of noise."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(20):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(generator.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(paths[-1])
    return FileSplit(np.array(paths), torch.arange(20) % 3, 16)


class Noise(torch.nn.Module):
    """An augmentation that shows nothing of the image but its number, beside what it drew."""

    def forward(self, images, draws):
        return images[:, :, 0, 0].float()[..., None, None] + torch.rand(len(images), 1, 8, 8, generator=draws)


def views(split, batch_size=16, *, seed=0, augmentation=None, **options):
    return Views(split, augmentation or Noise(), batch_size, seed=seed, **options)


def labels(source, epoch=0):
    return [batch.labels.tolist() for batch in source.batches(epoch)]


def joined(parts):
    return list(itertools.chain.from_iterable(parts))


def test_each_image_comes_once_an_epoch_with_its_label_and_two_views_of_it(split):
    source = views(split)
    batches = list(source.batches(0))
    assert len(batches) == len(source) == 3  # two images are left over
    assert [len(batch.labels) for batch in batches] == [16, 16, 16]
    seen = torch.cat([batch.labels for batch in batches])
    assert len(seen.unique()) == 48
    for batch in batches:
        for images in (batch.first, batch.second):
            assert images.shape == (16, 1, 8, 8)
            assert torch.equal(images.floor()[:, 0, 0, 0].long(), batch.labels)
        assert not torch.equal(batch.first, batch.second)


@pytest.mark.parametrize(
    ("batch_size", "world", "expected"),
    [(32, 1, [1024, 1024, 32]), (512, 1, [1024, 1024]), (205, 1, [820, 820, 410]), (2000, 1, [2000]),
     (1024, 2, [1024])],
)  # fmt: skip
def test_views_are_drawn_for_the_whole_batches_of_1024_images_at_once_or_for_one(batch_size, world, expected):
    """Other chunks have other draws, and no recorded run would repeat."""
    seen = []

    def augmentation(images, draws):
        seen.append(len(images))
        return images.float()

    split = Split(torch.zeros(2100, 1, 1, 1, dtype=torch.uint8), torch.arange(2100))
    batches = list(views(split, batch_size, augmentation=augmentation, world=world).batches(0))
    assert seen == [size for size in expected for _ in range(2)]  # two views of each
    assert sum(len(batch.labels) for batch in batches) == sum(expected)


def test_what_is_left_over_changes_from_epoch_to_epoch(split):
    source = views(split)
    dropped = {tuple(sorted(set(range(N)) - set(joined(labels(source, epoch))))) for epoch in range(5)}
    assert len(dropped) > 1


def test_the_order_is_shuffled_anew_for_every_epoch_and_seed_and_the_same_when_asked_again(split):
    orders = [joined(labels(views(split, seed=seed), epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6
    for order in orders:
        assert order != sorted(order)
        assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.6  # 4 standard deviations
    assert joined(labels(views(split, seed=1), 2)) == orders[-1]


def test_the_views_are_drawn_anew_for_every_epoch_and_the_same_when_asked_again(split):
    source = views(split)

    def drawn(epoch):
        return torch.cat([torch.stack([batch.first, batch.second]) for batch in source.batches(epoch)], 1) % 1

    assert torch.equal(drawn(3), drawn(3))
    assert torch.equal(drawn(3), (list(source.batches(0)), drawn(3))[1])  # whatever was asked for before
    assert len(torch.cat([drawn(0).flatten(), drawn(1).flatten()]).unique()) > 0.99 * 4 * 48 * 64


def test_nothing_is_drawn_from_the_global_generator(split):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(views(split, augmentation=SimCLR().build(8)).batches(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("chunk", [1, 16, 20, 33])
def test_how_many_are_augmented_at_once_changes_no_batch(split, chunk, monkeypatch):
    expected = labels(views(split))
    monkeypatch.setattr(sources, "CHUNK", chunk)
    assert labels(views(split)) == expected
    pixels = [batch.first for batch in views(split, augmentation=Unchanged().build(8)).batches(0)]
    assert [(255 * x[:, 0, 3, 3]).round().long().tolist() for x in pixels] == expected


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_processes_together_see_the_batches_of_one_process(split, world):
    for epoch in (0, 1):
        alone = labels(views(split, 12), epoch)
        shares = [labels(views(split, 12, rank=rank, world=world), epoch) for rank in range(world)]
        assert [len(share) for share in shares] == [len(alone)] * world
        for step, batch in enumerate(alone):
            parts = [share[step] for share in shares]
            assert {len(part) for part in parts} == {12 // world}
            assert joined(parts) == batch


def test_the_processes_draw_independently_of_each_other(split):
    drawn = [
        torch.cat([torch.cat([batch.first, batch.second]) for batch in views(split, 12, rank=r, world=3).batches(0)])
        % 1
        for r in range(3)
    ]
    everything = torch.stack(drawn)  # (process, view, ...)
    assert len(everything.flatten().unique()) > 0.99 * everything.numel()
    correlations = torch.corrcoef(everything.flatten(1))
    assert (correlations - torch.eye(3)).abs().max() < 0.1


@pytest.mark.parametrize(("batch_size", "world"), [(16, 3), (10, 4), (2, 4)])
def test_a_batch_that_does_not_divide_among_the_processes_is_told(split, batch_size, world):
    with pytest.raises(
        CompanionError, match=f"{batch_size} does not divide among {world} processes: choose a multiple"
    ):
        views(split, batch_size, world=world)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_batches_that_memory_gives_bit_for_bit(files, workers, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 8)  # two chunks and a half
    memory = Split(torch.stack([_read_image(path, 16) for path in files.files]), files.labels)
    assert torch.equal(files[:].images, memory.images)
    for epoch in (0, 1):
        for rank in (0, 1):
            options = {"batch_size": 4, "augmentation": SimCLR(blur=0.5).build(16), "rank": rank, "world": 2, "seed": 3}
            inside = list(views(memory, **options).batches(epoch))
            outside = list(views(files, **options, workers=workers).batches(epoch))
            assert len(inside) == len(outside) == 5
            for a, b in zip(inside, outside, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_workers_of_files_share_no_memory_that_one_of_them_gives_away(files):
    """What a worker returns is moved to shared memory, all of its storage, while its threads read the next chunk."""
    chunks = torch.arange(20).split(8)
    numbers = [sources._Chunks(files, chunks)[k][0] for k in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(numbers, chunks, strict=True))
    given = {chunk.untyped_storage().data_ptr() for chunk in chunks}
    assert given.isdisjoint(x.untyped_storage().data_ptr() for x in numbers)


TEXTS = torch.stack([torch.arange(N), 1000 + torch.arange(N)], dim=1)


@pytest.mark.parametrize("world", [1, 2])
def test_texts_stay_with_their_images(split, world):
    for epoch in (0, 1):
        for rank in range(world):
            source = Pairs(split, TEXTS, Noise(), 12, seed=0, rank=rank, world=world)
            for batch in source.batches(epoch):
                assert torch.equal(batch.second, TEXTS[batch.labels])
                assert torch.equal(batch.first.floor()[:, 0, 0, 0].long(), batch.labels)


def test_texts_stay_with_images_in_files(files, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 8)
    numbered = FileSplit(files.files, torch.arange(20), 16)
    for batch in Pairs(numbered, TEXTS[:20], Unchanged().build(16), 4, seed=0).batches(0):
        assert torch.equal(batch.second, TEXTS[batch.labels])


def test_as_many_texts_as_images(split):
    with pytest.raises(CompanionError, match="There are 49 texts for 50 images: expected one for each"):
        Pairs(split, TEXTS[:-1], Noise(), 8, seed=0)


def test_different_keys_give_different_seeds():
    """Those that a run uses: of the weights, of measured views, of an epoch's order, of its views, of its method."""
    keys = [
        key
        for s in (0, 1, 2)
        for key in [
            (s, 0),
            (s, 1),
            *((s, k, e) for k in (2, 4) for e in (0, 1, 2)),
            *((s, 3, e, r) for e in (0, 1) for r in (0, 1)),
        ]
    ]
    assert len({sources.seed(*key) for key in keys}) == len(keys)
    assert sources.seed(1, 2) == sources.seed(1, 2)


def test_the_views_are_drawn_anew_for_every_seed(split):
    """Not the order alone: with one order for all seeds, the views would still differ."""
    drawn = [
        torch.cat([torch.cat([b.first, b.second]) for b in views(split, seed=s).batches(0)]) % 1 for s in (0, 1, 2)
    ]
    assert len(torch.cat(drawn).unique()) > 0.9 * torch.cat(drawn).numel()  # single precision has some twice


def test_a_batch_larger_than_the_split_is_told(split):
    assert len(views(split, N)) == 1
    with pytest.raises(CompanionError, match=rf"batch_size is {N + 1} and there are {N} images: expected at most"):
        views(split, N + 1)
