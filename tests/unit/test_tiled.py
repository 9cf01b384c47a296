"""Tiles give the dense form's value and gradient, for every size of tile, and never hold an n×n matrix."""

import contextlib

import pytest
import torch
from loss_cases import ALL, LABELS, NO_SIMILARITY, NO_TILE, call
from packaging.version import Version
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from companion import losses
from companion.losses import _gather, fused, hypersphere, tiled
from companion.similarity import arc_length, cosine, euclidean

TILED = [name for name in ALL if name not in NO_TILE]
SKEW = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def asymmetric(a, b):
    """A similarity with s(a, b) ≠ s(b, a): tiles below the diagonal are not those above it."""
    return a @ SKEW @ b.T


def views(n=8, d=5, dtype=torch.float64, seed=5):
    return torch.randn(2, n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind()


def value_and_gradients(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return [value.detach(), *(g for g in torch.autograd.grad(value, leaves, allow_unused=True) if g is not None)]


def assert_same(function, inputs, tiles, rtol=1e-12, atol=1e-12):
    expected = value_and_gradients(lambda *x: function(*x, None), inputs)
    for tile in tiles:
        observed = value_and_gradients(lambda *x, tile=tile: function(*x, tile), inputs)
        for a, b in zip(observed, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("similarity", [cosine, arc_length, euclidean, asymmetric])
def test_equal_to_the_dense_form(name, similarity):
    options = {} if name in NO_SIMILARITY else {"similarity": similarity}
    assert_same(lambda u, v, tile: call(name, u, v, tile=tile, **options), views(), (1, 3, 4, 8, 50))


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel"])
def test_low_temperature_does_not_underflow(name, dtype, temperature):
    """Far from 1, a bounded exponential would leave the range of the dtype: the running maximum takes over."""
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    function = getattr(losses, name)
    opposite = views(dtype=dtype)[0], -views(dtype=dtype)[0]  # positives at -1, where e^(s/τ) is smallest
    for inputs in (views(dtype=dtype), opposite):
        assert_same(
            lambda u, v, tile: function(u, v, temperature=temperature, tile=tile), inputs, (3, 8), tolerance, tolerance
        )


@pytest.mark.parametrize("tile", [None, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_that_lie_far_apart_do_not_underflow(dtype, tile):
    """A Euclidean similarity has no lower bound: of -2000/τ no exponential is left. Against SciPy's log-sum-exp."""
    u, v = (1000 * x for x in views(dtype=dtype))
    z = torch.cat([u, v]).double().numpy()
    logits = -cdist(z, z) / 0.5
    positives = [logits[i, (i + 8) % 16] for i in range(16)]
    others = [[logits[i, j] for j in range(16) if j != i] for i in range(16)]
    expected = sum(logsumexp(of) - positive for of, positive in zip(others, positives, strict=True)) / 16
    assert expected > 1000
    options = {"temperature": 0.5, "similarity": euclidean, "tile": tile}
    assert losses.nt_xent(u, v, **options).item() == pytest.approx(expected, rel=1e-5 if dtype.itemsize == 4 else 1e-12)
    if dtype == torch.float64:
        leaf = u.requires_grad_()
        assert torch.autograd.gradcheck(lambda u: losses.nt_xent(u, v, **options), leaf, eps=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["info_nce", "clip", "clip within view", "nt_xent", "dcl", "dclw", "dhel", "sup_con",
                                  "sincere", "eps_sup_info_nce"])  # fmt: skip
def test_a_temperature_learns_of_embeddings_that_do_not(name):
    """Those of a frozen network. Against differences of the value."""
    u, v = views()
    for similarity in (cosine, euclidean):
        for tile in (3, 6, 50):
            t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
            options = {"similarity": similarity, "tile": tile}
            assert torch.autograd.gradcheck(lambda t, o=options: call(name, u, v, temperature=t, **o), t)
            (slope,) = torch.autograd.grad(call(name, u, v, temperature=t, **options), t)
            assert abs(slope) > 1e-3  # or there was nothing to miss


@pytest.mark.parametrize("similarity", [cosine, arc_length, euclidean])
def test_learned_parameters(similarity):
    u, v = views()
    queue = views(n=7, seed=6)[0]
    options = {"similarity": similarity}
    learned = [torch.tensor(x, dtype=torch.float64) for x in (0.3, 5.0, -2.0)]
    assert_same(
        lambda u, v, t, tile: losses.nt_xent(u, v, temperature=t, tile=tile, **options), [u, v, learned[0]], (3,)
    )
    assert_same(lambda u, v, t, tile: losses.clip(u, v, temperature=t, tile=tile, **options), [u, v, learned[0]], (3,))
    assert_same(
        lambda u, v, q, t, tile: losses.info_nce(u, v, temperature=t, queue=q, tile=tile, **options),
        [u, v, queue, learned[0]],
        (3,),
    )
    assert_same(
        lambda u, t, tile: losses.sincere(u, LABELS, temperature=t, tile=tile, **options), [u, learned[0]], (3,)
    )
    assert_same(
        lambda u, v, t, b, tile: losses.siglip(u, v, scale=t, bias=b, within_view=True, tile=tile, **options),
        [u, v, *learned[1:]],
        (3,),
    )


@pytest.mark.parametrize("name", [name for name in TILED if name != "dclw"])
def test_gradcheck(name):
    u, v = (x.clone().requires_grad_() for x in views(n=6, d=3))
    assert torch.autograd.gradcheck(lambda u, v: call(name, u, v, tile=4), (u, v))


def test_uniform():
    assert_same(lambda z, tile: losses.uniform(z, t=3, tile=tile), views()[:1], (1, 3, 8))


@pytest.mark.parametrize("way", [contextlib.nullcontext, losses.plain])
def test_uniform_of_a_device_whose_pdist_is_hungry_is_the_same_without_it(way, monkeypatch):
    expected = value_and_gradients(lambda z: losses.uniform(z, t=3), views()[:1])
    monkeypatch.setattr(hypersphere, "HUNGRY", ("cpu",))
    monkeypatch.setattr(torch, "pdist", None)
    with way():
        observed = value_and_gradients(lambda z: losses.uniform(z, t=3), views()[:1])
    torch.testing.assert_close(observed, expected, rtol=1e-12, atol=1e-12)


def test_the_same_tensor_as_both_views():
    z = views()[:1]
    assert_same(lambda z, tile: losses.clip(z, z, temperature=0.2, tile=tile), z, (3,))
    assert_same(lambda z, tile: losses.siglip(z, z, scale=3, bias=1, tile=tile), z, (3,))


@pytest.mark.parametrize("labels", [torch.zeros(8, dtype=torch.long), torch.arange(8)], ids=["one class", "all alone"])
@pytest.mark.parametrize("name", ["sup_con", "sincere", "eps_sup_info_nce"])
@pytest.mark.parametrize("temperature", [0.2, 1e-4])
def test_degenerate_labels(name, labels, temperature):
    function = getattr(losses, name)
    z = views()[:1]
    assert_same(lambda z, tile: function(z, labels, temperature=temperature, tile=tile), z, (3,))
    assert all(torch.isfinite(x).all() for x in value_and_gradients(
        lambda z: function(z, labels, temperature=temperature, tile=3), z
    ))  # fmt: skip


@pytest.mark.parametrize("name", TILED)
def test_under_no_grad_and_autocast(name):
    u, v = views(dtype=torch.float32)
    expected = call(name, u, v, tile=3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(name, u, v, tile=3), expected)


def test_backward_inside_autocast_stays_in_single_precision():
    inputs = views(dtype=torch.float32)
    exact = value_and_gradients(lambda u, v: losses.nt_xent(u, v, temperature=0.2, tile=3), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        observed = value_and_gradients(lambda u, v: losses.nt_xent(u, v, temperature=0.2, tile=3), inputs)
    for a, b in zip(observed, exact, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", TILED)
def test_no_tensor_is_ever_larger_than_the_input_or_a_tile(name, monkeypatch):
    """Watch every operation, forward and backward: its results stay below n² numbers, by far."""
    n, tile = 96, 8
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return result

    monkeypatch.setattr("loss_cases.LABELS", torch.arange(n) % 5)
    u, v = (x.clone().requires_grad_() for x in views(n=n, d=3))
    with Watch():
        call(name, u, v, tile=tile).backward()
    assert largest <= 2 * n * tile  # rows of tiles; n² would be 9216


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_symmetric_work_is_done_once_however_many_share_it(count):
    covered = torch.zeros(10, 10, dtype=torch.long)
    shares = [list(tiled._tiles(10, 10, 4, symmetric=True, share=(which, count))) for which in range(count)]
    for rows, columns in (tile for share in shares for tile in share):
        covered[rows.start : rows.stop, columns.start : columns.stop] += 1
        if rows != columns:
            covered[columns.start : columns.stop, rows.start : rows.stop] += 1
    assert (covered == 1).all()
    assert [len(share) for share in shares] == [len(range(which, 6, count)) for which in range(count)]


# ---- What is chosen where no tile is asked for -----------------------------------------------------------------------

EIGHTH = 8 * 8 // 8 * 8  # bytes of an eighth of the 8 × 8 pairs of two views, in float64


@pytest.fixture
def many(monkeypatch):
    """Eight instances count as many: they are computed in tiles of three."""
    monkeypatch.setitem(fused.SOFTMAX, "cpu", 0)
    monkeypatch.setitem(fused.SIGMOID, "cpu", 0)
    monkeypatch.setitem(tiled.LARGEST, "cpu", 0)
    monkeypatch.setitem(tiled.SIDE, "cpu", 3)


@pytest.fixture(params=["few", "many"])
def few_or_many(request):
    if request.param == "many":
        request.getfixturevalue("many")


def plainly(name, u, v, **options):
    with losses.plain():
        return call(name, u, v, **options)


def saved_bytes(function) -> int:
    """Bytes that its result holds for the backward pass, those of the input aside."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        function()
    return sum(sizes)


@pytest.mark.parametrize("kept", [0, EIGHTH, 10**9], ids=["nothing kept", "an eighth", "all"])
@pytest.mark.parametrize("name", TILED)
def test_the_default_equals_the_plain_way(name, kept, few_or_many, monkeypatch):
    monkeypatch.setattr(tiled, "KEPT", kept)
    for similarity in (cosine, arc_length, euclidean):
        options = {} if name in NO_SIMILARITY else {"similarity": similarity}
        expected = value_and_gradients(lambda u, v, o=options: plainly(name, u, v, **o), views())
        observed = value_and_gradients(lambda u, v, o=options: call(name, u, v, **o), views())
        for a, b in zip(observed, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1e-4, 0.012, 0.2, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel"])
def test_one_matrix_at_any_temperature(name, dtype, temperature):
    """It is summed without a maximum where the exponentials allow that, and with one where not."""
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-11}[dtype]
    function = getattr(losses, name)

    def plain(u, v):
        with losses.plain():
            return function(u, v, temperature=temperature)

    opposite = views(dtype=dtype)[0], -views(dtype=dtype)[0]
    for inputs in (views(dtype=dtype), opposite):
        expected = value_and_gradients(plain, inputs)
        observed = value_and_gradients(lambda u, v: function(u, v, temperature=temperature), inputs)
        for a, b in zip(observed, expected, strict=True):
            assert torch.isfinite(a).all()
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("n", "processes", "side"),
    [(600, 1, None), (800, 1, 512), (600, 2, None), (800, 2, 200), (801, 3, 134), (1000, 8, 128), (10**4, 8, 512)],
)
def test_processes_that_divide_tiles_get_some_each(n, processes, side, monkeypatch):
    monkeypatch.setattr(tiled, "part", lambda: (0, processes))
    z = torch.zeros(n, 2)
    assert tiled.side(z, z, None, cosine) == side
    assert tiled.side(z, z, None, cosine, largest=n * n) is None
    assert tiled.side(z, z, 7, cosine) == 7
    queue = torch.zeros(9000, 2)
    assert tiled.side(z, queue, None, cosine) == (512 if len(z) * 9000 > 2**19 else None)
    monkeypatch.setitem(tiled.LARGEST, "meta", 2**26)  # of a device that holds larger ones
    monkeypatch.setitem(tiled.SIDE, "meta", 8192)
    z = torch.zeros(10**4, 2, device="meta")
    assert tiled.side(z, z, None, cosine) == (8192 if processes == 1 else -(-(10**4) // (2 * processes)))
    z = torch.zeros(1000, 2, device="meta")
    assert tiled.side(z, z, None, cosine) == (None if processes == 1 else max(128, -(-1000 // (2 * processes))))


def test_outside_of_the_context_nothing_is_divided(monkeypatch):
    monkeypatch.setattr(_gather, "world", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert _gather.part() == (0, 1)
    with losses.divided():
        assert _gather.part() == (2, 3)
        with losses.divided():
            pass
        assert _gather.part() == (2, 3)
    assert _gather.part() == (0, 1)


def test_many_pairs_are_computed_in_tiles_and_few_are_not(monkeypatch):
    asked = []
    monkeypatch.setattr(tiled, "log_sum_exp", lambda *given, **options: asked.append(given[-1]) or _whole(*given))
    monkeypatch.setitem(fused.SOFTMAX, "cpu", 16 * 16)
    monkeypatch.setitem(tiled.LARGEST, "cpu", 16 * 16)
    monkeypatch.setattr(tiled, "NARROW", 0)

    def _whole(a, b, temperature, similarity, skip, tile):
        logits = tiled.whole_logits(similarity.prepare(a), similarity.prepare(b), temperature, similarity, skip)
        return logits.logsumexp(dim=1), logits.logsumexp(dim=0)

    u, v = views(n=9)
    losses.nt_xent(u[:8], v[:8], temperature=0.2)  # 16 views
    assert asked == []
    losses.nt_xent(u, v, temperature=0.2)
    assert asked == [512]
    losses.nt_xent(u, v, temperature=0.2, tile=7)
    assert asked == [512, 7]
    with losses.plain():
        losses.nt_xent(u, v, temperature=0.2)
    assert asked == [512, 7]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    losses.nt_xent(u, v, temperature=0.2)
    assert asked == [512, 7]


@pytest.mark.parametrize("name", TILED)
def test_mapped_over_batches(name, few_or_many):
    """torch.vmap and torch.func.grad get the whole matrix, which alone they can go through."""
    batches = views(n=24)
    u, v = (x.unflatten(0, (3, 8)) for x in batches)
    with losses.unchecked():
        observed = torch.vmap(torch.func.grad_and_value(lambda u, v: call(name, u, v)))(u, v)
    for k in range(3):
        leaf = u[k].clone().requires_grad_()
        value = plainly(name, leaf, v[k])
        torch.testing.assert_close(observed[1][k], value.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(observed[0][k], torch.autograd.grad(value, leaf)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("name", [name for name in TILED if name != "dclw"])
def test_second_derivatives(name, tile, few_or_many):
    """Of tiles, too: the gradient that is to be differentiated is formed from the whole matrix."""
    if (name, tile) == ("align_uniform", None) and Version(torch.__version__) < Version("2.14"):
        pytest.skip("torch's pdist has no second derivative before 2.14")
    u, v = (x.clone().requires_grad_() for x in views(n=6, d=3))
    assert torch.autograd.gradgradcheck(lambda u, v: call(name, u, v, tile=tile), (u, v))


def test_second_derivatives_of_learned_parameters(few_or_many):
    u, v = (x.clone().requires_grad_() for x in views(n=6, d=3))
    t, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, -2.0))
    assert torch.autograd.gradgradcheck(lambda u, t: losses.clip(u, v, temperature=t), (u, t))
    assert torch.autograd.gradgradcheck(lambda u, t, b: losses.siglip(u, v, scale=t, bias=b), (u, t, bias))
    labels = LABELS[:6]
    assert torch.autograd.gradgradcheck(lambda u, t: losses.sincere(u, labels, temperature=t), (u, t))


@pytest.mark.parametrize("loss", [losses.nt_xent, losses.clip, losses.info_nce, losses.dhel])
def test_no_more_is_kept_than_the_budget_and_nothing_where_a_tile_is_asked_for(loss, monkeypatch):
    n = 128
    monkeypatch.setitem(fused.SOFTMAX, "cpu", 0)
    monkeypatch.setitem(tiled.LARGEST, "cpu", 0)
    monkeypatch.setitem(tiled.SIDE, "cpu", 8)
    u, v = (x.clone().requires_grad_() for x in views(n=n, d=3))
    least = saved_bytes(lambda: loss(u, v, temperature=0.2, tile=8))
    assert least < n * n * 8 / 2
    for budget in (0, 20_000, 10**9):
        monkeypatch.setattr(tiled, "KEPT", budget)
        sums = 2 if loss is losses.dhel else 1  # log-sum-exps, which have a budget each
        more = saved_bytes(lambda: loss(u, v, temperature=0.2)) - least
        assert more <= sums * budget
        assert more > sums * (budget - 8 * 8 * 8) or budget > n * n  # it is used


def test_what_is_kept_is_set_free_by_the_backward_pass(many):
    u, v = (x.clone().requires_grad_() for x in views())
    value = losses.nt_xent(u, v, temperature=0.2)
    value.backward()
    with pytest.raises(RuntimeError, match="freed"):
        value.backward()


def test_the_plain_way_is_that_of_the_recorded_runs():
    """To the last bit: NT-Xent as the runs were trained by it, operation by operation."""
    u, v = views(n=32, d=16, dtype=torch.float32)
    leaves = [x.clone().requires_grad_() for x in (u, v)]
    z = torch.cat(leaves)
    logits = (torch.nn.functional.normalize(z, dim=1) / 0.2) @ torch.nn.functional.normalize(z, dim=1).T
    for k in (0, 32, -32):
        logits.diagonal(k).fill_(-torch.inf)
    paired = [torch.nn.functional.normalize(x, dim=1) for x in leaves]
    positives = ((paired[0] * paired[1]).sum(dim=1) / 0.2).repeat(2)
    value = -torch.nn.functional.logsigmoid(positives - logits.logsumexp(dim=1)).mean()
    expected = value, *torch.autograd.grad(value, leaves)
    with losses.plain():
        observed = value_and_gradients(lambda u, v: losses.nt_xent(u, v, temperature=0.2), (u, v))
    assert all(torch.equal(a, b) for a, b in zip(observed, expected, strict=True))


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("name", TILED)
def test_a_gradient_that_can_be_differentiated_is_the_same_gradient(name, tile, few_or_many):
    """Also where the second view is a function of the first, and a learned parameter of both."""
    for similarity in (cosine, euclidean):
        options = {} if name in NO_SIMILARITY else {"similarity": similarity}
        u, v = (x.clone().requires_grad_() for x in views())

        def value(u, v, o=options):
            return call(name, u, 0.5 * v + u.square(), tile=tile, **o)

        once, again = (
            torch.autograd.grad(value(u, v), (u, v), create_graph=c, allow_unused=True) for c in (False, True)
        )
        for a, b in zip(once, again, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_same_of_learned_parameters_that_depend_on_the_embeddings(few_or_many):
    u, v = (x.clone().requires_grad_() for x in views())
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    functions = (
        lambda: losses.sincere(u, LABELS, temperature=t),
        lambda: losses.clip(u, v, temperature=t * u.square().mean()),
        lambda: losses.siglip(u, v, scale=t, bias=-t),
    )
    for function in functions:
        once, again = (
            torch.autograd.grad(function(), (u, v, t), create_graph=c, allow_unused=True) for c in (False, True)
        )
        for a, b in zip(once, again, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in TILED if name not in NO_SIMILARITY])
def test_a_similarity_that_learns_keeps_its_gradient_and_its_matrix(name, few_or_many):
    """It may depend on more than its two embeddings, so it gets all of them at once unless a tile is asked for."""
    u, v = views()
    found = []
    for plain in (False, True):
        weight = SKEW.clone().requires_grad_()

        def learned(a, b, weight=weight):
            assert len(a) in (1, 8, 16)  # a pair, or all
            return a @ weight @ b.T / 5

        value = (plainly if plain else call)(name, u, v, similarity=learned)
        found.append((value.detach(), torch.autograd.grad(value, weight)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_forward_derivatives(few_or_many):
    u, v = views()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(u, v)
        slope = torch.autograd.forward_ad.unpack_dual(losses.nt_xent(dual, v, temperature=0.3)).tangent
    leaf = u.clone().requires_grad_()
    gradient = torch.autograd.grad(losses.nt_xent(leaf, v, temperature=0.3), leaf)[0]
    torch.testing.assert_close(slope, (gradient * v).sum())


def test_a_queue_without_a_gradient_changes_nothing(many):
    u, v = views()
    queue = views(n=20, seed=6)[0]
    for learns in (False, True):
        q = queue.clone().requires_grad_(learns)
        found = value_and_gradients(lambda u, v, q=q: losses.info_nce(u, v, temperature=0.2, queue=q), (u, v))
        with losses.plain():
            expected = value_and_gradients(lambda u, v, q=q: losses.info_nce(u, v, temperature=0.2, queue=q), (u, v))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_is_kept_where_no_gradient_is_asked_for(many, monkeypatch):
    given = []
    apply = tiled._LogSumExp.apply
    monkeypatch.setattr(tiled._LogSumExp, "apply", lambda *inputs: given.append(inputs[-1]) or apply(*inputs))
    t = torch.tensor(0.2, requires_grad=True)
    with torch.no_grad():
        losses.nt_xent(*views(), temperature=t)
    losses.nt_xent(*views(), temperature=t)
    assert [form[3] for form in given] == [0, tiled.KEPT]


def test_few_anchors_against_many_candidates_are_one_matrix(monkeypatch):
    monkeypatch.setattr(tiled, "log_sum_exp", lambda *given, **options: pytest.fail("tiles"))
    u, v = views(n=8)
    queue = torch.randn(70_000, 5, dtype=torch.float64)
    losses.info_nce(u, v, temperature=0.2, queue=queue)  # 560,000 pairs
    with pytest.raises(pytest.fail.Exception, match="tiles"):
        losses.info_nce(*views(n=200), temperature=0.2, queue=queue[:4000])


def test_hardest_negatives_are_taken_in_blocks_only_to_save_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(tiled, "in_row_blocks", lambda function, u, tile: asked.append(tile) or function(range(len(u))))
    monkeypatch.setitem(tiled.LARGEST, "cpu", 4)
    losses.hard_contrastive(*views(n=800), temperature=0.2, keep=2)
    assert asked == []
    losses.hard_contrastive(*views(n=4097, d=2, dtype=torch.float32), temperature=0.2, keep=2)
    assert asked == [512]


def test_collapse_is_no_uniformity_at_all():
    z = torch.ones(6, 4, requires_grad=True)
    value = losses.uniform(z, t=1000)
    assert value.item() == 0
    assert torch.autograd.grad(value, z)[0].abs().max() == 0


@pytest.mark.parametrize("function", [losses.nt_xent, losses.clip, losses.dhel])
def test_a_tile_makes_no_difference_to_torch_func(function):
    u, v = views(n=40)
    tiled_loss = torch.func.grad(lambda u: function(u, v, temperature=0.2, tile=16))
    torch.testing.assert_close(tiled_loss(u), torch.func.grad(lambda u: function(u, v, temperature=0.2))(u))
