"""Encoders: the shapes and the sizes that they promise."""

import math

import numpy as np
import pytest
import torch
import torchvision
from sklearn.preprocessing import PolynomialFeatures

from companion.errors import CompanionError
from companion.training import Config, encoders


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "channels", "features"),
    [
        (Config(), 3, 96),
        (Config(image_size=14), 1, 96),
        (Config(width=8), 3, 32),
        (Config(encoder="resnet18", image_size=32), 3, 512),
        (Config(encoder="resnet18", image_size=64), 1, 512),
        (Config(encoder="resnet50", image_size=32), 3, 2048),
        (Config(encoder="small_alexnet", image_size=64, projector_hidden=0), 3, 4096),
        (Config(encoder="small_alexnet", image_size=15), 1, 4096),
        (Config(encoder="pixels"), 3, 768),
        (Config(encoder="colour_moments"), 3, 27),
        (Config(encoder="colour_moments"), 1, 5),
    ],
)
def test_encoders_have_the_shapes_they_promise(config, channels, features):
    model = encoders.build(config, channels).eval()
    images = torch.rand(2, channels, config.image_size, config.image_size)
    with torch.no_grad():
        assert model.encoder(images).shape == (2, features)
        assert model(images).shape == (2, config.projector_dim)
    assert encoders.encoder(config, channels)[1] == features


def test_the_small_alexnet_has_the_weights_that_wang_and_isola_count():
    """By hand: 3×3 kernels without bias, scale and shift of batch norm, 192 · 7 · 7 inputs of fc6, fc8 with bias."""
    convolutions = 9 * (3 * 96 + 96 * 192 + 192 * 384 + 384 * 384 + 384 * 192) + 2 * (96 + 192 + 384 + 384 + 192)
    linear = 192 * 7 * 7 * 4096 + 4096 * 4096 + 2 * (4096 + 4096)
    model = encoders.build(Config(encoder="small_alexnet", image_size=64, projector_hidden=0), 3)
    assert parameters(model.encoder) == convolutions + linear
    assert parameters(model.projector) == 4096 * 128 + 128
    weights = [layer.weight for layer in model.encoder if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert [w.std().item() for w in weights] == pytest.approx([0.02] * 7, rel=0.1)
    images, sides = torch.rand(2, 3, 64, 64), []
    for layer in model.encoder[:18]:
        images = layer(images)
        sides.append(images.shape[-1])
    assert sides == [64] * 3 + [31] * 4 + [15] * 10 + [7]


def test_the_small_alexnet_is_wang_and_isolas_by_hand():
    """Convolution, batch norm, ReLU; the largest of 3×3 pixels, every second, after the first, second and fifth."""
    net, _ = encoders.small_alexnet(3, 17)
    weights = iter([layer.weight for layer in net if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)])
    x = images = torch.rand(8, 3, 17, 17, generator=torch.Generator().manual_seed(0))

    def normalised(x, dims):
        variance, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
        return ((x - mean) / (variance + 1e-5).sqrt()).clamp(min=0)

    for pools in (True, True, False, False, True):
        x = normalised(torch.nn.functional.conv2d(x, next(weights), padding=1), (0, 2, 3))
        if pools:
            x = x.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-2, -1))
    x = x.reshape(8, -1)
    for weight in weights:
        x = normalised(x @ weight.T, (0,))
    torch.testing.assert_close(net.train()(images), x, rtol=1e-3, atol=1e-3)


def test_an_image_too_small_for_the_small_alexnet_is_told():
    with pytest.raises(CompanionError, match="image_size is 14: expected 15 or more"):
        encoders.build(Config(encoder="small_alexnet", image_size=14), 3)


def test_without_a_hidden_layer_the_projector_is_linear():
    model = encoders.build(Config(projector_hidden=0), 3)
    assert isinstance(model.projector, torch.nn.Linear)
    assert (model.projector.in_features, model.projector.out_features) == (96, 128)
    assert [type(layer) for layer in encoders.projector(96, 1, 8)] == [
        torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.ReLU, torch.nn.Linear
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_a_resnet_is_torchvisions_without_its_classifier(name, published):
    """torchvision publishes its counts; with the CIFAR stem the first kernel is 3×3 in place of 7×7."""
    theirs = torchvision.models.get_model(name, weights=None)
    assert parameters(theirs) == published
    backbone = published - parameters(theirs.fc)
    large, features = encoders.resnet(name, 3, 64)
    small, _ = encoders.resnet(name, 3, 32)
    assert features == theirs.fc.in_features
    assert parameters(large) == backbone
    assert parameters(small) == backbone - 64 * 3 * (7 * 7 - 3 * 3)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in large.state_dict().items()} == shapes
    shapes["conv1.weight"] = (64, 3, 3, 3)
    assert {key: value.shape for key, value in small.state_dict().items()} == shapes


@pytest.mark.parametrize(("size", "channels", "first", "last"), [(32, 3, 32, 4), (16, 1, 16, 2), (64, 3, 16, 2)])
def test_a_resnet_keeps_the_resolution_of_small_images(size, channels, first, last):
    net, features = encoders.resnet("resnet18", channels, size)
    seen = {}
    for name in ("layer1", "layer4"):
        getattr(net, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
    with torch.no_grad():
        net.eval()(torch.rand(1, channels, size, size))
    assert seen == {"layer1": (1, 64, first, first), "layer4": (1, features, last, last)}


def test_a_resnet_with_the_same_weights_gives_what_torchvisions_gives():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours, _ = encoders.resnet("resnet18", 3, 64)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images))


def test_the_small_net_is_three_strided_convolutions():
    net, features = encoders.small(3, 24)
    kernels = 3 * 24 * 16 + 24 * 48 * 9 + 48 * 96 * 9
    norms = 2 * (24 + 48 + 96)
    assert (features, parameters(net)) == (96, kernels + norms)
    with torch.no_grad():
        sizes = [layer_out.shape[-1] for layer_out in _outputs(net, torch.rand(1, 3, 16, 16), torch.nn.Conv2d)]
    assert sizes == [8, 4, 2]


def _outputs(net, x, kind):
    for layer in net:
        x = layer(x)
        if isinstance(layer, kind):
            yield x


def test_the_projector_is_the_papers():
    net = encoders.projector(96, 256, 128)
    assert parameters(net) == 96 * 256 + 2 * 256 + 256 * 128 + 128
    x = torch.randn(32, 96)
    hidden = x @ net[0].weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + net[1].eps).sqrt()
    torch.testing.assert_close(net.train()(x), hidden.relu() @ net[3].weight.T + net[3].bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_moments_are_numpys_and_scikit_learns(channels):
    images = torch.rand(5, channels, 9, 9)
    found = encoders.ColourMoments()(images).numpy()
    pixels = images.numpy().reshape(5, channels, 81)
    moments = np.concatenate([np.mean(pixels, axis=2), np.std(pixels, axis=2, ddof=1)], axis=1)
    expected = PolynomialFeatures(degree=2, include_bias=False).fit_transform(moments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    shuffled = torch.from_numpy(pixels)[:, :, torch.randperm(81)].view_as(images)
    np.testing.assert_allclose(encoders.ColourMoments()(shuffled).numpy(), found, rtol=1e-5)  # no place, no shape


def test_raw_pixels_are_the_image():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(encoders.build(Config(encoder="pixels"), 3).encoder(images), images.flatten(1))


def test_the_second_head_serves_the_second_views_alone():
    model = encoders.build(Config(), 3, heads=2).eval()
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.projector(model.encoder(images)))
        torch.testing.assert_close(model(images, second=True), model.second_projector(model.encoder(images)))
        assert not torch.allclose(model(images), model(images, second=True))
        alone = encoders.build(Config(), 3).eval()
        assert torch.equal(alone(images), alone(images, second=True))


def test_weights_start_with_the_spread_that_their_layers_call_for():
    """Kaiming's uniform for convolutions and linear layers: variance 1 / (3 fan_in)."""
    torch.manual_seed(0)
    model = encoders.build(Config(), 3)
    for weight in (model.encoder[3].weight, model.projector[0].weight, model.projector[3].weight):
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.05)


def test_the_small_net_by_its_formula():
    """Convolution, batch norm by the statistics it has kept, negatives cut off; at the end the mean of a channel."""
    torch.manual_seed(0)
    net, _ = encoders.small(3, 8)
    for layer in net:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    images = torch.rand(4, 3, 16, 16)
    x = images
    for convolution, norm in zip(net[0:9:3], net[1:9:3], strict=True):
        x = torch.nn.functional.conv2d(x, convolution.weight, stride=2, padding=1)
        of_channel = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, weight, bias = (value[:, None, None] for value in of_channel)
        x = ((x - mean) / (variance + norm.eps).sqrt() * weight + bias).clamp(min=0)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), x.sum((2, 3)) / (x.shape[2] * x.shape[3]), rtol=1e-4, atol=1e-5)
