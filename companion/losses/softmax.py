"""The InfoNCE family: a softmax picks the positive out of the negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.losses._inputs import loss
from companion.similarity import cosine


@loss
def info_nce(u: Tensor, v: Tensor, *, temperature: float, similarity=cosine) -> Tensor:
    """One-way InfoNCE (van den Oord et al. 2018, Eq. 4): each u_i picks v_i among all v_j.

    Args:
        u: (n, d) anchors.
        v: (n, d) candidates; v_i is the positive of u_i.
        temperature: τ > 0; the logits are similarities / τ.
        similarity: pairwise similarity function.

    Returns:
        Scalar, mean over n anchors, in [0, ∞).

    Raises:
        CompanionError: if the embeddings are not two finite (n, d) views with n >= 2, or τ is not positive.
    """
    logits = similarity(u, v) / temperature  # (n, n)
    return F.cross_entropy(logits, torch.arange(len(u), device=u.device))


@loss
def clip(u: Tensor, v: Tensor, *, temperature: float, similarity=cosine) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, Fig. 3): u picks v, v picks u, averaged.

    In the notation of Lee et al. (2025, Definition 3.1): (c₁, c₂) = (1, 0), cross-view negatives only.

    Args:
        u: (n, d) first view, or images.
        v: (n, d) second view, or texts.
        temperature: τ > 0.
        similarity: pairwise similarity function.

    Returns:
        Scalar, mean over 2n anchors, in [0, ∞).

    Raises:
        CompanionError: as :func:`info_nce`.
    """
    logits = similarity(u, v) / temperature  # (n, n)
    positives = torch.arange(len(u), device=u.device)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


@loss
def nt_xent(u: Tensor, v: Tensor, *, temperature: float, similarity=cosine) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, Eq. 1); Lee et al. (2025): (c₁, c₂) = (1, 1).

    Each of the 2n views picks its twin among the 2n - 1 other views.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        similarity: pairwise similarity function.

    Returns:
        Scalar, mean over 2n anchors, in [0, ∞); log(2n - 1) when all embeddings coincide.

    Raises:
        CompanionError: as :func:`info_nce`.
    """
    logits = _without_self(torch.cat([u, v]), temperature, similarity)  # (2n, 2n)
    return F.cross_entropy(logits, _twins(u))


@loss
def dcl(u: Tensor, v: Tensor, *, temperature: float, similarity=cosine) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, Eq. 6): NT-Xent without the positive in the denominator.

    Args:
        u: (n, d) first view.
        v: (n, d) second view.
        temperature: τ > 0.
        similarity: pairwise similarity function.

    Returns:
        Scalar, mean over 2n anchors; it can be negative.

    Raises:
        CompanionError: as :func:`info_nce`.
    """
    logits = _without_self(torch.cat([u, v]), temperature, similarity)  # (2n, 2n)
    twins = _twins(u)[:, None]  # (2n, 1)
    positives = logits.gather(1, twins).squeeze(1)  # (2n,)
    negatives = logits.scatter(1, twins, -torch.inf).logsumexp(dim=1)  # (2n,)
    return (negatives - positives).mean()


def _without_self(z: Tensor, temperature: float, similarity) -> Tensor:
    """(2n, 2n) logits of all views with each other; a view is never its own candidate."""
    logits = similarity(z, z) / temperature
    return logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)


def _twins(u: Tensor) -> Tensor:
    """(2n,) index of each view's twin in cat([u, v])."""
    return torch.arange(2 * len(u), device=u.device).roll(len(u))
