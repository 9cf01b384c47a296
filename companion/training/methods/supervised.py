"""The encoder trained with labels, by cross entropy: something to hold the others against, and no upper bound."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion import losses
from companion.losses._gather import world
from companion.training import encoders
from companion.training.methods.base import Batch, Method, channels
from companion.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Supervised(Settings):
    """Cross entropy of a linear classifier on the encoder's features, on two augmented views of each image."""

    name: ClassVar[str] = "supervised"

    @property
    def title(self) -> str:
        """A readable name for the folder of a run."""
        return "supervised"

    def build(self, config, split) -> "SupervisedMethod":
        return SupervisedMethod(config, split)


class SupervisedMethod(Method):
    """What :class:`Supervised` describes: an encoder with a linear classifier, trained by cross entropy."""

    def __init__(self, config, split):
        super().__init__(encoders.build(config, channels(split)))
        if world() > 1:  # data-parallel training waits for the gradient of all that asks for one
            self.model.projector.requires_grad_(False)
        _, features = encoders.encoder(config, channels(split))
        self.classifier = nn.Linear(features, int(split.labels.max()) + 1)

    def loss(self, batch: Batch) -> Tensor:
        logits = self.classifier(self.embed(torch.cat([batch.first, batch.second])))  # (2m, classes)
        with losses.unchecked():
            return cross_entropy(losses.gather(logits), losses.gather(batch.labels.repeat(2)))
