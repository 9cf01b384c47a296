"""Losses of embeddings with labels: the margin losses, SupCon and SINCERE, on two views of each image."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from companion import losses, metrics, similarity
from companion.errors import choose, positive
from companion.training import encoders
from companion.training.methods.base import Batch, Method, channels
from companion.training.settings import Settings

WITH_MARGIN = ("contrastive_margin", "triplet", "lifted", "batch_hard")
WITH_TEMPERATURE = ("sup_con", "sincere")
SIMILARITIES = ("cosine", "arc_length", "euclidean")


@dataclass(frozen=True, kw_only=True)
class Labelled(Settings):
    """``loss(z, y)`` of the 2m embeddings of a batch and their labels."""

    name: ClassVar[str] = "labelled"
    loss: str = "triplet"
    margin: float = 0.2  #: of the margin losses
    temperature: float = 0.1  #: of the others
    similarity: str = "cosine"  #: one of SIMILARITIES; Euclidean sees the projections at their own length

    def validate(self):
        choose(self.loss, WITH_MARGIN + WITH_TEMPERATURE, "loss with labels")
        positive(self.margin, "margin", zero=True)
        positive(self.temperature, "temperature")
        choose(self.similarity, SIMILARITIES, "similarity")

    @property
    def title(self) -> str:
        """A readable name for the folder of a run."""
        return (
            f"{self.loss}-"
            + (f"margin{self.margin:g}" if self.loss in WITH_MARGIN else f"t{self.temperature:g}")
            + (f"-{self.similarity}" if self.similarity != "cosine" else "")
        )

    def build(self, config, split) -> "LabelledMethod":
        return LabelledMethod(self, config, split)


class LabelledMethod(Method):
    """What :class:`Labelled` describes: an encoder with its projector, trained by a loss of embeddings and labels."""

    static = False  # how many positive pairs there are depends on the labels
    votes = True

    def __init__(self, settings: Labelled, config, split):
        super().__init__(encoders.build(config, channels(split)))
        self.settings, self.similarity = settings, getattr(similarity, settings.similarity)
        argument = "margin" if settings.loss in WITH_MARGIN else "temperature"
        self.arguments = {argument: getattr(settings, argument)}
        self.objective = functools.partial(getattr(losses, settings.loss), similarity=self.similarity, **self.arguments)

    def loss(self, batch: Batch) -> Tensor:
        z = self.model(torch.cat([batch.first, batch.second]))  # (2m, d)
        with losses.unchecked():
            return self.objective(losses.gather(z), losses.gather(batch.labels.repeat(2)))

    def notes(self, u: Tensor, v: Tensor, y: Tensor) -> dict[str, float]:
        """How hard pairs of one class are pulled at small and at larger angles, see :func:`companion.metrics.pulls`."""
        if self.settings.loss in WITH_MARGIN:  # most of whose pairs are not pulled at all
            return {}
        function, z = getattr(losses, self.settings.loss), torch.cat([u, v]).cpu()
        angles, strength = metrics.pulls(function, z, y.cpu().repeat(2), similarity=self.similarity, **self.arguments)
        return metrics.pulls_by_angle(angles, strength)
