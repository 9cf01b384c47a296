"""The auxiliary loss of Lee et al. (2025): variance reduction for negative-pair similarity."""

from torch import Tensor

from companion.errors import whole
from companion.losses._inputs import loss
from companion.similarity import cosine, off_diagonal


@loss
def vrns(u: Tensor, v: Tensor, *, n: int, similarity=cosine) -> Tensor:
    """VRNS (Lee et al. 2025, Definition 5.7): mean of (u_iᵀv_j + 1/(n-1))² over the m(m-1) cross-view negatives.

    It pulls every negative similarity of a mini-batch to -1/(n-1), the value that the full batch would give. Since
    mean((s + δ)²) = Var(s) + (E s + δ)², it reduces the variance *and* pins the mean.

    Args:
        u: (m, d) first view of a mini-batch.
        v: (m, d) second view.
        n: size of the *training set*, not of the mini-batch; n >= m.
        similarity: pairwise similarity function.

    Returns:
        Scalar in [0, 4]; add λ times it to a contrastive loss (the paper's default is λ = 30).

    Raises:
        CompanionError: if the embeddings are not two finite (m, d) views with m >= 2, or n < m.
    """
    whole(n, "n (the training-set size)", least=len(u))
    negatives = off_diagonal(similarity(u, v))  # (m, m-1)
    return (negatives + 1 / (n - 1)).square().mean()
