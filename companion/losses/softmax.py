"""The InfoNCE family: a softmax picks the positive out of the negatives.

Every loss here compares an anchor's negatives, as one log-sum-exp, with its positive: log(1 + e^x) or x itself of
x = log Σ exp(s⁻/τ) - s⁺/τ. They differ in which pairs are negatives, and in whether the positive competes with them.
"""

import math

import torch
from torch import Tensor

from companion.errors import CompanionError, choose, positive, whole
from companion.losses import fused, tiled
from companion.losses._inputs import loss, not_negative
from companion.losses._pairs import SameInstance, SameLabel, log1p_exp, log_sum_exp, log_sum_exp_both_ways, total
from companion.similarity import cosine


@loss(fused=fused.softmax())
def info_nce(
    u: Tensor, v: Tensor, *, temperature: float, queue: Tensor | None = None, similarity=cosine, tile: int | None = None
) -> Tensor:
    """One-way InfoNCE (van den Oord et al. 2018, Eq. 4): each u_i picks v_i among all v_j.

    Args:
        u: (n, d) anchors.
        v: (n, d) candidates; v_i is the positive of u_i.
        temperature: τ > 0, a number, or a tensor if it is learned; the logits are similarities / τ.
        queue: (k, d) negatives of every anchor, in place of the other v_j (MoCo, He et al. 2020, Eq. 1); one anchor is
            enough then.
        similarity: a similarity function of :mod:`companion.similarity`, or your own.
        tile: None: what is fastest, the whole matrix for few pairs and tiles for many (:mod:`companion.losses.tiled`);
            or the side of the square tiles to compute in, with O(n·tile) memory.

    Returns:
        Scalar, mean over n anchors, in [0, ∞).

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2 (n >= 1 with a queue), the queue
            not (k, d), finite, with k >= 1, or τ is not positive.
    """
    positives = similarity.paired(u, v) / temperature  # (n,)
    if queue is None:
        negatives = log_sum_exp(u, v, temperature, similarity, SameInstance(len(u)), tile)  # (n,)
    else:
        negatives = log_sum_exp(u, queue, temperature, similarity, tile=tile)  # (n,)
    return log1p_exp(negatives - positives).mean()


@loss(fused=fused.softmax(both_ways=True))
def clip(
    u: Tensor, v: Tensor, *, temperature: float, within_view: bool = False, similarity=cosine, tile: int | None = None
) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, Fig. 3): u picks v, v picks u, averaged.

    In the notation of Lee et al. (2025, Definition 3.1): (c₁, c₂) = (1, 0), cross-view negatives only.

    Args:
        u: (n, d) first view, or images.
        v: (n, d) second view, or texts.
        temperature: τ > 0; 1 / τ is CLIP's logit scale, see :class:`LogitScale` to learn it.
        within_view: add the within-view negatives, c₂ = 1; that is :func:`nt_xent`.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over 2n anchors, in [0, ∞).

    Raises:
        CompanionError: as :func:`info_nce`.
    """
    if within_view:
        return nt_xent(u, v, temperature=temperature, similarity=similarity, tile=tile)
    positives = similarity.paired(u, v) / temperature  # (n,)
    of_u, of_v = log_sum_exp_both_ways(u, v, temperature, similarity, SameInstance(len(u)), tile)  # (n,), (n,)
    return (log1p_exp(of_u - positives) + log1p_exp(of_v - positives)).mean() / 2


@loss(fused=fused.softmax(all_views=True))
def nt_xent(
    u: Tensor, v: Tensor, *, temperature: float, y: Tensor | None = None, similarity=cosine, tile: int | None = None
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, Eq. 1); Lee et al. (2025): (c₁, c₂) = (1, 1).

    Each of the 2n views picks its twin among the 2n - 1 other views.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        y: (n,) whole-number labels; with them views of an anchor's own class, the false negatives, do not count.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over 2n anchors, in [0, ∞); without labels log(2n - 1) when all embeddings coincide.

    Raises:
        CompanionError: as :func:`info_nce`, or if y is not one label for each instance.
    """
    skip = SameInstance(len(u)) if y is None else SameLabel(y.repeat(2))
    negatives, positives = _all_negatives(u, v, temperature, similarity, tile, skip)
    return log1p_exp(negatives - positives).mean()


@loss(fused=fused.softmax(all_views=True, competes=False))
def dcl(u: Tensor, v: Tensor, *, temperature: float, similarity=cosine, tile: int | None = None) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, Eq. 6): NT-Xent without the positive in the denominator.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over 2n anchors; it can be negative.

    Raises:
        CompanionError: as :func:`info_nce`.
    """
    negatives, positives = _all_negatives(u, v, temperature, similarity, tile)
    return (negatives - positives).mean()


@loss(sigma=positive)
def dclw(
    u: Tensor, v: Tensor, *, temperature: float, sigma: float = 0.5, similarity=cosine, tile: int | None = None
) -> Tensor:
    """DCL with weighted positives (Yeh et al. 2022, Eq. 7): 2 - n softmax(s⁺/σ)_i, whose mean is 1.

    Pairs that are still far apart pull harder. The weight is a constant for the gradient.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        sigma: σ > 0; as it grows, all weights become 1, and the loss :func:`dcl`.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over 2n anchors; it can be negative.

    Raises:
        CompanionError: as :func:`info_nce`, or if σ is not positive.
    """
    negatives, positives = _all_negatives(u, v, temperature, similarity, tile)
    weights = 2 - len(u) * (similarity.paired(u, v).detach() / sigma).softmax(dim=0)  # (n,)
    return (negatives - weights.repeat(2) * positives).mean()


@loss
def dhel(
    u: Tensor, v: Tensor, *, temperature: float, form: str = "lee", similarity=cosine, tile: int | None = None
) -> Tensor:
    """DHEL (Koromilas et al. 2024): alignment and uniformity decoupled; (c₁, c₂) = (0, 1), within-view negatives only.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        form: ``lee``: -s⁺/τ + (log Σ over u + log Σ over v) / 2, as Lee et al. (2025) write it; ``koromilas``: the
            authors' own default, which does not halve the sum.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over n instances; it can be negative.

    Raises:
        CompanionError: as :func:`info_nce`, or for an unknown form.
    """
    choose(form, ("lee", "koromilas"), "form of DHEL")
    positives = similarity.paired(u, v) / temperature  # (n,)
    of_u = log_sum_exp(u, u, temperature, similarity, SameInstance(len(u)), tile)  # (n,)
    of_v = log_sum_exp(v, v, temperature, similarity, SameInstance(len(u)), tile)  # (n,)
    negatives = of_u + of_v if form == "koromilas" else (of_u + of_v) / 2
    return (negatives - positives).mean()


@loss
def hard_contrastive(
    u: Tensor, v: Tensor, *, temperature: float, keep: int, similarity=cosine, tile: int | None = None
) -> Tensor:
    """Hard contrastive loss (Wang & Liu 2021, Eq. 9): one-way InfoNCE against an anchor's hardest negatives only,
    used before by Zhuang et al. (2019, Local Aggregation).

    Args:
        u: (n, d) anchors.
        v: (n, d) candidates.
        temperature: τ > 0.
        keep: how many negatives an anchor keeps, 1 … n - 1; with n - 1 the loss is :func:`info_nce`.
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over n anchors, in [0, ∞).

    Raises:
        CompanionError: as :func:`info_nce`, or if `keep` is outside its range.
    """
    positives = similarity.paired(u, v) / temperature  # (n,)
    negatives = (_hardest(u, v, keep, similarity, tile) / temperature).logsumexp(dim=1)  # (n,)
    return log1p_exp(negatives - positives).mean()


@loss(weight=not_negative)
def simple(
    u: Tensor, v: Tensor, *, weight: float, keep: int | None = None, similarity=cosine, tile: int | None = None
) -> Tensor:
    """The simple loss (Wang & Liu 2021, Eq. 3): -s_ii + λ Σ_{j≠i} s_ij, InfoNCE's limit τ → ∞: all negatives alike.

    Args:
        u: (n, d) anchors.
        v: (n, d) candidates.
        weight: λ >= 0 of the *sum* over an anchor's negatives; 1 / (n - 1) gives the limit, and their mean.
        keep: with a number, only that many hardest negatives of each anchor (HardSimple in the paper's Table 1).
        similarity, tile: as in :func:`info_nce`.

    Returns:
        Scalar, mean over n anchors.

    Raises:
        CompanionError: if the embeddings are not two finite views with n >= 2, λ is negative, or `keep` is outside
            1 … n - 1.
    """
    if keep is None:
        negatives = total(lambda s: s, u, v, similarity, SameInstance(len(u)), tile=tile)
    else:
        negatives = _hardest(u, v, keep, similarity, tile).sum()
    return weight * negatives / len(u) - similarity.paired(u, v).mean()


class LogitScale(torch.nn.Module):
    """A learned logit scale 1/τ as in CLIP (Radford et al. 2021): learned as a logarithm, never above `largest`.

    ``scale = LogitScale()``, then ``clip(u, v, temperature=1 / scale())``; its parameter belongs to the optimiser,
    without weight decay. For SigLIP start from 10: ``siglip(u, v, scale=scale(), bias=bias)``.

    Raises:
        CompanionError: if `initial` or `largest` is not a positive number, or `initial` is the larger.
    """

    def __init__(self, initial: float = 1 / 0.07, largest: float = 100):
        super().__init__()
        if positive(initial, "initial") > positive(largest, "largest"):
            raise CompanionError(f"initial is {initial}: expected at most `largest`, {largest}.")
        self.logarithm = torch.nn.Parameter(torch.tensor(math.log(initial)))
        self.largest = largest

    def forward(self) -> Tensor:
        """The scale, a scalar with its gradient, which is what multiplies the similarities."""
        with torch.no_grad():  # clip the parameter, not its use: a clipped use would have no gradient to come back by
            self.logarithm.clamp_(max=math.log(self.largest))
        return self.logarithm.exp()


def _all_negatives(u: Tensor, v: Tensor, temperature, similarity, tile, skip=None) -> tuple[Tensor, Tensor]:
    """(2n,) log-sum-exp over the 2(n - 1) views of other instances, or those that ``skip`` leaves of them, and (2n,)
    logits of the positives."""
    z = torch.cat([u, v])
    negatives = log_sum_exp(z, z, temperature, similarity, skip or SameInstance(len(u)), tile)
    positives = similarity.paired(u, v) / temperature  # (n,)
    return negatives, torch.cat([positives, positives])


def _hardest(u: Tensor, v: Tensor, keep: int, similarity, tile) -> Tensor:
    """(n, keep) similarities of each anchor's hardest negatives."""
    n = len(u)
    if whole(keep, "keep", least=1) > n - 1:
        raise CompanionError(f"keep is {keep}: expected at most n - 1 = {n - 1}, the number of negatives.")

    def hardest(rows: range) -> Tensor:
        s = similarity(u[rows.start : rows.stop], v)
        positives = SameInstance(n).mask(rows, range(n), u.device)
        return s.masked_fill(positives, -torch.inf).topk(keep, dim=1).values

    tile = tiled.side(u, v, tile, similarity, largest=2**24)  # blocks of rows only save memory
    return hardest(range(n)) if tile is None else tiled.in_row_blocks(hardest, u, tile)
