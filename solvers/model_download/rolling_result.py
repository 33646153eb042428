"""`RollingResult`: what became of every request of a rolling horizon, and the sums of it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.extras import needs
from edgeopt.problems import DownloadPlan

if TYPE_CHECKING:
    import pandas as pd

Steps = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Times [E], ascending, and values [E]: value i holds from time i to time i + 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RollingResult:
    """Outcome of `rolling_horizon` for K requests.

    Parameters
    ----------
    solver, seed : what decided.
    num_solves : how many times it decided.
    band_hz : the whole bandwidth, in Hz.
    arrival_s : float64 [K], when each request arrived, in s.
    deadline_s : float64 [K], its deadline from then on, in s.
    start_s : float64 [K], when its download started, in s; NaN if it was refused.
    downloaded_s : float64 [K], when its download ended and freed its bandwidth, in s; NaN if it was refused.
    finish_s : float64 [K], when its inference was done, in s; NaN if it was refused.
    refused_s : float64 [K], when it was refused, in s; NaN if it was admitted.
    reason : why it was refused, with the numbers; empty if it was admitted.
    plan : model, bandwidth and frequencies of each; the bandwidth is held from start to end of the download only.
    """

    solver: str
    seed: int
    num_solves: int
    band_hz: float
    arrival_s: NDArray[np.float64] = field(repr=False)
    deadline_s: NDArray[np.float64] = field(repr=False)
    start_s: NDArray[np.float64] = field(repr=False)
    downloaded_s: NDArray[np.float64] = field(repr=False)
    finish_s: NDArray[np.float64] = field(repr=False)
    refused_s: NDArray[np.float64] = field(repr=False)
    reason: tuple[str, ...] = field(repr=False)
    plan: DownloadPlan = field(repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        for value in (getattr(self, name) for name in self.__dataclass_fields__):
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    @property
    def num_requests(self) -> int:
        """K."""
        return self.arrival_s.size

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """Bool [K], who was admitted, and so was done within the deadline, unless the links of a trace got worse."""
        return self.plan.admitted

    @property
    def late(self) -> NDArray[np.bool_]:
        """Bool [K], who was admitted and done after the deadline: only where links follow a trace."""
        late: NDArray[np.bool_] = self.finish_s > self.arrival_s + self.deadline_s * (1 + 1e-9)
        return late

    @property
    def num_done(self) -> int:
        """Requests done within their deadline."""
        return self.plan.num_admitted - int(self.late.sum())

    @property
    def num_refused(self) -> int:
        """Requests refused."""
        return self.num_requests - self.plan.num_admitted

    @property
    def share_done(self) -> float:
        """Requests done within their deadline, as a share of all."""
        return self.num_done / self.num_requests

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last deadline: the same for all solvers."""
        return float((self.arrival_s + self.deadline_s).max() - self.arrival_s.min())

    @property
    def throughput_per_s(self) -> float:
        """Requests done within their deadline, per second of the span."""
        return self.num_done / self.span_s

    @property
    def waiting_s(self) -> NDArray[np.float64]:
        """Float64 [K], seconds from arrival to start, or to the refusal."""
        waited: NDArray[np.float64] = np.where(self.admitted, self.start_s, self.refused_s) - self.arrival_s
        return waited

    @property
    def utilisation(self) -> float:
        """Share of the band that downloads held, averaged over the span."""
        held = (self.plan.bandwidth_hz * (self.downloaded_s - self.start_s))[self.admitted].sum()
        return float(held / (self.band_hz * self.span_s))

    def bandwidth_in_use(self) -> Steps:
        """Return the bandwidth that downloads hold, in Hz, as it changes over time."""
        held = self.plan.bandwidth_hz[self.admitted]
        return _steps(self.start_s[self.admitted], self.downloaded_s[self.admitted], held)

    def num_waiting(self) -> Steps:
        """Return how many requests wait, as it changes over time."""
        return _steps(self.arrival_s, self.arrival_s + self.waiting_s, np.ones(self.num_requests))

    def summary(self) -> dict[str, Any]:
        """Return the sums: counts, shares, throughput, waiting of the admitted (mean and percentiles), utilisation."""
        waited = self.waiting_s[self.admitted]
        median, most_90, most_99 = np.percentile(waited, [50, 90, 99]).tolist() if waited.size else [0.0] * 3
        return {
            "solver": self.solver,
            "seed": self.seed,
            "requests": self.num_requests,
            "done": self.num_done,
            "refused": self.num_refused,
            "late": int(self.late.sum()),
            "share_done": self.share_done,
            "throughput_per_s": self.throughput_per_s,
            "waiting_mean_s": float(waited.mean()) if waited.size else 0.0,
            "waiting_median_s": median,
            "waiting_90_s": most_90,
            "waiting_99_s": most_99,
            "utilisation": self.utilisation,
            "span_s": self.span_s,
            "solves": self.num_solves,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the summary and a list of the requests, as plain values; None where a time does not apply."""
        return {**self.summary(), "band_hz": self.band_hz, "per_request": self._records()}

    def to_frame(self) -> "pd.DataFrame":
        """Return one line per request.

        Raises
        ------
        MissingDependencyError
            Without pandas.
        """
        with needs("a data frame", "report"):
            import pandas as pd
        return pd.DataFrame(self._columns())

    def _columns(self) -> dict[str, Any]:
        return {
            "request": np.arange(self.num_requests),
            "arrival_s": self.arrival_s,
            "deadline_s": self.deadline_s,
            "admitted": self.admitted,
            "waiting_s": self.waiting_s,
            "start_s": self.start_s,
            "downloaded_s": self.downloaded_s,
            "finish_s": self.finish_s,
            "refused_s": self.refused_s,
            "model": self.plan.model,
            "bandwidth_hz": self.plan.bandwidth_hz,
            "reason": np.array(self.reason, object),
        }

    def _records(self) -> list[dict[str, Any]]:
        columns = {name: array.tolist() for name, array in self._columns().items()}
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _steps(begin: NDArray[np.float64], end: NDArray[np.float64], amount: NDArray[np.float64]) -> Steps:
    """Return the sum over time of amounts that each hold from begin to end; what ends at a moment is gone before others begin."""
    at = np.concatenate([end, begin])
    times, which = np.unique(at, return_inverse=True)
    change = np.bincount(which, np.concatenate([-amount, amount]), times.size)
    return times, np.cumsum(change)
