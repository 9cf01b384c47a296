"""What must hold of every loss: invariances, exact gradients, half precision, and inputs at the edge."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import ALL, LABELS, NO_SIMILARITY, SYMMETRIC, TWO_VIEWS, WITH_LABELS, call

from companion import losses
from companion.similarity import arc_length, cosine, euclidean

N = len(LABELS)
every = pytest.mark.parametrize("name", ALL)


def views(seed=0, n=N, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]


def value_and_gradients(name, u, v, **options):
    leaves = [x.detach().clone().requires_grad_() for x in (u, v)]
    value = call(name, *leaves, **options)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [g for g in gradients if g is not None]


@every
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_order_of_instances_does_not_matter(name, seed):
    u, v = views(seed)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    again = (TWO_VIEWS[name], v[order]) if name in TWO_VIEWS else (WITH_LABELS[name], LABELS[order])
    shuffled = again[0](u[order], again[1])
    assert shuffled.item() == pytest.approx(call(name, u, v).item(), abs=1e-12)


@every
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_rotation_and_length_do_not_matter(name, seed, scale):
    u, v = views(seed)
    rotation = torch.linalg.qr(views(seed + 1, n=5)[0])[0]
    turned = call(name, scale * u @ rotation, v @ rotation)
    assert turned.item() == pytest.approx(call(name, u, v).item(), abs=1e-10)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_losses_are_symmetric(name):
    u, v = views()
    assert call(name, u, v).item() == pytest.approx(call(name, v, u).item(), abs=1e-12)


@pytest.mark.parametrize("name", ["info_nce", "hard_contrastive"])
def test_one_way_losses_are_not(name):
    u, v = views()
    assert abs(call(name, u, v).item() - call(name, v, u).item()) > 1e-3


@pytest.mark.parametrize("name", [name for name in ALL if name != "dclw"])
def test_gradcheck(name):
    u, v = (x.requires_grad_() for x in views())
    assert torch.autograd.gradcheck(lambda u, v: call(name, u, v), (u, v))


@pytest.mark.parametrize("similarity", [arc_length, euclidean])
@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_SIMILARITY and name != "dclw"])
def test_gradcheck_with_other_similarities(name, similarity):
    u, v = (x.requires_grad_() for x in views())
    assert torch.autograd.gradcheck(lambda u, v: call(name, u, v, similarity=similarity), (u, v))


def test_weights_of_dclw_are_constants_for_the_gradient():
    """So a numerical derivative is not the reference, but the loss with its weights held fixed."""
    u, v = (x.requires_grad_() for x in views())
    weights = 2 - N * (cosine.paired(u, v).detach() / 0.5).softmax(dim=0)
    held = losses.dcl(u, v, temperature=0.2) + ((1 - weights) * cosine.paired(u, v)).mean() / 0.2
    weighted = losses.dclw(u, v, temperature=0.2, sigma=0.5)
    for a, b in zip(torch.autograd.grad(weighted, (u, v)), torch.autograd.grad(held, (u, v)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_learned_temperature_scale_and_bias_get_their_gradient():
    u, v = views()
    learned = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 5.0, -2.0)]
    for name in ("info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel", "hard_contrastive"):
        check = partial(getattr(losses, name), u, v, **({"keep": 3} if name == "hard_contrastive" else {}))
        assert torch.autograd.gradcheck(lambda t, check=check: check(temperature=t), learned[:1])
    for name in ("sup_con", "sincere", "eps_sup_info_nce"):
        check = partial(getattr(losses, name), u, LABELS)
        assert torch.autograd.gradcheck(lambda t, check=check: check(temperature=t), learned[:1])
    for within in (False, True):
        assert torch.autograd.gradcheck(
            lambda t, b, w=within: losses.siglip(u, v, scale=t, bias=b, within_view=w), learned[1:]
        )


def test_logit_scale_starts_where_clip_starts_and_never_passes_its_largest_value():
    assert losses.LogitScale(5, largest=5)().item() == pytest.approx(5)
    scale = losses.LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    optimizer = torch.optim.SGD(scale.parameters(), lr=1.0)
    for sign, expected in ((-1, 100), (1, 1)):  # pushed far up, it stops at 100; and it can come back
        for _ in range(50):
            optimizer.zero_grad()
            (sign * 0.2 * scale().log()).backward()
            optimizer.step()
        assert scale().item() <= 100 + 1e-3
        assert scale().item() == pytest.approx(expected, rel=1e-3) if sign < 0 else scale().item() < 1


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_collapse_has_the_value_of_a_guess(n, temperature):
    z = torch.ones(n, 3, dtype=torch.float64)
    for name, candidates in (("nt_xent", 2 * n - 1), ("clip", n), ("info_nce", n)):
        value = getattr(losses, name)(z, z, temperature=temperature)
        assert value.item() == pytest.approx(math.log(candidates), abs=1e-12)
    assert losses.dcl(z, z, temperature=temperature).item() == pytest.approx(math.log(2 * n - 2), abs=1e-12)
    assert losses.uniform(z).item() == pytest.approx(0, abs=1e-12)
    assert losses.align(z, z).item() == 0


def test_simple_loss_is_the_limit_of_info_nce():
    u, v = views()
    for temperature, tolerance in ((1e2, 1e-2), (1e4, 1e-4)):
        excess = temperature * (losses.info_nce(u, v, temperature=temperature) - math.log(N)) * N / (N - 1)
        assert excess.item() == pytest.approx(losses.simple(u, v, weight=1 / (N - 1)).item(), abs=tolerance)


def test_a_solved_batch_keeps_its_digits():
    z = torch.eye(4)  # each negative at 0, each positive at 1: the loss is log(1 + 3 e^(-1/τ)), below float32's epsilon
    value = losses.info_nce(z, z, temperature=0.05).item()
    assert value == pytest.approx(math.log1p(3 * math.exp(-20)), rel=1e-4)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name, dtype):
    halves = [100 * x.to(dtype) for x in views()]  # float16 itself would overflow in the squared norm
    value, gradients = value_and_gradients(name, *halves)
    expected, expected_gradients = value_and_gradients(name, *(x.float() for x in halves))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for observed, exact in zip(gradients, expected_gradients, strict=True):
        assert observed.dtype == dtype
        torch.testing.assert_close(observed.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@every
def test_autocast_changes_nothing(name):
    inputs = views(dtype=torch.float32)
    expected, expected_gradients = value_and_gradients(name, *inputs)
    leaves = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(name, *leaves)
    gradients = [g for g in torch.autograd.grad(value, leaves, allow_unused=True) if g is not None]
    assert torch.equal(value, expected)
    for observed, exact in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(observed, exact)


EDGES = {
    "two instances": (views(n=2)[0], views(n=2)[1]),
    "one dimension": views(d=1),
    "identical": (torch.ones(N, 5, dtype=torch.float64),) * 2,
    "antipodal": (torch.ones(N, 5, dtype=torch.float64), -torch.ones(N, 5, dtype=torch.float64)),
    "aligned": (views()[0], views()[0].clone()),
    "a zero row": (views()[0] * (torch.arange(N) > 0)[:, None], views()[1]),
}


@every
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("similarity", [cosine, arc_length, euclidean])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite_at_the_edges(name, edge, similarity, dtype):
    options = {} if name in NO_SIMILARITY else {"similarity": similarity}
    value, gradients = value_and_gradients(name, *(x.to(dtype) for x in EDGES[edge]), **options)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_SIMILARITY])
def test_the_shortest_embeddings_have_the_gradient_of_torchs_own_normalisation(name):
    u, v = views()
    u = torch.cat([u[:1] * 1e-13, u[1:]])  # shorter than what F.normalize divides by at least

    def plain(a, b):
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T

    ours, theirs = (value_and_gradients(name, u, v, similarity=similarity) for similarity in (cosine, plain))
    for observed, expected in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(observed, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel"])
@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_low_temperature(name, temperature):
    u, v = views(dtype=torch.float32)
    leaves = u.clone().requires_grad_(), v.clone().requires_grad_()
    value = getattr(losses, name)(*leaves, temperature=temperature)
    exact = getattr(losses, name)(u.double(), v.double(), temperature=temperature)
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("labels", [torch.zeros(N, dtype=torch.long), torch.arange(N)], ids=["one class", "all alone"])
def test_degenerate_labels_give_a_finite_value_and_gradient(name, labels):
    z = views()[0].requires_grad_()
    value = WITH_LABELS[name](z, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    if name != "contrastive_margin" and (
        labels[0] != labels[1] or name in ("sincere", "triplet", "lifted", "batch_hard")
    ):
        assert value.item() == 0
        assert z.grad.abs().max() == 0


@pytest.mark.parametrize("name", ["sup_con", "sincere", "eps_sup_info_nce", "triplet", "lifted", "batch_hard"])
def test_an_anchor_without_positives_is_left_out(name):
    """Average over the anchors that have a positive: the lone one counts as a negative only."""
    z, _ = views()
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    lone = z.clone().requires_grad_()
    WITH_LABELS[name](lone, y).backward()
    own = WITH_LABELS[name](z[:-1], y[:-1])
    far = torch.cat([z[:-1], -z[:-1].sum(dim=0, keepdim=True)])
    assert torch.isfinite(lone.grad).all()
    assert WITH_LABELS[name](z, y) >= own - 1e-12  # one more negative can only make it harder
    assert torch.isfinite(WITH_LABELS[name](far, y))


@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dhel"])
def test_bare_formulas_work_under_vmap(name):
    """Many problems at once, each with its own temperature: what the direct optimisation of embeddings does."""
    u, v = views(n=4 * N)
    u, v = u.reshape(4, N, 5), v.reshape(4, N, 5)
    temperatures = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    function = getattr(losses, name)
    batched = torch.vmap(lambda u, v, t: function.__wrapped__(u, v, temperature=t))(u, v, temperatures)
    for value, a, b, t in zip(batched, u, v, temperatures, strict=True):
        assert value.item() == pytest.approx(function(a, b, temperature=t.item()).item(), rel=1e-12)


def test_siglip_and_spectral_work_under_vmap():
    u, v = (x.reshape(4, N, 5) for x in views(n=4 * N))
    scales, biases = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batched = torch.vmap(lambda u, v, t, b: losses.siglip.__wrapped__(u, v, scale=t, bias=b, within_view=True))
    for value, a, b, t, bias in zip(batched(u, v, scales, biases), u, v, scales, biases, strict=True):
        alone = losses.siglip(a, b, scale=t.item(), bias=bias.item(), within_view=True)
        assert value.item() == pytest.approx(alone.item(), rel=1e-12)
    for value, a, b in zip(torch.vmap(losses.spectral.__wrapped__)(u, v), u, v, strict=True):
        assert value.item() == pytest.approx(losses.spectral(a, b).item(), rel=1e-12)
