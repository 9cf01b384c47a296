"""How good features are: a linear probe and a k-NN classifier, with the spread that a finite test set gives.

Features on the CPU go to scikit-learn; those on a GPU stay there, where 45,000 take a second in place of a minute.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from torch import Tensor

from companion.errors import CompanionError, whole
from companion.similarity import Similarity, cosine
from companion.training.config import NEIGHBOURS

STEPS, TOLERANCE = 1000, 1e-3  # of L-BFGS: most steps, and the largest entry of the gradient at the end
CONVERGED = 1e-6  # the same of Newton's method
CHUNK = 1024  # images whose similarities to all training images are in memory at once


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *tests: tuple[Tensor, Tensor],
    C: float = 1.0,
    normalise: bool = True,
    newton: bool = False,
) -> list[np.ndarray]:
    """Multinomial logistic regression on frozen, L2-normalised features.

    The papers train it by SGD without weight decay. The objective is convex, so we hand it to L-BFGS, which needs the
    features standardised to converge, and take a weak L2 penalty in place of SGD's early stopping.

    Args:
        features: (n, d) encoder outputs of training images, without augmentation.
        labels: (n,).
        tests: pairs of features (k, d) and labels (k,).
        C: inverse of the L2 penalty, as in scikit-learn.
        normalise: bring each feature vector to length 1 first, as the papers do with an encoder's; for pixels and
            colours that would only lose how bright they are.
        newton: by Newton's method in double precision on the CPU, to ``CONVERGED``: for few features that hang
            together, where L-BFGS stops far from the optimum. Its memory is of the order (d · classes)².

    Returns:
        For each test set, (k,) booleans: which images are classified correctly.

    Raises:
        ValueError: by scikit-learn, on the CPU, if the training images are of one class.
    """
    if newton:
        features, labels, *tests = (
            features.double().cpu(),
            labels.cpu(),
            *((x.double().cpu(), y.cpu()) for x, y in tests),
        )
    if features.device.type != "cpu":
        return _score(_linear(features, labels, C, normalise), tests)
    first = Normalizer() if normalise else FunctionTransformer()
    solver = {"solver": "newton-cholesky", "tol": CONVERGED} if newton else {"tol": TOLERANCE}
    classifier = make_pipeline(first, StandardScaler(), LogisticRegression(C=C, max_iter=STEPS, **solver))
    return _score(_fitted(classifier, features, labels), tests)


def knn(features: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor], k: int = NEIGHBOURS) -> list[np.ndarray]:
    """Majority vote of the ``k`` training images of highest cosine similarity; arguments as :func:`linear_probe`.

    Raises:
        CompanionError: if k is no whole number from 1 to n.
    """
    _voters(k, len(features))
    if features.device.type != "cpu":
        return _score(_nearest(features, labels, k), tests)
    return _score(_fitted(KNeighborsClassifier(n_neighbors=k, metric="cosine"), features, labels), tests)


def weighted_knn(
    train: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor], k: int = 1, similarity: Similarity = cosine
) -> list[np.ndarray]:
    """The ``k`` training images of highest similarity vote, each with the weight of its cosine similarity, as in
    the evaluation of SupCon and SINCERE on projections. A cosine below zero counts as none, or a neighbour would vote
    against its own class.

    Args:
        train: (n, d) embeddings of training images.
        labels: (n,).
        tests: pairs of embeddings (q, d) and labels (q,).
        k: neighbours that vote, n at most.
        similarity: what a neighbour is; the weights are cosines whatever it is.

    Returns:
        For each test set, (q,) booleans: which images are classified correctly. Of classes with equal votes the first
        wins.

    Raises:
        CompanionError: if k is no whole number from 1 to n.
    """
    _voters(k, len(train))
    classes = int(labels.max()) + 1

    def predict(x: Tensor) -> Tensor:
        found = []
        for part in x.split(CHUNK):
            nearest = similarity(part, train).topk(k, dim=1).indices  # (q, k)
            weights = cosine(part, train).gather(1, nearest).clamp(min=torch.finfo(part.dtype).tiny)
            votes = weights.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], weights)
            found.append(votes.argmax(dim=1))
        return torch.cat(found) if found else labels[:0]

    return _score(predict, tests)


def _voters(k: int, n: int) -> None:
    if whole(k, "k", least=1) > n:
        raise CompanionError(f"k is {k}: expected 1 to {n}, the number of training images.")


def _score(predict, tests) -> list[np.ndarray]:
    return [(predict(x) == y).cpu().numpy() for x, y in tests]


def _fitted(classifier, features: Tensor, labels: Tensor):
    classifier.fit(features.numpy(), labels.numpy())
    return lambda x: torch.from_numpy(classifier.predict(x.numpy()))


def _linear(features: Tensor, labels: Tensor, C: float, normalise: bool):
    """The same objective by torch's L-BFGS, to the same tolerance, wherever the features lie."""

    def prepared(x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if normalise else x

    x, (names, labels) = prepared(features), labels.unique(return_inverse=True)
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, 1)  # a constant feature says nothing
    x = (x - mean) / scale
    weight, bias = (x.new_zeros(shape, requires_grad=True) for shape in ((x.shape[1], len(names)), (len(names),)))
    # Of two classes scikit-learn fits w₁ − w₀ alone; where w₁ = −w₀, its square is twice the sum of theirs.
    penalty = (2 if len(names) == 2 else 1) / (2 * C * len(x))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    @torch.enable_grad()
    def objective() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    return lambda x: names[((prepared(x) - mean) / scale @ weight + bias).argmax(dim=1)]


def _nearest(features: Tensor, labels: Tensor, k: int):
    """The same vote; of classes with as many votes the first wins, as with scikit-learn."""
    train, classes = F.normalize(features, dim=1), int(labels.max()) + 1
    first = torch.arange(classes, 0, -1, device=train.device) / (classes + 1)  # less than a vote

    def predict(x: Tensor) -> Tensor:
        parts = [(part @ train.T).topk(k, dim=1).indices for part in F.normalize(x, dim=1).split(CHUNK)]
        votes = F.one_hot(labels[torch.cat(parts)], classes).sum(dim=1)  # (n, classes)
        return (votes + first).argmax(dim=1)

    return predict


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy: what another test set of the same size might have given.

    Args:
        correct: (k,) booleans, one a test image.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        CompanionError: if there is no test image.
    """
    if len(correct) == 0:
        raise CompanionError("The accuracy of no image at all has no interval: expected at least one test image.")
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
