"""The independently additive family (Lee et al. 2025, Definition 3.2): exact optimum, excessive separation.

The loss is -(1/n) Σ φ(u_iᵀv_i) + 1/(n(n-1)) Σ_{i≠j} ψ(u_iᵀv_j) with φ concave, ψ convex, both increasing on [-1, 1];
within-view negatives are left out, c₂ = 0. φ and ψ act elementwise on tensors. Hyperparameters inside them may be
tensors too, and then everything here works on their whole grid at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from companion.errors import CompanionError, whole
from companion.losses.families import ADDITIVE_FAMILY, Member

Term = Callable[[Tensor], Tensor]


def terms(member: Member, n: int, **hyperparameters) -> tuple[Term, Term]:
    """φ and ψ of a named loss of ``companion.losses.families.ADDITIVE_FAMILY`` at given hyperparameters."""
    return partial(member.phi, n=n, **hyperparameters), partial(member.psi, n=n, **hyperparameters)


def separates(phi: Term, psi: Term, n: int) -> Tensor:
    """Condition (8) of Lee et al. (2025, Theorem 5.3): φ′(1) < (n-2)/(2(n-1))·ψ′(-1/(n-1)).

    Where it holds, and d >= n, the full batch ends excessively separated: s_pos < 1 and s_neg < -1/(n-1). For SigLIP it
    is :func:`siglip_separates`.

    Args:
        phi: φ, of a positive's similarity, elementwise.
        psi: ψ, of a negative's similarity.
        n: number of instances, at least 2.

    Raises:
        CompanionError: if n < 2.
    """
    whole(n, "n", least=2)
    return _slope(phi, 1) < (n - 2) / (2 * (n - 1)) * _slope(psi, -1 / (n - 1))


def siglip_separates(n: int, scale, bias) -> Tensor:
    """Example 5.4, Eq. 10: (1 + e^{t/(n-1)+b}) / (1 + e^{t-b}) < (n-2)/2 with b = -bias.

    Args:
        n: number of instances, at least 2 (for which it never holds).
        scale: t > 0, number or tensor.
        bias: SigLIP's own sign, number or tensor.

    Raises:
        CompanionError: if n < 2, or the scale is not positive.
    """
    whole(n, "n", least=2)
    t, bias = _hyperparameters(scale, bias)
    log_ratio = logsigmoid(-(t + bias)) - logsigmoid(-(t / (n - 1) - bias))  # log(1 + eˣ) = -logsigmoid(-x)
    return log_ratio < (math.log((n - 2) / 2) if n > 2 else -math.inf)


def siglip_boundaries(n: int, scale) -> tuple[Tensor, Tensor]:
    """The two lines between SigLIP's three phases, in closed form.

    At a given t the optimum is the aligned simplex for bias ≤ the first, two antipodal points for bias ≥ the second,
    partly separated in between. (For b = -bias = t: t ≥ (n-1)/n·log(n-3) and t ≤ ½ log((n-2)/2).)

    Args:
        n: number of instances, at least 3.
        scale: t > 0, number or tensor.

    Returns:
        Both boundaries as a bias in SigLIP's own sign.

    Raises:
        CompanionError: if n < 3, or the scale is not positive.
    """
    whole(n, "n", least=3)
    t, _ = _hyperparameters(scale, 0.0)
    k = (n - 2) / 2
    # a = 0 iff e^{t/(n-1)} B² - (k-1) B - k eᵗ >= 0 with B = e^b; a = 1 iff e^{t+b} <= k. Half the exponent is taken
    # out of the root, so that nothing overflows.
    half = t * n / (2 * (n - 1))
    linear = (k - 1) * (-half).exp()
    aligned = half - t / (n - 1) + ((linear + (linear.square() + 4 * k).sqrt()) / 2).log()
    return -aligned, t - math.log(k)


class Optimum(NamedTuple):
    """The best a :func:`companion.theory.shifted_simplex` can do; each field has the shape of the hyperparameters."""

    a: Tensor  #: shift in [0, 1]
    s_pos: Tensor  #: 1 - 2a²
    s_neg: Tensor  #: every negative: -(1-a²)/(n-1) - a²
    loss: Tensor

    @property
    def phase(self) -> Tensor:
        """0 aligned simplex (a = 0), 1 partly separated, 2 antipodal (a = 1)."""
        return (self.a > 0).int() + (self.a == 1).int()


def optimum(phi: Term, psi: Term, n: int) -> Optimum:
    """The exact full-batch optimum of an additive loss with (c₁, c₂) = (1, 0) over all unit embeddings with d >= n.

    By convexity no configuration is better than one with all positives equal and all negatives equal; by the sharp
    :func:`companion.theory.positive_bound` the shifted simplices are the best of those. The loss of a shifted simplex
    is convex in x = a², so one bisection on its slope finds the minimum. (With c₂ = 1 it is a = 0: Theorem 5.1.)

    Args:
        phi: φ, of a positive's similarity, elementwise.
        psi: ψ, of a negative's similarity.
        n: number of instances, at least 2.

    Raises:
        CompanionError: if n < 2; if φ or ψ is not increasing on [-1, 1], where the reasoning fails (the spectral loss).
    """
    whole(n, "n", least=2)
    if (_slope(psi, -1) < 0).any() or (_slope(phi, 1) < 0).any():
        raise CompanionError(
            "φ or ψ is not increasing on [-1, 1]: its optimum need not be a shifted simplex (the spectral loss ends in "
            "an orthonormal frame). Use companion.theory.optimise instead."
        )

    def s_pos(x):
        return 1 - 2 * x

    def s_neg(x):
        return -(1 - x) / (n - 1) - x

    def slope(x):
        return 2 * _slope(phi, s_pos(x)) - (n - 2) / (n - 1) * _slope(psi, s_neg(x))

    low = torch.zeros_like(slope(0.0))
    high = torch.ones_like(low)
    aligned = slope(low) >= 0
    antipodal = (slope(high) <= 0) & ~aligned
    for _ in range(60):  # float64 holds 53 bits
        middle = (low + high) / 2
        rising = slope(middle) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    x = ((low + high) / 2).masked_fill(aligned, 0).masked_fill(antipodal, 1)
    return Optimum(x.sqrt(), s_pos(x), s_neg(x), psi(s_neg(x)) - phi(s_pos(x)))


def siglip_optimum(n: int, scale, bias) -> Optimum:
    """:func:`optimum` of SigLIP at fixed t and bias: the exact phase diagram of excessive separation.

    Args:
        n: number of instances, at least 2.
        scale: t > 0, number or tensor.
        bias: SigLIP's own sign (logits t·s + bias; Lee et al. write b = -bias); it broadcasts with ``scale``.

    Returns:
        An :class:`Optimum` of float64 tensors in the broadcast shape.

    Raises:
        CompanionError: if n < 2, t is not positive, or a value is not finite.
    """
    scale, bias = _hyperparameters(scale, bias)
    siglip = next(member for member in ADDITIVE_FAMILY if member.name == "SigLIP")
    return optimum(*terms(siglip, n, scale=scale, bias=bias), n)


def _slope(f: Term, x) -> Tensor:
    """f′(x) elementwise, in the shape to which x and the hyperparameters inside f broadcast."""
    x = torch.as_tensor(x, dtype=torch.float64)
    with torch.enable_grad():
        x = x.detach().expand(f(x).shape).clone().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]


def _hyperparameters(scale, bias) -> tuple[Tensor, Tensor]:
    """Scale and bias as sound float64 tensors."""
    scale, bias = torch.as_tensor(scale, dtype=torch.float64), torch.as_tensor(bias, dtype=torch.float64)
    for name, given, sound, expected in (
        ("scale", scale, torch.isfinite(scale) & (scale > 0), "finite numbers greater than 0; is it the bias?"),
        ("bias", bias, torch.isfinite(bias), "finite numbers (SigLIP's own start is -10)."),
    ):
        if not sound.all():
            wrong = given[~sound]
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise CompanionError(
                f"{name} holds {', '.join(f'{x:g}' for x in wrong[:3].tolist())}{more}: expected {expected}"
            )
    return scale, bias
