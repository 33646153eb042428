"""`Price`: what more of a limit is worth, at a solution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ROUNDING = 1e-12  # relative
Claim = Literal["at most", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one unit more of a limit is worth: how much better the objective becomes.

    Parameters
    ----------
    name : the field and index of the limit, as in ``storage_bytes[3]``.
    unit : of the limit.
    value : what the limit is.
    worth : better objective per unit more, >= 0: larger of what is maximised, smaller of what is minimised.
    claim : ``at most``: with the limit at any other value v, the optimum is no better than ``base`` and ``worth`` times (v - value);
        proved, and valid from 0 to infinity. ``estimate``: the slope here, of which nothing is proved.
    base : the bound on the optimum that goes with ``at most``; None for an estimate.
    grid : the limit counts in whole multiples of this, as sizes are multiples of it; None where every bit counts.
    step, gain : a solution is known that is better by ``gain`` with the limit raised by ``step``, all else unchanged; None where none is.

    Examples
    --------
    >>> price = Price(name="bandwidth_hz", unit="Hz", value=8.0, worth=0.25, claim="at most", base=2.0, step=4.0, gain=1.0)
    >>> price.no_better_than("max", 12.0)
    3.0
    >>> print(price)
    bandwidth_hz = 8 Hz: one more is worth at most 0.25; 4 more bring 1 or better
    """

    name: str
    unit: str
    value: float
    worth: float
    claim: Claim
    base: float | None = None
    grid: float | None = None
    step: float | None = None
    gain: float | None = None

    def no_better_than(self, sense: str, value: float) -> float:
        """Return what the optimum cannot be better than with the limit at another value; infinite for an estimate."""
        sign = 1.0 if sense == "max" else -1.0
        if self.base is None:
            return sign * math.inf
        change = value - self.value
        if self.grid is not None:
            change = self.grid * (whole(value, self.grid) - whole(self.value, self.grid))
        return self.base + sign * self.worth * change

    def __str__(self) -> str:
        claim = "at most " if self.claim == "at most" else "about "
        text = f"{self.name} = {self.value:.6g} {self.unit}: one more is worth {claim}{self.worth:.4g}".replace(
            " :", ":"
        )
        return text if self.step is None else f"{text}; {self.step:.4g} more bring {self.gain:.4g} or better"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "value": self.value,
            "worth": self.worth,
            "claim": self.claim,
            "base": self.base,
            "grid": self.grid,
            "step": self.step,
            "gain": self.gain,
        }


def whole(value: float, grid: float) -> int:
    """Return how many whole multiples of `grid` there are in a value, up to rounding of the value.

    Examples
    --------
    >>> whole(8.0, 3.0), whole(2.9999999999999, 3.0)
    (2, 1)
    """
    return math.floor(value / grid * (1 + ROUNDING))


def in_order(prices: Sequence[Price]) -> tuple[Price, ...]:
    """Return the prices of limits of which more is worth something, by what a hundredth more of each is worth, most first."""
    useful = [price for price in prices if price.worth > 0 or price.step is not None]
    return tuple(sorted(useful, key=lambda price: -max(price.worth * price.value, _rate(price) * price.value)))


def _rate(price: Price) -> float:
    return 0.0 if price.step is None or price.gain is None else price.gain / price.step
