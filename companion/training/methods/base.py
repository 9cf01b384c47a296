"""What a method is."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from companion.training.encoders import Model


class Batch(NamedTuple):
    """What a source hands to a method."""

    first: Tensor  #: (m, c, s, s) first views, in [0, 1]
    second: Tensor  #: (m, c, s, s) second views; of image–text pairs (m, length) token numbers
    labels: Tensor  #: (m,) class numbers, which a method without labels leaves alone


class Method(nn.Module):
    """A model and what it is trained for.

    Whatever a method carries from step to step, momentum weights or a queue, is a buffer, so that a checkpoint holds
    it.
    """

    static: ClassVar[bool] = True  # no shape in its loss depends on values, so that a CUDA graph can hold a step
    compiled: bool = False  # whether torch.compile makes the encoder that is trained
    batch_norm_groups: int = 1  # parts of a batch that batch norm sees one by one
    votes: ClassVar[bool] = False  # whether neighbours among its projections are asked for an image's class too

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        """The scalar to minimise. Its embeddings are not checked: that would wait for the device at every step.

        On several processes a batch is a part, and :func:`companion.losses.gather` makes the embeddings whole: the
        value is that of the whole batch on all of them.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every step of the optimiser, for what moves without a gradient."""

    def embed(self, images: Tensor) -> Tensor:
        """(n, c, s, s) in [0, 1] → (n, features): what the probes see."""
        return self.model.encoder(images)

    def project(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two views → (n, d) projections of each, not normalised: what the loss sees."""
        return self.model(first), self.model(second, second=True)

    def notes(self, u: Tensor, v: Tensor, y: Tensor) -> dict[str, float]:
        """What the history shall hold of it beside the similarity statistics, from projections (k, d) of two views of k
        training images and their labels (k,), after every epoch."""
        return {}


def channels(split) -> int:
    """Of the images of a split: 1 grey, 3 colour."""
    return split[:1].images.shape[1]
