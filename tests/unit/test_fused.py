"""Losses whose value and gradient come in one step are the formula's, and are taken only where they can be."""

import contextlib
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_tiled import saved_bytes, value_and_gradients, views
from torch.utils.checkpoint import checkpoint

from companion import losses
from companion.errors import CompanionError
from companion.losses import _gather, fused, tiled
from companion.similarity import arc_length, cosine

SOFTMAX = [losses.info_nce, losses.clip, losses.nt_xent, losses.dcl]
CASES = {function.__name__: partial(function, temperature=0.2) for function in SOFTMAX}
CASES |= {f"{function.__name__}, τ low": partial(function, temperature=0.0012) for function in SOFTMAX}
CASES["siglip"] = partial(losses.siglip, scale=10, bias=-3)


@pytest.fixture(params=CASES)
def loss(request):
    return CASES[request.param]


def formula(loss):
    def plainly(*given):
        with losses.plain():
            return loss(*given)

    return plainly


def assert_equal(loss, inputs, **tolerance):
    observed, expected = (value_and_gradients(function, inputs) for function in (loss, formula(loss)))
    assert len(observed) == len(expected)
    for a, b in zip(observed, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **({"rtol": 1e-11, "atol": 1e-12} | tolerance))


def in_one_step(value) -> bool:
    return value.grad_fn.name() in ("_SoftmaxBackward", "_SigmoidBackward")


@pytest.mark.parametrize("n", [2, 3, 40, 300])
def test_value_and_gradient_are_the_formula_s(n, loss):
    u, v = views(n=n)
    assert in_one_step(loss(u.clone().requires_grad_(), v))
    assert_equal(loss, [u, v], rtol=1e-10)
    assert_equal(lambda u, v: 3 * loss(u, v).square(), [u, v], rtol=1e-10)  # a loss of which this is a part


def test_the_same_tensor_as_both_views_and_views_that_depend_on_each_other(loss):
    z = views()[:1]
    assert_equal(lambda z: loss(z, z), z)
    assert_equal(lambda z: loss(z, z.square() - 1), z)


def test_single_and_half_precision(loss):
    exact = value_and_gradients(loss, views(n=64, d=16))
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 1e-2)):
        inputs = [x.to(dtype) for x in views(n=64, d=16)]
        reference = exact if dtype == torch.float32 else value_and_gradients(loss, [x.double() for x in inputs])
        observed = value_and_gradients(loss, inputs)
        assert [x.dtype for x in observed] == [torch.float32, dtype, dtype]
        for a, b in zip(observed, reference, strict=True):
            assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-13, 1e-11, 1e15])
def test_embeddings_of_any_length(length, loss):
    """F.normalize divides by 1e-12 what is shorter, so there the length has a gradient."""
    u, v = views()
    u[2] *= length
    observed, expected = (value_and_gradients(function, [u, v]) for function in (loss, formula(loss)))
    for a, b in zip(observed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-13, 1e-11, 1.0])
def test_other_losses_take_the_same_gradient_through_the_sphere(length):
    u, v = views()
    u[2] *= length
    for other in (partial(losses.dhel, temperature=0.3), losses.spectral, partial(losses.vrns, n=20)):
        observed, expected = (value_and_gradients(function, [u, v]) for function in (other, formula(other)))
        for a, b in zip(observed, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("function", SOFTMAX)
def test_a_learned_temperature(function, shape):
    temperature = torch.full(shape, 0.3)
    assert_equal(lambda u, v, t: function(u, v, temperature=t), [*views(), temperature.double()])
    u, v = (x.requires_grad_() for x in views())
    single = temperature.requires_grad_()  # of another precision than the embeddings
    value = function(u, v, temperature=single)
    assert in_one_step(value)
    loss = partial(function, temperature=single)
    slope, expected = (torch.autograd.grad(f(u, v), single)[0] for f in (loss, formula(loss)))
    assert slope.shape == single.shape
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=0)


def test_a_learned_scale_and_bias():
    scale, bias = torch.tensor([3.0]).double(), torch.tensor(-2.0).double()
    assert_equal(lambda u, v, t, b: losses.siglip(u, v, scale=t, bias=b), [*views(), scale, bias])
    assert_equal(lambda u, v, t: losses.siglip(u, v, scale=t, bias=-2), [*views(), scale])
    assert_equal(lambda u, v, b: losses.siglip(u, v, scale=3, bias=b), [*views(), bias])


def test_a_solved_batch_keeps_its_digits(loss):
    """log(1 + e^x) of a far negative x, and of one beyond which torch's softplus is linear unless told."""
    u = torch.eye(6, dtype=torch.float64)
    assert_equal(loss, [u, u + 1e-3 * views(n=6, d=6)[0]], atol=0)
    for bias in (-60, 25, 33, 45, 300):
        assert_equal(lambda u, v, b=bias: losses.siglip(u, v, scale=1, bias=b), views(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("function", [losses.info_nce, losses.clip, losses.nt_xent])
def test_where_a_softplus_is_almost_linear(function):
    """Opposite positives: x near 30 of log(1 + e^x), whose last digits torch's own softplus leaves out."""
    u = views(n=3)[0]
    for temperature in (0.08, 0.06):
        assert_equal(lambda u, t=temperature: function(u, -u, temperature=t), [u], rtol=1e-14, atol=1e-15)


def test_ways_that_are_fast_are_taken(monkeypatch):
    u, v = (x.requires_grad_() for x in views())
    monkeypatch.setattr(torch.Tensor, "amax", lambda *given, **options: pytest.fail("a pass for the maximum"))
    losses.nt_xent(u, v, temperature=0.2)  # whose exponentials are bounded
    with pytest.raises(pytest.fail.Exception, match="maximum"):
        losses.nt_xent(u, v, temperature=0.0012)
    applied = []
    apply = losses._inputs._UnitLength.apply
    monkeypatch.setattr(losses._inputs._UnitLength, "apply", lambda z: applied.append(z) or apply(z))
    losses.dhel(u, v, temperature=0.2)
    losses.spectral(u, v, similarity=arc_length)
    assert len(applied) == 4


def test_only_what_is_wanted(loss):
    u, v = views()
    leaf = v.clone().requires_grad_()
    expected = torch.autograd.grad(formula(loss)(u, leaf), leaf)[0]
    torch.testing.assert_close(torch.autograd.grad(loss(u, leaf), leaf)[0], expected, rtol=1e-11, atol=1e-12)
    assert not loss(u, v).requires_grad
    with torch.no_grad():
        assert not loss(u, leaf).requires_grad
        torch.testing.assert_close(loss(u, leaf), formula(loss)(u, v), rtol=1e-12, atol=0)


@pytest.mark.parametrize("wanted", [True, False])
def test_no_gradient_is_computed_that_is_not_wanted(wanted, loss, monkeypatch):
    kept = []
    keep = fused._Fused.keep
    monkeypatch.setattr(fused._Fused, "keep", lambda *given: kept.append(given) or keep(*given))
    u, v = views()
    loss(u.requires_grad_(wanted), v)
    with torch.no_grad():
        loss(u, v)
    assert len(kept) == wanted


def test_two_backward_passes_are_the_same_and_a_third_is_told(loss):
    u, v = (x.requires_grad_() for x in views())
    value = loss(u, v)
    value.backward(retain_graph=True)
    first = u.grad.clone()
    value.backward()
    assert torch.equal(u.grad, 2 * first)
    with pytest.raises(RuntimeError, match="freed"):
        value.backward()


def test_gradients_of_several_cotangents_at_once(loss):
    u, v = (x.requires_grad_() for x in views())
    cotangents = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    batched = torch.autograd.grad(loss(u, v), (u, v), cotangents, is_grads_batched=True)
    once = torch.autograd.grad(loss(u, v), (u, v))
    for a, b in zip(batched, once, strict=True):
        torch.testing.assert_close(a, cotangents[:, None, None] * b)


def test_recomputed_in_the_backward_pass(loss):
    u, v = (x.requires_grad_() for x in views())
    expected = torch.autograd.grad(loss(u, v), (u, v))
    observed = torch.autograd.grad(checkpoint(loss, u, v, use_reentrant=False), (u, v))
    assert all(torch.equal(a, b) for a, b in zip(observed, expected, strict=True))


def test_no_matrix_is_kept(loss):
    n = 200
    u, v = (x.requires_grad_() for x in views(n=n))
    assert saved_bytes(lambda: loss(u, v)) < 8 * n * n / 4


def test_where_the_formula_is_called(monkeypatch):
    u, v = (x.requires_grad_() for x in views())
    y, queue = torch.arange(8), views(n=9)[0]

    def plainly(**given):
        with losses.plain():
            return losses.info_nce(u, v, temperature=0.2, **given)

    assert in_one_step(losses.info_nce(u, v, temperature=0.2, queue=None, similarity=cosine, tile=None))
    assert in_one_step(losses.clip(u, v, temperature=0.2, within_view=False))
    for value in (
        plainly(),
        losses.info_nce(u, v, temperature=0.2, queue=queue),
        losses.info_nce(u, v, temperature=0.2, similarity=arc_length),
        losses.info_nce(u, v, temperature=0.2, similarity=lambda a, b: a @ b.T),
        losses.info_nce(u, v, temperature=0.2, tile=3),
        losses.nt_xent(u, v, temperature=0.2, y=y),
        losses.clip(u, v, temperature=0.2, within_view=True),
        losses.siglip(u, v, scale=1, bias=0, within_view=True),
    ):
        assert not in_one_step(value)
    with torch.autograd.forward_ad.dual_level():
        assert not in_one_step(losses.info_nce(u, v, temperature=0.2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not in_one_step(losses.info_nce(u, v, temperature=0.2))


def test_how_many_pairs_are_few(monkeypatch):
    u, v = (x.requires_grad_() for x in views())
    pairs = {name: 256 if name in ("nt_xent", "dcl") else 64 for name in CASES if "low" not in name}
    for name, matrix in pairs.items():
        few = fused.SIGMOID if name == "siglip" else fused.SOFTMAX
        for largest in (matrix, matrix - 1):
            monkeypatch.setitem(few, "cpu", largest)
            assert in_one_step(CASES[name](u, v)) == (largest == matrix)


def test_what_processes_divide_is_not_few(monkeypatch):
    u, v = (x.requires_grad_() for x in views())
    monkeypatch.setattr(_gather, "world", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    for name in ("check_same", "add_up"):
        monkeypatch.setattr(tiled, name, lambda *given: None)
    monkeypatch.setattr(tiled, "NARROW", 0)
    monkeypatch.setitem(tiled.LARGEST, "cpu", 63)
    assert in_one_step(losses.info_nce(u, v, temperature=0.2))
    with losses.divided():
        assert not in_one_step(losses.info_nce(u, v, temperature=0.2))
        monkeypatch.setitem(tiled.LARGEST, "cpu", 64)
        assert in_one_step(losses.info_nce(u, v, temperature=0.2))


def test_embeddings_of_inference_mode(loss):
    """Of a frozen network, say; they can be in no graph, and need not be."""
    u, v = views()
    with torch.inference_mode():
        frozen = v.clone()
    leaf = u.clone().requires_grad_()
    observed = torch.autograd.grad(loss(leaf, frozen), leaf)[0]
    torch.testing.assert_close(observed, torch.autograd.grad(formula(loss)(leaf, v), leaf)[0], rtol=1e-11, atol=1e-12)
    assert loss(frozen, frozen).isfinite()


def test_what_is_changed_in_place_before_the_backward_pass(loss):
    u, bank = views()
    leaf = u.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf, bank), leaf)[0]
    value = loss(leaf, bank)
    bank.zero_()
    assert torch.equal(torch.autograd.grad(value, leaf, retain_graph=True)[0], expected)
    with pytest.raises(CompanionError, match="changed in place after the loss was computed"):
        torch.autograd.grad(value, leaf, create_graph=True)


@pytest.mark.parametrize("packed", [False, True])
def test_embeddings_go_with_the_backward_pass_though_the_loss_is_kept(packed, loss):
    u, v = views()
    pack = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.numpy, torch.from_numpy)  # nothing is kept as it is
    hooks = pack if packed else contextlib.nullcontext()
    first = u.clone().requires_grad_()
    embedded = first * 1
    with hooks:
        value = loss(embedded, v)
    assert in_one_step(value)
    known = weakref.ref(embedded)
    (gradient,) = torch.autograd.grad(value, embedded, create_graph=True)
    torch.testing.assert_close(gradient, value_and_gradients(formula(loss), [u, v])[1])
    assert gradient.requires_grad
    del embedded, gradient
    value.backward()
    assert packed or fused._TOP_HOOKS is None or known() is None


def test_a_torch_that_does_not_tell_of_hooks_does_too(monkeypatch, loss):
    monkeypatch.setattr(fused, "_TOP_HOOKS", None)
    for hooks in (
        contextlib.nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(torch.Tensor.numpy, torch.from_numpy),
    ):
        u, v = (x.clone().requires_grad_() for x in views())
        with hooks:
            value = loss(u, v)
        (gradient,) = torch.autograd.grad(value, u, create_graph=True)
        torch.testing.assert_close(gradient, value_and_gradients(formula(loss), [u.detach(), v.detach()])[1])
        assert torch.autograd.grad(gradient.square().sum(), v)[0].isfinite().all()


def test_only_gradients_that_are_wanted_are_kept():
    n, d = 32, 64
    u, v = views(n=n, d=d)
    for function in (losses.info_nce, losses.clip):
        bytes_kept = saved_bytes(lambda f=function: f(u.clone().requires_grad_(), v, temperature=0.2))
        assert bytes_kept == 8 * n * d


@pytest.mark.cuda
def test_on_a_gpu(loss):
    """Value and gradient, without a wait for the device, and in a CUDA graph."""
    u, v = views(n=64, d=16)
    expected = value_and_gradients(loss, [u, v])
    inputs = [x.cuda().requires_grad_() for x in (u, v)]
    with losses.unchecked():
        torch.cuda.set_sync_debug_mode("error")
        try:
            value = loss(*inputs)
            found = value.detach(), *torch.autograd.grad(value, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-11)
    # Fresh leaves: what sums up the gradients of the old ones belongs to the stream that they were first used on.
    inputs, graph = [x.detach().clone().requires_grad_() for x in inputs], torch.cuda.CUDAGraph()
    with losses.unchecked(), torch.cuda.graph(graph):
        value = loss(*inputs)
        captured = value, *torch.autograd.grad(value, inputs)
    with torch.no_grad():
        inputs[0].copy_(v)
        inputs[1].copy_(u)
    graph.replay()
    for a, b in zip(captured, value_and_gradients(loss, [v, u]), strict=True):
        torch.testing.assert_close(a.detach().cpu(), b, rtol=1e-9, atol=1e-11)


@pytest.mark.cuda
@pytest.mark.parametrize("function", SOFTMAX)
def test_a_temperature_on_the_cpu_makes_no_gpu_wait(function):
    u, v = views(n=64, d=16)
    inputs = [x.cuda().requires_grad_() for x in (u, v)]
    temperature = torch.tensor(0.2)
    with losses.unchecked():
        torch.cuda.set_sync_debug_mode("error")
        try:
            value = function(*inputs, temperature=temperature)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.detach().cpu(), function(u, v, temperature=0.2), rtol=1e-6, atol=0)


def test_autocast_changes_nothing(loss):
    u, v = views(dtype=torch.float32)
    expected = value_and_gradients(loss, [u, v])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        observed = value_and_gradients(loss, [u, v])
        twice = [x.clone().requires_grad_() for x in (u, v)]
        again = torch.autograd.grad(loss(*twice), twice, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(observed, expected, strict=True))
    for a, b in zip(again, expected[1:], strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-3, atol=1e-5)


def test_unit_length_is_that_of_torch():
    z = views(n=5)[0]
    z[1], z[2] = 0, z[2] * 1e-15
    unit, lengths = losses._inputs.unit_length(z)
    assert torch.equal(unit, F.normalize(z, dim=1))
    assert torch.equal(lengths[1:3], torch.full((2, 1), 1e-12, dtype=z.dtype))
