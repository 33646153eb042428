"""Everything edgeopt raises on purpose and warns of, and how values are quoted in its messages."""

import math
import reprlib

MAX_SHOWN = 120
"""Characters that a quoted value takes in a message at most."""


class EdgeOptError(Exception):
    """Base class of all errors raised by edgeopt."""


class InvalidProblemError(EdgeOptError, ValueError):
    """Data that cannot be a problem, a network or a solution; names field, index, value and what was expected."""


class InvalidFileError(InvalidProblemError):
    """A file that is truncated, corrupt, oversized, of an unknown kind or version, or not data at all."""


class AuthenticationError(InvalidProblemError):
    """What was sealed with a password does not open: the password is another, or what was sealed is not as it was."""


class UnsupportedProblemError(EdgeOptError, TypeError):
    """The solver cannot handle this problem; the message says what is missing."""


class NoSolutionError(EdgeOptError):
    """A result without a solution was asked for its objective or solution."""


class SolverError(EdgeOptError):
    """A solver or its back end failed; carries the raw text of the back end."""


class SequentialWarning(UserWarning):
    """Clients that could not be computed as one batch have run one after another; the message says why."""


class MissingDependencyError(EdgeOptError, ImportError):
    """An optional package is needed; the message says what to install."""


class ShortRepr(reprlib.Repr):
    """`repr` that looks at the beginning of a value only, so that huge ones cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, MAX_SHOWN, 40

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of thousands of digits."""
        return repr(x) if x.bit_length() < 128 else f"an integer of {int(x.bit_length() * math.log10(2)) + 1} digits"


_SHORT = ShortRepr()


def quoted(value: object) -> str:
    """Return a value for a message: its `repr` in one line, cut to a readable length.

    Examples
    --------
    >>> quoted("mix"), quoted([1] * 1000), quoted(10**400)
    ("'mix'", '[1, 1, 1, 1, 1, 1, ...]', 'an integer of 401 digits')
    """
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
