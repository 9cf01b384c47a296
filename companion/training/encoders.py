"""Encoders, the projector on top of them, and two baselines that have nothing to learn."""

import torch
import torchvision
from torch import Tensor, nn

from companion.errors import CompanionError

LEARNED = ("small", "small_alexnet", "resnet18", "resnet50")
FIXED = ("pixels", "colour_moments")  # baselines: what the images say without a network
ENCODERS = LEARNED + FIXED


class Model(nn.Module):
    """An encoder f and a projector g: the loss sees g(h), the probes the features h that f gives.

    With a second projector the second views have a g of their own, as images and texts do in CLIP.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, second_projector: nn.Module | None = None):
        super().__init__()
        self.encoder, self.projector, self.second_projector = encoder, projector, second_projector

    def forward(self, images: Tensor, *, second: bool = False) -> Tensor:
        """(n, c, h, w) in [0, 1] → (n, d) projections, not normalised: the losses do that.

        Args:
            images: first views; with ``second``, second views.
            second: use the second projector, if there is one.
        """
        project = self.second_projector if second and self.second_projector else self.projector
        return project(self.encoder(images))


class ColourMoments(nn.Module):
    """(n, c, h, w) → (n, c (2c + 3)): mean and standard deviation of each channel, and the products of any two of
    these 2c numbers, so that a linear probe of them is a quadratic classifier. No shape, no place: colour alone."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(2)
        moments = torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)  # (n, 2c)
        i, j = torch.triu_indices(moments.shape[1], moments.shape[1], device=images.device)
        return torch.cat([moments, moments[:, i] * moments[:, j]], dim=1)


def projector(features: int, hidden: int, dim: int) -> nn.Module:
    """The papers' head: two layers with batch norm between; with ``hidden`` 0 a linear layer alone."""
    if hidden == 0:
        return nn.Linear(features, dim)
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    )


def small(channels: int, width: int) -> tuple[nn.Module, int]:
    """Three strided convolutions, for CPUs: a 16×16 image costs some 20 µs."""
    widths = [channels, width, 2 * width, 4 * width]
    layers = []
    for i, kernel in enumerate((4, 3, 3)):
        layers += [
            nn.Conv2d(widths[i], widths[i + 1], kernel, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[i + 1]),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1]


def small_alexnet(channels: int, image_size: int) -> tuple[nn.Module, int]:
    """Wang & Isola's (2020) network for STL-10 without its last layer, which ``projector_hidden=0`` puts on top of it:
    five convolutions, 64×64 → 7×7 pixels, and two linear layers of 4,096, batch norm after each; the probes see fc7.

    Convolutions and linear layers start normal with a standard deviation of .02, as in the authors' code.

    Raises:
        CompanionError: for images below 15 pixels a side, of which three poolings leave nothing.
    """
    if image_size < 15:
        raise CompanionError(f"image_size is {image_size}: expected 15 or more for small_alexnet, which pools thrice.")
    layers, before, side = [], channels, image_size
    for width, pools in ((96, True), (192, True), (384, False), (384, False), (192, True)):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        ]  # fmt: skip
        if pools:
            layers.append(nn.MaxPool2d(3, 2))
            side = (side - 3) // 2 + 1
        before = width
    layers.append(nn.Flatten())
    for features in (before * side**2, 4096):
        layers += [nn.Linear(features, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(inplace=True)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    return nn.Sequential(*layers), 4096


def resnet(name: str, channels: int, image_size: int) -> tuple[nn.Module, int]:
    """torchvision's ResNet without its classifier; below 64 pixels with the CIFAR stem (Chen et al. 2020, App. B.9):
    a 3×3 stride-1 convolution and no max-pooling."""
    net = torchvision.models.get_model(name, weights=None)
    features = net.fc.in_features
    net.fc = nn.Identity()
    if image_size < 64:
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return net, features


def encoder(config, channels: int) -> tuple[nn.Module, int]:
    """The encoder that a :class:`~companion.training.config.Config` names, and how many features it gives."""
    if config.encoder == "pixels":
        return nn.Flatten(), channels * config.image_size**2
    if config.encoder == "colour_moments":
        return ColourMoments(), channels * (2 * channels + 3)
    if config.encoder == "small":
        return small(channels, config.width)
    if config.encoder == "small_alexnet":
        return small_alexnet(channels, config.image_size)
    return resnet(config.encoder, channels, config.image_size)


def build(config, channels: int, *, heads: int = 1) -> Model:
    """Encoder and projectors as a :class:`~companion.training.config.Config` describes them, randomly initialised from
    torch's global generator.

    Args:
        config: names the encoder and the sizes.
        channels: of the images.
        heads: projectors: 1 for both views, or 2, one for each.
    """
    net, features = encoder(config, channels)
    return Model(net, *(projector(features, config.projector_hidden, config.projector_dim) for _ in range(heads)))
