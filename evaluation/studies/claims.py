"""Claims as data: words, where they come from, and the test on the rows of a study that decides them.

Every test ends in an interval and in bounds. A claim is *shown* if the interval lies within the bounds, *contradicted* if
it lies beyond them, and *not shown* otherwise; too few seeds, a run that failed or a value that is missing show nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.statistics import CONFIDENCE, Interval, interval, ratio_interval, share_interval

Row = Mapping[str, Any]
Source = Literal["paper", "reported", "ours"]
Verdict = Literal["shown", "not shown", "contradicted"]

SOURCES: dict[Source, str] = {
    "paper": "stated in the full text of the system's paper",
    "reported": "reported of the paper by its abstract or by others",
    "ours": "a statement of ours",
}
VERDICTS: tuple[Verdict, ...] = ("shown", "not shown", "contradicted")
LEAST_SEEDS = 3
"""Seeds without which nothing is shown."""


class Undecided(EdgeOptError):
    """Why the rows decide nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a verdict rests on: what it is, with its interval, and of how many seeds."""

    name: str
    value: Interval
    seeds: int

    def __str__(self) -> str:
        return f"{self.name}: {self.value}, {self.seeds} seeds"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; None where there is no interval."""
        numbers = {name: getattr(self.value, name) for name in ("mean", "low", "high")}
        found = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"name": self.name, **found, "seeds": self.seeds}


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, the figures that it rests on, and in a sentence why."""

    verdict: Verdict
    figures: tuple[Figure, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a study has found.

    Parameters
    ----------
    rows : of the runs that are done, each with ``task``, ``variant``, ``seed`` and what was measured.
    tasks, seeds : of the study; a run of theirs that is not among the rows has failed or is missing.
    """

    rows: Sequence[Row]
    tasks: Sequence[str]
    seeds: Sequence[int]

    def values(self, metric: str, variant: str, task: str | None = None) -> dict[tuple[str, int], float]:
        """Return the metric of every run of a variant by task and seed; None is all tasks.

        Raises
        ------
        Undecided
            If a run or a value is not there.
        """
        own = {(row["task"], row["seed"]): row for row in self.rows if row["variant"] == variant}
        wanted = [(name, seed) for name in (self.tasks if task is None else (task,)) for seed in self.seeds]
        if lost := [key for key in wanted if key not in own]:
            raise Undecided(f"{variant}: {len(lost)} of {len(wanted)} runs are missing or failed, {_said(lost)}")
        found = {key: math.nan if (value := own[key].get(metric)) is None else float(value) for key in wanted}
        if lost := [key for key in wanted if not math.isfinite(found[key])]:
            raise Undecided(f"{metric} of {variant}: {len(lost)} of {len(wanted)} runs have none, {_said(lost)}")
        return found

    def by_seed(self, metric: str, variant: str, task: str | None = None) -> list[float]:
        """Return for each seed the mean of the metric over the tasks: seeds are what is independent."""
        found = self.values(metric, variant, task)
        tasks = len(found) // len(self.seeds)
        return [sum(value for (_, at), value in found.items() if at == seed) / tasks for seed in self.seeds]

    def differences(self, metric: str, first: str, second: str, task: str | None = None) -> list[float]:
        """Return first - second for each seed."""
        one, other = (self.by_seed(metric, name, task) for name in (first, second))
        return [a - b for a, b in zip(one, other, strict=True)]


class Criterion(Protocol):
    """What decides a claim."""

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim of a study."""

    text: str
    source: Source
    test: Criterion

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict on it; too few seeds and missing values leave it not shown."""
        if (seeds := len(evidence.seeds)) < LEAST_SEEDS:
            return Decision("not shown", (), f"{seeds} seed{'s' * (seeds > 1)}: expected at least {LEAST_SEEDS}")
        try:
            return self.test.decide(evidence)
        except Undecided as error:
            return Decision("not shown", (), str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounded:
    """Bounds that an interval is held against; at least one of them is given.

    Parameters
    ----------
    metric : a measured number of the rows.
    above, below : what the claim says, each strictly.
    task : a task of the study; None for all: their mean within a seed.
    """

    metric: str
    above: float = -math.inf
    below: float = math.inf
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.above < self.below or math.inf == -self.above == self.below:
            given = f"above = {self.above:g}, below = {self.below:g}"
            raise EdgeOptError(f"{given}: expected one of them, or both with the lower first")

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        parts = (f"above {self.above:g}", self.above), (f"below {self.below:g}", self.below)
        return " and ".join(said for said, bound in parts if math.isfinite(bound))

    def held_against(self, found: Interval) -> Verdict:
        """Return the verdict on an interval."""
        if self.above < found.low and found.high < self.below:
            return "shown"
        return "contradicted" if found.high <= self.above or self.below <= found.low else "not shown"

    def decision(self, name: str, found: Interval, seeds: int) -> Decision:
        """Return the verdict on an interval with its words."""
        figure, verdict = Figure(name, found, seeds), self.held_against(found)
        said = {"shown": "is", "contradicted": "is not", "not shown": "may or may not be"}[verdict]
        return Decision(verdict, (figure,), f"{figure}; it {said} {self.bounds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level(_Bounded):
    """The mean over seeds of one variant's metric, with its interval by Student's t."""

    variant: str

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict."""
        found = evidence.by_seed(self.metric, self.variant, self.task)
        return self.decision(f"{self.metric}, {self.variant}", interval(found), len(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(_Bounded):
    """The mean of first - second, seed by seed, with its interval by Student's t."""

    first: str
    second: str

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict."""
        found = evidence.differences(self.metric, self.first, self.second, self.task)
        return self.decision(f"{self.metric}, {self.first} less {self.second}", interval(found), len(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio(_Bounded):
    """The geometric mean of first / second, seed by seed; the interval is that of the logarithms. Metrics are positive."""

    first: str
    second: str

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict."""
        one, other = (evidence.by_seed(self.metric, name, self.task) for name in (self.first, self.second))
        if min(*one, *other) <= 0:
            raise Undecided(f"{self.metric}: a ratio needs numbers > 0, got {min(*one, *other):g}")
        found = ratio_interval(a / b for a, b in zip(one, other, strict=True))
        return self.decision(f"{self.metric}, {self.first} over {self.second}", found, len(one))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(_Bounded):
    """The share of one variant's runs for which a truth value holds, with the interval of Clopper and Pearson."""

    variant: str

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict; on several tasks a seed counts only if it holds on all of them."""
        found = evidence.by_seed(self.metric, self.variant, self.task)
        held = sum(share == 1 for share in found)
        return self.decision(f"{self.metric}, {self.variant}", share_interval(held, len(found)), len(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Always(_Bounded):
    """Every single run of some variants is within the bounds: for what is exact. One run beyond them contradicts it."""

    variants: tuple[str, ...]

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict; the interval is the range of all runs."""
        found = [value for name in self.variants for value in evidence.values(self.metric, name, self.task).values()]
        least, most = min(found), max(found)
        within = self.above < least and most < self.below
        span = Interval(sum(found) / len(found), least, most)
        name = f"{self.metric}, all runs of {', '.join(self.variants)}"
        said = f"from {least:.4g} to {most:.4g} in {len(found)} runs; they are {'all' if within else 'not all'} {self.bounds}"
        return Decision(
            "shown" if within else "contradicted", (Figure(name, span, len(evidence.seeds)),), f"{name}: {said}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """Variants in the order of a metric, largest first: every step is a `Difference` above 0.

    The intervals of the steps are Bonferroni's: together they hold with the confidence of one.
    """

    metric: str
    variants: tuple[str, ...]
    task: str | None = None

    def decide(self, evidence: Evidence) -> Decision:
        """Return the verdict: shown if every step is, contradicted if one step is."""
        steps = list(zip(self.variants, self.variants[1:], strict=False))
        confidence = 1 - (1 - CONFIDENCE) / len(steps)
        parts = []
        for first, second in steps:
            step = Difference(metric=self.metric, first=first, second=second, above=0.0, task=self.task)
            found = interval(evidence.differences(self.metric, first, second, self.task), confidence)
            parts.append(step.decision(f"{self.metric}, {first} less {second}", found, len(evidence.seeds)))
        of = {part.verdict for part in parts}
        verdict: Verdict = "contradicted" if "contradicted" in of else "not shown" if "not shown" in of else "shown"
        return Decision(verdict, tuple(part.figures[0] for part in parts), "; ".join(part.reason for part in parts))


def _said(keys: Sequence[tuple[str, int]]) -> str:
    task, seed = keys[0]
    return f"{'the first' if len(keys) > 1 else 'that'} of seed {seed} on {task}"
