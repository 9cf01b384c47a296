"""The captured step, on a pretended CUDA device: when it is taken, in which order, and what each step reads and leaves.

The graph of this device repeats, when it is replayed, what was asked for while it was captured, on the tensors of then;
like a real one, it computes nothing before that.
"""

import contextlib
import types

import pytest
import torch
from torch import nn

from companion.losses import _inputs
from companion.training import Batch, capture, encoders
from companion.training.methods import contrastive, labelled, supervised
from companion.training.methods.base import Method


class Slope(Method):
    """The loss ``mean(w · (first − second) · labels)``: its gradient is that mean without w."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.seen = []  # where each batch lay whose loss was asked for

    def loss(self, batch):
        self.seen.append(tuple(t.data_ptr() for t in batch))
        return (self.weight * (batch.first - batch.second) * batch.labels).mean()


def batch(number):
    g = torch.Generator().manual_seed(number)
    return Batch(torch.rand(4, generator=g), torch.rand(4, generator=g), torch.randint(1, 5, (4,), generator=g))


def slope(b):
    return sum((f - s) * y for f, s, y in zip(*(t.tolist() for t in b), strict=True)) / len(b.first)


class Fabric:
    """As much of Fabric as a step uses, and what is asked of it."""

    def __init__(self, kind="cuda", world_size=1):
        self.device, self.world_size, self.inside, self.entered = types.SimpleNamespace(type=kind), world_size, False, 0

    @contextlib.contextmanager
    def autocast(self):
        self.inside, self.entered = True, self.entered + 1
        yield
        self.inside = False

    def backward(self, loss):
        assert not self.inside, "a backward pass under autocast"
        loss.backward()


@pytest.fixture
def events(monkeypatch):
    """What is asked of the pretended device, in order."""
    noted, current = [], ["main"]

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            noted.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            noted.append("replay")
            self.repeat()

    @contextlib.contextmanager
    def stream(other):
        current.append(other.name)
        yield
        current.pop()

    @contextlib.contextmanager
    def graph(captured, stream, **options):
        assert stream is capture_step[-1].stream, "what the steps before it have allocated is not at hand"
        noted.append((f"capture on {stream.name}", options))
        recorded = []
        step = capture_step[0]
        step.step, ordinary = lambda b: recorded.append(b) or result, step.step
        result = torch.full((), torch.nan)  # nothing has been computed yet
        yield
        step.step = ordinary
        (given,) = recorded
        assert all(p.grad is None for p in step.method.parameters()), "the graph would add to these gradients"

        def repeat():
            for p in step.method.parameters():
                p.grad = None  # it writes, and does not add
            result.copy_(ordinary(given))

        captured.repeat = repeat

    capture_step = []
    init = capture._Captured.__init__
    monkeypatch.setattr(capture._Captured, "__init__", lambda self, *a: capture_step.append(self) or init(self, *a))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(current[-1]))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    noted_loss = Slope.loss
    monkeypatch.setattr(Slope, "loss", lambda self, b: noted.append(f"loss on {current[-1]}") or noted_loss(self, b))
    return noted


@pytest.mark.parametrize(
    ("kind", "world_size", "static", "captured"),
    [
        ("cuda", 1, True, True),
        ("cuda", 2, True, False),
        ("cuda", 1, False, False),
        ("cpu", 1, True, False),
        ("mps", 1, True, False),
    ],
)
def test_only_a_static_method_alone_on_a_cuda_device_is_captured(events, kind, world_size, static, captured):
    method = Slope()
    method.static = static
    step = capture.gradient(method, Fabric(kind, world_size))
    for number in range(6):
        step(batch(number))
    ordinary = ["loss on main"] * 6
    assert (events == ordinary) is not captured
    assert ("replay" in events) is captured


def test_first_ordinary_steps_on_a_stream_of_their_own_then_one_capture_then_replays(events):
    step = capture.gradient(Slope(), Fabric())
    for number in range(6):
        step(batch(number))
    warm_up = ["side waits for main", "loss on side", "main waits for side"]
    captured = ("capture on side", {"capture_error_mode": "thread_local"})
    assert events == [*warm_up * 3, captured, *["replay", "loss on main"] * 3]


@pytest.mark.parametrize(("kind", "world_size"), [("cuda", 1), ("cuda", 2), ("cpu", 1)])
def test_every_step_leaves_the_loss_and_the_gradient_of_its_own_batch(events, kind, world_size):
    method, fabric = Slope(), Fabric(kind, world_size)
    step, losses = capture.gradient(method, fabric), []
    for number in range(7):
        given = batch(number)
        before = [t.clone() for t in given]
        loss = step(given)
        assert loss.item() == pytest.approx(method.weight.item() * slope(given), rel=1e-5)
        assert not loss.requires_grad
        assert method.weight.grad.item() == pytest.approx(slope(given), rel=1e-5)  # of this batch, and no other's
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))  # nobody writes into a batch
        losses.append(loss.item())
        with torch.no_grad():
            method.weight -= 0.1 * method.weight.grad
    assert len(set(losses)) == 7
    assert fabric.entered == 7


def test_a_replay_reads_where_the_first_captured_batch_was_copied_to(events):
    method = Slope()
    step, given = capture.gradient(method, Fabric()), [batch(number) for number in range(6)]
    for b in given:
        step(b)
    assert method.seen[:3] == [tuple(t.data_ptr() for t in b) for b in given[:3]]
    assert len(set(method.seen[3:])) == 1
    assert not set(method.seen[3]) & {t.data_ptr() for b in given for t in b}


def test_methods_whose_shapes_depend_on_labels_are_not_static():
    """A graph of them would hold the number of pairs, or of classes, of the batch that it was captured with."""
    assert contrastive.ContrastiveMethod.static
    assert supervised.SupervisedMethod.static
    assert not labelled.LabelledMethod.static


def test_batches_of_another_shape_are_captured_anew(events):
    """As where the views of a training grow."""
    method = Slope()
    step = capture.gradient(method, Fabric())
    for number in range(12):
        size = 4 if number < 6 else 7
        given = Batch(*(tensor.repeat(2)[:size] for tensor in batch(number)))
        assert step(given).item() == pytest.approx(method.weight.item() * slope(given), rel=1e-5)
        assert method.weight.grad.item() == pytest.approx(slope(given), rel=1e-5)
    captured = ("capture on side", {"capture_error_mode": "thread_local"})
    once = [
        *["side waits for main", "loss on side", "main waits for side"] * 3,
        captured,
        *["replay", "loss on main"] * 3,
    ]
    assert events == once * 2


@pytest.fixture
def compilations(monkeypatch):
    """Graphs that were compiled so far; by a compiler that leaves the operations what they are."""
    compiler, compiled = torch.compile, []

    def backend(module, _):
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: compiler(function, dynamic=dynamic, backend=backend)
    )
    torch.compiler.reset()
    yield compiled
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("compiled", "world_size", "graphs"), [(True, 1, [1, 1, 2, 2]), (False, 1, [0] * 4), (True, 2, [0] * 4)]
)
def test_a_method_that_asks_for_it_trains_a_compiled_encoder(compilations, compiled, world_size, graphs):
    """Once for each shape of a batch; with the same gradients; and what is evaluated is not compiled."""

    def build():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU())
        return Compared(encoders.Model(encoder, nn.Linear(5, 3))).double()

    class Compared(Method):
        def loss(self, batch):
            return (self.model(batch.first) - self.model(batch.second)).square().mean()

    ours, plain, found = build(), build(), []
    ours.compiled = compiled
    steps = [capture.gradient(method, Fabric("cpu", world_size)) for method in (ours, plain)]
    for m in (4, 4, 6, 6):
        given = Batch(*torch.rand(2, m, 3, 2, 2, dtype=torch.float64), torch.zeros(m))
        torch.testing.assert_close(*(step(given) for step in steps), rtol=1e-12, atol=0)
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
        ours.embed(torch.rand(9, 12, dtype=torch.float64))
        found.append(len(compilations))
    assert found == graphs
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert "forward" not in vars(ours.model.encoder)


def test_an_encoder_is_itself_again_after_a_step_that_failed(compilations):
    method = Slope()
    method.compiled, method.model = True, encoders.Model(nn.Linear(3, 3), nn.Identity())
    with pytest.raises(TypeError):
        capture.gradient(method, Fabric("cpu"))(None)
    assert "forward" not in vars(method.model.encoder)


@pytest.mark.parametrize(("world_size", "plain", "divided"), [(1, True, False), (2, False, True)])
def test_one_process_trains_in_the_plain_way_and_several_divide_the_work(world_size, plain, divided):
    seen = []

    class Noted(Slope):
        def loss(self, batch):
            seen.append((_inputs.is_plain(), _inputs.is_divided()))
            return super().loss(batch)

    capture.gradient(Noted(), Fabric("cpu", world_size))(batch(0))
    assert seen == [(plain, divided)]
    assert (_inputs.is_plain(), _inputs.is_divided()) == (False, False)
