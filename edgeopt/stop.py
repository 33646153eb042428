"""When to stop: immutable specifications that look at a snapshot of the run and keep no state of their own."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from edgeopt.errors import EdgeOptError, InvalidProblemError, quoted
from edgeopt.validate import listed, real


class Limit(StrEnum):
    """The limit that ended a solve, if any; kept apart from its `Status`."""

    TIME = "time"
    ITERATION = "iteration"
    NO_PROGRESS = "no-progress"
    GAP = "gap"
    CALLBACK = "callback"
    INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Snapshot of a run.

    Parameters
    ----------
    seconds : seconds since the call of `solve`.
    iteration : iterations finished; what one iteration is, the solver's docstring says.
    objective : best objective so far, None before the first solution.
    bound : best valid bound on the optimum so far, maybe infinite.
    gap : relative gap between the two, see `edgeopt.result.relative_gap`.
    best_seconds, best_iteration : when the best objective was found.
    """

    seconds: float
    iteration: int
    objective: float | None
    bound: float
    gap: float
    best_seconds: float
    best_iteration: int


class StopCriterion(Protocol):
    """Anything with ``check``: returns the limit that is reached, or None to go on."""

    def check(self, progress: Progress) -> Limit | None:
        """Return the limit reached at this snapshot, or None."""
        ...


def _positive(name: str, value: float | None) -> None:
    try:
        if value is not None:
            real(name, value, nonnegative=True, finite=False)
    except InvalidProblemError:
        raise EdgeOptError(f"{name} = {quoted(value)}: expected a number >= 0") from None


@dataclass(frozen=True, slots=True)
class MaxTime:
    """Stop `seconds` after the call of `solve`, compilation included."""

    seconds: float

    def __post_init__(self) -> None:
        _positive("MaxTime.seconds", self.seconds)

    def check(self, progress: Progress) -> Limit | None:
        """Return `Limit.TIME` once the time is over."""
        return Limit.TIME if progress.seconds >= self.seconds else None


@dataclass(frozen=True, slots=True)
class MaxIterations:
    """Stop after `iterations` iterations of the solver."""

    iterations: int

    def __post_init__(self) -> None:
        _positive("MaxIterations.iterations", self.iterations)

    def check(self, progress: Progress) -> Limit | None:
        """Return `Limit.ITERATION` once the iterations are used up."""
        return Limit.ITERATION if progress.iteration >= self.iterations else None


@dataclass(frozen=True, slots=True)
class NoImprovement:
    """Stop when the best objective has not improved for so many iterations or seconds."""

    iterations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.iterations is None and self.seconds is None:
            raise EdgeOptError("NoImprovement: expected iterations or seconds, got neither")
        _positive("NoImprovement.iterations", self.iterations)
        _positive("NoImprovement.seconds", self.seconds)

    def check(self, progress: Progress) -> Limit | None:
        """Return `Limit.NO_PROGRESS` once nothing has improved for that long."""
        if progress.objective is None:
            return None
        stale = self.iterations is not None and progress.iteration - progress.best_iteration >= self.iterations
        stale |= self.seconds is not None and progress.seconds - progress.best_seconds >= self.seconds
        return Limit.NO_PROGRESS if stale else None


@dataclass(frozen=True, slots=True)
class TargetGap:
    """Stop when the certified relative gap is at most `gap`."""

    gap: float

    def __post_init__(self) -> None:
        _positive("TargetGap.gap", self.gap)

    def check(self, progress: Progress) -> Limit | None:
        """Return `Limit.GAP` once the gap is reached."""
        return Limit.GAP if progress.gap <= self.gap else None


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Stop when any of the given criteria does."""

    criteria: tuple[StopCriterion, ...]

    def __post_init__(self) -> None:
        criteria = tuple(listed("AnyOf.criteria", self.criteria))
        for i, criterion in enumerate(criteria):
            if isinstance(criterion, type) or not hasattr(criterion, "check"):
                raise InvalidProblemError(f"AnyOf.criteria[{i}] = {quoted(criterion)}: expected a StopCriterion")
        object.__setattr__(self, "criteria", criteria)

    def check(self, progress: Progress) -> Limit | None:
        """Return the first limit that is reached."""
        for criterion in self.criteria:
            if (limit := criterion.check(progress)) is not None:
                return limit
        return None
