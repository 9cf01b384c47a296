"""The two general families of Lee et al. (2025, Definitions 3.1 and 3.2), and their members as it tabulates them.

A family is written as its definition reads, on all 2n views at once, in float64: it is the yardstick that the losses
are held against, not the way to train.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion import losses
from companion.losses._inputs import loss
from companion.losses._pairs import log1p_exp
from companion.similarity import Similarity, cosine


def pair_weights(n: int, *, c1: float, c2: float) -> Tensor:
    """What a pair of views counts among the negatives: c₁ across views, c₂ within a view, 0 for one instance.

    Args:
        n: instances.
        c1: weight of the cross-view negatives (u_i, v_j), i ≠ j.
        c2: weight of the within-view negatives (u_i, u_j) and (v_i, v_j), i ≠ j.

    Returns:
        (2n, 2n) float64 weights for the rows and columns of cat([u, v]).
    """
    different = 1 - torch.eye(n, dtype=torch.float64)
    return torch.cat([torch.cat([c2 * different, c1 * different], 1), torch.cat([c1 * different, c2 * different], 1)])


@loss(prepare=False)  # they do so in float64
def info_nce_family(
    u: Tensor, v: Tensor, *, phi: Callable, psi: Callable, c1: float, c2: float, similarity=cosine
) -> Tensor:
    """Definition 3.1: mean of ψ(c₁ Σ φ(s⁻ - s⁺) + c₂ Σ φ(s⁻ - s⁺)), cross-view negatives in the first sum, within-view
    ones in the second.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        phi: φ, of a difference of similarities, elementwise.
        psi: ψ, of an anchor's sum.
        c1: weight of the cross-view negatives.
        c2: weight of the within-view negatives.
        similarity: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar, mean over 2n anchors: half L₁(U, V) plus half L₁(V, U).

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2.
    """
    s, positives, weights = _views(u, v, c1, c2, similarity)
    differences = (s - positives[:, None]).masked_fill(weights == 0, 0)  # a pair that does not count cannot overflow
    return psi((weights * phi(differences)).sum(dim=1)).mean().to(u.dtype)


@loss(prepare=False)  # they do so in float64
def additive_family(
    u: Tensor, v: Tensor, *, phi: Callable, psi: Callable, c1: float, c2: float, similarity=cosine
) -> Tensor:
    """Definition 3.2: -mean φ(s⁺) + c₁ mean ψ(s⁻) over cross-view + c₂ mean ψ(s⁻) over within-view negatives.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        phi: φ, of a positive's similarity.
        psi: ψ, of a negative's similarity, elementwise.
        c1: weight of the cross-view negatives.
        c2: weight of the within-view negatives.
        similarity: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar.

    Raises:
        CompanionError: as :func:`info_nce_family`.
    """
    n = len(u)
    s, positives, weights = _views(u, v, c1, c2, similarity)
    repel = (weights * psi(s.masked_fill(weights == 0, 0))).sum() / (2 * n * (n - 1))
    return (repel - phi(positives).mean()).to(u.dtype)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A named loss and its place in a family. φ and ψ take x, n, and the loss's own hyperparameters by keyword."""

    name: str
    loss: Callable  #: of companion.losses; the same value as the family's
    family: Callable
    phi: Callable
    psi: Callable
    phi_text: str
    psi_text: str
    c1: float
    c2: float

    def in_family(self, u: Tensor, v: Tensor, *, similarity=cosine, **hyperparameters) -> Tensor:
        """The loss as an instance of its family; hyperparameters as in ``loss``."""
        known = {"n": len(u), **hyperparameters}
        phi, psi = (lambda x, f=f: f(x, **known) for f in (self.phi, self.psi))
        return self.family(u, v, phi=phi, psi=psi, c1=self.c1, c2=self.c2, similarity=similarity)


def _info_nce_member(name: str, function: Callable, psi: Callable, psi_text: str, c1: float, c2: float) -> Member:
    return Member(
        name=name, loss=function, family=info_nce_family, c1=c1, c2=c2, psi_text=psi_text, phi_text="exp(x/τ)",
        phi=lambda x, temperature, **_: torch.exp(x / temperature), psi=lambda x, **_: psi(x),
    )  # fmt: skip


# Table 2 of the paper's appendix. Definition 3.1 asks for a convex ψ and these are concave; what the proof of Theorem
# 5.1 uses is that ψ increases and that x ↦ ψ(kφ(x)) is convex, and so it is for all four.
INFO_NCE_FAMILY = (
    _info_nce_member("InfoNCE (CLIP)", losses.clip, torch.log1p, "log(1 + x)", c1=1, c2=0),
    _info_nce_member("SimCLR (NT-Xent)", losses.nt_xent, torch.log1p, "log(1 + x)", c1=1, c2=1),
    _info_nce_member("DCL", losses.dcl, torch.log, "log x", c1=1, c2=1),
    _info_nce_member("DHEL", losses.dhel, torch.log, "log x", c1=0, c2=1),
)

# Table 3. SigLIP's bias has its own sign here: the paper's b is -bias. The paper counts the spectral loss in, although
# its ψ does not increase on [-1, 0], and Theorem 5.1 does not hold for it.
ADDITIVE_FAMILY = (
    Member(
        name="SigLIP", loss=losses.siglip, family=additive_family, c1=1, c2=0,
        phi=lambda x, scale, bias, **_: -log1p_exp(-scale * x - bias), phi_text="-log(1 + exp(-tx + b))",
        psi=lambda x, n, scale, bias: (n - 1) * log1p_exp(scale * x + bias), psi_text="(n-1) log(1 + exp(tx - b))",
    ),
    Member(
        name="Spectral", loss=losses.spectral, family=additive_family, c1=1, c2=0,
        phi=lambda x, **_: x, phi_text="x", psi=lambda x, **_: x.square(), psi_text="x²",
    ),
)  # fmt: skip


def pair_gradient(function: Callable, s: Tensor, y: Tensor | None = None, **hyperparameters) -> Tensor:
    """Which pairs a loss pulls together or pushes apart, and how hard: its gradient with respect to each similarity.

    Args:
        function: a loss of this package that takes `similarity=`.
        s: (k, k) symmetric similarities; of the views cat([u, v]) where the loss takes u and v, so k = 2n.
        y: (k,) labels, where the loss takes labels.
        hyperparameters: of the loss.

    Returns:
        (k, k) symmetric: entry ij is the derivative with respect to the similarity of i and j. Negative: the pair is
        pulled together; positive: pushed apart; 0: not touched.
    """
    table = s.detach().double().requires_grad_()
    index = torch.arange(len(s), dtype=torch.float64, device=s.device)[:, None]  # an embedding is its row in the table
    inputs = (index, y) if y is not None else index.chunk(2)
    value = function(*inputs, similarity=_Table(table), **hyperparameters)
    slope = torch.autograd.grad(value, table)[0]
    return slope + slope.T


class _Table(Similarity):
    def __init__(self, table: Tensor):
        self.table = table

    def matrix(self, a, b):
        return self.table[a.long(), b[:, 0].long()]

    def pairs(self, a, b):
        return self.table[a[:, 0].long(), b[:, 0].long()]


def _views(u: Tensor, v: Tensor, c1: float, c2: float, similarity) -> tuple[Tensor, Tensor, Tensor]:
    """(2n, 2n) similarities of all views, (2n,) similarities to the twin, (2n, 2n) weights of the negatives."""
    z = torch.cat([u, v]).double()
    positives = similarity.paired(u.double(), v.double()).repeat(2)
    return similarity(z, z), positives, pair_weights(len(u), c1=c1, c2=c2).to(z.device)
