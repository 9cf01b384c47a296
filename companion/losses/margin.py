"""Margin losses, written for similarities: greater is more alike, so a negative is pushed *down* to the margin.

The forms are those of Feeney & Hughes' post, whose printed signs fit distances instead; here they are right for
similarities. Margins are in units of the similarity: with Euclidean similarity, a difference of distances.
"""

import torch
from torch import Tensor

from companion.errors import number
from companion.losses._inputs import loss, not_negative
from companion.losses._pairs import NoPositive, SameLabel
from companion.similarity import cosine


@loss(margin=number)
def contrastive_margin(z: Tensor, y: Tensor, *, margin: float, similarity=cosine) -> Tensor:
    """The contrastive loss, after Hadsell et al. 2006: -s for a positive pair, max(0, s - margin) for a negative.

    Positives attract without end; negatives repel until their similarity is below the margin. Hadsell et al. square
    both terms, in distances; here they stay as in Feeney & Hughes. (Chopra et al. 2005 had an exponential, no margin.)

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        margin: the similarity that a negative pair may keep, of any sign; with Euclidean similarity, minus
            the distance.
        similarity: a similarity function of :mod:`companion.similarity`, or your own.

    Returns:
        Scalar, mean over the n(n-1) pairs.

    Raises:
        CompanionError: if z is not (n, d), finite, with n >= 2, y not its labels, or the margin not finite.
    """
    s, same, different = _compare(z, y, similarity)  # (n, n)
    return _mean(torch.where(same, -s, (s - margin).relu()), same | different)


@loss(margin=not_negative)
def triplet(z: Tensor, y: Tensor, *, margin: float, similarity=cosine) -> Tensor:
    """Triplet loss (Schroff et al. 2015, Section 3.1): max(0, s⁻ - s⁺ + margin) over all triplets of anchor, s⁺ and s⁻.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        margin: >= 0, by how much a positive is to be more similar than a negative.
        similarity: as in :func:`contrastive_margin`.

    Returns:
        Scalar in [0, ∞), mean over all triplets; 0 if there is none.

    Raises:
        CompanionError: as :func:`contrastive_margin`, or for a negative margin.
    """
    s, same, different = _compare(z, y, similarity)
    anchor, other = same.nonzero(as_tuple=True)  # (p,) each: the p positive pairs
    return _mean((s[anchor] - s[anchor, other, None] + margin).relu(), different[anchor])  # of (p, n)


@loss(margin=not_negative)
def lifted(z: Tensor, y: Tensor, *, margin: float, similarity=cosine) -> Tensor:
    """Lifted structured loss (Oh Song et al. 2016, Eq. 3): a positive pair against the hardest negative of either end.

    Oh Song et al. square the hinge, halve it, and smooth the maximum for training; here it stays as in Feeney & Hughes.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        margin: >= 0.
        similarity: as in :func:`contrastive_margin`.

    Returns:
        Scalar in [0, ∞), mean over positive pairs that have a negative; 0 if there is none.

    Raises:
        CompanionError: as :func:`triplet`.
    """
    s, same, different = _compare(z, y, similarity)
    hardest = s.masked_fill(~different, -torch.inf).amax(dim=1)  # (n,)
    of_either = torch.maximum(hardest[:, None], hardest)  # (n, n)
    return _mean((of_either - s + margin).relu(), same & different.any(dim=1, keepdim=True))


@loss(margin=not_negative)
def batch_hard(z: Tensor, y: Tensor, *, margin: float, similarity=cosine) -> Tensor:
    """Batch hard (Hermans et al. 2017, Eq. 5): the triplet of an anchor's least similar positive and hardest negative.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        margin: >= 0.
        similarity: as in :func:`contrastive_margin`.

    Returns:
        Scalar in [0, ∞), mean over anchors that have both a positive and a negative; 0 if there is none.

    Raises:
        CompanionError: as :func:`triplet`.
    """
    s, same, different = _compare(z, y, similarity)
    least = s.masked_fill(~same, torch.inf).amin(dim=1)  # (n,)
    hardest = s.masked_fill(~different, -torch.inf).amax(dim=1)  # (n,)
    return _mean((hardest - least + margin).relu(), same.any(dim=1) & different.any(dim=1))


def _compare(z: Tensor, y: Tensor, similarity) -> tuple[Tensor, Tensor, Tensor]:
    """(n, n) similarities, mask of the positive pairs, mask of the negative ones."""
    everything = range(len(z)), range(len(z)), z.device
    return similarity(z, z), ~NoPositive(y).mask(*everything), ~SameLabel(y).mask(*everything)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values, 0 if there are none."""
    return values.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)
