"""How good features are: a linear probe and a k-NN classifier, with the spread that a finite test set gives."""

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from torch import Tensor

from companion.errors import CompanionError
from companion.training.config import NEIGHBOURS


def linear_probe(
    features: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor], C: float = 1.0, normalise: bool = True
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

    Returns:
        For each test set, (k,) booleans: which images are classified correctly.
    """
    first = Normalizer() if normalise else FunctionTransformer()
    classifier = make_pipeline(first, StandardScaler(), LogisticRegression(C=C, max_iter=1000, tol=1e-3))
    return _correct(classifier, features, labels, tests)


def knn(features: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor], k: int = NEIGHBOURS) -> list[np.ndarray]:
    """Majority vote of the ``k`` training images of highest cosine similarity; arguments as :func:`linear_probe`."""
    return _correct(KNeighborsClassifier(n_neighbors=k, metric="cosine"), features, labels, tests)


def _correct(classifier, features: Tensor, labels: Tensor, tests) -> list[np.ndarray]:
    classifier.fit(features.cpu().numpy(), labels.cpu().numpy())
    return [classifier.predict(x.cpu().numpy()) == y.cpu().numpy() for x, y in tests]


def accuracy_interval(correct: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an accuracy: what another test set of the same size might have given.

    Args:
        correct: (k,) booleans, one a test image.
        level: confidence level in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        CompanionError: if there is no test image.
    """
    if len(correct) == 0:
        raise CompanionError("The accuracy of no image at all has no interval: expected at least one test image.")
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
