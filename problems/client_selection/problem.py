"""Client selection: which clients each of several servers with overlapping coverage trains with, round by round."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields
from edgeopt.foreign import as_array
from edgeopt.npz import flags, numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.client_selection.plan import SelectionPlan
from edgeopt.problems.client_selection.report import SelectionReport
from edgeopt.validate import bool_array, float_array, int_array, probabilities

if TYPE_CHECKING:
    from edgeopt.network import EdgeNetwork

Mode = Literal["fail", "share"]
SUM_TOLERANCE = 1e-9
MAX_RATE_SIGMA = 10.0  # beyond, fading is 0 but for a rare draw, down to numbers that underflow
"""Largest standard deviation of the logarithm of a rate; beyond it factors leave the floating-point numbers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ClientSelection(Problem):
    r"""Choose which clients S servers train with over T rounds; a client that is taken twice is a conflict.

    Maximise the mean over rounds t and servers s of

    .. math:: r_s(t) = w_f \frac{1}{m_s} \sum_{c\ \mathrm{delivers}} \min(1, a_{sc}(t) m_s / n_s)
              - w_l \frac{D_s(t)}{T_{max}} - w_c \frac{K_s(t)}{m_s}

    where server s picks exactly m_s of its n_s covered clients in every round. A pick takes
    :math:`q_c + j b / R_{sc}(t)` seconds, j being the number of servers that picked the client; it *conflicts* if
    j > 1 or the client is busy with work of its own. A busy client delivers nothing; nor does one with j > 1 in the
    mode ``fail``, while in the mode ``share`` its rate is divided by j. What has not arrived after :math:`T_{max}` is
    lost. :math:`D_s` is the longest time of the server's picks, at most :math:`T_{max}`; :math:`K_s` its picks that
    conflict; :math:`a_{sc}` the rounds since c last delivered to s, and a first delivery counts in full.
    Our formulation, after *Conflict-aware client selection for multi-server federated learning* (arXiv 2602.02458).

    A plan is judged on one draw of chance: the seed of the problem decides hidden regimes, busy clients and fading.
    What a server may know when it picks is said at `edgeopt.problems.client_selection.environment.ServerView`.

    ==============  =========================================  =======
    symbol          field                                      unit
    ==============  =========================================  =======
    m[s]            ``picks``
    q[c]            ``compute_s``                              s
    b               ``payload_bits``                           bit
    R[s, c](t)      ``rate_bps`` x fading                      bit/s
    T_max           ``timeout_s``                              s
    w_l, w_c, w_f   ``latency_weight``, ``conflict_weight``,
                    ``fairness_weight``
    ==============  =========================================  =======

    Parameters
    ----------
    coverage : bool [S, C], which clients each server can pick.
    picks : int32 [S], clients that each server picks per round; one number stands for all.
    compute_s : float64 [C], seconds of one local update: work / speed.
    payload_bits : bits of one update.
    rate_bps : float64 [S, C], or a recorded table [at least T, S, C]; positive where covered.
    timeout_s : how long a server waits.
    rounds : horizon T.
    rate_sigma : standard deviation of the logarithm of the fading, drawn per client and round, mean one. Default: none.
    regime_transition : float64 [R, R], from row to column: every client is in one of R hidden regimes.
    busy_probability : float64 [R], chance that a client of that regime is busy in a round.
    busy : bool [at least T, C], a recorded table instead of the two. Default without any of them: never busy.
    mode : ``fail`` or ``share``.
    latency_weight, conflict_weight, fairness_weight : weights of the reward, >= 0.
    seed : decides what chance decides.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    Two servers, two rounds, one pick each. In the first round both pick client 1, which neither gets.

    >>> problem = ClientSelection(coverage=[[True, True, False], [False, True, True]], picks=1, compute_s=1.0,
    ...                           payload_bits=1e6, rate_bps=1e6, timeout_s=4.0, rounds=2)
    >>> plan = SelectionPlan([[[1], [1]], [[0], [1]]])
    >>> problem.objective(plan), problem.report(plan).conflict_rate
    (-0.75, 0.5)
    """

    kind: ClassVar[str] = "client-selection"
    sense: ClassVar[Sense] = "max"

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
    def num_regimes(self) -> int:
        """Hidden regimes of a client, R; 1 if there are none."""
        return 1 if self.regime_transition is None else len(self.regime_transition)

    def rate_at(self, now: int) -> NDArray[np.float64]:
        """Return float64 [S, C]: bit/s in round `now`, before fading."""
        return np.asarray(self.rate_bps if self.rate_bps.ndim == 2 else self.rate_bps[now])

    # --- truth -------------------------------------------------------------------------------------------------

    @property
    def largest_term(self) -> float:
        """Size of the terms of a reward, which may cancel: the sum of the weights."""
        return self.latency_weight + self.conflict_weight + self.fairness_weight

    def objective(self, solution: SelectionPlan) -> float:
        """Return the mean reward per server and round, on the draw of the problem's seed."""
        return self.report(solution).mean_reward

    def report(self, solution: SelectionPlan) -> SelectionReport:
        """Return what the plan brings: reward, conflicts, times, fairness, staleness, bytes."""
        from edgeopt.problems.client_selection.replay import replay  # late: it needs numba

        self._check_shape(solution)
        return replay(self, solution)

    def violations(self, solution: SelectionPlan) -> tuple[Violation, ...]:
        """Return what is wrong, by row (round x S + server): picks outside coverage, doubles, a wrong number."""
        self._check_shape(solution)
        picks = solution.picks
        chosen = picks >= 0
        outside = chosen & ~self.coverage[np.arange(self.num_servers)[:, None], picks]
        double = chosen[:, :, 1:] & (picks[:, :, 1:] == picks[:, :, :-1])  # rows are sorted
        found = []
        for t, s, k in np.argwhere(outside):
            found.append(self._wrong("coverage", t, s, 1, f"picks client {picks[t, s, k]}, which it does not cover"))
        for t, s, k in np.argwhere(double):
            found.append(self._wrong("double", t, s, 1, f"picks client {picks[t, s, k]} twice"))
        count = chosen.sum(axis=2)
        for t, s in np.argwhere(count != self.picks):
            amount = abs(int(count[t, s]) - int(self.picks[s]))
            found.append(self._wrong("number", t, s, amount, f"picks {count[t, s]} clients, expected {self.picks[s]}"))
        return tuple(found)

    def _wrong(self, constraint: str, t: int, s: int, amount: float, what: str) -> Violation:
        index = int(t) * self.num_servers + int(s)
        return Violation(constraint, index, float(amount), f"round {t}: server {s} {what}")

    def _check_shape(self, solution: SelectionPlan) -> None:
        if not isinstance(solution, SelectionPlan):
            raise InvalidProblemError(f"solution: expected a SelectionPlan, got {type(solution).__name__}")
        picks = solution.picks
        if picks.shape[:2] != (self.rounds, self.num_servers):
            raise InvalidProblemError(
                f"picks: expected shape [{self.rounds}, {self.num_servers}, any], got {list(picks.shape)}"
            )
        if (bad := np.argwhere(picks >= self.num_clients)).size:
            t, s, k = bad[0].tolist()
            raise InvalidProblemError(
                f"picks[{t}, {s}, {k}] = {picks[t, s, k]}: expected a client from 0 to {self.num_clients - 1}"
            )

    def solution_from_json(self, document: dict[str, Any]) -> SelectionPlan:
        """Return the plan that `SelectionPlan.to_json` wrote."""
        plan = SelectionPlan.from_lists(Fields(document, "solution: ").entries("picks", "one list per round"))
        self._check_shape(plan)
        return plan

    # --- plumbing ----------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def tiny_like(self) -> Self:
        """Return a tiny problem of the same mode: what solvers warm up on."""
        return type(self).random(num_servers=2, num_clients=6, picks=2, rounds=3, mode=self.mode)

    def describe(self) -> dict[str, str | int | float]:
        """Return sizes, mode and rates as one flat dictionary."""
        covered = self.coverage if self.rate_bps.ndim == 2 else np.broadcast_to(self.coverage, self.rate_bps.shape)
        return {
            "kind": self.kind,
            "servers": self.num_servers,
            "clients": self.num_clients,
            "rounds": self.rounds,
            "picks": ", ".join(str(count) for count in self.picks),
            "mode": self.mode,
            "mean servers that cover a client": float(self.coverage.sum(axis=0).mean()),
            "availability": self._availability(),
            "rates": "recorded" if self.rate_bps.ndim == 3 else "constant" if self.rate_sigma == 0 else "fading",
            "mean rate, bit/s": float(self.rate_bps[covered].mean()),
            "mean compute, s": float(self.compute_s.mean()),
            "payload, bit": self.payload_bits,
            "time-out, s": self.timeout_s,
            "weights": f"latency {self.latency_weight:g}, conflict {self.conflict_weight:g}, "
            f"fairness {self.fairness_weight:g}",
        }

    def _availability(self) -> str:
        if self.busy is not None:
            return "recorded"
        if self.busy_probability is None:
            return "always"
        return f"{self.num_regimes} hidden regimes, busy with " + ", ".join(f"{p:g}" for p in self.busy_probability)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClientSelection):
            return NotImplemented
        (values, arrays), (others, other_arrays) = self.to_data(), other.to_data()
        same = values == others and arrays.keys() == other_arrays.keys()
        return same and all(np.array_equal(array, other_arrays[name]) for name, array in arrays.items())

    __hash__ = None  # type: ignore[assignment]

    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in _VALUES}, arrays

    @classmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""
        if missing := [name for name in _NEEDED if name not in arrays]:
            raise InvalidFileError(f"{missing[0]}: array is missing")
        given = Fields(values)
        found: dict[str, Any] = {name: given.number(name) for name in _NUMBERS}
        found |= {"mode": given.choice("mode", get_args(Mode))}
        found |= {"rounds": given.integer("rounds"), "seed": given.integer("seed")}
        return cls(**found, **{name: arrays[name] for name in _ARRAYS if name in arrays})  # type: ignore[arg-type]

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file may hold."""
        return _LAYOUT

    @classmethod
    def from_network(
        cls,
        network: "EdgeNetwork",
        *,
        picks: ArrayLike = 4,
        work_flops: ArrayLike = 1e12,
        payload_bits: float = 4e7,
        timeout_s: float | None = None,
        rounds: int = 100,
        rate_sigma: float = 0.0,
        regime_transition: ArrayLike | None = None,
        busy_probability: ArrayLike | None = None,
        busy: ArrayLike | None = None,
        mode: Mode = "fail",
        latency_weight: float = 1.0,
        conflict_weight: float = 1.0,
        fairness_weight: float = 1.0,
        seed: int = 0,
    ) -> Self:
        """Build a problem from a network: its devices are the clients, coverage and uplink rates are its own.

        Parameters
        ----------
        network : servers, devices, channels.
        work_flops : FLOPs of one local update, one number or [C].
        timeout_s : Default: 1.5 times what nine of ten covered pairs stay below.
        picks, payload_bits, rounds, ..., seed : as the fields.

        Examples
        --------
        >>> from edgeopt import EdgeNetwork
        >>> problem = ClientSelection.from_network(EdgeNetwork.random(3, 30, seed=1), picks=2, rounds=50)
        >>> problem.num_servers, problem.num_clients, problem.picks.tolist()
        (3, 30, [2, 2, 2])
        """
        from edgeopt.problems.client_selection import build

        compute, rate = network.device_latency_s(work_flops), network.uplink_rate_bps.T
        if timeout_s is None:
            timeout_s = build.usual_timeout_s(compute, rate, network.coverage.T, payload_bits)
        given: Any = {
            "picks": picks,
            "regime_transition": regime_transition,
            "busy_probability": busy_probability,
            "busy": busy,
        }
        return cls(
            coverage=network.coverage.T, compute_s=compute, payload_bits=payload_bits, rate_bps=rate,
            timeout_s=timeout_s, rounds=rounds, rate_sigma=rate_sigma, mode=mode, latency_weight=latency_weight,
            conflict_weight=conflict_weight, fairness_weight=fairness_weight, seed=seed, **given,
        )  # fmt: skip

    @classmethod
    def random(
        cls,
        *,
        num_servers: int = 5,
        num_clients: int = 60,
        picks: int = 4,
        mode: Mode = "fail",
        rounds: int = 100,
        rate_sigma: float = 0.3,
        regime_transition: ArrayLike = ((0.97, 0.03), (0.06, 0.94)),
        busy_probability: ArrayLike = (0.05, 0.75),
        latency_weight: float = 1.0,
        conflict_weight: float = 1.0,
        fairness_weight: float = 1.0,
        seed: int = 0,
        network: "EdgeNetwork | None" = None,
    ) -> Self:
        """Build a random problem: a random network, fading rates, clients that are calm or loaded for a while.

        Parameters
        ----------
        num_servers, num_clients : size of the random network, unless `network` is given.
        picks : clients per server and round; servers that cover fewer also reach the next strongest channels.
        mode, rounds, ..., fairness_weight : as the fields. By default two regimes, which last 33 and 17 rounds.
        seed : same seed, same problem; also decides what chance decides.
        network : take this network instead of a random one.

        Examples
        --------
        >>> ClientSelection.random(seed=7) == ClientSelection.random(seed=7)
        True
        """
        from edgeopt.problems.client_selection.build import well_covered_network

        return cls.from_network(
            well_covered_network(num_servers, num_clients, picks, seed, network),
            picks=picks, mode=mode, rounds=rounds, rate_sigma=rate_sigma, regime_transition=regime_transition,
            busy_probability=busy_probability, latency_weight=latency_weight, conflict_weight=conflict_weight,
            fairness_weight=fairness_weight, seed=seed,
        )  # fmt: skip


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


MAX_REGIMES = 127  # numbered in int8
_LAYOUT = {
    "coverage": flags(2), "picks": numbers(1), "compute_s": numbers(1), "rate_bps": numbers(2, 3),
    "regime_transition": numbers(2), "busy_probability": numbers(1), "busy": flags(2),
}  # fmt: skip
_NEEDED = ("coverage", "picks", "compute_s", "rate_bps")
_ARRAYS = tuple(_LAYOUT)
_NUMBERS = ("payload_bits", "timeout_s", "rate_sigma", "latency_weight", "conflict_weight", "fairness_weight")
_VALUES = (*_NUMBERS, "rounds", "mode", "seed")
