"""Each named loss is the member of its family that the paper's tables say, and touches the pairs they say."""

from dataclasses import replace

import pytest
import torch

from companion import losses
from companion.losses import families
from companion.similarity import arc_length, cosine

MEMBERS = [(member, {"temperature": t}) for member in families.INFO_NCE_FAMILY for t in (0.05, 0.5)]
SIGLIP, SPECTRAL = families.ADDITIVE_FAMILY
MEMBERS += [(SIGLIP, {"scale": 10, "bias": -10}), (SIGLIP, {"scale": 3, "bias": 1}), (SPECTRAL, {})]
members = pytest.mark.parametrize(
    ("member", "hyperparameters"), MEMBERS, ids=[f"{member.name} {values}" for member, values in MEMBERS]
)


def views(n=7, d=4, seed=0):
    return torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


@members
@pytest.mark.parametrize("similarity", [cosine, arc_length])
def test_member_equals_its_family(member, hyperparameters, similarity):
    u, v = (x.clone().requires_grad_() for x in views())
    named = member.loss(u, v, similarity=similarity, **hyperparameters)
    general = member.in_family(u, v, similarity=similarity, **hyperparameters)
    torch.testing.assert_close(named, general, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(named, (u, v)), torch.autograd.grad(general, (u, v)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("member", "hyperparameters"),
    [(families.INFO_NCE_FAMILY[0], {"temperature": 0.2}), (SIGLIP, {"scale": 5, "bias": -2}), (SPECTRAL, {})],
    ids=["CLIP", "SigLIP", "Spectral"],
)
def test_within_view_is_the_member_with_c2(member, hyperparameters):
    u, v = views()
    named = member.loss(u, v, within_view=True, **hyperparameters)
    general = replace(member, c2=1).in_family(u, v, **hyperparameters)
    assert named.item() == pytest.approx(general.item(), rel=1e-12)


@members
def test_phi_and_psi_are_what_their_text_says(member, hyperparameters):
    names = {"exp": torch.exp, "log": torch.log, "x": torch.linspace(0.1, 0.9, 5, dtype=torch.float64), "n": 7}
    names["τ"] = hyperparameters.get("temperature")
    names["t"] = hyperparameters.get("scale")
    names["b"] = -hyperparameters.get("bias", 0)  # the paper's sign
    for function, text in ((member.phi, member.phi_text), (member.psi, member.psi_text)):
        code = text.replace("tx", "t*x").replace(") log", ")*log").replace("log x", "log(x)").replace("x²", "x**2")
        expected = eval(code, {}, names)
        torch.testing.assert_close(function(names["x"], n=7, **hyperparameters), expected, rtol=1e-12, atol=0)


@members
def test_member_touches_the_pairs_of_its_weights(member, hyperparameters):
    n = 4
    z = torch.cat(views(n))
    touched = families.pair_gradient(member.loss, cosine(z, z), **hyperparameters)
    expected = families.pair_weights(n, c1=member.c1, c2=member.c2) > 0
    twins = torch.eye(2 * n).roll(n, dims=1).bool()
    assert torch.equal(touched != 0, expected | twins)
    assert (touched[twins] < 0).all()
    if member is not SPECTRAL:  # which pushes a negative pair to 0 from either side
        assert (touched[expected] > 0).all()


def test_family_survives_a_low_temperature():
    u, v = views()
    member = families.INFO_NCE_FAMILY[1]
    assert member.in_family(u, v, temperature=0.005).item() == pytest.approx(
        losses.nt_xent(u, v, temperature=0.005).item(), rel=1e-12
    )


def test_pair_gradient_shows_repulsion_inside_a_class_in_sup_con_and_none_in_sincere():
    y = torch.tensor([0, 0, 0, 1, 1])
    s = torch.zeros(5, 5)
    s[0, 1] = s[1, 0] = 2.0  # a pair of class 0 that is alike already
    repelled = families.pair_gradient(losses.sup_con, s, y, temperature=0.5)
    attracted = families.pair_gradient(losses.sincere, s, y, temperature=0.5)
    assert repelled[0, 1] > 0
    assert attracted[0, 1] < 0


def test_pair_gradient_of_info_nce_is_the_formula_of_wang_and_liu():
    """∂L/∂s_ij = P_ij / τ for a negative, -Σ_{k≠i} P_ik / τ for the positive; one-way, mean over n anchors."""
    n, temperature = 5, 0.3
    z = torch.cat(views(n))
    s = cosine(z, z)
    share = (s[:n, n:] / temperature).softmax(dim=1)
    expected = (share - torch.eye(n)) / (n * temperature)
    observed = families.pair_gradient(losses.info_nce, s, temperature=temperature)[:n, n:]
    torch.testing.assert_close(observed, expected, rtol=1e-12, atol=1e-15)
