"""Client selection: which clients each of several servers with overlapping coverage trains with, round by round."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

import numpy as np

from edgeopt import storage
from edgeopt.built import Built
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.fields import Fields
from edgeopt.npz import flags, numbers
from edgeopt.problem import Problem, Sense, Violation
from edgeopt.problems.client_selection.build import network_fields, random_fields, rates_fields
from edgeopt.problems.client_selection.instance import Mode, SelectionInstance
from edgeopt.problems.client_selection.plan import SelectionPlan
from edgeopt.problems.client_selection.report import SelectionReport


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ClientSelection(SelectionInstance, Problem):
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

    from_network = Built(network_fields)
    from_rates = Built(rates_fields)
    random = Built(random_fields)


_LAYOUT = {
    "coverage": flags(2), "picks": numbers(1), "compute_s": numbers(1), "rate_bps": numbers(2, 3),
    "regime_transition": numbers(2), "busy_probability": numbers(1), "busy": flags(2),
}  # fmt: skip
_NEEDED = ("coverage", "picks", "compute_s", "rate_bps")
_ARRAYS = tuple(_LAYOUT)
_NUMBERS = ("payload_bits", "timeout_s", "rate_sigma", "latency_weight", "conflict_weight", "fairness_weight")
_VALUES = (*_NUMBERS, "rounds", "mode", "seed")
