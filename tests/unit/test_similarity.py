"""The similarity functions: values, twins, metric axioms, and gradients at the ends of their ranges."""

import copy
import math
import pickle

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.similarity import Similarity, arc_length, cosine, euclidean, off_diagonal

ALL = {"cosine": cosine, "arc_length": arc_length, "euclidean": euclidean}
named = pytest.mark.parametrize("name", ALL)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@named
def test_matrix_and_paired_against_loops(name):
    a, b = randn(6, 3, seed=1), randn(4, 3, seed=2)
    slow = getattr(naive, name)
    expected = torch.tensor([[slow(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ALL[name](a, b), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ALL[name].paired(a[:4], b), expected[:4].diagonal(), rtol=0, atol=1e-12)


@named
@pytest.mark.parametrize("kind", ["equal", "opposite", "nearly equal", "nearly opposite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_at_the_ends_of_the_range(name, kind, dtype):
    a = randn(5, 3, dtype=dtype)
    b = a.clone() if "equal" in kind else -a
    if "nearly" in kind:
        b += 1e-4 * randn(5, 3, seed=9, dtype=dtype)
    for form in (ALL[name], ALL[name].paired):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = form(x, y)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1.6e-4), (torch.float64, 6.8e-9)])
def test_guard_of_arc_length_costs_what_its_documentation_says(dtype, error):
    a = torch.eye(3, dtype=dtype)
    assert 0 < 1 - arc_length.paired(a, a).max().item() <= error
    assert 0 < arc_length.paired(a, -a).min().item() <= error


def test_pull_of_arc_length_does_not_fade_and_that_of_cosine_does():
    slopes = {}
    for angle in (0.01, 1.0):
        for name in ("cosine", "arc_length"):
            theta = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
            turned = torch.stack([theta.cos(), theta.sin()])[None]
            ALL[name].paired(torch.tensor([[1.0, 0.0]], dtype=torch.float64), turned).sum().backward()
            slopes[name, angle] = theta.grad.item()
    for angle in (0.01, 1.0):
        assert slopes["cosine", angle] == pytest.approx(-math.sin(angle), rel=1e-9)
        assert slopes["arc_length", angle] == pytest.approx(-1 / math.pi, rel=1e-9)


@named
def test_gradcheck(name):
    a, b = randn(3, 4, seed=1).requires_grad_(), randn(3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(ALL[name], (a, b))
    assert torch.autograd.gradcheck(ALL[name].paired, (a, b))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_arc_length_and_euclidean_come_from_metrics(seed, d):
    x, y, z = randn(3, 1, d, seed=seed)
    for s, top in ((arc_length, 1), (euclidean, 0)):
        near = [top - s(p, q).item() for p, q in ((x, y), (y, z), (x, z))]
        assert all(distance >= 0 for distance in near)
        assert near[2] <= near[0] + near[1] + 1e-7
        assert s(x, y).item() == pytest.approx(s(y, x).item(), abs=1e-12)


def test_cosine_breaks_the_triangle_inequality():
    x, y, z = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]], dtype=torch.float64)
    near = [1 - cosine(p, q).item() for p, q in ((x, y), (y, z), (x, z))]
    assert near[2] > near[0] + near[1] + 0.4  # 1 > 2 (1 - 1/√2)


@named
def test_declared_range_holds(name):
    s = ALL[name](randn(40, 3, seed=1), randn(40, 3, seed=2))
    assert s.min() >= ALL[name].low - 1e-12
    assert s.max() <= ALL[name].high + 1e-12


def test_length_matters_to_euclidean_only():
    a, b = randn(5, 3, seed=1), randn(5, 3, seed=2)
    for name in ("cosine", "arc_length"):
        torch.testing.assert_close(ALL[name](5 * a, b / 3), ALL[name](a, b), rtol=0, atol=1e-12)
    torch.testing.assert_close(euclidean(5 * a, 5 * b), 5 * euclidean(a, b), rtol=0, atol=1e-12)


def test_a_plain_function_gets_its_paired_twin():
    a, b = randn(5, 3, seed=1), randn(5, 3, seed=2)
    product = Similarity(lambda x, y: x @ y.T)
    torch.testing.assert_close(product.paired(a, b), (a @ b.T).diagonal(), rtol=0, atol=1e-12)


def test_off_diagonal():
    s = torch.arange(9).reshape(3, 3)
    assert off_diagonal(s).tolist() == [[1, 2], [3, 5], [6, 7]]


@named
def test_of_the_package_s_own_there_is_one_each(name):
    own = ALL[name]
    assert copy.deepcopy(own) is copy.copy(own) is pickle.loads(pickle.dumps(own)) is own
    assert repr(own) == f"companion.similarity.{name}"
