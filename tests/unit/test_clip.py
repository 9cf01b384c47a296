"""The method for pairs of images and texts: its losses against open_clip's, its text encoder against a loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from companion import losses
from companion.errors import CompanionError
from companion.training import Batch, Clip, Config, Unchanged, emoji, runs, train
from companion.training.loop import optimizer_of
from companion.training.methods.clip import BagOfWords


@pytest.fixture
def config():
    return Config(
        dataset="emoji", image_size=32, n_train=120, n_validation=40, width=4, projector_dim=16, batch_size=40,
        epochs=2, warmup_epochs=0, optimizer="adamw", learning_rate=0.01, weight_decay=0.5, accelerator="cpu",
        method=Clip(),
    )  # fmt: skip


def batch_of(data):
    """The drawings that are trained on, of one artist and not augmented, with their names."""
    concepts = data.parts["train"]
    return Batch(concepts.drawn("noto").float() / 255, data.vocabulary.encode(concepts.names), concepts.labels())


def pair(config):
    """The method of a config, and a batch with as many names as drawings."""
    batch = batch_of(runs.load_data(config))
    return runs.initial(config), Batch(*(x[:40] for x in batch))


def test_the_losses_are_open_clips(config):
    open_clip = pytest.importorskip("open_clip")
    method, batch = pair(config)
    u, v = (F.normalize(z, dim=1) for z in method.project(batch.first, batch.second))
    assert method.scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    expected = open_clip.loss.ClipLoss()(u, v, 1 / 0.07)
    torch.testing.assert_close(method.loss(batch), expected, rtol=1e-5, atol=1e-6)
    siglip, _ = pair(config.replace(loss="siglip", temperature=0.1))
    assert (siglip.scale().item(), siglip.bias.item()) == (pytest.approx(10), -10)
    u, v = (F.normalize(z, dim=1) for z in siglip.project(batch.first, batch.second))
    expected = open_clip.loss.SigLipLoss()(u, v, torch.tensor(10.0), torch.tensor(-10.0))
    torch.testing.assert_close(siglip.loss(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_within_view_negatives_and_vrns_come_on_top(config, loss):
    method, batch = pair(config.replace(loss=loss, within_view=True, vrns=3.0))
    u, v = method.project(batch.first, batch.second)
    given = {"scale": method.scale(), "bias": method.bias} if loss == "siglip" else {"temperature": 1 / method.scale()}
    expected = getattr(losses, loss)(u, v, within_view=True, **given) + 3 * losses.vrns(u, v, n=120)
    torch.testing.assert_close(method.loss(batch), expected)


def test_two_drawings_share_one_encoder_and_nt_xent(config):
    method, batch = pair(config.replace(loss="nt_xent", second="view", temperature=0.2, learned=False, dropout=0.0))
    given = Batch(batch.first, batch.first.flip(3), batch.labels)
    u, v = method.project(given.first, given.second)
    torch.testing.assert_close(method.loss(given), losses.nt_xent(u, v, temperature=0.2))
    torch.testing.assert_close(method.project(given.first, given.first)[1], u)


def test_a_bag_of_words_is_their_mean_in_any_order_whatever_fills_it_up():
    net = BagOfWords(20, 8, 4).eval()
    texts = torch.tensor([[3, 5, 9, 0, 0], [9, 0, 3, 5, 0], [3, 5, 8, 0, 0]])
    found = net(texts)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    mean = sum(net.words.weight[i] for i in (3, 5, 9)) / 3
    torch.testing.assert_close(found[0], net.layers(mean))
    net.train()
    dropped = torch.stack([net(texts[:1])[0] for _ in range(200)])
    whole = (dropped - found[0]).abs().amax(1) < 1e-6
    assert 0.6 < whole.float().mean() < 0.85  # .9³ = .73 keep all three words


def test_scale_and_bias_are_learned_unless_they_are_fixed_and_the_scale_is_clipped(config):
    for learned in (True, False):
        method, batch = pair(config.replace(loss="siglip", learned=learned))
        method.loss(batch).backward()
        assert (method.scale.logarithm.grad is not None) == (method.bias.grad is not None) == learned
    method, _ = pair(config)
    assert not method.bias.requires_grad  # CLIP has none
    method.scale.logarithm.data.fill_(10.0)
    assert method.scale().item() == pytest.approx(100)


@pytest.mark.parametrize(("given", "largest"), [({}, 100), ({"largest": 5}, 5), ({"largest": 1000}, 1000)])
def test_a_scale_stays_below_the_largest_that_was_asked_for_and_comes_back(given, largest):
    scale = losses.LogitScale(initial=3.0, **given)
    assert scale().item() == pytest.approx(3)
    with torch.no_grad():
        scale.logarithm.fill_(math.log(0.9 * largest))
    assert scale().item() == pytest.approx(0.9 * largest)
    with torch.no_grad():
        scale.logarithm.fill_(math.log(2 * largest))
    value = scale()
    assert value.item() == pytest.approx(largest)
    assert torch.autograd.grad(value, scale.logarithm)[0].item() == pytest.approx(largest)  # it can be learned back


def test_adamw_spares_what_is_no_matrix(config):
    method, _ = pair(config)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = optimizer_of(method, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert {p.ndim <= 1 for p in optimizer.param_groups[1]["params"]} == {True}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for p in method.parameters():  # no gradient but that of the decay
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in method.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if p.ndim > 1 else before[name]
        torch.testing.assert_close(p.detach(), expected, msg=name)
    sgd = optimizer_of(method, config.replace(optimizer="sgd"))
    assert type(sgd) is torch.optim.SGD
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.5, 0.0]
    undecayed = {id(p) for p in sgd.param_groups[1]["params"]}
    assert undecayed == {id(p) for p in method.parameters() if p.ndim == 0} != set()  # the scale, and nothing else


def test_adamw_takes_the_steps_of_a_loop_by_hand(config):
    """Loshchilov & Hutter 2019, Algorithm 2, in double precision. Several steps: in the first one the correction of the
    bias cancels both betas."""
    config = config.replace(dropout=0.0, epochs=4, momentum=0.8)
    (method, batch), (reference, _) = pair(config), pair(config)
    batch = Batch(batch.first.double(), batch.second, batch.labels)
    for one in (method.double(), reference.double()):
        one.model.second_projector.dropout = 0.0

    class Same:
        def __len__(self):
            return 1

        def batches(self, epoch):
            yield batch

    weights = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    mean, square = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    reference.train()
    for step in range(1, 5):
        gradients = torch.autograd.grad(reference.loss(batch), list(weights.values()))
        rate = 0.01 * 40 / 256 * (1 + math.cos(math.pi * (step - 1) / 4)) / 2
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                mean[name] = 0.8 * mean[name] + 0.2 * g
                square[name] = 0.98 * square[name] + 0.02 * g**2
                direction = mean[name] / (1 - 0.8**step) / ((square[name] / (1 - 0.98**step)).sqrt() + 1e-8)
                p -= rate * ((0.5 * p if p.ndim > 1 else 0) + direction)
    train(method, Same(), config)
    for name, p in method.named_parameters():
        if name in weights:
            torch.testing.assert_close(p, weights[name], rtol=0, atol=1e-9, msg=lambda text, name=name: name + text)


def test_it_learns_to_name_what_it_has_seen(config, results):
    longer = config.replace(epochs=30, width=8, dropout=0.0, learning_rate=0.02, augmentation=Unchanged())
    data, method = runs.load_data(longer), runs.initial(longer)
    source = emoji.Captions(data, longer.augmentation.build(32), 40, seed=0)
    history = train(method, source, longer)
    assert history[-1]["loss"] < 0.7 * math.log(40)
    batch = batch_of(data)
    u, v = (F.normalize(z, dim=1) for z in method.project(batch.first, batch.second))
    right = ((u @ v.T).argmax(1) == torch.arange(120)).float().mean()
    assert right > 0.2  # by chance .008


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "clop"}, "Unknown loss of images and texts 'clop'.*Did you mean 'clip'"),
        ({"second": "texts"}, "Unknown second of a pair 'texts'.*Did you mean 'text'"),
        ({"loss": "nt_xent", "within_view": True}, "within_view makes no difference to 'nt_xent'"),
        ({"dropout": 1.0}, "dropout is 1.0: expected less"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 0.005}, "temperature is 0.005: expected at least 0.01"),
        ({"learned": 1}, "learned is 1: expected True or False"),
        ({"pool": 0}, "pool is 0"),
        ({"artists": "dali"}, "Unknown artist 'dali'"),
    ],
)
def test_bad_settings_are_told(config, changes, expected):
    with pytest.raises(CompanionError, match=expected):
        runs.load_data(config.replace(**changes))


def test_images_without_words_are_told(config):
    with pytest.raises(CompanionError, match="'eurosat-subset' has images without words: expected dataset='emoji'"):
        runs.initial(config.replace(dataset="eurosat-subset"))
