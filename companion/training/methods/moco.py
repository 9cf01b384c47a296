"""MoCo: negatives from a queue of keys that a slowly moving copy of the network made (He et al. 2020)."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from companion import losses
from companion.errors import CompanionError, positive, share, whole
from companion.losses._gather import share as own
from companion.losses._gather import world
from companion.training import encoders
from companion.training.methods.base import Batch, Method, channels
from companion.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class MoCo(Settings):
    """InfoNCE of queries with their keys against the keys of earlier batches (He et al. 2020, Eq. 1)."""

    name: ClassVar[str] = "moco"
    unlabelled: ClassVar[bool] = True
    temperature: float = 0.2
    queue: int = 1024  #: K, keys of earlier batches; the batch size divides it
    key_momentum: float = 0.99  #: μ (the paper's m, Eq. 2): the share of the key network that a step leaves as it was
    batch_norm_groups: int = 1  #: parts of a batch that batch norm sees one by one, as if each lay on a GPU of its own
    shuffle: bool = True  #: keys in other groups than their queries ("shuffling BN", Section 3.3)

    def validate(self):
        positive(self.temperature, "temperature")
        whole(self.queue, "queue", least=1)
        share(self.key_momentum, "key_momentum")
        whole(self.batch_norm_groups, "batch_norm_groups", least=1)
        if not isinstance(self.shuffle, bool):
            raise CompanionError(f"shuffle is {self.shuffle!r}: expected True or False.")

    def fit(self, batch_size: int) -> "MoCo":
        """Itself.

        Raises:
            CompanionError: if batches do not divide the queue, or groups the batch, or a group has one image.
        """
        if self.queue % batch_size:
            raise CompanionError(
                f"queue is {self.queue} and batch_size {batch_size}: the batch has to divide the queue, which takes in "
                "and lets go of whole batches."
            )
        if batch_size % self.batch_norm_groups or batch_size // self.batch_norm_groups < 2:
            raise CompanionError(
                f"batch_norm_groups is {self.batch_norm_groups} and batch_size {batch_size}: expected groups of equal "
                "size, of two images or more."
            )
        return self

    @property
    def title(self) -> str:
        """A readable name for the folder of a run."""
        groups = f"-groups{self.batch_norm_groups}" + "-unshuffled" * (not self.shuffle)
        grouped = groups if self.batch_norm_groups > 1 else ""
        return f"moco-t{self.temperature:g}-K{self.queue}-{self.key_momentum:g}{grouped}"

    def build(self, config, split) -> "MoCoMethod":
        """What is trained. With a queue shorter than the data only the first batches of an epoch can meet older keys of
        their own images.

        Raises:
            CompanionError: if the queue and a batch hold more keys than there are images.
        """
        if self.queue + config.batch_size > config.n_train:
            raise CompanionError(
                f"queue is {self.queue} and batch_size {config.batch_size}, more than the {config.n_train} training "
                "images: a query would always meet an older key of its own image among its negatives. Take a shorter "
                "queue."
            )
        return MoCoMethod(self, config, split)


class MoCoMethod(Method):
    """Queries, keys and the queue. Of several processes each has the same queue, of the keys of all of them."""

    def __init__(self, settings: MoCo, config, split):
        super().__init__(encoders.build(config, channels(split)))
        self.settings, self.batch_norm_groups = settings, settings.batch_norm_groups
        self.key_model = copy.deepcopy(self.model).requires_grad_(False)
        self.register_buffer("queue", normalize(torch.randn(settings.queue, config.projector_dim)))  # oldest first
        self.keys: Tensor | None = None  # (B, d) of the batch at hand, which join the queue after the step

    def loss(self, batch: Batch) -> Tensor:
        with losses.unchecked():
            queries = losses.gather(self._in_groups(self.model, batch.first))  # (B, d)
            with torch.no_grad():
                keys = self._encode(batch.second)
                self.keys = normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)))
            return losses.info_nce(queries, self.keys, temperature=self.settings.temperature, queue=self.queue)

    @torch.no_grad()
    def after_step(self) -> None:
        for key, query in zip(self.key_model.parameters(), self.model.parameters(), strict=True):
            key.lerp_(query, 1 - self.settings.key_momentum)
        self.queue.copy_(torch.cat([self.queue, self.keys])[-len(self.queue) :])

    def _encode(self, images: Tensor) -> Tensor:
        """(m, c, s, s) second views → keys (B, d) of those of all processes, in the order of the images."""
        if self.batch_norm_groups == 1 or not self.settings.shuffle:
            return losses.gather(self._in_groups(self.key_model, images))
        order = losses.gather(torch.rand(len(images), device=images.device)).argsort()
        shuffled = own(losses.gather(images)[order])
        return losses.gather(self._in_groups(self.key_model, shuffled))[order.argsort()]

    def _in_groups(self, model, images: Tensor) -> Tensor:
        here = self.batch_norm_groups if world() == 1 else 1  # else a group is a process
        return torch.cat([model(group) for group in images.chunk(here)])
