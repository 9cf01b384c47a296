"""How good features are: a linear probe and a k-NN classifier, with the spread that a finite test set gives."""

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor


def linear_probe(features: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor]) -> list[np.ndarray]:
    """Multinomial logistic regression on frozen, L2-normalised features.

    The papers train it by SGD without weight decay. The objective is convex, so we hand it to L-BFGS, which needs the
    features standardised to converge, and take a weak L2 penalty in place of SGD's early stopping.

    Args:
        features: (n, d) encoder outputs of training images, without augmentation.
        labels: (n,).
        tests: pairs of features (k, d) and labels (k,).

    Returns:
        For each test set, (k,) booleans: which images are classified correctly.
    """
    classifier = make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, tol=1e-3))
    return _correct(classifier, features, labels, tests)


def knn(features: Tensor, labels: Tensor, *tests: tuple[Tensor, Tensor], k: int = 5) -> list[np.ndarray]:
    """Majority vote of the ``k`` training images of highest cosine similarity; arguments as :func:`linear_probe`."""
    return _correct(KNeighborsClassifier(n_neighbors=k, metric="cosine"), features, labels, tests)


def _correct(classifier, features: Tensor, labels: Tensor, tests) -> list[np.ndarray]:
    classifier.fit(features.numpy(), labels.numpy())
    return [classifier.predict(x.numpy()) == y.numpy() for x, y in tests]


def bootstrap_interval(correct: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of an accuracy over resampled test sets (percentile bootstrap, 1,000 resamples).

    Args:
        correct: (k,) booleans, one a test image.
        level: confidence level in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].
    """
    if correct.all() or not correct.any():  # every resample is the same
        return float(correct[0]), float(correct[0])
    result = stats.bootstrap(
        (correct.astype(float),), np.mean, confidence_level=level, n_resamples=1000, method="percentile", rng=0
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
