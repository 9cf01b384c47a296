"""SimCLR and its relatives: two views of an image agree, and no labels."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from companion import losses
from companion.errors import CompanionError, choose, number, positive, whole
from companion.training import encoders
from companion.training.methods.base import Batch, Method, channels
from companion.training.settings import Settings

LOSSES = (
    "nt_xent", "clip", "info_nce", "dcl", "dhel", "hard_contrastive", "simple", "align_uniform", "siglip", "spectral",
)  # fmt: skip
HARDEST = ("hard_contrastive", "simple")  # losses that can keep an anchor's hardest negatives only
WEIGHTED = ("simple", "align_uniform")  # losses whose two parts have a weight in place of a temperature
WITHIN_VIEW = ("clip", "siglip", "spectral")  # losses that can take within-view negatives besides cross-view ones


@dataclass(frozen=True, kw_only=True)
class Contrastive(Settings):
    """``loss(temperature) + vrns · L_VRNS``, on sub-batches of ``loss_batch_size`` out of each batch."""

    name: ClassVar[str] = "contrastive"
    unlabelled: ClassVar[bool] = True
    loss: str = "nt_xent"
    temperature: float = 0.2  #: of SigLIP: 1 / scale; the spectral loss and those with a weight have none
    bias: float = -10.0  #: of SigLIP
    keep: int | None = None  #: hardest negatives that an anchor keeps; None: all of them
    weight: float = 1.0  #: of the negatives' mean in the simple loss; of uniformity against alignment
    within_view: bool = False  #: within-view negatives too: c₂ = 1
    known_classes: bool = False  #: of NT-Xent: images of an anchor's own class are no negatives; it sees the labels
    vrns: float = 0.0  #: the weight λ of Definition 5.7; 0 switches it off
    loss_batch_size: int | None = None  #: the loss's m; must divide the batch size B; None: m = B
    heads: int = 1  #: projectors: 1 for both views, or 2, one for each, as for images and texts in CLIP

    def validate(self):
        choose(self.loss, LOSSES, "loss")
        positive(self.temperature, "temperature")
        positive(self.vrns, "vrns", zero=True)
        positive(self.weight, "weight", zero=True)
        number(self.bias, "bias")
        if self.keep is not None:
            whole(self.keep, "keep", least=1)
            if self.loss not in HARDEST:
                raise CompanionError(f"keep makes no difference to {self.loss!r}: it is for {', '.join(HARDEST)}.")
        if self.loss == "hard_contrastive" and self.keep is None:
            raise CompanionError("hard_contrastive needs keep, the number of an anchor's hardest negatives.")
        if self.heads not in (1, 2) or type(self.heads) is not int:
            raise CompanionError(f"heads is {self.heads!r}: expected 1, a projector for both views, or 2.")
        if not isinstance(self.within_view, bool):
            raise CompanionError(f"within_view is {self.within_view!r}: expected True or False.")
        if self.within_view and self.loss not in WITHIN_VIEW:
            raise CompanionError(
                f"within_view makes no difference to {self.loss!r}: it is for {', '.join(WITHIN_VIEW)}."
            )
        if not isinstance(self.known_classes, bool):
            raise CompanionError(f"known_classes is {self.known_classes!r}: expected True or False.")
        if self.known_classes and (self.loss != "nt_xent" or self.loss_batch_size is not None):
            raise CompanionError("known_classes is for nt_xent on whole batches: leave loss_batch_size out.")
        if self.loss_batch_size is not None:
            whole(self.loss_batch_size, "loss_batch_size", least=2)
            if self.loss == "align_uniform":
                raise CompanionError("align_uniform takes whole batches: leave loss_batch_size out.")

    def fit(self, batch_size: int) -> "Contrastive":
        """The same for batches of this size: one description for one experiment, so that a ``loss_batch_size`` of the
        whole batch becomes None, and goes with the batch from then on.

        Raises:
            CompanionError: if sub-batches do not divide the batch, or an anchor has fewer negatives than it is to keep.
        """
        negatives = (self.loss_batch_size or batch_size) - 1
        if self.keep is not None and self.keep > negatives:
            raise CompanionError(f"keep is {self.keep}: expected at most {negatives}, the negatives of an anchor.")
        if self.loss_batch_size is None or batch_size % self.loss_batch_size == 0:
            return self.replace(loss_batch_size=None) if self.loss_batch_size == batch_size else self
        raise CompanionError(
            f"loss_batch_size {self.loss_batch_size} does not divide batch_size {batch_size}: the batch must split "
            "into sub-batches of equal size."
        )

    @property
    def title(self) -> str:
        """A readable name for the folder of a run."""
        loss = self.loss + "-within" * self.within_view + "-2heads" * (self.heads == 2)
        loss += "-known" * self.known_classes
        loss += f"-keep{self.keep}" if self.keep else ""
        scale = f"w{self.weight:g}" if self.loss in WEIGHTED else f"t{self.temperature:g}"
        return f"{loss}-{scale}" + (f"-vrns{self.vrns:g}" if self.vrns else "")

    def build(self, config, split) -> "ContrastiveMethod":
        return ContrastiveMethod(self, config, split)


class ContrastiveMethod(Method):
    """What :class:`Contrastive` describes: an encoder with one projector or two, trained on two views by its loss."""

    def __init__(self, settings: Contrastive, config, split):
        super().__init__(encoders.build(config, channels(split), heads=settings.heads))
        if settings.known_classes and int(split.labels.min()) < 0:
            raise CompanionError("known_classes needs a label of every image: this data set has images without one.")
        self.two_heads, self.m, self.known = settings.heads == 2, settings.loss_batch_size, settings.known_classes
        self.objective = objective(settings, m=config.m, n=config.n_train)

    def loss(self, batch: Batch) -> Tensor:
        if self.two_heads:
            u, v = self.project(batch.first, batch.second)
        else:  # one pass, so that batch norm sees both views
            u, v = self.model(torch.cat([batch.first, batch.second])).chunk(2)
        with losses.unchecked():
            u, v = losses.gather(u), losses.gather(v)  # (B, d) each
            if self.m is not None:
                return in_sub_batches(self.objective, u, v, self.m)
            return self.objective(u, v, **({"y": losses.gather(batch.labels)} if self.known else {}))


def objective(settings: Contrastive, *, m: int, n: int):
    """The function of (m, d) views ``u, v`` that is minimised: ``loss + λ · VRNS``; n is the training-set size. NT-Xent
    takes labels ``y`` (m,) too."""
    contrastive = functools.partial(getattr(losses, settings.loss), **hyperparameters(settings, m))
    if not settings.vrns:
        return contrastive
    return lambda u, v, **labels: contrastive(u, v, **labels) + settings.vrns * losses.vrns(u, v, n=n)


def in_sub_batches(function, u: Tensor, v: Tensor, m: int) -> Tensor:
    """Mean of ``function`` over the sub-batches of m pairs of (B, d) views, as one batched call."""
    return torch.vmap(function)(u.unflatten(0, (-1, m)), v.unflatten(0, (-1, m))).mean()


def hyperparameters(settings: Contrastive, m: int) -> dict:
    """What the loss that ``settings`` names takes besides the embeddings of a batch of m."""
    if settings.loss == "simple":  # the loss weighs the sum over the negatives that are kept
        return {"weight": settings.weight / (settings.keep or m - 1), "keep": settings.keep}
    if settings.loss == "align_uniform":
        return {"weight": settings.weight}
    if settings.loss == "hard_contrastive":
        return {"temperature": settings.temperature, "keep": settings.keep}
    within_view = {"within_view": settings.within_view} if settings.loss in WITHIN_VIEW else {}
    if settings.loss == "spectral":
        return within_view
    if settings.loss == "siglip":
        return within_view | {"scale": 1 / settings.temperature, "bias": settings.bias}
    return within_view | {"temperature": settings.temperature}
