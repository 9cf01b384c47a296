"""The two published probes, against softmax regression written in NumPy, with its gradient by hand."""

import math

import numpy as np
import pytest
import torch

from companion import training
from companion.errors import CompanionError
from companion.training import published
from companion.training.augment import SimCLR
from companion.training.loop import seeded
from companion.training.sources import seed


def by_hand(of_epoch, labels, x, number):
    """Classes of x (k, d) by SGD in double precision: 200 epochs, batches of 256, momentum .9, a cosine from .1."""
    with seeded(number, 6):
        layer = torch.nn.Linear(x.shape[1], labels.max() + 1)
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    for epoch in range(200):
        rate = 0.1 * (1 + math.cos(math.pi * epoch / 200)) / 2
        generator = torch.Generator().manual_seed(seed(number, 7, epoch))
        order, z = torch.randperm(len(labels), generator=generator).numpy(), of_epoch(epoch)
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            logits = z[rows] @ weight.T + bias
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(rows)), labels[rows]] -= 1
            gradients = p.T @ z[rows] / len(rows), p.mean(axis=0)
            speed = [0.9 * v + g for v, g in zip(speed, gradients, strict=True)]
            weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    return (x @ weight.T + bias).argmax(axis=1)


@pytest.fixture
def network(tiny):
    """A trained network, and 300 images to train a probe of it on: two batches an epoch."""
    config = tiny.replace(n_train=300, seed=5)
    method, images = training.initial(config), training.load_data(config)
    training.train(method, training.Views(images.train, config.augmentation.build(16), 32, seed=5), config)
    return method.eval(), config, images


def embedded(method, images):
    with torch.no_grad():
        return method.embed(images).double().numpy()


@pytest.mark.parametrize("form", published.FORMS)
def test_each_form_against_sgd_by_hand(network, form):
    method, config, images = network

    def prepared(z):
        return z / np.linalg.norm(z, axis=1, keepdims=True) if form == "text" else z

    crop = SimCLR(crop_scale=0.08, flip=0.5, jitter=0.0).build(16)

    def of_epoch(epoch):
        raw = images.train.images
        draws = torch.Generator().manual_seed(seed(5, 8, epoch % 3))
        return prepared(embedded(method, raw / 255 if form == "text" else crop(raw, draws)))

    x = prepared(embedded(method, images.test.images / 255))
    expected = by_hand(of_epoch, images.train.labels.numpy(), x, 5) == images.test.labels.numpy()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    found = published.published_probe(method, config, images, form=form, passes=3)
    assert found.shape == (2000,)
    assert (found != expected).mean() <= 0.001  # float32 may turn an image that lies on a border
    assert 0.2 < found.mean() < 0.8
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())  # it stays frozen
    assert np.array_equal(found, published.published_probe(method, config, images, form=form, passes=3))


def test_images_are_cropped_anew_in_every_epoch_unless_passes_are_fewer(network, monkeypatch):
    method, config, images = network
    asked, features = [], published.features
    monkeypatch.setattr(published, "features", lambda *a, **o: asked.append(o.get("view")) or features(*a, **o))
    for form, passes, cropped, whole in (("code", None, 6, 1), ("code", 2, 2, 1), ("text", None, 0, 2)):
        asked.clear()
        published.published_probe(method, config, images, form=form, passes=passes, epochs=6)
        assert (sum(map(bool, asked)), sum(view is None for view in asked)) == (cropped, whole)


def test_more_epochs_are_more_steps_along_a_longer_cosine(network):
    """On classes that a line separates by a hair the error falls with the length of training."""
    z = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
    labels = (z[:, 0] + 0.02 * z[:, 1] > 0).long()
    right = [published.sgd_probe(lambda epoch: z / 5, labels, (z / 5, labels), epochs=n).mean() for n in (1, 300)]
    assert right[1] > max(right[0], 0.97)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "codes"}, "Unknown form of the published probe 'codes': expected one of text, code"),
        ({"passes": 0}, "passes is 0: expected a whole number of at least 1"),
        ({"passes": 201}, "passes is 201: expected at most 200, one an epoch"),
        ({"passes": 7, "epochs": 6}, "passes is 7: expected at most 6, one an epoch"),
    ],
)
def test_what_is_no_probe_is_told(network, options, told):
    with pytest.raises(CompanionError, match=told):
        published.published_probe(*network, **options)


def test_features_that_are_not_finite_are_told():
    x, y = torch.full((8, 2), torch.inf), torch.arange(8) % 2
    with pytest.raises(CompanionError, match="its weights are not finite"):
        published.sgd_probe(lambda epoch: x, y, (x, y))
