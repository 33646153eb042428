"""`SelectionInstance`: the data of client selection, checked; `ClientSelection` judges decisions on it."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.validate import bool_array, float_array, int_array, probabilities

Mode = Literal["fail", "share"]
MAX_REGIMES = 127  # numbered in int8
MAX_RATE_SIGMA = 10.0  # beyond, fading is 0 but for a rare draw, down to numbers that underflow
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SelectionInstance:
    """Fields of `ClientSelection`, where they are described, and their sizes: what a run of the environment needs."""

    coverage: NDArray[np.bool_]
    picks: NDArray[np.int32]
    compute_s: NDArray[np.float64]
    payload_bits: float
    rate_bps: NDArray[np.float64]
    timeout_s: float
    rounds: int = 100
    rate_sigma: float = 0.0
    regime_transition: NDArray[np.float64] | None = None
    busy_probability: NDArray[np.float64] | None = None
    busy: NDArray[np.bool_] | None = None
    mode: Mode = "fail"
    latency_weight: float = 1.0
    conflict_weight: float = 1.0
    fairness_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        coverage = bool_array("coverage", self.coverage, (None, None))
        num_servers, num_clients = coverage.shape
        if num_servers == 0 or num_clients == 0:
            raise InvalidProblemError(f"coverage: expected servers and clients, got shape {list(coverage.shape)}")
        if not coverage.any(axis=0).all():
            lost = int((~coverage.any(axis=0)).argmax())
            raise InvalidProblemError(f"coverage: client {lost} is covered by no server")
        picks = int_array("picks", self.picks, (num_servers,), low=1)
        for s, (wanted, covered) in enumerate(zip(picks, coverage.sum(axis=1), strict=True)):
            if wanted > covered:
                raise InvalidProblemError(
                    f"picks[{s}] = {wanted}: expected at most {covered}, the clients that server {s} covers"
                )
        rounds = int_array("rounds", self.rounds, (), low=1).item()
        if self.mode not in get_args(Mode):
            raise InvalidProblemError(f"mode = {quoted(self.mode)}: expected 'fail' or 'share'")
        checked: dict[str, Any] = {
            "coverage": coverage,
            "picks": picks,
            "compute_s": float_array(
                "compute_s", self.compute_s, (num_clients,), nonnegative=True, ranged=True, unit="s"
            ),
            "rate_bps": _rates(self.rate_bps, coverage, rounds),
            "rounds": rounds,
            "seed": int_array("seed", self.seed, (), low=0, dtype=np.int64).item(),
        }
        for name, unit in (("payload_bits", "bit"), ("timeout_s", "s")):
            checked[name] = float_array(name, getattr(self, name), (), positive=True, ranged=True, unit=unit).item()
        for name in ("rate_sigma", "latency_weight", "conflict_weight", "fairness_weight"):
            checked[name] = float_array(name, getattr(self, name), (), nonnegative=True, ranged=True).item()
        if checked["rate_sigma"] > MAX_RATE_SIGMA:
            raise InvalidProblemError(f"rate_sigma = {quoted(self.rate_sigma)}: expected at most {MAX_RATE_SIGMA:g}")
        if (self.regime_transition is None) != (self.busy_probability is None):
            raise InvalidProblemError("regime_transition, busy_probability: expected both or neither")
        if self.regime_transition is not None:
            if self.busy is not None:
                raise InvalidProblemError("busy: expected a table or regimes, not both")
            checked["regime_transition"] = _transition(self.regime_transition)
            count = len(checked["regime_transition"])
            checked["busy_probability"] = _probability("busy_probability", self.busy_probability, (count,))
        elif self.busy is not None:
            checked["busy"] = _enough("busy", bool_array("busy", self.busy, (None, num_clients)), rounds)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_servers(self) -> int:
        """Servers, S."""
        return int(self.coverage.shape[0])

    @property
    def num_clients(self) -> int:
        """Clients, C."""
        return int(self.coverage.shape[1])

    @property
    def max_picks(self) -> int:
        """Most picks of any server in a round, M."""
        return int(self.picks.max())

    @property
    def num_covered(self) -> NDArray[np.int32]:
        """int32 [S], clients that each server covers."""
        return np.asarray(self.coverage.sum(axis=1), np.int32)

    @property
    def covered_clients(self) -> NDArray[np.int64]:
        """int64 [S, N], ids of the clients that each server covers, rising, filled up with 0; N is the most of any."""
        return covered_ids(self.coverage)

    @property
    def num_regimes(self) -> int:
        """Hidden regimes of a client, R; 1 if there are none."""
        return 1 if self.regime_transition is None else len(self.regime_transition)

    def rate_at(self, now: int) -> NDArray[np.float64]:
        """Return float64 [S, C]: bit/s in round `now`, before fading."""
        return np.asarray(self.rate_bps if self.rate_bps.ndim == 2 else self.rate_bps[now])


def covered_ids(coverage: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 [S, N], the columns of each row that are set, rising, filled up with 0.

    Examples
    --------
    >>> covered_ids(np.array([[True, False, True], [False, True, False]])).tolist()
    [[0, 2], [1, 0]]
    """
    count = coverage.sum(axis=1)
    ids = np.zeros((len(coverage), int(count.max(initial=0))), np.int64)
    for s, row in enumerate(coverage):
        ids[s, : count[s]] = np.flatnonzero(row)
    return ids


def _rates(value: ArrayLike, coverage: NDArray[np.bool_], rounds: int) -> NDArray[np.float64]:
    """Return rates [S, C] or [T, S, C], checked to be positive where covered; elsewhere they are set to 0."""
    given = as_array("rate_bps", value)
    table = given.ndim == 3
    shape = (None, *coverage.shape) if table else coverage.shape
    rate = float_array("rate_bps", given, shape, nonnegative=True, ranged=True, unit="bit/s")
    if table:
        _enough("rate_bps", rate, rounds)
    if (bad := np.argwhere((rate == 0) & coverage)).size:
        where = ", ".join(str(i) for i in bad[0])
        raise InvalidProblemError(f"rate_bps[{where}] = 0.0: expected a positive number (bit/s) where covered")
    rate = np.where(coverage, rate, 0.0)
    rate.flags.writeable = False
    return rate


def _enough(name: str, table: NDArray[Any], rounds: int) -> NDArray[Any]:
    if len(table) < rounds:
        raise InvalidProblemError(f"{name}: {len(table)} recorded rounds: expected at least rounds = {rounds}")
    return table


def _probability(name: str, value: ArrayLike | None, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    array = float_array(name, value, shape, nonnegative=True)
    if (bad := np.argwhere(array > 1 + SUM_TOLERANCE)).size:
        where = ", ".join(str(i) for i in bad[0])
        raise InvalidProblemError(f"{name}[{where}] = {quoted(array[tuple(bad[0])].item())}: expected a probability")
    return array


def _transition(value: ArrayLike) -> NDArray[np.float64]:
    transition = probabilities("regime_transition", value, (None, None), tolerance=SUM_TOLERANCE)
    if transition.shape[0] != transition.shape[1] or not 1 <= len(transition) <= MAX_REGIMES:
        raise InvalidProblemError(
            f"regime_transition: expected a square matrix of 1 to {MAX_REGIMES} regimes, got {list(transition.shape)}"
        )
    return transition
