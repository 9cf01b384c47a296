"""A run on a device that is not the CPU: nothing of it stays behind, and its numbers are the CPU's."""

import contextlib
import copy
import math

import pytest
import torch
from elsewhere import Elsewhere, here, second_device

from companion.training import (
    Batch,
    Config,
    Contrastive,
    Labelled,
    MoCo,
    Pairs,
    SimCLR,
    Supervised,
    Views,
    initial,
    loop,
    run,
    runs,
    train,
)
from companion.training.data import Data, Split
from companion.training.processes import alone

METHODS = [
    Contrastive(), Contrastive(vrns=3, loss_batch_size=8), Contrastive(loss="clip", within_view=True),
    Contrastive(loss="siglip", heads=2), Contrastive(loss="spectral"), Contrastive(loss="dcl"),
    Contrastive(loss="dhel"), Contrastive(loss="info_nce"), Contrastive(loss="hard_contrastive", keep=3),
    Contrastive(loss="simple"), Contrastive(loss="simple", keep=3), Contrastive(loss="align_uniform"),
    Labelled(), Labelled(loss="sup_con"), Labelled(loss="sincere"), Labelled(loss="lifted"),
    Labelled(loss="batch_hard"), Labelled(loss="contrastive_margin"), Supervised(),
    MoCo(queue=32), MoCo(queue=32, batch_norm_groups=2, shuffle=False),
]  # fmt: skip
CONFIG = Config(
    n_train=48, n_validation=12, width=4, projector_hidden=16, projector_dim=8, batch_size=16, epochs=1,
    measured_pairs=40, augmentation=SimCLR(blur=0.5, grayscale=0.2), accelerator="cpu",
)  # fmt: skip


def split(n, seed, channels=3):
    g = torch.Generator().manual_seed(seed)
    return Split(torch.randint(256, (n, channels, 16, 16), dtype=torch.uint8, generator=g), torch.arange(n) % 4)


TRAIN = split(48, 0)
DATA = Data(TRAIN, split(12, 1), split(20, 2), "x")


def build(config):
    torch.manual_seed(0)
    return config.method.build(config, TRAIN).eval()


def onto(method, device):
    """A copy on another device."""
    method = copy.deepcopy(method)
    for module in method.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(value.detach().to(device))
        for name, value in module._buffers.items():
            module._buffers[name] = value.to(device) if value is not None else None
    return method


@pytest.fixture
def device(monkeypatch):
    with second_device(monkeypatch) as found:
        yield found


class Fabric:
    """As much of Fabric as the loop uses, on the second device."""

    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, device):
        self.device = device

    def barrier(self):
        pass

    def setup(self, method, optimizer):
        method.mark_forward_method = lambda name: None
        return method, optimizer

    def autocast(self):
        return contextlib.nullcontext()

    def backward(self, loss):
        loss.backward()


def test_the_second_device_refuses_to_meet_the_first(device):
    there = torch.ones(3).to(device)
    assert isinstance(there, Elsewhere)
    assert there.device.type == "meta"
    assert (there + torch.ones(3, device=device)).sum().item() == 6
    assert (there + 1)[torch.tensor([0, 2])].cpu().tolist() == [2, 2]
    number = torch.tensor(1.0)
    assert ((there + number) / number).sum().item() == 6  # a number may come along, but not be written to
    for wrong in (
        lambda: there + torch.ones(3), lambda: torch.ones(3)[there.long()], lambda: there * torch.arange(3),
        lambda: number.add_(there.sum()),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="same device"):
            wrong()


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_made_on_the_device_of_the_source(device, channels):
    images = split(48, 0, channels)
    expected = list(Views(images, CONFIG.augmentation.build(16), 16, seed=0).batches(1))
    found = list(Views(images, CONFIG.augmentation.build(16), 16, seed=0, device=device).batches(1))
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(here(a), b)


def test_texts_go_to_the_device_too(device):
    texts = torch.arange(48)[:, None].expand(48, 5).contiguous()
    for batch in Pairs(TRAIN, texts, CONFIG.augmentation.build(16), 16, seed=0, device=device).batches(0):
        assert torch.equal(here(batch.second)[:, 0] % 4, here(batch.labels))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.title} {getattr(m, 'loss_batch_size', '')}")
def test_training_stays_on_the_device_and_gives_what_the_cpu_gives(device, method):
    config = CONFIG.replace(method=method)
    on_cpu = build(config)
    there = onto(on_cpu, device)

    def track(method):
        return {"u": runs.two_views(method, config, TRAIN, 16)[0].sum().item()}

    augmentation = config.augmentation.build(16)
    expected = train(on_cpu, Views(TRAIN, augmentation, 16, seed=0), config, track=track)
    source = Views(TRAIN, augmentation, 16, seed=0, device=device)
    found = train(there, source, config, fabric=Fabric(device), track=track)
    assert found == expected
    for name, value in there.state_dict().items():
        assert torch.equal(here(value), on_cpu.state_dict()[name]), name


@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_measured_lies_on_the_device_and_labels_with_it(device, heads):
    config = CONFIG.replace(heads=heads)
    on_cpu = build(config)
    there = onto(on_cpu, device)
    for function, arguments in ((runs.two_views, (config, TRAIN, 40)), (runs.features, (TRAIN,))):
        expected, found = function(on_cpu, *arguments), function(there, *arguments)
        for a, b in zip(found, expected, strict=True):
            assert a.device.type == "meta"
            assert torch.equal(here(a), b)
    expected, found = runs.measure(on_cpu, config, DATA), runs.measure(there, config, DATA)
    for name, value in expected.items():  # the linear probes stop at different places of a flat valley
        if not name.startswith("linear"):
            assert found[name] == value, name
    assert set(found) == set(expected)
    assert found["linear_accuracy"] == pytest.approx(expected["linear_accuracy"], abs=0.15)  # of 20 images


@pytest.mark.parametrize("encoder", ["pixels", "colour_moments", "resnet18"])
def test_every_encoder_is_measured_on_the_device(device, encoder):
    config = CONFIG.replace(encoder=encoder, image_size=16)
    on_cpu = build(config)
    assert runs.measure(onto(on_cpu, device), config, DATA) == runs.measure(on_cpu, config, DATA)


def test_no_gpu_is_woken_by_a_seed(monkeypatch):
    def woken(*_, **__):
        raise AssertionError("a GPU was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # another test may have woken a real one
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)  # which torch puts off until it is woken
    for name in ("_lazy_init", "get_rng_state", "set_rng_state", "current_device"):
        monkeypatch.setattr(torch.cuda, name, woken)
    with loop.seeded(1, 2):
        torch.rand(3)


def test_a_gpu_in_use_gets_its_generator_back(monkeypatch):
    asked = []

    @contextlib.contextmanager
    def fork_rng(devices):
        asked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    state = torch.random.get_rng_state()
    with loop.seeded(1, 2):
        pass
    torch.random.set_rng_state(state)
    assert asked == [[3]]


def test_checkpoints_are_read_onto_the_cpu_wherever_they_were_written(tmp_path, monkeypatch):
    path, read = tmp_path / "checkpoint.pt", []
    train(build(CONFIG), Views(TRAIN, CONFIG.augmentation.build(16), 16, seed=0), CONFIG, checkpoint=path)
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **options: read.append(options) or load(*a, **options))
    train(build(CONFIG), Views(TRAIN, CONFIG.augmentation.build(16), 16, seed=0), CONFIG, checkpoint=path)
    assert read == [{"weights_only": True, "map_location": "cpu"}]


# ---- With a GPU ------------------------------------------------------------------------------------------------------


SHUFFLED = MoCo(queue=32, batch_norm_groups=2)  # by draws of the device


@pytest.mark.cuda
@pytest.mark.parametrize("method", [*METHODS, SHUFFLED], ids=lambda m: f"{m.title} {getattr(m, 'loss_batch_size', '')}")
def test_a_smoke_run_on_a_gpu(tiny, results, method):
    config = tiny.replace(accelerator="cuda", method=method)
    found = run(config)
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.provenance["device"] == torch.cuda.get_device_name()
    u, v, y = found.two_views()  # read back on the CPU
    assert u.device == v.device == y.device == torch.device("cpu")
    if not isinstance(method, MoCo):  # whose first keys are random, and easily told apart
        assert found.history["loss"].iloc[-1] < found.history["loss"].iloc[0]
    near = run(config.replace(accelerator="cpu")).history["loss"].iloc[0]
    assert found.history["loss"].iloc[0] == pytest.approx(near, rel=0.2, abs=0.05)  # other draws, the same problem


@pytest.mark.cuda
def test_the_gpu_profile_trains_on_a_gpu(tiny, results):
    config = tiny.replace(encoder="resnet18", precision="bf16-mixed", image_size=32, accelerator="cuda")
    assert all(math.isfinite(value) for value in run(config).metrics.values())


@pytest.mark.cuda
def test_a_stopped_run_resumes_on_a_gpu(tiny, results, tmp_path, monkeypatch):
    config = tiny.replace(accelerator="cuda")
    whole = run(config)
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path / "stopped"))
    step, steps = Contrastive().build(config, whole.data().train).__class__.after_step, []

    def stop(self):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr("companion.training.methods.base.Method.after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert run(config).metrics == pytest.approx(whole.metrics, abs=0.05 + 1e-9)  # one of twenty images


@pytest.mark.cuda
def test_a_captured_step_of_a_compiled_encoder_trains_like_an_ordinary_one():
    """Views grow in the middle, so that both the encoder is compiled and the step captured anew."""
    losses, config = {}, Config(encoder="resnet18", image_size=32, accelerator="cuda")
    for compiled in (True, False):
        torch.manual_seed(0)
        method = initial(config).to("cuda", memory_format=torch.channels_last)
        method.compiled = method.static = compiled
        _, optimizer, step = loop.set_up(method.train(), config, alone(config))
        optimizer.param_groups[0]["lr"] = 1e-4
        losses[compiled] = []
        for number, side in enumerate([24] * 6 + [32] * 6):
            views = torch.rand(2, 16, 3, side, side, generator=torch.Generator().manual_seed(number)).to("cuda")
            losses[compiled].append(step(Batch(*views, torch.zeros(16, device="cuda"))).item())
            optimizer.step()
    assert losses[True] == pytest.approx(losses[False], rel=0.01)  # steps amplify what other kernels round
    assert len(set(losses[True])) == 12


@pytest.mark.cuda
@pytest.mark.parametrize(
    "method",
    [Contrastive(vrns=30), Contrastive(loss="clip", loss_batch_size=8), Supervised(), MoCo(queue=32), METHODS[-1]],
)
def test_a_captured_step_trains_like_an_ordinary_one(tiny, results, method, monkeypatch):
    # At the usual rate a difference of 1e-5, as kernels of another order make, is one of 2 % after six steps.
    config = tiny.replace(accelerator="cuda", method=method, learning_rate=1e-3)
    captured = run(config).history
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(results / "ordinary"))
    monkeypatch.setattr("companion.training.methods.base.Method.static", False)
    ordinary = run(config).history
    assert captured["loss"].tolist() == pytest.approx(ordinary["loss"].tolist(), rel=1e-3)
    assert captured["loss"].nunique() == len(captured)
