"""The independently additive family (Lee et al. 2025, Definition 3.2) and its exact optimum."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from companion.errors import CompanionError, whole
from companion.similarity import off_diagonal


@dataclass(frozen=True)
class Additive:
    """-(1/n) Σ φ(u_iᵀv_i) + 1/(n(n-1)) Σ_{i≠j} ψ(u_iᵀv_j), with within-view negatives if c₂ = 1.

    φ and ψ act elementwise on tensors. The theorems ask for φ concave, ψ convex, both increasing on [-1, 1]. Hyperparameters
    inside φ and ψ may be tensors: everything below then works on the whole grid at once.
    """

    phi: Callable[[Tensor], Tensor]
    psi: Callable[[Tensor], Tensor]
    within_view: bool = False  # c₂

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """The loss of two (n, d) views, L2-normalised here; a scalar, without any check, so that it can be vmapped."""
        u, v = normalize(u, dim=1), normalize(v, dim=1)
        value = self._repulsion(u, v) - self.phi((u * v).sum(dim=1)).mean()
        return value + (self._repulsion(u, u) + self._repulsion(v, v)) / 2 if self.within_view else value

    def _repulsion(self, a: Tensor, b: Tensor) -> Tensor:
        return self.psi(off_diagonal(a @ b.T)).mean()


def siglip(n: int, scale, bias, *, within_view: bool = False) -> Additive:
    """SigLIP (Zhai et al. 2023) as a member of the family: φ(x) = log σ(tx + bias), ψ(x) = -(n-1) log σ(-tx - bias).

    Args:
        n: number of instances.
        scale: t > 0, number or tensor.
        bias: SigLIP's own sign (the logits are t·s + bias); Lee et al. (2025) write b = -bias.
        within_view: c₂ = 1.
    """
    return Additive(
        phi=lambda x: logsigmoid(scale * x + bias),
        psi=lambda x: -(n - 1) * logsigmoid(-scale * x - bias),
        within_view=within_view,
    )


def spectral(*, within_view: bool = False) -> Additive:
    """The spectral loss (HaoChen et al. 2021): φ(x) = x, ψ(x) = x². Not a member: ψ falls on [-1, 0]."""
    return Additive(phi=lambda x: x, psi=torch.square, within_view=within_view)


def separates(loss: Additive, n: int) -> Tensor:
    """Condition (8) of Lee et al. (2025, Theorem 5.3): φ′(1) < (n-2)/(2(n-1))·ψ′(-1/(n-1)).

    Where it holds, and there are no within-view negatives and d >= n, the full batch ends excessively separated:
    s_pos < 1 and s_neg < -1/(n-1). For SigLIP it is :func:`siglip_separates`.
    """
    if loss.within_view:
        return torch.zeros_like(_slope(loss.phi, 1), dtype=torch.bool)
    return _slope(loss.phi, 1) < (n - 2) / (2 * (n - 1)) * _slope(loss.psi, -1 / (n - 1))


def siglip_separates(n: int, scale, bias) -> Tensor:
    """Example 5.4, Eq. 10: (1 + e^{t/(n-1)+b}) / (1 + e^{t-b}) < (n-2)/2 with b = -bias.

    Args:
        n: number of instances, at least 2 (for which it never holds).
        scale: t > 0, number or tensor.
        bias: SigLIP's own sign, number or tensor.
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

    a: Tensor  # shift in [0, 1]
    s_pos: Tensor  # 1 - 2a²
    s_neg: Tensor  # every negative: -(1-a²)/(n-1) - a²
    loss: Tensor

    @property
    def phase(self) -> Tensor:
        """0 aligned simplex (a = 0), 1 partly separated, 2 antipodal (a = 1)."""
        return (self.a > 0).int() + (self.a == 1).int()


def optimum(loss: Additive, n: int) -> Optimum:
    """The exact full-batch optimum of an additive loss over all unit embeddings with d >= n.

    By convexity no configuration is better than one with all positives equal and all negatives equal; by the sharp
    :func:`companion.theory.positive_bound` the shifted simplices are the best of those. The loss of a shifted simplex
    is convex in x = a², so one bisection on its slope finds the minimum. With within-view negatives it is a = 0
    (Theorem 5.1).

    Args:
        loss: φ and ψ, whose hyperparameters may be tensors.
        n: number of instances, at least 2.

    Raises:
        CompanionError: if φ or ψ is not increasing on [-1, 1], where the reasoning fails (the spectral loss).
    """
    whole(n, "n", least=2)
    if (_slope(loss.psi, -1) < 0).any() or (_slope(loss.phi, 1) < 0).any():
        raise CompanionError(
            "φ or ψ is not increasing on [-1, 1]: its optimum need not be a shifted simplex (the spectral loss ends in "
            "an orthonormal frame). Use companion.theory.optimise instead."
        )

    def s_pos(x):
        return 1 - 2 * x

    def s_neg(x):
        return -(1 - x) / (n - 1) - x

    def slope(x):
        return 2 * _slope(loss.phi, s_pos(x)) - (n - 2) / (n - 1) * _slope(loss.psi, s_neg(x))

    low = torch.zeros_like(slope(0.0))
    high = torch.ones_like(low)
    aligned = slope(low) >= 0 if not loss.within_view else torch.ones_like(low, dtype=torch.bool)
    antipodal = (slope(high) <= 0) & ~aligned
    for _ in range(60):  # float64 holds 53 bits
        middle = (low + high) / 2
        rising = slope(middle) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    x = ((low + high) / 2).masked_fill(aligned, 0).masked_fill(antipodal, 1)
    value = loss.psi(s_neg(x)) - loss.phi(s_pos(x))
    if loss.within_view:
        value = value + loss.psi(s_neg(x))
    return Optimum(x.sqrt(), s_pos(x), s_neg(x), value)


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
    return optimum(siglip(n, *_hyperparameters(scale, bias)), n)


def _slope(f: Callable[[Tensor], Tensor], x) -> Tensor:
    """f′(x) elementwise, in the shape to which x and the hyperparameters inside f broadcast."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


def _hyperparameters(scale, bias) -> tuple[Tensor, Tensor]:
    """Scale and bias as sound float64 tensors."""
    scale, bias = torch.as_tensor(scale, dtype=torch.float64), torch.as_tensor(bias, dtype=torch.float64)
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise CompanionError(f"scale is {scale.tolist()}: expected finite numbers greater than 0.")
    if not torch.isfinite(bias).all():
        raise CompanionError(f"bias is {bias.tolist()}: expected finite numbers (SigLIP's own start is -10).")
    return scale, bias
