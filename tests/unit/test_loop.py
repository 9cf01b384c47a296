"""The training loop against a loop by hand, and against itself interrupted."""

import copy
import itertools
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from companion.errors import CompanionError
from companion.training import Batch, Config, Contrastive, Labelled, Method, SimCLR, Supervised, Views, train
from companion.training.data import Split
from companion.training.loop import learning_rate, optimizer_of, seeded

N = 48


@pytest.fixture
def split():
    g = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (N, 3, 16, 16), dtype=torch.uint8, generator=g), torch.arange(N) % 4)


@pytest.fixture
def config(tiny):
    """Nothing at its default, so that what is ignored shows."""
    return tiny.replace(
        n_train=N, batch_size=16, epochs=4, warmup_epochs=1, learning_rate=0.8, momentum=0.7, weight_decay=0.03, seed=2
    )


def build(config, split):
    torch.manual_seed(1)
    return config.method.build(config, split)


def source(config, split):
    return Views(split, SimCLR().build(16), config.batch_size, seed=config.seed)


class InDouble:
    """A source in double precision, where nothing but the formula decides."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def batches(self, epoch):
        for batch in self.source.batches(epoch):
            yield Batch(batch.first.double(), batch.second.double(), batch.labels)


def rate(config, step, steps):
    """The schedule, written anew: up in a straight line over the warm-up's steps, then down half a cosine to 0."""
    warmup, total = config.warmup_epochs * steps, config.epochs * steps
    peak = config.learning_rate * config.batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def by_hand(method, batches_of_epoch, config):
    """SGD with momentum by definition: v ← μ v + g + λ w, w ← w − lr v. Returns the mean losses of the epochs."""
    method.train()
    speed = {name: torch.zeros_like(p) for name, p in method.named_parameters()}
    losses = []
    for epoch in range(config.epochs):
        batches = list(batches_of_epoch(epoch))
        of_epoch = []
        for step, batch in enumerate(batches, start=epoch * len(batches)):
            loss = method.loss(batch)
            of_epoch.append(loss.item())
            gradients = torch.autograd.grad(loss, list(method.parameters()), allow_unused=True)
            with torch.no_grad():
                for (name, p), g in zip(method.named_parameters(), gradients, strict=True):
                    if g is not None:
                        speed[name] = config.momentum * speed[name] + g + config.weight_decay * p
                        p -= rate(config, step, len(batches)) * speed[name]
        losses.append(sum(of_epoch) / len(of_epoch))
    return losses


@pytest.mark.parametrize(
    "method",
    [Contrastive(), Contrastive(heads=2, loss="siglip", bias=-2, vrns=3, loss_batch_size=8), Labelled(loss="sup_con"),
     Supervised()],
    ids=lambda m: m.title,
)  # fmt: skip
def test_training_is_sgd_by_hand(config, split, method):
    config = config.replace(method=method)
    trained = build(config, split).double()
    expected = copy.deepcopy(trained)
    history = train(trained, InDouble(source(config, split)), config)
    losses = by_hand(expected, InDouble(source(config, split)).batches, config)
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-6)  # summed in single precision
    assert [row["step"] for row in history] == [3, 6, 9, 12]
    for (name, found), value in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


class Line(Method):
    """Fits one number in float64 to the labels, without a network: what a step does shows to the last digit."""

    def __init__(self, noise=0.1, sick=math.inf, value=math.nan):
        super().__init__(nn.Identity())
        self.noise, self.sick, self.value = noise, sick, value  # from step `sick` on the loss is `value`
        self.weight = nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))  # a bare number has no decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))
        self.events = []

    def loss(self, batch):
        self.events.append("loss")
        noise = self.noise * torch.randn((), dtype=torch.float64)  # from the global generator
        loss = ((self.weight - batch.labels.double()).square() * (1 + noise)).mean()
        return loss * self.value if self.steps >= self.sick else loss

    def after_step(self):
        self.events.append("after")
        self.steps += 1
        self.average = 0.9 * self.average + 0.1 * self.weight.detach()[0]


class Numbers:
    """A source that is not :class:`Views`."""

    def __len__(self):
        return 3

    def batches(self, epoch):
        for k in range(3):
            yield Batch(torch.zeros(4, 1), torch.zeros(4, 1), torch.arange(4) + k + epoch)


@pytest.mark.parametrize(
    "changes",
    [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"warmup_epochs": 0}, {"warmup_epochs": 4}, {"epochs": 1}],
    ids=str,
)
def test_every_setting_of_the_optimiser_counts(config, changes):
    config = config.replace(**changes)
    trained, expected = Line(noise=0), Line(noise=0)
    train(trained, Numbers(), config)
    by_hand(expected, Numbers().batches, config)
    assert trained.weight.item() == pytest.approx(expected.weight.item(), abs=1e-12)
    for name in ("momentum", "weight_decay", "learning_rate"):
        other = Line(noise=0)
        train(other, Numbers(), config.replace(**{name: 1.1 * getattr(config, name) + 0.01}))
        if config.epochs > 1 or name != "momentum":
            assert abs(other.weight.item() - trained.weight.item()) > 1e-6, name


@pytest.mark.parametrize(("optimizer", "decayed"), [("sgd", {"kernel", "vector"}), ("adamw", {"kernel"})])
def test_a_number_is_never_decayed_and_a_vector_by_sgd_alone(config, optimizer, decayed):
    method = Method(nn.Identity())
    shapes = {"kernel": (2, 2), "vector": (2,), "number": ()}
    method.parts = nn.ParameterDict({name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()})
    made = optimizer_of(method, config.replace(optimizer=optimizer))
    found = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    expected = {name: 0.03 if name in decayed else 0.0 for name in shapes}
    assert {name: found[id(p)] for name, p in method.parts.items()} == expected


def test_after_step_is_called_once_after_every_step(config):
    method = Line()
    train(method, Numbers(), config)
    assert method.events == ["loss", "after"] * 12
    assert method.steps == 12


class StopError(Exception):
    pass


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_training_ends_as_if_it_had_not_been(config, tmp_path, epoch):
    """Weights, momentum, buffers and what is drawn in a step: all of it."""
    whole, noted = Line(), []
    expected = train(whole, Numbers(), config, track=lambda m: noted.append(m.training) or {"w": m.weight.item()})
    path = tmp_path / "partial" / "checkpoint.pt"

    def stop(method):
        if method.steps == 3 * (epoch + 1):
            raise StopError
        return {"w": method.weight.item()}

    with pytest.raises(StopError):
        train(Line(), Numbers(), config, checkpoint=path, track=stop)
    assert (path.parent / "epochs").stat().st_size == epoch
    resumed = Line()
    history = train(resumed, Numbers(), config, checkpoint=path, track=lambda m: {"w": m.weight.item()})
    assert len(resumed.events) == 2 * 3 * (config.epochs - epoch)
    assert resumed.steps == 12
    assert history == expected
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.average, whole.average)
    assert noted == [False] * 4  # it is tracked in evaluation mode


def test_a_real_method_resumes_bit_for_bit(config, split, tmp_path):
    whole = build(config, split)
    expected = train(whole, source(config, split), config)

    def stop(method):
        if (tmp_path / "epochs").exists() and (tmp_path / "epochs").stat().st_size == 2:
            raise StopError
        return {}

    with pytest.raises(StopError):
        train(build(config, split), source(config, split), config, checkpoint=tmp_path / "checkpoint.pt", track=stop)
    torch.manual_seed(99)
    resumed = config.method.build(config, split)  # other weights: the checkpoint's are taken
    assert train(resumed, source(config, split), config, checkpoint=tmp_path / "checkpoint.pt") == expected
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )
    torch.manual_seed(98)
    done = config.method.build(config, split)
    assert (
        train(done, source(config, split), config, checkpoint=tmp_path / "checkpoint.pt") == expected
    )  # nothing to do
    assert torch.equal(done.model.projector[0].weight, whole.model.projector[0].weight)


def test_no_epochs_leave_the_weights_as_they_are(config, split):
    config = config.replace(epochs=0)
    method = build(config, split)
    before = copy.deepcopy(method.state_dict())
    assert train(method, source(config, split), config) == []
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert not method.training


def test_batch_norm_learns_from_batches_and_is_fixed_afterwards(config, split):
    method = build(config, split)
    train(method, source(config, split), config)
    norm = method.model.encoder[1]
    assert norm.num_batches_tracked == 12
    assert not method.training
    assert all(not module.training for module in method.modules())


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_the_learning_rate_is_that_of_torchs_schedulers(warmup):
    config, steps = Config(batch_size=64, learning_rate=0.4, epochs=5, warmup_epochs=warmup), 10
    found = [learning_rate(config, step, steps) for step in range(50)]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.4 * 64 / 256)
    w = warmup * steps
    schedule = CosineAnnealingLR(optimizer, T_max=max(1, 50 - w))
    if w:
        up = LinearLR(optimizer, start_factor=1 / w, total_iters=w - 1)
        schedule = SequentialLR(optimizer, [up, schedule], milestones=[w])
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_learning_rate_rises_and_falls():
    config = Config(batch_size=64, learning_rate=0.4, epochs=5, warmup_epochs=2)
    rates = [learning_rate(config, step, 10) for step in range(50)]
    assert rates[0] == pytest.approx(0.1 / 20)
    assert rates[19] == rates[20] == pytest.approx(0.1)
    assert rates[35] == pytest.approx(0.05)  # half of the cosine
    assert rates[49] < 0.001
    assert all(a < b for a, b in itertools.pairwise(rates[:20]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))


@pytest.mark.parametrize(
    ("epochs", "tenths"),
    [
        (200, [0] * 155 + [1] * 15 + [2] * 15 + [3] * 15),  # Wang & Isola's own
        (20, [0] * 16 + [1] * 1 + [2] * 1 + [3] * 2),  # 15.5 rounds to 16, 18.5 to 18
        (8, [0] * 6 + [1] * 1 + [3] * 1),
        (1, [0]),
    ],
)
def test_steps_divide_the_learning_rate_by_ten(epochs, tenths):
    config = Config(batch_size=768, learning_rate=0.12, epochs=epochs, warmup_epochs=0, schedule="steps")
    found = [learning_rate(config, step, 3) for step in range(3 * epochs)]
    assert found == pytest.approx([0.36 / 10**k for k in tenths for _ in range(3)], rel=1e-12)
    warm = config.replace(warmup_epochs=1)
    assert [learning_rate(warm, step, 3) for step in range(3)] == pytest.approx([0.12, 0.24, 0.36], rel=1e-12)
    assert [learning_rate(warm, step, 3) for step in range(3, 3 * epochs)] == found[3:]


def test_steps_are_those_of_torchs_scheduler():
    config, optimizer = Config(epochs=40, warmup_epochs=0, schedule="steps"), torch.optim.SGD([torch.zeros(1)], lr=0.25)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[31, 34, 37])
    for epoch in range(40):
        assert learning_rate(config, 5 * epoch, 5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_a_diverged_training_is_told_in_the_epoch_in_which_it_diverges(config):
    method = Line(sick=4)
    with pytest.raises(
        CompanionError, match=r"NaN or infinite in epoch 2: .*Lower the learning rate \(now 0.8 at a ba"
    ):
        train(method, Numbers(), config)
    assert method.steps == 6


def test_a_diverged_epoch_is_not_saved(config, tmp_path):
    with pytest.raises(CompanionError):
        train(Line(sick=4, value=math.inf), Numbers(), config, checkpoint=tmp_path / "checkpoint.pt")
    assert (tmp_path / "epochs").read_text() == "."


def test_inside_seeded_the_key_decides_and_outside_nothing_has_changed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1, 2):
        first = torch.rand(3)
    with seeded(1, 2):
        again = torch.rand(3)
    with seeded(1, 3):
        other = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Drawing(Line):
    """Notes what it draws in a step, as dropout would."""

    def loss(self, batch):
        self.events.append(torch.rand(()).item())
        return (self.weight - batch.labels.double()).square().mean()

    def after_step(self):
        pass


def test_every_process_draws_for_itself_and_the_first_as_one_alone_does(config):
    """Or dropout would drop the same of every part of a batch."""

    def draws(rank):
        class Numbered(Fabric):
            global_rank = rank

        method = Drawing()
        train(method, Numbers(), config, fabric=Numbered(accelerator="cpu", devices=1))
        return method.events

    alone = Drawing()
    train(alone, Numbers(), config)
    found = [draws(rank) for rank in range(3)]
    assert found[0] == alone.events
    assert len({value for of_rank in found for value in of_rank}) == 3 * 12  # of three steps in each of four epochs


def test_the_loop_waits_for_the_device_once_an_epoch(config, split, monkeypatch):
    method, batches = build(config, split), source(config, split)
    looks = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: looks.append("item") or item(self))
    for name in ("tolist", "__bool__", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, name=name, original=original, **k: looks.append(name) or original(*a, **k)
        )
    monkeypatch.setattr(torch, "isfinite", lambda *_: looks.append("isfinite"))
    train(method, batches, config)
    assert looks == ["item"] * config.epochs
