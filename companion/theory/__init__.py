"""The theorems of Lee et al. (2025) as code: configurations, bounds, exact optima, direct optimisation on the sphere.

Three modules: ``exact`` (closed forms), ``additive`` (the independently additive family and its optimum), ``optimise``
(any loss, unit embeddings, no network).
"""

from companion.theory.additive import (
    Optimum,
    optimum,
    separates,
    siglip_boundaries,
    siglip_optimum,
    siglip_separates,
    terms,
)
from companion.theory.exact import (
    Moments,
    bound_slack,
    expected_variance,
    gaussian_uniformity,
    moments,
    negative_gradient,
    positive_bound,
    shifted_simplex,
    simplex_batches,
    simplex_etf,
    variance_bounds,
)
from companion.theory.optimise import Trajectory, optimise

__all__ = [
    "Moments",
    "Optimum",
    "Trajectory",
    "bound_slack",
    "expected_variance",
    "gaussian_uniformity",
    "moments",
    "negative_gradient",
    "optimise",
    "optimum",
    "positive_bound",
    "separates",
    "shifted_simplex",
    "siglip_boundaries",
    "siglip_optimum",
    "siglip_separates",
    "simplex_batches",
    "simplex_etf",
    "terms",
    "variance_bounds",
]
