"""Everything edgeopt raises on purpose, and warns of."""


class EdgeOptError(Exception):
    """Base class of all errors raised by edgeopt."""


class InvalidProblemError(EdgeOptError, ValueError):
    """Data that cannot be a problem, a network or a solution; names field, index, value and what was expected."""


class InvalidFileError(InvalidProblemError):
    """A file that is truncated, corrupt, oversized, of an unknown kind or version, or not data at all."""


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
