"""Random views of a whole batch in one pass, on the batch's own device.

A crop with its resizing, a flip and a blur act on rows and on columns alone, colour jitter and greying on channels
alone, and all of them are linear. So a view is ``clamp(C · (R · image · Kᵀ) + t)`` with small matrices R (rows), K
(columns), C (channels) and a shift t, drawn for each image. That is a fraction of the work of one transform after
another, and it equals torchvision's transforms at the same parameters, but for two things: values are clamped once,
at the end, and hue is turned in YIQ space (as in NVIDIA DALI), where it is linear, and not in HSV. Without clamping
in between, brightness, contrast, saturation and hue commute, so their order need not be drawn.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from companion.errors import positive, share
from companion.training.settings import Settings

GREY = torch.tensor([0.299, 0.587, 0.114])  # luma of red, green and blue (ITU-R BT.601), as in torchvision
RATIO = (3 / 4, 4 / 3)  # of a crop's width and height
SIGMA = (0.1, 2.0)  # of a blur, pixels
ATTEMPTS = 10  # crops to try before the whole image is taken


@dataclass(frozen=True, kw_only=True)
class SimCLR(Settings):
    """SimCLR's augmentation (Chen et al. 2020, App. A): crop, flip, colour jitter, grayscale, blur; and quarter turns,
    which it tried and left out (its Figure 5)."""

    name: ClassVar[str] = "simclr"
    crop_scale: float = 0.2  #: smallest share of the area that a crop keeps
    flip: float = 0.5  #: probability
    jitter: float = 0.1  #: strength of brightness, contrast and saturation; a quarter of it for hue
    jitter_probability: float = 0.8
    grayscale: float = 0.0  #: probability (colour images only)
    blur: float = 0.0  #: probability
    rotate: float = 0.0  #: probability of one, two or three quarter turns

    def validate(self):
        positive(self.crop_scale, "crop_scale")
        for name in ("crop_scale", "flip", "jitter_probability", "grayscale", "blur", "rotate"):
            share(getattr(self, name), name)
        share(self.jitter, "jitter")

    def build(self, size: int) -> "RandomView":
        return RandomView(self, size)


@dataclass(frozen=True, kw_only=True)
class Unchanged(Settings):
    """No augmentation: both views are the image, resized."""

    name: ClassVar[str] = "none"

    def build(self, size: int) -> "RandomView":
        return RandomView(SimCLR(crop_scale=1.0, flip=0.0, jitter=0.0), size, crop=False)


AUGMENTATIONS = {cls.name: cls for cls in (SimCLR, Unchanged)}


class RandomView(nn.Module):
    """(n, c, h, w) uint8 → (n, c, s, s) float32 in [0, 1], one random view of each image.

    Args:
        settings: what is drawn, and how strongly.
        size: s, pixels a side.
        crop: draw a crop; else take the whole image.
    """

    def __init__(self, settings: SimCLR, size: int, *, crop: bool = True):
        super().__init__()
        self.settings, self.size, self.crop = settings, size, crop

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws from ``generator``, which lies on the device of the images; default: torch's global one."""

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return torch.rand(*shape, generator=generator, device=images.device) * (high - low) + low

        n, channels, height, width = images.shape
        rows, columns = self._resampling(n, height, width, uniform)
        # Rows first, for all channels and columns at once: (n, s, h) (n, h, c·w), then (n, s·c, w) (n, w, s).
        x = images.permute(0, 2, 1, 3).to(torch.float32).reshape(n, height, channels * width)
        x = torch.bmm(rows, x).reshape(n, self.size * channels, width)
        x = torch.bmm(x, columns.mT).view(n, self.size, channels, self.size).transpose(1, 2)  # (n, c, s, s)
        if self.settings.rotate:
            turned, turns = uniform(n) < self.settings.rotate, (uniform(n) * 3).floor() + 1
            for k in (1, 2, 3):
                x = torch.where((turned & (turns == k))[:, None, None, None], x.rot90(k, (2, 3)), x)
        return self._colour(x.reshape(n, channels, -1), uniform).clamp_(0, 1).view(n, channels, self.size, self.size)

    def _resampling(self, n: int, height: int, width: int, uniform) -> tuple[Tensor, Tensor]:
        """(n, s, h) and (n, s, w): what each row and column of a view is made of. Their sums make 1/255 of it."""
        if self.crop:
            top, left, h, w = draw_crops(n, height, width, self.settings.crop_scale, uniform)
        else:
            top, left, h, w = (torch.full_like(uniform(n), x) for x in (0, 0, height, width))
        rows, columns = resize(top, h, height, self.size), resize(left, w, width, self.size)
        if self.settings.flip:
            flipped = (uniform(n) < self.settings.flip)[:, None, None]
            columns = torch.where(flipped, columns.flip(1), columns)
        if self.settings.blur:
            blurred = uniform(n) < self.settings.blur
            kernel = blur(torch.where(blurred, uniform(n, low=SIGMA[0], high=SIGMA[1]), 0), self.size)
            rows, columns = kernel @ rows, kernel @ columns
        return rows / 255, columns

    def _colour(self, x: Tensor, uniform) -> Tensor:
        """(n, c, pixels) → the same, in other colours, not clamped yet."""
        n, channels, _ = x.shape
        strength, grayscale = self.settings.jitter, self.settings.grayscale if channels == 3 else 0.0
        if not (strength or grayscale):
            return x
        if strength:
            jittered = uniform(n) < self.settings.jitter_probability

            def factor(reach: float, centre: float) -> Tensor:
                return torch.where(jittered, uniform(n, low=centre - reach, high=centre + reach), centre)

            brightness, contrast = factor(strength, 1.0), factor(strength, 1.0)
            saturation, hue = factor(strength, 1.0), factor(strength / 4, 0.0)
        else:
            brightness = contrast = saturation = torch.ones(n, device=x.device)
            hue = torch.zeros(n, device=x.device)
        if grayscale:
            saturation = torch.where(uniform(n) < grayscale, 0, saturation)
        return jitter(x, brightness, contrast, saturation, hue)


def draw_crops(n: int, height: int, width: int, scale: float, uniform) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of n crops, (n,) whole numbers each, as torchvision's RandomResizedCrop draws them.

    Its area is uniform between ``scale`` and 1 of the image's, its ratio log-uniform in ``RATIO``; of ten
    attempts the first that fits is taken, or else the whole image, cut to the nearest ratio allowed.
    """
    area = height * width * uniform(ATTEMPTS, n, low=scale)
    ratio = uniform(ATTEMPTS, n, low=math.log(RATIO[0]), high=math.log(RATIO[1])).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.float().argmax(dim=0, keepdim=True)  # the first True; 0 where there is none
    none = ~fits.any(dim=0)
    w = torch.where(none, min(width, round(height * RATIO[1])), w.gather(0, first)[0])
    h = torch.where(none, min(height, round(width / RATIO[0])), h.gather(0, first)[0])
    top, left = (uniform(n) * (height - h + 1)).floor(), (uniform(n) * (width - w + 1)).floor()
    top = torch.where(none, ((height - h) / 2).round(), top)
    return top, torch.where(none, ((width - w) / 2).round(), left), h, w


def resize(start: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """(n, size, whole) weights that resize ``length`` pixels from ``start`` on to ``size``, bilinear with antialiasing.

    Args:
        start: (n,) first row, or column, of each crop.
        length: (n,) rows of it.
        whole: rows of the image.
        size: rows to make of them.
    """
    start, length = start[:, None, None], length[:, None, None]
    to = torch.arange(size, device=start.device, dtype=start.dtype)[:, None]
    source = torch.arange(whole, device=start.device, dtype=start.dtype)
    step = length / size
    centre = start + (to + 0.5) * step - 0.5  # (n, size, 1) where each new row lies among the old ones
    weights = (1 - (source - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    weights *= (source >= start) & (source < start + length)
    return weights / weights.sum(dim=2, keepdim=True)


def blur(sigma: Tensor, size: int) -> Tensor:
    """(n, size, size) weights of a Gaussian blur of each ``sigma`` (n,) pixels; 0 leaves the image as it is."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (place[:, None] - place) / sigma.clamp(min=1e-3)[:, None, None]
    return torch.softmax(-distance.square() / 2, dim=2)


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Adjust brightness, contrast, saturation and hue at once, without clamping.

    Args:
        x: (n, c, pixels), c = 1 or 3; of grey images only brightness and contrast change.
        brightness: (n,) factors.
        contrast: (n,) factors of the distance to the image's mean grey.
        saturation: (n,) factors of the distance to each pixel's grey; 0 gives a grey image.
        hue: (n,) shares of a full turn of the colour circle.
    """
    channels = x.shape[1]
    if channels == 3:
        grey, quadrature = (c.to(x.device, non_blocking=True) for c in (GREY, _QUADRATURE))
        to_grey = grey.expand(3, 3)
        turn = (2 * math.pi * hue)[:, None, None]
        chroma = turn.cos() * (torch.eye(3, device=x.device) - to_grey) + turn.sin() * quadrature
        colour = to_grey + saturation[:, None, None] * chroma  # (n, 3, 3)
        mean = (grey @ x.mean(dim=2).T)[:, None, None]  # of each image's grey; neither saturation nor hue changes it
    else:
        colour, mean = torch.ones(1, 1, 1, device=x.device).expand(len(x), -1, -1), x.mean(dim=2, keepdim=True)
    shift = ((1 - contrast) * brightness)[:, None, None] * mean
    return torch.baddbmm(shift, (contrast * brightness)[:, None, None] * colour, x)


def _quadrature() -> Tensor:
    """(3, 3) a quarter turn of the hue: chroma turned by 90° in YIQ space, luma to 0."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
    quarter = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    return (torch.linalg.inv(to_yiq) @ quarter @ to_yiq).float()


_QUADRATURE = _quadrature()
