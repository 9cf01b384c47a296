"""Where batches come from: those of an epoch, in an order that its number decides, for each process its part of
them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from companion.errors import CompanionError
from companion.training.data import FileSplit, Split
from companion.training.methods.base import Batch

CHUNK = 1024  # images that are augmented at once: a chunk costs little more than a small batch


def seed(*key: int) -> int:
    """One number out of several: keys of one length that differ give independent random streams (NumPy's SeedSequence,
    which does not tell a key from the same with zeros after it)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class Views:
    """Two random views of every image, in batches; what is left of an epoch, less than a batch, is dropped.

    Args:
        split: images and labels: a :class:`~companion.training.data.Split`, which is moved to the device, or a
            :class:`~companion.training.data.FileSplit`, which is read chunk by chunk.
        augmentation: (n, c, h, w) uint8 and a generator → (n, c, s, s) in [0, 1].
        batch_size: B, of all processes together.
        seed: of the run.
        device: where the views are made.
        rank: number of this process; all of them see the same order, and each its own part of every batch.
        world: number of processes; it divides the batch size.
        workers: processes that read files; with 0, threads of this process do.
    """

    def __init__(
        self, split: Split | FileSplit, augmentation: nn.Module, batch_size: int, *, seed: int,
        device: torch.device | str = "cpu", rank: int = 0, world: int = 1, workers: int = 0,
    ):  # fmt: skip
        if batch_size % world:
            raise CompanionError(
                f"batch_size {batch_size} does not divide among {world} processes: choose a multiple of {world}."
            )
        if batch_size > len(split):
            raise CompanionError(
                f"batch_size is {batch_size} and there are {len(split)} images: expected at most as many."
            )
        self.split, self.augmentation, self.device = split.to(device), augmentation, torch.device(device)
        self.batch_size, self.seed, self.rank, self.world, self.workers = batch_size, seed, rank, world, workers

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.split) // self.batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, the same whenever they are asked for."""
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed(self.seed, 2, epoch)))
        order = order[: len(self) * self.batch_size].view(len(self), self.world, -1)[:, self.rank]  # (steps, B/world)
        draws = torch.Generator(self.device).manual_seed(seed(self.seed, 3, epoch, self.rank))
        size = order.shape[1]
        for numbers, chunk in self._read(order.flatten().split(max(1, CHUNK // size) * size)):
            first, second = self._pairs(numbers, chunk, draws)
            yield from map(Batch, first.split(size), second.split(size), chunk.labels.split(size))

    def _pairs(self, numbers: Tensor, chunk: Split, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._views(chunk, draws), self._second(numbers, chunk, draws)

    def _views(self, chunk: Split, draws: torch.Generator) -> Tensor:
        return self.augmentation(chunk.images, draws).contiguous(memory_format=torch.channels_last)

    def _second(self, numbers: Tensor, chunk: Split, draws: torch.Generator) -> Tensor:
        return self._views(chunk, draws)

    def _read(self, chunks) -> Iterator[tuple[Tensor, Split]]:
        """Numbers of images, and these images on the device."""
        if isinstance(self.split, Split):
            # Without waiting for a GPU: what lies in ordinary memory has been copied from there when this returns.
            there = (chunk.to(self.device, non_blocking=True) for chunk in chunks)
            yield from ((numbers, self.split[numbers]) for numbers in there)
            return
        loader = torch.utils.data.DataLoader(
            _Chunks(self.split, chunks), batch_size=None, num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for numbers, images, labels in loader:
            pinned = {"non_blocking": self.device.type == "cuda"}
            yield numbers, Split(images.to(self.device, **pinned), labels.to(self.device, **pinned))


class Pairs(Views):
    """Images with texts: the first view is the augmented image, the second its text, (m, length) token numbers.

    Args:
        split: images and labels.
        texts: (n, length) token numbers, row i the text of image i.
        augmentation, batch_size, options: as for :class:`Views`.

    Raises:
        CompanionError: if there are not as many texts as images.
    """

    def __init__(self, split: Split | FileSplit, texts: Tensor, augmentation: nn.Module, batch_size: int, **options):
        super().__init__(split, augmentation, batch_size, **options)
        if len(texts) != len(split):
            raise CompanionError(f"There are {len(texts):,} texts for {len(split):,} images: expected one for each.")
        self.texts = texts.to(self.device)

    def _second(self, numbers, chunk, draws):
        return self.texts[numbers.to(self.device)]


class _Chunks(torch.utils.data.Dataset):
    """Chunk number → numbers of its images, the images and their labels, read from their files.

    Tar files in place of them would help little on a local disk, where decoding takes the time: of photographs of 84 kB
    two processes read 1,070 a second so, and 1,000 from tar files by webdataset; 980 and 1,020 with nothing cached.
    """

    def __init__(self, split: FileSplit, chunks):
        self.split, self.chunks = split, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        # A copy: what a worker returns is moved to shared memory, all of its storage, which others still read from.
        numbers = self.chunks[number].clone()
        read = self.split[numbers.numpy()]
        return numbers, read.images, read.labels
