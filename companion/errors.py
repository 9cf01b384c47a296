"""The package's exceptions and the checks of plain values that several modules share."""

import contextlib
import difflib
import functools
import math
import numbers
import pickle
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator

# What reading a file that is damaged, or is something else, may raise in the readers of Python, NumPy and torch.
DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class CompanionError(ValueError):
    """Bad input, told to the person who gave it: what was given, what was expected, what to do."""


class MissingExtraError(CompanionError, ImportError):
    """A part of the package was imported whose dependencies are not installed."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports that need the optional dependencies ``name``: what is missing is told with the way to get it.

    Raises:
        MissingExtraError: if a package is not installed.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "companion":
            raise
        raise MissingExtraError(
            f"{error.name} is not installed: this part of the companion needs it. Install it with "
            f"`pip install 'contrastive-companion[{name}]'`."
        ) from error


def command(main: Callable) -> Callable[..., int]:
    """Make a function the main of a command, which returns the exit status: 0, or 2 after a :class:`CompanionError`,
    whose message is printed."""

    @functools.wraps(main)
    def wrapped(*arguments, **options) -> int:
        try:
            main(*arguments, **options)
        except CompanionError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    return wrapped


def choose(value, options, what: str):
    """Return ``value`` if it is one of ``options``, else raise a :class:`CompanionError` that suggests the nearest."""
    options = list(options)
    if value in options:
        return value
    near = difflib.get_close_matches(str(value), map(str, options), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise CompanionError(f"Unknown {what} {value!r}: expected one of {', '.join(map(str, options))}.{hint}")


def known_arguments(function: str, given, known) -> None:
    """Raise as Python does for a keyword argument that a function does not know, with the nearest that it does."""
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{hint}")


def positive(value, what: str, *, zero: bool = False) -> float:
    """Return ``value`` if it is a finite number > 0 (or >= 0 with ``zero=True``), else raise."""
    number = _finite(value)
    if not (number > 0 or (zero and number == 0)):
        bound = "at least 0" if zero else "greater than 0"
        raise CompanionError(f"{what} is {value!r}: expected a finite number {bound}.")
    return value


def number(value, what: str) -> float:
    """Return ``value`` if it is a finite number, else raise."""
    if math.isnan(_finite(value)):
        raise CompanionError(f"{what} is {value!r}: expected a finite number.")
    return value


def _finite(value) -> float:
    """The value as a float; NaN if it is infinite or no number, as is text, although ``float`` would read one in it."""
    try:
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last from a tensor of several entries
        return math.nan
    return found if math.isfinite(found) else math.nan


def share(value, what: str) -> float:
    """Return ``value`` if it is a number from 0 to 1, else raise."""
    if not 0 <= number(value, what) <= 1:
        raise CompanionError(f"{what} is {value!r}: expected a number from 0 to 1.")
    return value


def whole(value, what: str, *, least: int) -> int:
    """Return ``value`` as an ``int`` if it is an integer >= ``least``, NumPy's too, else raise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise CompanionError(f"{what} is {value!r}: expected a whole number of at least {least}.")
    return int(value)
