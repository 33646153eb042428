"""`max-convolution`: one server after another by (max,+) convolution of its groups' profiles, then local search."""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.jit import kernel
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Ratio, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.common import Stopped, certify, empty_placement, supports_expert_caching
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.greedy import offer_something
from edgeopt.solvers.expert_caching.groups import Groups, Options
from edgeopt.solvers.expert_caching.local_search import improve
from edgeopt.solvers.expert_caching.max_bound import bound_max
from edgeopt.solvers.expert_caching.popularity import offer_popular, popular_placement
from edgeopt.solvers.kernels.max_plus import concave_envelope, is_concave, max_plus_strided, max_plus_strided_dense

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Profiles = Literal["exact", "envelope"]
Picks = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class MaxConvolution:
    r"""Split each server's problem into groups, combine their profiles by (max,+) convolution, sweep, search locally.

    With the other servers fixed, the value of server n splits over the (model, layer) groups. The profile v_g of a
    group is the best value per storage it takes; the server's problem :math:`\max \sum_g v_g(k_g)`,
    :math:`\sum_g k_g s_g \le Q_n`, is the (max,+) convolution of all profiles. Profiles of plain sums are concave:
    those of one size are merged by sorting, O(E log E), and added by strided concave convolution,
    O(Q log Q) per size; the others are enumerated, or filled greedily in groups of more than 14 experts, and added by
    dense convolution, O(Q G_g) per group. Best-response sweeps on the true objective follow; they never lose.

    Guarantee for K = 1 or latency ``sum`` (and whole storage units): the server's problem is solved exactly, hence
    F >= OPT / 2, since each server gets at least the marginal value of the optimum's experts there and these sum to
    at least OPT - F. With ``envelope`` profiles the inner ratio is alpha = 1/2 and F >= alpha / (1 + alpha) OPT =
    OPT / 3. For ``max`` and ``mix`` with K >= 2 let r be the smallest ratio of a later marginal value to an earlier
    one: the ratio would be alpha r / (1 + alpha r), but r = 0 for pure ``max``. With two experts that are always used
    together and two servers that hold one each, every single placement gains nothing, so no constant exists. The
    sweeps therefore also start from the surrogate F + lam F_sum / K, which pays for a set's first expert, from the
    placement of `Popularity`, and from `pooled_placement`; the best placement goes through local search, see `local_search.improve`. One iteration
    is one server's problem, one chunk of the local search, or one step of the bound.

    Parameters
    ----------
    profiles : ``exact`` convolution, or ``envelope``: fill by the slopes of the concave envelopes and keep the better
        of that and the best single option, 1/2 of each server's problem, O(E log E).
    surrogates : values of lam to start from besides the true objective, for ``max`` and ``mix``. With none, and no
        `search_work`, it is the plain scheme, which does not start from what is popular either.
    max_sweeps : best-response sweeps after each first pass.
    search_work : rows and sets that the local search visits for ``max`` and ``mix``; about 1e8 a second. 0: none.
    search_rounds : annealing rounds at most; large problems spend all work on the first.
    bound_steps : steps of the bound of ``max`` and ``mix``, see `distinct_bound` and `max_bound`; 0: only `certify`.
    """

    profiles: Profiles = "exact"
    surrogates: tuple[float, ...] = (0.5, 0.1, 1e-3)
    max_sweeps: int = 20
    search_work: float = 3e8
    search_rounds: int = 4
    bound_steps: int = 30

    name: ClassVar[str] = "max-convolution"
    guarantee: ClassVar[Guarantee] = Ratio(
        0.5, "after Chen, Chen, Huang 2025 (arXiv 2507.06567), exact inner solver; proof ours", "1/2 (K = 1 or sum)"
    )

    def __post_init__(self) -> None:
        if self.profiles not in ("exact", "envelope"):
            raise EdgeOptError(f"profiles = {quoted(self.profiles)}: expected 'exact' or 'envelope'")
        if not isinstance(self.surrogates, Sequence) or not all(0 <= lam < math.inf for lam in self.surrogates):
            raise EdgeOptError(f"surrogates = {quoted(self.surrogates)}: expected finite numbers >= 0")
        for name in ("max_sweeps", "search_work", "search_rounds", "bound_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EdgeOptError(f"{name} = {getattr(self, name)}: expected a finite number >= 0")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return 1/2 (1/3 with envelopes) for modular sets and whole storage units; no constant exists for ``max``."""
        if not problem.is_modular_per_set:
            return Heuristic(
                "server by server no constant exists for pure max: its marginal values can grow from zero (r = 0)"
            )
        if not Facility.units_are_exact(problem):
            return Heuristic("1/2 is proved for whole storage units")
        if self.profiles == "envelope":
            return Ratio(1 / 3, self.guarantee.source, "1/3 (K = 1 or sum, envelope profiles)")
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve server by server, then search."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with contextlib.suppress(Stopped):
                self._solve(run, problem, options)
            offer_something(run, problem)
        return run.result()

    def _solve(self, run: Run[Placement], problem: ExpertCaching, options: SolveOptions) -> None:
        """Search and bound; raises `Stopped` where a limit is reached before anything is built."""
        with run.building():
            groups = Groups(problem, stopped=run.stopped)
        self.start(run, groups, options)
        if not problem.is_modular_per_set and self.bound_steps and not run.stopped():
            if DistinctBound.supports(groups):
                with run.building():
                    bound = DistinctBound(groups)
                bound.descend(run, self.bound_steps)
            else:
                bound_max(run, groups, iterations=self.bound_steps)
        self.search(run, groups)

    def start(self, run: Run[Placement], groups: Groups, options: SolveOptions) -> None:
        """Offer the placements of all starts, each swept until no server gains."""
        problem = groups.problem
        joint = not problem.is_modular_per_set
        plain = not self.surrogates and not self.search_work
        if not plain:
            offer_popular(run, problem)
        if joint and not plain and not run.stopped():
            cached = pooled_placement(groups, run.stopped)
            run.offer(Placement(cached))
            self.sweep(run, groups, cached)
        shape = (problem.num_servers, problem.num_experts)
        for lam in (0.0, *(self.surrogates if joint else ())):
            if run.stopped():
                break
            cached = np.zeros(shape, bool)
            self._respond(run, groups if lam == 0 else Groups(problem, lam), cached)
            run.offer(Placement(cached))
            self.sweep(run, groups, cached)
        if joint and not plain and not run.stopped():
            self.sweep(run, groups, np.array(popular_placement(problem).cached))
        if options.initial_solution is not None:  # warm start: sweep from the given placement too
            self.sweep(run, groups, np.array(options.initial_solution.cached))
        certify(run, problem)

    def search(self, run: Run[Placement], groups: Groups) -> None:
        """Offer what local search makes of the best placement so far."""
        joint = not groups.problem.is_modular_per_set
        if joint and self.search_work and run.solution is not None and not run.stopped():
            work, rounds = self.search_work, int(self.search_rounds)
            cached = improve(run, groups, run.solution.cached, work=work, rounds=rounds)
            self.sweep(run, groups, cached)

    def sweep(self, run: Run[Placement], groups: Groups, cached: Bools) -> None:
        """Best-response sweeps over all servers until none improves, in place; each better placement is offered.

        A start is given up when its last sweep gained less than it is behind the best placement of the run.
        """
        value = float(run.problem.objective(Placement(cached)))
        for _ in range(self.max_sweeps):
            if run.stopped() or not self._respond(run, groups, cached):
                break
            before, value = value, float(run.problem.objective(Placement(cached)))
            if not run.offer(Placement(cached), value) and value - before < (run.objective or 0.0) - value:
                break

    def _respond(self, run: Run[Placement], groups: Groups, cached: Bools) -> bool:
        """Give each server in turn the best experts found given the others, in place; return whether one gained."""
        changed = False
        for n in range(cached.shape[0]):
            if run.stopped():
                break
            value, chosen, now = best_response(groups, cached, n, self.profiles)
            if value > now * (1 + 1e-12):
                cached[n], changed = chosen, True
            run.step()
        return changed


def best_response(
    groups: Groups, cached: Bools, server: int, profiles: Profiles = "exact"
) -> tuple[float, Bools, float]:  # fmt: skip
    """Return the best value found at one server given the others, its experts bool [E], and the value of those now.

    Exact for ``exact`` profiles when all groups with joint sets have at most `groups.MAX_ENUMERATED` experts.
    A server that holds more than fits counts as holding nothing now.
    """
    level, _ = groups.levels(cached, server)
    values = groups.single_values(server, level)
    capacity = int(groups.capacity_units[server])
    fits = int(groups.units @ cached[server]) <= capacity
    parts, now = [], 0.0
    single = np.ones(values.size, bool)
    for g in range(groups.num_groups):
        if not groups.is_joint(g):
            continue
        options, held = groups.options(server, g, level, values, cached[server])
        now += held
        single[options.experts] = False
        if options.weight.size > 1:
            parts.append(options)
    now += float(values[single & cached[server]].sum())
    parts += _merged(np.flatnonzero(single & (values > 0) & (groups.units <= capacity)), values, groups.units, capacity)
    picks = (_convolve if profiles == "exact" else _fill)(parts, capacity)
    chosen = np.zeros(values.size, bool)
    total = 0.0
    for part, option in picks:
        chosen[parts[part].experts[parts[part].held_by(option)]] = True
        total += float(parts[part].value[option])
    return total, chosen, now if fits else -math.inf


def pooled_placement(groups: Groups, stopped: Callable[[], bool] = lambda: False) -> Bools:
    """Return the placement [N, E] of what one server with all storage, as near to each user as its nearest, would hold.

    Which layers to cache whole is a matter of the sum of all storages, which server by server nobody sees: `best_response` for
    that one server. Then the experts go, those first for which most depends on it, to the server that saves most by each
    of them alone. Ours; nothing is proved of it. Nothing is placed if a limit is reached meanwhile.
    """
    pooled = copy.copy(groups)
    pooled.server_level = np.ascontiguousarray(groups.server_level.min(axis=1, keepdims=True))
    pooled.capacity_units = groups.capacity_units.sum(keepdims=True)
    shape = (groups.capacity_units.size, groups.units.size)
    _, chosen, _ = best_response(pooled, np.zeros((1, shape[1]), bool), 0)
    level, _ = groups.levels(np.zeros(shape, bool))
    value = np.zeros(shape)
    for n in range(shape[0]):
        if stopped():
            return np.zeros(shape, bool)
        value[n] = groups.single_values(n, level)
    ranked = np.sort(value, axis=0)
    regret = ranked[-1] - ranked[-2] if shape[0] > 1 else ranked[-1]
    experts = np.flatnonzero(chosen)
    cached = np.zeros(shape, bool)
    _spread(
        experts[np.argsort(-regret[experts], kind="stable")], value, groups.units, groups.capacity_units.copy(), cached
    )
    return cached


@kernel
def _spread(experts: Ints, value: Floats, units: Ints, left: Ints, cached: Bools) -> None:
    """Give each expert in turn to the server that values it most among those with room for it; `left` [N] is used up."""
    for e in experts:
        best = -1
        for n in range(left.size):
            if units[e] <= left[n] and (best < 0 or value[n, e] > value[best, e]):
                best = n
        if best >= 0:
            cached[best, e] = True
            left[best] -= units[e]


def _merged(experts: NDArray[np.int64], values: Any, units: NDArray[np.int64], capacity: int) -> list[Options]:
    """Return one concave profile per size: the experts of that size by falling value, k of them as option k."""
    merged = []
    for size in np.unique(units[experts]):
        same = experts[units[experts] == size]
        same = same[np.argsort(-values[same], kind="stable")][: capacity // int(size)]
        total = np.concatenate([[0.0], np.cumsum(values[same])])
        merged.append(Options(same, size * np.arange(same.size + 1), total, None))
    return merged


def _convolve(parts: list[Options], capacity: int) -> Picks:
    """Return the options (part, option) of the best total value that fits, exactly."""
    table = np.zeros(capacity + 1)
    taken: list[tuple[int, NDArray[np.int32]]] = []
    index: list[NDArray[np.int64]] = []
    for part in parts:
        stride = int(np.gcd.reduce(part.weight))
        profile = np.full(int(part.weight[-1]) // stride + 1, -np.inf)
        profile[part.weight // stride] = part.value
        option = np.zeros(profile.size, np.int64)
        option[part.weight // stride] = np.arange(part.weight.size)
        convolve = max_plus_strided if is_concave(profile) else max_plus_strided_dense
        table, levels = convolve(table, profile, stride)
        taken.append((stride, levels))
        index.append(option)
    picks: Picks = []
    left = capacity
    for number in range(len(parts) - 1, -1, -1):
        stride, levels = taken[number]
        picks.append((number, int(index[number][levels[left]])))
        left -= stride * int(levels[left])
    return picks


def _fill(parts: list[Options], capacity: int) -> Picks:
    """Return options (part, option) worth at least half of the best total: envelopes by slope, or the best single one."""
    steps = []
    for number, part in enumerate(parts):
        _, breaks = _envelope(part)
        for low, high in itertools.pairwise(breaks):
            weight = int(part.weight[high] - part.weight[low])
            steps.append((-(part.value[high] - part.value[low]) / weight, number, high, weight))
    steps.sort()
    level, blocked, left = [0] * len(parts), [False] * len(parts), capacity
    for _, number, high, weight in steps:
        if not blocked[number] and weight <= left:
            level[number], left = high, left - weight
        else:
            blocked[number] = True
    for number, part in enumerate(parts):  # what is left over goes to the best option within reach
        room = int(np.searchsorted(part.weight, part.weight[level[number]] + left, side="right")) - 1
        if room > level[number]:
            left -= int(part.weight[room] - part.weight[level[number]])
            level[number] = room
    alone = max(range(len(parts)), key=lambda number: parts[number].value[-1], default=-1)
    if alone >= 0 and parts[alone].value[-1] > sum(part.value[k] for part, k in zip(parts, level, strict=True)):
        return [(alone, parts[alone].value.size - 1)]
    return list(enumerate(level))


def _envelope(part: Options) -> tuple[Any, list[int]]:
    """Return the concave envelope of a profile over its weights, and the options where it bends."""
    stride = int(np.gcd.reduce(part.weight))
    profile = np.full(int(part.weight[-1]) // stride + 1, -np.inf)
    profile[part.weight // stride] = part.value
    envelope, breaks = concave_envelope(profile)
    option = np.searchsorted(part.weight, breaks * stride)
    touching = part.weight[np.minimum(option, part.weight.size - 1)] == breaks * stride
    return envelope, option[touching].tolist()
