"""Two random views of every image of a batch, at once and on the batch's own device."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from companion.config import Config


class TwoViews(nn.Module):
    """SimCLR's augmentation (Chen et al. 2020, App. A), batched: crop, flip, colour jitter, grayscale, blur.

    Draws from torch's global generator: seed it to repeat a batch.
    """

    def __init__(self, config: Config, channels: int):
        super().__init__()
        size, strength = config.image_size, config.jitter
        colour = strength if channels == 3 else 0.0  # hue and saturation mean nothing on grey images
        steps = [
            # "resample" crops the whole batch in one grid sampling; "slice" would loop over images
            K.RandomResizedCrop((size, size), scale=(config.crop_scale, 1.0), cropping_mode="resample"),
            K.RandomHorizontalFlip(p=config.flip),
            K.ColorJitter(strength, strength, colour, colour / 4, p=config.jitter_probability),
        ]
        if channels == 3:
            steps.append(K.RandomGrayscale(p=config.grayscale))
        if config.blur:
            kernel = max(3, size // 10 | 1)  # a tenth of the image, as in SimCLR, and odd
            steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=config.blur))
        self.steps = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(n, c, h, w) uint8 → two views (n, c, s, s), float32 in [0, 1]."""
        views = self.steps(torch.cat([images, images]).float() / 255)
        return views[: len(images)], views[len(images) :]
