"""The auxiliary loss of Lee et al. (2025): variance reduction for negative-pair similarity."""

from torch import Tensor

from companion.errors import whole
from companion.losses._inputs import loss
from companion.losses._pairs import mean_of_negatives
from companion.similarity import cosine


@loss
def vrns(u: Tensor, v: Tensor, *, n: int, similarity=cosine, tile: int | None = None) -> Tensor:
    """VRNS (Lee et al. 2025, Definition 5.7): mean of (u_iᵀv_j + 1/(n-1))² over the m(m-1) cross-view negatives.

    It pulls every negative similarity of a mini-batch to -1/(n-1), the value that the full batch would give; so it
    reduces the variance *and* pins the mean, see :func:`vrns_parts`.

    Args:
        u: (m, d) first view of a mini-batch.
        v: (m, d) second view.
        n: size of the *training set*, not of the mini-batch; n >= m.
        similarity, tile: as in :func:`companion.losses.info_nce`.

    Returns:
        Scalar in [0, 4]; add λ times it to a contrastive loss (the weight of the paper's Table 1 is
        λ = 30; for accuracies it tunes λ over .1 to 100). Choose it anew for another temperature: beside the positive,
        NT-Xent and λ · VRNS weigh the variance by about 1/(2τ) + λτ, to second order in s/τ.

    Raises:
        CompanionError: if the embeddings are not two finite (m, d) views with m >= 2, or n < m.
    """
    n = whole(n, "n (the training-set size)", least=len(u))
    return mean_of_negatives(lambda s: (s + 1 / (n - 1)).square(), u, v, similarity, tile=tile)


@loss
def vrns_parts(u: Tensor, v: Tensor, *, n: int, similarity=cosine, tile: int | None = None) -> tuple[Tensor, Tensor]:
    """The two parts that add up to :func:`vrns`: the variance of the negatives, and (their mean + 1/(n-1))².

    Args:
        u, v, n, similarity, tile: as in :func:`vrns`.

    Returns:
        Two scalars >= 0, each differentiable on its own.

    Raises:
        CompanionError: as :func:`vrns`.
    """
    n = whole(n, "n (the training-set size)", least=len(u))
    mean = mean_of_negatives(lambda s: s, u, v, similarity, tile=tile)
    variance = mean_of_negatives(lambda s, mean: (s - mean).square(), u, v, similarity, shared=(mean,), tile=tile)
    return variance, (mean + 1 / (n - 1)).square()
