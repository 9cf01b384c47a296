"""CLIP in miniature: a drawing and its caption agree; or two drawings of one thing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from companion import losses
from companion.errors import CompanionError, choose, number, positive, share, whole
from companion.training import encoders
from companion.training.methods.base import Batch, Method
from companion.training.settings import Settings

LOSSES = ("clip", "siglip", "nt_xent")
SECONDS = ("text", "artist", "view")  # of a positive pair: the caption, another artist's drawing, the same once more
WITHIN_VIEW = ("clip", "siglip")
LARGEST = 100  # the scale, as CLIP has it


@dataclass(frozen=True, kw_only=True)
class Clip(Settings):
    """``loss(scale) + vrns · L_VRNS`` of drawings and the seconds of their pairs, each instance a concept."""

    name: ClassVar[str] = "clip"
    loss: str = "clip"
    second: str = "text"
    artists: str = "noto+twemoji"  #: whose drawings are trained on; the others' are kept for tests
    temperature: float = 0.07  #: where 1 / scale starts; of SigLIP 0.1
    learned: bool = True  #: the scale, and SigLIP's bias: learned, or fixed where they start
    bias: float = -10.0  #: of SigLIP, where it starts
    within_view: bool = False  #: within-view negatives too: c₂ = 1
    vrns: float = 0.0  #: the weight λ of Lee et al. 2025, Definition 5.7
    pool: int = 4  #: pixels a side of the last feature map that the projection sees, of the small encoder
    dropout: float = 0.3  #: of the image features, before the projection
    word_dim: int = 128  #: of a word's embedding

    def validate(self):
        choose(self.loss, LOSSES, "loss of images and texts")
        choose(self.second, SECONDS, "second of a pair")
        if 1 / positive(self.temperature, "temperature") > LARGEST:
            raise CompanionError(f"temperature is {self.temperature}: expected at least {1 / LARGEST}, CLIP's limit.")
        number(self.bias, "bias")
        positive(self.vrns, "vrns", zero=True)
        share(self.dropout, "dropout")
        for name in ("pool", "word_dim"):
            whole(getattr(self, name), name, least=1)
        for name in ("learned", "within_view"):
            if not isinstance(getattr(self, name), bool):
                raise CompanionError(f"{name} is {getattr(self, name)!r}: expected True or False.")
        if self.within_view and self.loss not in WITHIN_VIEW:
            raise CompanionError(
                f"within_view makes no difference to {self.loss!r}: it is for {', '.join(WITHIN_VIEW)}."
            )
        if self.dropout == 1:
            raise CompanionError("dropout is 1.0: expected less, or nothing is left of an image.")

    @property
    def title(self) -> str:
        """A readable name for the folder of a run."""
        loss = self.loss + "-within" * self.within_view
        return f"{loss}-{self.second}-t{self.temperature:g}" + (f"-vrns{self.vrns:g}" if self.vrns else "")

    def build(self, config, split) -> "ClipMethod":
        return ClipMethod(self, config, split)


class BagOfWords(nn.Module):
    """(n, length) numbers of words, 0 where there is none → (n, d): the mean of their embeddings, and two layers."""

    def __init__(self, vocabulary: int, word_dim: int, dim: int, *, dropout: float = 0.1):
        super().__init__()
        self.words, self.dropout = nn.Embedding(vocabulary, word_dim, padding_idx=0), dropout
        nn.init.normal_(self.words.weight, std=0.3)
        with torch.no_grad():
            self.words.weight[0] = 0
        self.layers = nn.Sequential(
            nn.LayerNorm(word_dim), nn.Linear(word_dim, 2 * word_dim), nn.GELU(), nn.Linear(2 * word_dim, dim)
        )

    def forward(self, texts: Tensor) -> Tensor:
        if self.training and self.dropout:  # whole words
            texts = texts * (torch.rand(texts.shape, device=texts.device) >= self.dropout)
        count = (texts > 0).sum(1, keepdim=True).clamp(min=1)
        return self.layers(self.words(texts).sum(1) / count)


class Towers(encoders.Model):
    """An image encoder with its projection, and where the second of a pair is a text, a text encoder."""

    def forward(self, batch: Tensor, *, second: bool = False) -> Tensor:
        """(n, c, h, w) images in [0, 1], or with ``second`` and a text encoder (n, length) numbers of words → (n, d)
        projections, not normalised."""
        if second and self.second_projector:
            return self.second_projector(batch)
        return self.projector(self.encoder(batch))


class ClipMethod(Method):
    """Symmetric InfoNCE with a learned scale (Radford et al. 2021), SigLIP (Zhai et al. 2023), or NT-Xent of two
    drawings, whose encoder is one and the same.

    Raises:
        CompanionError: for images that have no words.
    """

    static = False  # the forward pass clamps the scale in place; not tried as a CUDA graph

    def __init__(self, settings: Clip, config, split):
        if not hasattr(split, "vocabulary"):
            raise CompanionError(
                f"{config.dataset!r} has images without words: expected dataset='emoji' for the method 'clip'."
            )
        net, features = encoders.encoder(config, split.images.shape[-3])
        if config.encoder == "small":
            net[-2], features = nn.AdaptiveAvgPool2d(settings.pool), features * settings.pool**2
        image = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(features, config.projector_dim))
        with_text = settings.second == "text"
        text = BagOfWords(len(split.vocabulary), settings.word_dim, config.projector_dim) if with_text else None
        super().__init__(Towers(net, image, text))
        self.settings, self.n = settings, config.n_train
        self.scale = losses.LogitScale(1 / settings.temperature, LARGEST)
        self.bias = nn.Parameter(torch.tensor(settings.bias))
        for parameter in (self.scale.logarithm, self.bias):
            parameter.requires_grad_(settings.learned)
        self.bias.requires_grad_(settings.learned and settings.loss == "siglip")

    def loss(self, batch: Batch) -> Tensor:
        if self.settings.second == "text":
            u, v = self.project(batch.first, batch.second)
        else:  # one pass, so that batch norm sees both
            u, v = self.model(torch.cat([batch.first, batch.second])).chunk(2)
        with losses.unchecked():
            u, v = losses.gather(u), losses.gather(v)
            auxiliary = self.settings.vrns * losses.vrns(u, v, n=self.n) if self.settings.vrns else 0
            return self._contrastive(u, v) + auxiliary

    def _contrastive(self, u: Tensor, v: Tensor) -> Tensor:
        if self.settings.loss == "nt_xent":
            return losses.nt_xent(u, v, temperature=1 / self.scale())
        within_view = self.settings.within_view
        if self.settings.loss == "siglip":
            return losses.siglip(u, v, scale=self.scale(), bias=self.bias, within_view=within_view)
        return losses.clip(u, v, temperature=1 / self.scale(), within_view=within_view)
