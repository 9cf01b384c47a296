"""What several processes train together is what one process trains: values, gradients, running statistics, the queue.

All cases of one number of processes run inside one launch, which takes seconds to start; each process files what it
found, and the tests compare every process's with what this process finds alone, in double precision.
"""

import contextlib
import copy
import functools
import re
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from companion import losses, paths, training
from companion.errors import CompanionError
from companion.losses import fused, tiled
from companion.losses._gather import share, world
from companion.similarity import arc_length
from companion.training import Clip, Config, Contrastive, Labelled, MoCo, Supervised, Views, processes, runs, train
from companion.training.data import Split
from companion.training.methods import Batch, Method

sys.path.insert(0, str(paths.ROOT / "tests" / "unit"))
import loss_cases

WORLDS = (2, 3)
STEPS, M, FEATURES = 20, 6, 5  # steps of a trajectory; its batch; what its network sees of an instance
STEPS_IN_TILES = 3  # which change the loss alone
TILED = [name for name in loss_cases.ALL if name not in loss_cases.NO_TILE]
LOSSES = [(name, None) for name in loss_cases.ALL] + [(name, 4) for name in TILED]
PAGE = paths.ROOT / "book" / "course" / "losses.md"

# --- one loss and a small network ---------------------------------------------------------------------------------


class Vectors:
    """Batches of vectors, of which each process takes its part; two of an instance differ by some noise."""

    def __init__(self, steps=1):
        self.steps = steps

    def __len__(self):
        return self.steps

    def batches(self, epoch):
        for step in range(self.steps):
            g = torch.Generator().manual_seed(step)
            first = 3 * torch.rand(M, FEATURES, generator=g, dtype=torch.float64)
            second = first + 0.3 * torch.randn(M, FEATURES, generator=g, dtype=torch.float64)
            yield Batch(*map(share, (first, second, loss_cases.LABELS[:M])))


class Recorded(Method):
    """Any method, which notes its losses and its first gradient."""

    def __init__(self, method):
        super().__init__(nn.Identity())
        self.method, self.values, self.gradient = method, [], None
        self.batch_norm_groups = method.batch_norm_groups

    def loss(self, batch):
        loss = self.method.loss(batch)
        self.values.append(loss.detach())
        return loss

    def after_step(self):
        if self.gradient is None:
            self.gradient = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        self.method.after_step()


class Small(Method):
    def __init__(self, name, tile):
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))
        )
        self.name, self.options = name, {"tile": tile} if tile else {}
        self.scale = nn.Parameter(torch.tensor(1.0))  # of the loss itself: its gradient is the same everywhere

    def loss(self, batch):
        u, v = self.model(torch.cat([batch.first, batch.second])).chunk(2)
        if self.name in loss_cases.WITH_LABELS:
            y = losses.gather(batch.labels)
            return self.scale * loss_cases.WITH_LABELS[self.name](losses.gather(u), y, **self.options)
        return self.scale * loss_cases.TWO_VIEWS[self.name](losses.gather(u), losses.gather(v), **self.options)


def of_loss(fabric, name, tile):
    torch.manual_seed(3)
    # Without momentum and slowly, so that rounding is not amplified beyond what is compared.
    config = Config(
        n_train=STEPS * M, batch_size=M, epochs=1, warmup_epochs=0, learning_rate=0.05 * 256 / M, momentum=0.5
    )
    return trained(Small(name, tile), Vectors(STEPS_IN_TILES if tile else STEPS), config, fabric)


def trained(method, source, config, fabric):
    method = Recorded(method).double()
    history = train(method, source, config, fabric=fabric)
    found = {"losses": torch.stack(method.values), "history": torch.tensor([row["loss"] for row in history])}
    return found | {"gradient": method.gradient, "state": dict(method.state_dict())}


# --- the methods on images ----------------------------------------------------------------------------------------

N, B = 48, 12
_g = torch.Generator().manual_seed(0)
SPLIT = Split(torch.randint(256, (N, 3, 16, 16), dtype=torch.uint8, generator=_g), torch.randint(4, (N,), generator=_g))
SECOND = {
    "image": (SPLIT.images.double() / 255 + 0.3 * torch.rand(N, 3, 16, 16, generator=_g)).clamp(0, 1),
    "text": torch.randint(1, 20, (N, 5), generator=_g),
}
CONFIG = Config(
    image_size=16, n_train=N, n_validation=0, width=4, projector_hidden=16, projector_dim=8, batch_size=B, epochs=5,
    learning_rate=0.5, accelerator="cpu",
)  # fmt: skip
METHODS = {
    "nt_xent": lambda count: Contrastive(vrns=3),
    "sub-batches": lambda count: Contrastive(loss_batch_size=4, vrns=3),  # 2 processes: the second lies on both
    "known classes": lambda count: Contrastive(known_classes=True),
    "two heads": lambda count: Contrastive(heads=2, loss="siglip", bias=-2),
    "labels": lambda count: Labelled(loss="sup_con"),
    "supervised": lambda count: Supervised(),
    "moco": lambda count: MoCo(queue=24),
    "moco, groups": lambda count: MoCo(queue=24, batch_norm_groups=count, shuffle=False),
    "moco, shuffled": lambda count: MoCo(queue=24, batch_norm_groups=count),
    "clip": lambda count: Clip(dropout=0.0),
    "clip, siglip": lambda count: Clip(dropout=0.0, loss="siglip", temperature=0.1),
}


class Still(Views):
    """Real batches, in the order and the parts of a real source, of views that are not drawn."""

    def __init__(self, kind, **options):
        super().__init__(SPLIT, nn.Identity(), B, seed=4, **options)
        self.kind = kind

    def _pairs(self, numbers, chunk, draws):
        return chunk.images.double() / 255, SECOND[self.kind][numbers]


def of_method(fabric, name, count):
    settings = METHODS[name](count)
    torch.manual_seed(3)
    split = SimpleNamespace(images=SPLIT.images, vocabulary=range(20)) if isinstance(settings, Clip) else SPLIT
    method = settings.build(CONFIG.replace(method=settings), split)
    if isinstance(settings, Clip):
        method.model.second_projector.dropout = 0  # of words: draws differ between processes
    place = {"rank": fabric.global_rank, "world": fabric.world_size} if fabric else {}
    source = Still("text" if isinstance(settings, Clip) else "image", **place)
    numbers = iter(range(10**6))

    def rand(m, device=None):
        """The shuffle of keys, the same one for all processes together as for one alone."""
        return share(torch.empty(B).uniform_(generator=torch.Generator().manual_seed(next(numbers))))

    with mock.patch.object(torch, "rand", rand):
        return trained(method, source, CONFIG.replace(method=settings), fabric)


# --- what a process finds of gather itself, and of the example in the book -----------------------------------------


def of_gather(fabric, count):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.rand(6, 3, generator=g).double(), torch.rand(6, 3, generator=g).double()
    own = share(x).clone().requires_grad_()
    of_rank = (1 + (fabric.global_rank if fabric else 0)) * weight  # what every process asks for is another thing
    (of_rank * losses.gather(own)).sum().backward()
    labels = losses.gather(share(torch.arange(6)))
    transposed = losses.gather(share(x).T.contiguous().T)  # not contiguous
    return {"x": losses.gather(own).detach(), "gradient": own.grad, "labels": labels, "transposed": transposed}


# --- losses whose tiles are divided --------------------------------------------------------------------------------

TALL = 96  # rows of each view here
DIVIDED = {  # two views, a number that is learned, and labels
    "softmax": lambda u, v, t, y: losses.nt_xent(u, v, temperature=t),
    "both ways": lambda u, v, t, y: losses.clip(u, v, temperature=t),
    "two sums": lambda u, v, t, y: losses.dhel(u, v, temperature=t),
    "a queue": lambda u, v, t, y: losses.info_nce(u[:50], u[:50].detach(), temperature=t, queue=v),
    "arc length": lambda u, v, t, y: losses.nt_xent(u, v, temperature=t, similarity=arc_length),
    "low temperature": lambda u, v, t, y: losses.clip(u, v, temperature=t / 1000),
    "no negatives, low": lambda u, v, t, y: losses.sincere(u, y, temperature=t / 1000),
    "pairs": lambda u, v, t, y: losses.siglip(u, v, scale=1 / t, bias=-t),
    "terms of rows": lambda u, v, t, y: losses.eps_sup_info_nce(u, y, temperature=t),
    "margin": lambda u, v, t, y: losses.lifted(u, y, margin=0.5) * t,
    "supervised": lambda u, v, t, y: losses.sup_con(u, y, temperature=t),
    "variance": lambda u, v, t, y: losses.vrns(u, v, n=500) * t,
    "uniform": lambda u, v, t, y: losses.uniform(u, t=2) * t,
    "tile": lambda u, v, t, y: losses.nt_xent(u, v, temperature=t, tile=20),
    "plain": lambda u, v, t, y: plainly(u, v, t),
    "no negatives at all": lambda u, v, t, y: losses.sincere(u, 0 * y, temperature=t / 1000) + losses.align(u, v),
    "hardest": lambda u, v, t, y: losses.hard_contrastive(u, v, temperature=t, keep=7, tile=16),
}
WHOLE = ("plain", "margin")  # the matrix is asked for; losses for small batches know nothing else


def plainly(u, v, t):
    with losses.plain():
        return losses.nt_xent(u, v, temperature=t)


class Watch(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return made


@contextlib.contextmanager
def small_tiles():
    """Of sixteen rows, however few pairs there are."""
    with (
        mock.patch.multiple(tiled, SIDE={"cpu": 16}, LARGEST={"cpu": 100}, NARROW=100),
        mock.patch.dict(fused.SOFTMAX, cpu=100),
        mock.patch.dict(fused.SIGMOID, cpu=100),
    ):
        yield


def of_divided(fabric, name):
    """Value, gradients of what was gathered, and second ones; beside them, what the work was."""
    g = torch.Generator().manual_seed(1)
    u, v = torch.randn(2, TALL, 4, generator=g, dtype=torch.float64)
    y = torch.randint(5, (TALL,), generator=g)
    leaves = [
        x.requires_grad_() for x in (losses.gather(share(u)), losses.gather(share(v)), torch.tensor(0.5).double())
    ]
    with losses.divided(), small_tiles(), Watch() as watched, FlopCounterMode(display=False) as counted:
        value = DIVIDED[name](*leaves, y)
        first = torch.autograd.grad(value, leaves, allow_unused=True)
    with losses.divided(), small_tiles():
        (slope,) = torch.autograd.grad(DIVIDED[name](*leaves, y), leaves[:1], create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True)
    found = {"value": value.detach(), **{f"first {i}": x for i, x in enumerate(first) if x is not None}}
    if name != "no negatives at all":  # of which torch.logsumexp has no second derivative
        found |= {f"second {i}": x for i, x in enumerate(second) if x is not None}
    return {"found": found, "largest": watched.largest, "work": counted.get_total_flops()}


UNLIKE = {  # two views of a process, by its number
    "alike": lambda u, v, rank: losses.nt_xent(u, v, temperature=0.5),
    "not gathered": lambda u, v, rank: losses.nt_xent(u + rank, v, temperature=0.5),
    "pairs": lambda u, v, rank: losses.siglip(u, v + rank, scale=10.0, bias=-10.0),
    "rolled": lambda u, v, rank: losses.info_nce(u, v.roll(rank, 0), temperature=0.5),
    "another tile": lambda u, v, rank: losses.nt_xent(u, v, temperature=0.5, tile=16 + rank),
    "another number": lambda u, v, rank: losses.clip(u[rank:], v[rank:], temperature=0.5),
    "one more of many": lambda u, v, rank: losses.clip(*torch.ones(2, 20_000 + rank, 1), temperature=0.5),
    "another temperature": lambda u, v, rank: losses.nt_xent(u, v, temperature=0.5 + 0.1 * rank),
    "another scale": lambda u, v, rank: losses.siglip(u, v, scale=torch.tensor(10.0 + rank), bias=-10.0),
    "a gradient in one": lambda u, v, rank: losses.clip(*((u, v) if rank else (u.detach(), v)), temperature=0.5),
}


UNEVEN = {  # what a process hands to gather, by its number
    "rows": lambda rank: torch.ones(2 + rank, 4),
    "no rows": lambda rank: torch.ones(0 if rank == 1 else 3, 4),
    "columns": lambda rank: torch.ones(2, 4 + rank),
    "dimensions": lambda rank: torch.ones((2, 4) if rank else (2, 2, 2)),
    "dtype": lambda rank: torch.ones(2, 4, dtype=torch.float64 if rank else torch.float32),
}


def of_uneven(fabric, name):
    """The error, and what is gathered after it."""
    rank = fabric.global_rank if fabric else 0
    with pytest.raises(CompanionError) as error:
        losses.gather(UNEVEN[name](rank))
    return str(error.value), losses.gather(torch.tensor([rank])).tolist()


def of_unlike(fabric, name):
    """The error, if there is one."""
    u, v = torch.randn(2, TALL, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with losses.divided(), small_tiles():
        try:
            UNLIKE[name](u, v, fabric.global_rank if fabric else 0)
        except CompanionError as error:
            return error


def of_page(fabric):
    """The example in the book, given what it names: a network and this process's part of the views."""
    example = re.search(r"## Several processes.*?```python\n(.*?)```", PAGE.read_text(), re.S).group(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    batch = next(iter(Vectors().batches(0)))
    names = {"model": model, "first_views": batch.first, "second_views": batch.second, "torch": torch}
    if fabric is None:
        example = example.replace("DistributedDataParallel(model)", "model")
    exec(example, names)
    return {"loss": names["loss"].detach(), "gradient": {n: p.grad for n, p in model.named_parameters()}}


def cases(count):
    found = {("loss", *case): functools.partial(of_loss, name=case[0], tile=case[1]) for case in LOSSES}
    found |= {("method", name): functools.partial(of_method, name=name, count=count) for name in METHODS}
    found |= {("divided", name): functools.partial(of_divided, name=name) for name in DIVIDED}
    found |= {("unlike", name): functools.partial(of_unlike, name=name) for name in UNLIKE}
    found |= {("uneven", name): functools.partial(of_uneven, name=name) for name in UNEVEN}
    return found | {("gather",): functools.partial(of_gather, count=count), ("page",): of_page}


def work(fabric, folder):
    torch.set_num_threads(1)
    assert world() == fabric.world_size
    found = {}
    for case, function in cases(fabric.world_size).items():
        try:
            found[case] = function(fabric)
        except CompanionError as error:  # told by all processes alike, so that none waits
            found[case] = error
    torch.save(found, f"{folder}/{fabric.global_rank}.pt")


@pytest.fixture(scope="module", params=WORLDS)
def launched(request, tmp_path_factory):
    """The number of processes, and what each of them found."""
    folder = tmp_path_factory.mktemp("processes")
    with mock.patch("tempfile.tempdir", str(tmp_path_factory.mktemp("José's folder"))):  # where they meet
        processes.launch(work, folder, count=request.param, accelerator="cpu")
    return request.param, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def same(found, expected, where=""):
    assert type(found) is type(expected), f"{where}: {found}"
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            same(found[name], expected[name], f"{where} {name}")
    else:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{where}: {text}")


def compare(launched, *case):
    count, found = launched
    expected = cases(count)[case](None)
    for rank in range(count):
        same(found[rank][case], expected, f"process {rank} of {count}:")
    return expected


@pytest.mark.parametrize(("name", "tile"), LOSSES)
def test_a_loss_and_its_trajectory_are_those_of_one_process(launched, name, tile):
    expected = compare(launched, "loss", name, tile)
    assert len(expected["losses"]) == (STEPS_IN_TILES if tile else STEPS)
    assert all(g.any() for n, g in expected["gradient"].items() if not n.endswith("1.bias")), "nothing is compared"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_as_in_one_process(launched, name):
    expected = compare(launched, "method", name)
    assert len(expected["losses"]) == STEPS
    assert expected["losses"][-1] != expected["losses"][0]
    learned = {n for n in expected["gradient"] if "logarithm" in n or n.endswith("method.bias")}
    assert len(learned) == {"clip": 1, "clip, siglip": 2}.get(name, 0)


def test_gathered_rows_keep_their_order_and_their_gradient_is_the_sum_of_what_all_ask(launched):
    count, found = launched
    g = torch.Generator().manual_seed(0)
    x, weight = torch.rand(6, 3, generator=g).double(), torch.rand(6, 3, generator=g).double()
    for rank in range(count):
        of = found[rank]["gather",]
        assert torch.equal(of["x"], x)
        assert torch.equal(of["transposed"], x)
        assert of["labels"].tolist() == list(range(6))
        torch.testing.assert_close(of["gradient"], sum(range(1, count + 1)) * weight.chunk(count)[rank])


@pytest.mark.parametrize("name", DIVIDED)
def test_divided_tiles_give_the_whole_loss_and_its_whole_gradient_to_every_process(launched, name):
    count, found = launched
    expected = of_divided(None, name)
    assert any(x.any() for x in expected["found"].values())
    for rank in range(count):
        same(found[rank]["divided", name]["found"], expected["found"], f"process {rank} of {count}:")


@pytest.mark.parametrize("name", DIVIDED)
def test_no_process_does_all_the_work_or_holds_all_pairs(launched, name):
    count, found = launched
    work = [of["divided", name]["work"] for of in found]
    once = of_divided(None, name)["work"]
    if name in (*WHOLE, "hardest"):  # by every process
        assert work == [once] * count
    else:  # within a tile or two of equal parts
        assert sum(work) == pytest.approx(once, rel=0.01)
        assert max(work) < (1.3 if name != "tile" else 1.6) * once / count
    for of in found:
        assert (of["divided", name]["largest"] < TALL * TALL) == (name not in WHOLE)


@pytest.mark.parametrize("name", UNLIKE)
def test_embeddings_that_differ_between_processes_are_told_by_all_of_them(launched, name):
    count, found = launched
    for rank in range(count):
        told = found[rank]["unlike", name]
        if name == "alike":
            assert told is None
        else:
            assert isinstance(told, CompanionError)
            assert "Hand the loss what losses.gather makes of their parts" in str(told)


@pytest.mark.parametrize("name", UNEVEN)
def test_what_cannot_be_gathered_is_told_by_all_processes_and_none_hangs(launched, name):
    count, found = launched
    for rank in range(count):
        told, after = found[rank]["uneven", name]
        shapes = ", ".join(f"{tuple(UNEVEN[name](other).shape)} by process {other}" for other in range(count))
        assert told.startswith(f"gather was given {shapes}")
        assert (", of different dtypes" in told) == (name == "dtype")
        assert "`drop_last=True`" in told
        assert after == list(range(count))


def test_the_example_in_the_book_gives_the_gradient_of_one_process(launched):
    compare(launched, "page")


def test_alone_nothing_is_gathered():
    x = torch.rand(3, 2, requires_grad=True)
    assert losses.gather(x) is x


@pytest.mark.parametrize(("given", "told"), [(torch.tensor(1.0), "a number"), ([1, 2], "a list"), (None, "a NoneType")])
def test_what_has_no_rows_cannot_be_gathered(given, told):
    with pytest.raises(CompanionError, match=rf"gather was given {told}: expected a torch.Tensor of shape \(m, …\)"):
        losses.gather(given)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
def test_own_batch_norm_is_torchs(momentum, affine, shape):
    """In one process, where its formula shows; what it gathers is tested above."""
    theirs = nn.BatchNorm2d(4, momentum=momentum, affine=affine).double()
    theirs = nn.BatchNorm1d(4, momentum=momentum, affine=affine).double() if len(shape) == 2 else theirs
    ours = copy.deepcopy(theirs)
    ours.__class__ = processes.BatchNorm
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        x = (5 + torch.randn(shape, generator=g)).double().requires_grad_()
        z = x.detach().clone().requires_grad_()
        expected, found = theirs(x), ours(z)
        torch.testing.assert_close(found, expected)
        weights = torch.randn(shape, generator=g).double()
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(z.grad, x.grad)
    same(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_by_two_processes_is_stored_once_under_its_own_name(tiny, results, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", "2")
    run = training.run(tiny)
    assert run.path == runs.folder(tiny)
    assert sorted(path.name for path in run.path.iterdir()) == sorted(runs.FILES)
    assert run.provenance["device"] == "2 × cpu, one thread"
    assert len(run.history) == tiny.epochs
    assert run.history.notna().all(axis=None)
    assert "linear_accuracy" in run.metrics
    found = run.method()  # with ordinary batch norm
    assert not any(isinstance(module, processes.BatchNorm) for module in found.modules())
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", "3")
    assert training.run(tiny).path == run.path  # how it is trained is no part of what it is


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_is_none_is_told(tiny, results, monkeypatch, given):
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", given)
    with pytest.raises(CompanionError, match=r"PROCESSES \(or CONTRASTIVE_PROCESSES\) is .*: expected a whole number"):
        training.run(tiny)


def test_groups_that_are_neither_one_nor_one_a_process_are_told():
    method = MoCo(queue=24, batch_norm_groups=4).build(CONFIG, SPLIT)
    told = pytest.raises(CompanionError, match="groups is 4 and there are 2 processes: expected 1 group, or one a")
    with mock.patch.object(processes, "world", return_value=2), told:
        processes.synchronise(method, torch.device("cpu"))


def test_more_processes_than_devices_are_told():
    told = pytest.raises(CompanionError, match="3 processes were asked for and there are 1 CUDA devices")
    with mock.patch.object(torch.cuda, "device_count", return_value=1), told:
        processes.launch(work, "", count=3, accelerator="cuda")


def fail(fabric):
    """The second process fails, while the first waits for it."""
    if fabric.global_rank == 1:
        torch.zeros(2) @ torch.zeros(3)
    fabric.barrier()


def test_a_process_that_fails_ends_all_and_is_told():
    with pytest.raises(CompanionError, match=r"Process 1 of 2 failed, and all were ended: RuntimeError: .*size"):
        processes.launch(fail, count=2, accelerator="cpu")


def test_a_batch_that_the_processes_do_not_divide_is_told(tiny, results, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_PROCESSES", "3")
    with pytest.raises(
        CompanionError, match=r"batch_size 32 does not divide among 3 processes: choose a multiple of 3"
    ):
        training.run(tiny)
    assert not runs.folder(tiny).exists()
