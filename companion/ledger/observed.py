"""What was observed: a value, its interval, and how many independent observations stand behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from companion.errors import CompanionError, whole

LEVEL = 0.95
EQUAL = 1e-12  # of a value: draws that differ by less differ by rounding alone


@dataclass(frozen=True)
class Observed:
    """A value with its 95 % interval and the number of independent observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self):
        whole(self.n, "The number of observations", least=1)
        if not (math.isfinite(self.value) and self.low <= self.value <= self.high):
            raise CompanionError(
                f"Observed {self.value} in [{self.low}, {self.high}]: expected a finite value inside its interval."
            )

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.0f}" if self.value == round(self.value) else f"{self.value:.4g}"
        if max(-self.low, self.high) < 1e-4:
            return f"{self.value:.1e} [{self.low:.1e}, {self.high:.1e}]"
        digits = 2 - math.floor(math.log10(self.high - self.low))  # the interval to about two digits
        digits = min(max(digits, 0), 6)  # a rounding error is no interval
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def standard_error(self) -> float:
        """Of the value; 0 for an identity."""
        return 0.0 if self.n == 1 else (self.high - self.low) / 2 / stats.t.ppf((1 + LEVEL) / 2, self.n - 1)

    def p_value(self, at_least: float, at_most: float) -> float:
        """How likely a value at least as far to its side of the range's nearest end is, were the truth that very end.

        Small both for a value well inside the range and for one well outside. One-sided, by Student's t;
        0 for an identity.
        """
        if self.standard_error <= EQUAL * abs(self.value):
            return 0.0 if self.n == 1 else 0.5**self.n  # draws that do not differ: of the sign test
        distances = [abs(self.value - end) for end in (at_least, at_most) if math.isfinite(end)]
        return float(stats.t.sf(min(distances) / self.standard_error, self.n - 1))

    def foretells(self, other: "Observed") -> bool:
        """Whether ``other``, another mean of the same quantity, lies in the 95 % prediction interval of this one.

        The spread of single observations is this one's; an identity foretells a value equal to six digits.
        """
        if self.n == 1:
            return math.isclose(self.value, other.value, rel_tol=1e-6, abs_tol=1e-9)
        single = self.standard_error * math.sqrt(self.n)
        half = stats.t.ppf((1 + LEVEL) / 2, self.n - 1) * single * math.sqrt(1 / self.n + 1 / other.n)
        return abs(other.value - self.value) <= half + 1e-12


def over_seeds(values: Sequence[float]) -> Observed:
    """Mean and 95 % Student-t interval of one value a seed; for differences, pair them by seed first.

    Raises:
        CompanionError: for fewer than 3 values, since no claim rests on one run, or for values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3 or not np.isfinite(values).all():
        raise CompanionError(f"Observed {values.tolist()}: expected at least 3 finite values, one a seed.")
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return Observed(values.mean(), values.mean() - half, values.mean() + half, len(values))


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, column: str) -> Observed:
    """``a - b`` in one column of two tables of runs (:func:`companion.training.table`), paired by seed.

    Raises:
        CompanionError: if the two have not the same seeds, each once, or share a run.
    """
    left, right = a.set_index("seed")[column], b.set_index("seed")[column]
    if sorted(left.index) != sorted(right.index) or not left.index.is_unique:
        raise CompanionError(
            f"Seeds {sorted(left.index)} and {sorted(right.index)} cannot be paired: expected the same, each once."
        )
    if "key" in a and "key" in b and (shared := set(a["key"]) & set(b["key"])):
        raise CompanionError(
            f"Runs are compared with themselves: {', '.join(sorted(shared))}. Compare two different settings."
        )
    return over_seeds(left - right.loc[left.index])


def identity(value: float) -> Observed:
    """A value that no seed changes: a theorem's number, an identity's residual."""
    return Observed(float(value), float(value), float(value), 1)
