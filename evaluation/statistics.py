"""What independent seeds tell: means, shares and ratios with their intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; low and high are nan where too few values give none."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show the estimate, and the interval in brackets.

        Examples
        --------
        >>> print(Interval(0.25, 0.125, 0.375), Interval(2.0, math.nan, math.nan))
        0.25 (0.125 to 0.375) 2
        """
        around = "" if math.isnan(self.low) else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.mean:.4g}{around}"


def interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of values of independent seeds with its interval by Student's t; one value has no interval.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.48413771175033027, high=4.48413771175033)
    """
    from scipy.stats import t

    data = np.array(list(values), np.float64)
    if data.size == 0:
        raise EdgeOptError("values: expected at least one")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(t.ppf((1 + confidence) / 2, data.size - 1) * data.std(ddof=1) / np.sqrt(data.size))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(ratios: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the geometric mean of positive ratios of independent seeds, with the interval of the mean of their logarithms.

    Examples
    --------
    >>> ratio_interval([0.5, 2.0]).mean
    1.0
    """
    data = np.array(list(ratios), np.float64)
    if not (data > 0).all():
        raise EdgeOptError(f"ratios: expected numbers > 0, got {data.min():g}")
    found = interval(np.log(data), confidence)
    return Interval(*(math.exp(value) for value in (found.mean, found.low, found.high)))


def share_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a share of independent trials with the interval of Clopper and Pearson (1934), which never covers less.

    Examples
    --------
    >>> print(share_interval(5, 5))
    1 (0.4782 to 1)
    """
    from scipy.stats import beta

    if not 0 <= successes <= trials or trials < 1:
        raise EdgeOptError(f"successes = {successes}: expected 0 to {trials} of at least one trial")
    tail, failures = (1 - confidence) / 2, trials - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, failures)) if failures else 1.0
    return Interval(successes / trials, low, high)


def intervals(
    rows: Iterable[Mapping[str, Any]], metrics: Sequence[str], by: Sequence[str] = ("solver",)
) -> list[dict[str, Any]]:
    """Return one row for each group of rows, with the number of seeds and an `Interval` for each of the metrics."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key, strict=True))
        | {"seeds": len(own)}
        | {name: interval(row[name] for row in own) for name in metrics}
        for key, own in groups.items()
    ]


def log_loss(chance: NDArray[np.float64], happened: NDArray[np.bool_]) -> float:
    """Return the mean of -log of the probability that was given to what happened; inf if that was called impossible.

    Examples
    --------
    >>> round(log_loss(np.array([0.5, 0.5]), np.array([True, False])), 4)
    0.6931
    """
    with np.errstate(divide="ignore"):
        return float(-np.log(np.where(happened, chance, 1 - chance)).mean())
