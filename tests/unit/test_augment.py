"""The augmentation in one pass against torchvision and kornia, transform by transform, and in law."""

import colorsys
import math

import kornia.augmentation as kornia
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as torchvision

from companion.errors import CompanionError
from companion.training import SimCLR, Unchanged, augment, data

PLAIN = SimCLR(crop_scale=0.2, flip=0.0, jitter=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n, size, channels=3):
    """Smooth random images, uint8: noise alone would hide what a crop does."""
    coarse = torch.rand(n, channels, 6, 6, generator=generator())
    return (torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def satellite(n):
    """(n, 3, 16, 16) of the embedded images, one class after another."""
    images = data.load("eurosat-subset", image_size=16, n_train=8000).train.images
    return images[:: len(images) // n][:n]


def one(x, function, *arguments):
    """``function`` of each image with its own argument, as torchvision wants it."""
    return torch.stack([function(image, *(a[i].item() for a in arguments)) for i, image in enumerate(x)])


@pytest.mark.parametrize(("size", "to"), [(16, 16), (32, 16), (20, 33)])
def test_a_crop_is_torchvisions_resized_crop(size, to):
    images = photos(64, size).float() / 255
    uniform = lambda *shape, low=0.0, high=1.0: torch.rand(*shape, generator=g) * (high - low) + low  # noqa: E731
    g = generator(1)
    top, left, h, w = augment.draw_crops(64, size, size, 0.2, uniform)
    rows, columns = augment.resize(top, h, size, to), augment.resize(left, w, size, to)
    ours = torch.einsum("npy,ncyx,nqx->ncpq", rows, images, columns)
    for i in range(64):
        box = [int(v[i]) for v in (top, left, h, w)]
        theirs = torchvision.resized_crop(images[i], *box, [to, to], antialias=True)
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=2e-6)


def test_crops_are_drawn_as_torchvision_draws_them():
    """Area, ratio and both corners have torchvision's distribution, by Kolmogorov and Smirnov's test."""
    g, n = generator(), 4000
    uniform = lambda *shape, low=0.0, high=1.0: torch.rand(*shape, generator=g) * (high - low) + low  # noqa: E731
    ours = np.stack([v.numpy() for v in augment.draw_crops(n, 32, 48, 0.2, uniform)])
    torch.manual_seed(1)
    image = torch.empty(3, 32, 48)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.2, 1), (3 / 4, 4 / 3)) for _ in range(n)]).T
    for of in (lambda t, l, h, w: h * w, lambda t, l, h, w: h / w, lambda t, l, h, w: t, lambda t, l, h, w: l):  # noqa: E741
        assert stats.ks_2samp(of(*ours), of(*theirs)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "cut"),
    [(10, 100, (10, 13)), (100, 10, (13, 10)), (16, 16, (16, 16)), (18, 16, (18, 16)), (16, 18, (16, 18))],
)
def test_an_image_that_no_crop_fits_is_cut_to_the_nearest_ratio(height, width, cut):
    uniform = lambda *shape, low=0.0, high=1.0: torch.full(shape, high)  # noqa: E731
    top, left, h, w = (x.item() for x in augment.draw_crops(1, height, width, 1.0, uniform))
    # Of a crop four times as large as the image torchvision knows only what it falls back on.
    _, _, *theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), (4, 4), (3 / 4, 4 / 3))
    assert (h, w) == cut == tuple(theirs)
    assert abs(top - (height - h) / 2) <= 0.5  # in the middle
    assert abs(left - (width - w) / 2) <= 0.5


def test_a_crop_may_be_as_small_as_a_pixel():
    uniform = lambda *shape, low=0.0, high=1.0: torch.full(shape, low)  # noqa: E731
    found = [x.item() for x in augment.draw_crops(1, 4, 4, 0.05, uniform)]
    _, _, *theirs = RandomResizedCrop.get_params(torch.empty(3, 4, 4), (0.05, 0.05), (3 / 4, 3 / 4))
    assert found == [0, 0, *theirs] == [0, 0, 1, 1]


PARAMETERS = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.0, 1.8)}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_is_torchvisions(name, channels):
    images = photos(32, 16, channels).float() / 255 * 0.5 + 0.2  # far enough from 0 and 1 that nothing is clamped
    values = torch.empty(32).uniform_(*PARAMETERS[name], generator=generator(2))
    if channels == 1 and name == "saturation":
        return
    given = {other: torch.ones(32) for other in PARAMETERS} | {"hue": torch.zeros(32), name: values}
    ours = augment.jitter(images.flatten(2), **given).view_as(images)
    theirs = one(images, getattr(torchvision, f"adjust_{name}"), values)
    inside = (theirs > 0) & (theirs < 1)
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=2e-4 if name == "saturation" else 2e-5)
    assert inside.float().mean() > 0.9


def test_hue_turns_colours_and_keeps_their_grey():
    """In YIQ space, where it is linear, so not torchvision's HSV to the digit: the same direction, a like amount."""
    images = satellite(32).float() / 255
    flat, ones = images.flatten(2), torch.ones(32)
    for hue in (-0.1, -0.025, 0.025, 0.1):
        ours = augment.jitter(flat, ones, ones, ones, torch.full((32,), hue)).view_as(images)
        ours, theirs = ours - images, torchvision.adjust_hue(images, hue) - images
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.3
        assert 0.5 < ours.abs().mean() / theirs.abs().mean() < 2
        assert torch.einsum("c,nchw->nhw", augment.GREY, ours).abs().max() < 1e-5  # the luma stays
    full = augment.jitter(flat, ones, ones, ones, ones).view_as(images)
    torch.testing.assert_close(full, images, rtol=0, atol=1e-5)  # a whole turn


def test_brightness_contrast_saturation_and_hue_commute():
    """So no order is drawn. Against torchvision, one after another in two orders."""
    images = photos(16, 16).float() / 255 * 0.3 + 0.35
    ours = augment.jitter(images.flatten(2), *(torch.full((16,), v) for v in (1.1, 0.9, 1.2, 0.0))).view_as(images)
    for order in ("bcs", "scb", "csb"):
        theirs = images
        for step in order:
            theirs = {
                "b": lambda x: torchvision.adjust_brightness(x, 1.1),
                "c": lambda x: torch.stack([torchvision.adjust_contrast(i, 0.9) for i in x]),
                "s": lambda x: torchvision.adjust_saturation(x, 1.2),
            }[step](theirs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_blur_is_torchvisions_away_from_the_border():
    images, sigma = photos(8, 32).float() / 255, torch.linspace(0.1, 2.0, 8)
    kernel = augment.blur(sigma, 32)
    ours = torch.einsum("npy,ncyx,nqx->ncpq", kernel, images, kernel)
    for i in range(8):
        theirs = torchvision.gaussian_blur(images[i], [19, 19], [sigma[i].item()] * 2)
        torch.testing.assert_close(ours[i, :, 9:-9, 9:-9], theirs[:, 9:-9, 9:-9], rtol=0, atol=1e-5)
    assert torch.equal(augment.blur(torch.zeros(1), 5)[0], torch.eye(5))


def moments(views):
    """Mean and variance over views of brightness, of colour, of contrast, of detail, and of the left-right balance."""
    grey = torch.einsum("c,nchw->nhw", augment.GREY, views)
    seen = torch.stack([
        grey.mean((1, 2)), (views.amax(1) - views.amin(1)).mean((1, 2)), grey.std((1, 2)),
        grey.diff(dim=2).abs().mean((1, 2)), grey[:, :, :8].mean((1, 2)) - grey[:, :, 8:].mean((1, 2)),
    ])  # fmt: skip
    return seen.mean(1), seen.std(1)


def test_the_whole_is_torchvisions_in_law_and_near_kornias():
    """2,000 views of one image by each: equal means and spreads of brightness, colour, contrast, detail and balance."""
    image, n = satellite(10)[8:9], 2000  # a river
    settings = SimCLR(crop_scale=0.2, flip=0.5, jitter=0.2, jitter_probability=0.8, grayscale=0.2, blur=0.0)
    ours = settings.build(16)(image.expand(n, -1, -1, -1), generator())
    torch.manual_seed(0)
    theirs = v2.Compose([
        v2.RandomResizedCrop(16, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.05)], p=0.8),
        v2.RandomGrayscale(0.2),
    ])  # fmt: skip
    theirs = torch.stack([theirs(image[0].float() / 255) for _ in range(n)])
    steps = torch.nn.Sequential(
        kornia.RandomResizedCrop((16, 16), scale=(0.2, 1.0), cropping_mode="resample"),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.2, 0.2, 0.2, 0.05, p=0.8),
        kornia.RandomGrayscale(p=0.2),
    )
    kornias = torch.cat([steps((image.float() / 255).expand(500, -1, -1, -1)) for _ in range(n // 500)])
    mean, spread = moments(ours)
    for other, slack in ((theirs, 0.004), (kornias, 0.05)):
        other_mean, other_spread = moments(other)
        error = 4 * other_spread * math.sqrt(2 / n)
        assert ((mean - other_mean).abs() < error + slack * other_mean.abs()).all(), (mean, other_mean)
        assert ((spread / other_spread - 1).abs() < 0.06 + slack).all(), (spread, other_spread)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"flip": 0.3}, 0.3), ({"jitter": 0.4, "jitter_probability": 0.6}, 0.6), ({"grayscale": 0.25}, 0.25),
     ({"blur": 0.5}, 0.475), ({"rotate": 0.4}, 0.4), ({}, 0.0)],
)  # fmt: skip
def test_each_transform_happens_as_often_as_it_should(changes, expected):
    """(One blur in twenty is too narrow to be seen.)"""
    images = photos(1, 16).expand(3000, -1, -1, -1)
    settings = SimCLR(flip=0.0, jitter=0.0).replace(**changes)
    view = augment.RandomView(settings, 16, crop=False)
    views, plain = view(images, generator()), images / 255
    changed = (~torch.isclose(views, plain, atol=2e-3).flatten(1).all(1)).float().mean().item()
    assert changed == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 3000) if expected else 0)


def test_a_flip_is_a_mirror_and_grey_is_grey():
    images = photos(4, 16)
    flipped = augment.RandomView(SimCLR(flip=1.0, jitter=0.0), 16, crop=False)(images)
    torch.testing.assert_close(flipped, images.flip(3) / 255, rtol=0, atol=1e-5)
    grey = augment.RandomView(SimCLR(flip=0.0, jitter=0.0, grayscale=1.0), 16, crop=False)(images)
    torch.testing.assert_close(
        grey, torchvision.rgb_to_grayscale(images / 255, 3), rtol=0, atol=2e-4
    )  # they round a weight


def test_a_rotation_is_one_of_the_three_quarter_turns_each_as_often():
    images = photos(1, 16).expand(3000, -1, -1, -1)
    views = augment.RandomView(SimCLR(flip=0.0, jitter=0.0, rotate=1.0), 16, crop=False)(images, generator())
    turned = torch.stack([(images[0] / 255).rot90(k, (1, 2)) for k in range(4)])
    near = torch.isclose(views[:, None], turned, atol=1e-5).flatten(2).all(2).float()  # (3000, 4)
    assert near.sum(dim=1).eq(1).all()
    torch.testing.assert_close(near.mean(dim=0), torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), rtol=0, atol=0.035)


def test_views_differ_repeat_and_stay_images():
    images = photos(64, 20)
    views = SimCLR(jitter=0.8, grayscale=0.2, blur=0.5).build(14)
    a, b, again = views(images, g := generator(1)), views(images, g), views(images, generator(1))
    assert a.shape == b.shape == (64, 3, 14, 14)
    assert a.dtype == torch.float32
    assert 0 <= a.min() <= a.max() <= 1
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_each_image_is_augmented_on_its_own():
    images = photos(1, 16).expand(32, -1, -1, -1)
    assert len({view.numpy().tobytes() for view in SimCLR().build(16)(images, generator())}) == 32


def test_nothing_to_do_leaves_the_image():
    images = photos(8, 16)
    torch.testing.assert_close(Unchanged().build(16)(images), images / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"flip": 1.5}, "flip is 1.5: expected a number from 0 to 1"), ({"crop_scale": 0}, "crop_scale is 0"),
     ({"jitter": -0.1}, "jitter is -0.1"), ({"blurr": 1}, "Unknown parameter 'blurr'.*Did you mean 'blur'")],
)  # fmt: skip
def test_bad_values_are_told(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        SimCLR().replace(**changes)


def ramp(size):
    """(1, 3, size, size): the first channel counts columns, the second rows, in steps of 5."""
    steps = 5 * torch.arange(size, dtype=torch.uint8)
    return torch.stack([steps.expand(size, size), steps[:, None].expand(size, size), torch.zeros(size, size).byte()])[
        None
    ]


@pytest.mark.parametrize("scale", [0.08, 0.6])
def test_a_view_keeps_as_much_of_the_image_as_crop_scale_says(scale):
    """Read off the slope of a ramp: a crop of w columns resized to s has steps of w / s. Against torchvision's law."""
    n, size, to = 1500, 48, 24
    views = PLAIN.replace(crop_scale=scale).build(to)(ramp(size).expand(n, -1, -1, -1), generator())
    inside = views[:, :2, 6:-6, 6:-6] * 255 / 5
    width, height = inside[:, 0].diff(dim=2).mean((1, 2)) * to, inside[:, 1].diff(dim=1).mean((1, 2)) * to
    torch.manual_seed(1)
    boxes = [RandomResizedCrop.get_params(torch.empty(3, size, size), (scale, 1), (3 / 4, 4 / 3)) for _ in range(n)]
    theirs = [h * w for _, _, h, w in boxes]
    assert stats.ks_2samp((width * height).round().numpy(), theirs).pvalue > 1e-3


def test_a_blur_of_a_view_is_as_wide_as_it_is_tall():
    dot = torch.zeros(1, 3, 17, 17, dtype=torch.uint8)
    dot[:, :, 8, 8] = 255
    views = augment.RandomView(SimCLR(flip=0.0, jitter=0.0, blur=1.0), 17, crop=False)(
        dot.expand(64, -1, -1, -1), generator()
    )
    torch.testing.assert_close(views, views.mT, rtol=0, atol=1e-5)
    centre, right, below = views[:, 0, 8, 8], views[:, 0, 8, 9], views[:, 0, 9, 8]
    assert (right > 1e-3).float().mean() > 0.8
    sigma = (2 * (centre / right).log()).rsqrt()[right > 1e-3]  # e^(-1/2σ²) from one pixel to the next
    assert 1.8 < sigma.max() <= 2.001  # SimCLR's range of widths
    torch.testing.assert_close(
        views[:, 0, 9, 9] * centre, right * below, rtol=1e-3, atol=1e-6
    )  # a Gaussian is a product


def test_the_hue_of_a_view_is_turned_by_up_to_a_quarter_of_the_jitter():
    """By the standard library's YIQ, whose coefficients are rounder than ours: uniform on both sides."""
    colour, strength = (150, 110, 130), 0.4

    def angle(rgb):
        _, i, q = colorsys.rgb_to_yiq(*rgb)
        return math.atan2(q, i) / (2 * math.pi)

    images = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(1500, 3, 4, 4)
    settings = SimCLR(flip=0.0, jitter=strength, jitter_probability=1.0)
    views = augment.RandomView(settings, 4, crop=False)(images, generator())[:, :, 0, 0]
    turned = [angle(view) - angle([c / 255 for c in colour]) for view in views.tolist()]
    reach = strength / 4
    assert max(turned) == pytest.approx(reach, rel=0.05)
    assert min(turned) == pytest.approx(-reach, rel=0.05)
    assert stats.kstest(turned, stats.uniform(-reach, 2 * reach).cdf).pvalue > 1e-3
