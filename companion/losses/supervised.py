"""Losses with labels: every embedding of the anchor's class is a positive. Anchors without a positive are left out."""

import torch
from torch import Tensor

from companion.losses._inputs import loss, not_negative, scalar
from companion.losses._pairs import NoPositive, SameInstance, SameLabel, log_sum_exp, total
from companion.similarity import cosine


@loss
def sup_con(z: Tensor, y: Tensor, *, temperature: float, similarity=cosine, tile: int | None = None) -> Tensor:
    """SupCon (Khosla et al. 2020, Eq. 2): -log of a positive's softmax among *all* other embeddings.

    The anchor's other positives stand in the denominator too, so embeddings of one class also repel each other.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        temperature: τ > 0, a number, or a tensor if it is learned.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar, mean over an anchor's positives, then over the anchors that have one; 0 if none has.

    Raises:
        CompanionError: if z is not (n, d), finite, with n >= 2, y not its labels, or τ not positive.
    """
    candidates = log_sum_exp(z, z, temperature, similarity, SameInstance(len(z)), tile)  # (n,)
    weights = _pair_weights(y, z.dtype)  # (n,)
    anchors = weights > 0
    positives = total(lambda s, w: w * s, z, z, similarity, NoPositive(y), rows=(weights,), tile=tile) / temperature
    return (candidates * anchors).sum() / anchors.sum().clamp(min=1) - positives


@loss
def sincere(z: Tensor, y: Tensor, *, temperature: float, similarity=cosine, tile: int | None = None) -> Tensor:
    """SINCERE (Feeney & Hughes 2023, Eq. 6): -log of a positive's softmax among itself and the other classes.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        temperature: τ > 0.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar in [0, ∞), mean over an anchor's positives, then over the anchors that have one; 0 if none has.

    Raises:
        CompanionError: as :func:`sup_con`.
    """
    return eps_sup_info_nce(z, y, temperature=temperature, epsilon=0, similarity=similarity, tile=tile)


@loss(epsilon=not_negative)
def eps_sup_info_nce(
    z: Tensor, y: Tensor, *, temperature: float, epsilon: float = 0.25, similarity=cosine, tile: int | None = None
) -> Tensor:
    """ε-SupInfoNCE (Barbano et al. 2023, Eq. 8): -log e^s⁺ / (e^(s⁺ - ε) + Σ e^s⁻), SINCERE with a head start ε of the
    negatives.

    It interpolates between :func:`sincere`, ε = 0, and a loss whose denominator holds the negatives only, ε → ∞.

    Args:
        z: (n, d) embeddings.
        y: (n,) whole-number labels.
        temperature: τ > 0.
        epsilon: ε >= 0, subtracted after the division by τ.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar in [-ε, ∞), mean over an anchor's positives, then over the anchors that have one; 0 if none has.

    Raises:
        CompanionError: as :func:`sup_con`, or if ε is negative.
    """
    negatives = log_sum_exp(z, z, temperature, similarity, SameLabel(y), tile)  # (n,); -∞ without other classes
    learned = [scalar(x, like=z) for x in (temperature, -epsilon)]

    def term(s, weight, negative, temperature, margin):
        return weight * torch.logaddexp(margin, negative - s / temperature)  # -log e^s / (e^(s - ε) + e^negative)

    rows = (_pair_weights(y, z.dtype), negatives)
    return total(term, z, z, similarity, NoPositive(y), rows=rows, shared=learned, tile=tile)


def _pair_weights(y: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,) weight of each pair of an anchor and a positive: one over its positives, one over the anchors with any."""
    _, inverse, sizes = y.unique(return_inverse=True, return_counts=True)
    positives = (sizes[inverse] - 1).to(dtype)  # (n,)
    anchors = (positives > 0).sum().clamp(min=1)
    return (positives > 0) / (positives.clamp(min=1) * anchors)
