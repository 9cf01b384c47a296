"""Independently additive losses (Lee et al. 2025, Definition 3.2): a sum with one term for each pair."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import number, positive
from companion.losses import fused
from companion.losses._inputs import loss, scalar
from companion.losses._pairs import log1p_exp, mean_of_negatives
from companion.similarity import cosine


@loss(fused=fused.sigmoid(), scale=positive, bias=number)
def siglip(
    u: Tensor,
    v: Tensor,
    *,
    scale: float,
    bias: float,
    within_view: bool = False,
    similarity=cosine,
    tile: int | None = None,
) -> Tensor:
    """SigLIP (Zhai et al. 2023, Algorithm 1): every pair on its own is classified as positive or negative.

    The logits are ``scale * s + bias``, SigLIP's own sign, where the bias starts at -10. Lee et al. (2025) write
    t·s - b: their b is ``-bias``.

    Args:
        u: (n, d) first view, or images.
        v: (n, d) second view, or texts.
        scale: t > 0, a number, or a tensor if it is learned; SigLIP starts at 10.
        bias: a number, or a tensor if it is learned; SigLIP starts at -10.
        within_view: add half the same sum over the pairs (u_i, u_j) and (v_i, v_j), i ≠ j: c₂ = 1.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar, mean over n instances of the sum over their pairs, in (0, ∞).

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2, t is not positive, or the bias
            not finite.
    """
    attract = log1p_exp(-(scale * similarity.paired(u, v) + bias)).mean()
    learned = [scalar(x, like=u) for x in (scale, bias)]
    # log(1 + e^x) = -log σ(-x), of x = t s + b: the signs cost a pass over all pairs each unless taken outside
    repel = -_negatives(lambda s, t, b: F.logsigmoid(-t * s - b), u, v, within_view, similarity, tile, learned)
    return attract + (len(u) - 1) * repel


@loss
def spectral(u: Tensor, v: Tensor, *, within_view: bool = False, similarity=cosine, tile: int | None = None) -> Tensor:
    """Spectral contrastive loss, -mean s⁺ + mean (s⁻)², as Lee et al. (2025) write it.

    HaoChen et al. (2021, Eq. 6) weight the positives by 2 and do not normalise the embeddings.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        within_view: add the mean of s² over within-view pairs: c₂ = 1.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar in [-1, 3] with cosine similarity.

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2.
    """
    return _negatives(torch.square, u, v, within_view, similarity, tile) - similarity.paired(u, v).mean()


def _negatives(term, u: Tensor, v: Tensor, within_view: bool, similarity, tile, shared=()) -> Tensor:
    """Mean of `term` over the n(n-1) cross-view negatives; with `within_view`, plus that over within-view ones."""
    mean = functools.partial(mean_of_negatives, term, similarity=similarity, shared=shared, tile=tile)
    return mean(u, v) + (mean(u, u) + mean(v, v)) / 2 if within_view else mean(u, v)
