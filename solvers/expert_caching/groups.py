"""Experts that are activated together: the exact value of a placement, layer by layer, for ``max`` and ``mix``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import ExpertCaching
from edgeopt.solvers.expert_caching.common import Stopped
from edgeopt.solvers.expert_caching.facility import storage_units
from edgeopt.solvers.kernels.groups import (
    Inverted,
    Rows,
    State,
    all_subsets,
    chain,
    change,
    change_value,
    cover_of,
    gains_and_losses,
    invert,
    levels_of,
    server_sets,
    server_values,
    subset_sums,
    swap_in_group,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_ENUMERATED = 14  # a group of up to so many experts is solved by enumerating its subsets
MAX_TABLE = 1 << 25  # most entries of a table of sets by subsets of their members
MAX_SWAPS = 20  # within one group at one server
PULLS = (0.03, 0.3, 3.0)  # weights of what a set could still unlock, in the greedy chains of larger groups


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What one group can hold at one server, from light to heavy and ever more valuable; the first is nothing.

    Parameters
    ----------
    experts : int64 [G], the experts of the group.
    weight : int64 [O], storage units of each option, ascending.
    value : float64 [O], ascending.
    held : bool [O, G], which experts an option holds; None: option k holds the first k.
    """

    experts: Ints
    weight: Ints
    value: Floats
    held: Bools | None

    def held_by(self, option: int) -> Bools:
        """Return bool [G]: which experts of the group an option holds."""
        return np.arange(self.experts.size) < option if self.held is None else self.held[option]


class Groups:
    """An expert-caching problem by rows (a user of a model), levels (places by latency) and groups (model, layer).

    Building takes O(I N log N + sets) time; memory is O(I E) for the slots and O(sets) for the routing tables, where
    I counts the users of each model that some server helps.

    Parameters
    ----------
    problem : the problem.
    surrogate : lam in ``F + lam F_sum / K``, where F_sum is the saving if the latencies of a set were summed: it
        rewards the first expert of a set, which alone gains nothing under ``max``.
    stopped : looked at after each model; if it says so, `Stopped` is raised.
    """

    def __init__(
        self, problem: ExpertCaching, surrogate: float = 0.0, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.problem, self.surrogate = problem, surrogate
        self.units, self.capacity_units, self.exact_units = storage_units(problem.expert_bytes, problem.storage_limit)
        self.model = problem.expert_model.astype(np.int64)
        self.group = problem.expert_group.astype(np.int64)
        self.group_first = np.searchsorted(self.group, np.arange(int(self.group[-1]) + 2)).astype(np.int64)
        self.first_expert = problem.first_expert.astype(np.int64)
        self._rows(stopped)
        self._sets()
        self.rows = Rows(
            self.model, self.slot_of, self.row_first, self.server_level, self.base, self.final, self.step
        )  # fmt: skip

    def _rows(self, stopped: Callable[[], bool]) -> None:
        problem = self.problem
        num_servers, num_levels = problem.num_servers, problem.num_servers + 2
        profiles = np.cumsum([0, *(model.num_profiles for model in problem.models)])
        device, weight = problem.device_mask(), np.asarray(problem.user_weight)
        step, server_level, level_server, cloud, row_profile, counts = [], [], [], [], [], [0]
        final, base, uses, slots, user = [], [], [], [0], []
        self.bias = np.zeros(len(problem.models))
        self.joint = np.zeros(len(problem.models), bool)
        for m, model in enumerate(problem.models):
            if m > 0 and stopped():
                raise Stopped
            gain = problem.gain_s[m]
            rows = np.flatnonzero((weight * problem.request[:, m] > 0) & (gain > 0).any(axis=1))
            rows = rows[np.argsort(problem.profile[rows, m], kind="stable")]
            coefficient, self.bias[m], self.joint[m] = self._scale(model.top_k)
            places = np.column_stack([-gain[rows], np.zeros(rows.size), problem.device_latency_s[m, rows] - problem.cloud_latency_s[m, rows]])  # fmt: skip
            places[:, :num_servers][gain[rows] <= 0] = np.inf  # never helps: counts as the cloud
            order = np.argsort(places, axis=1, kind="stable")
            rank = np.argsort(order, axis=1, kind="stable")
            ordered = np.take_along_axis(places, order, axis=1)
            useful = np.isfinite(ordered)
            ordered[~useful] = 0.0
            steps = np.zeros((rows.size, num_levels))
            steps[:, :-1] = np.where(useful[:, 1:], np.diff(ordered, axis=1), 0.0)
            scale = coefficient * weight[rows] * problem.request[rows, m]
            step.append(steps * scale[:, None])
            cloud_level = rank[:, num_servers]
            cloud.append(cloud_level)
            server_level.append(np.where(gain[rows] > 0, rank[:, :num_servers], cloud_level[:, None]))
            level_server.append(np.where(useful & (order < num_servers), order, -1))
            row_profile.append(profiles[m] + problem.profile[rows, m])
            user.append(rows)
            experts = slice(int(problem.first_expert[m]), int(problem.first_expert[m + 1]))
            held = np.take(device[:, experts].T, rows, axis=1)
            final.append(held.ravel())
            base.append(np.where(held, rank[:, num_servers + 1], cloud_level).ravel())
            uses.append(np.take(model.uses.T, problem.profile[rows, m], axis=1).ravel())
            slots.extend(slots[-1] + rows.size * np.arange(1, model.num_experts + 1))
            counts.append(counts[-1] + rows.size)
        self.step = np.ascontiguousarray(np.concatenate(step))
        self.seconds = np.concatenate([np.zeros((len(self.step), 1)), np.cumsum(self.step, axis=1)[:, :-1]], axis=1)
        self.server_level = _ints(np.concatenate(server_level))
        self.level_server = _ints(np.concatenate(level_server))
        self.cloud_level = _ints(np.concatenate(cloud))
        self.row_profile = _ints(np.concatenate(row_profile))
        self.row_user = _ints(np.concatenate(user))
        self.row_first = _ints(np.array(counts))
        self.slot_of = _ints(np.array(slots[:-1]))
        self.num_slots = int(slots[-1])
        self.final, self.base = np.concatenate(final), _ints(np.concatenate(base))
        self.uses = np.concatenate(uses)
        self.profile_rows = np.searchsorted(self.row_profile, np.arange(profiles[-1] + 1)).astype(np.int64)
        self.profile_model = np.repeat(np.arange(len(problem.models)), np.diff(profiles))

    def _scale(self, top_k: int) -> tuple[float, float, bool]:
        """Return the factor of a second, the weight of the plain sum relative to it, and whether sets matter."""
        problem = self.problem
        if problem.is_modular_per_set or top_k == 1:
            return 1.0 + self.surrogate * (not problem.is_modular_per_set), 1.0, False
        if problem.latency == "max":
            return 1.0, self.surrogate / top_k, True
        factor = problem.theta * top_k
        return factor, (1.0 - problem.theta + self.surrogate / top_k) / factor, True

    def _sets(self) -> None:
        problem = self.problem
        widest = max((m.top_k for m, joint in zip(problem.models, self.joint, strict=True) if joint), default=1)
        member, width, entry_count, entry_set, probability = [], [], [], [], []
        total = 0
        for m, model in enumerate(problem.models):
            if not self.joint[m]:
                entry_count.append(np.zeros(model.num_profiles, np.int64))
                continue
            order = np.argsort(model.expert_layer[model.sets[:, 0]], kind="stable")
            place_of = np.empty(order.size, np.int64)
            place_of[order] = np.arange(order.size)
            rows = np.zeros((order.size, widest), np.int32)
            rows[:, : model.top_k] = model.sets[order] + problem.first_expert[m]
            member.append(rows)
            width.append(np.full(order.size, model.top_k))
            entry_count.append(np.diff(model.indptr))
            entry_set.append(total + place_of[model.indices])
            probability.append(model.probability)
            total += order.size
        self.member = np.concatenate([np.zeros((0, widest), np.int32), *member])
        self.width = _ints(np.concatenate([np.zeros(0), *width]))
        self.entry_first = _ints(np.cumsum([0, *np.concatenate(entry_count)]))
        self.entry_set = _ints(np.concatenate([np.zeros(0), *entry_set]))
        self.entry_probability = np.concatenate([np.zeros(0), *probability])
        first_expert = problem.first_expert[self.profile_model]
        sizes = np.diff(problem.first_expert)[self.profile_model]
        at = _ints(np.concatenate([[0], np.cumsum(sizes)[:-1]]))
        lists = invert(
            self.entry_first, self.entry_set, self.entry_probability, self.member, self.width, at,
            _ints(first_expert), int(sizes.sum()),
        )  # fmt: skip
        self.inverted = Inverted(self.row_profile, at, self.first_expert, *lists)
        order = np.argsort(self.entry_set, kind="stable")
        entry_profile = np.repeat(np.arange(self.profile_model.size), np.diff(self.entry_first))
        self.use_first = np.searchsorted(self.entry_set[order], np.arange(total + 1)).astype(np.int64)
        self.use_profile, self.use_probability = _ints(entry_profile[order]), self.entry_probability[order]
        self.set_first = np.searchsorted(self.group[self.member[:, 0]], np.arange(self.num_groups + 1)).astype(np.int64)
        self._of_expert: dict[int, tuple[Ints, Ints]] = {}

    @property
    def num_groups(self) -> int:
        """Layers over all models."""
        return self.group_first.size - 1

    def is_joint(self, group: int) -> bool:
        """Whether the experts of a group interact at one server."""
        return bool(self.joint[self.model[self.group_first[group]]])

    def sets_of(self, group: int) -> tuple[Ints, Ints]:
        """Return the sets of each expert of a group, in CSR form, numbered within the group."""
        if group not in self._of_expert:
            low, high = self.set_first[group], self.set_first[group + 1]
            width = int(self.width[low]) if high > low else 1
            experts = self.member[low:high, :width].ravel() - self.group_first[group]
            order = np.argsort(experts, kind="stable")
            count = int(self.group_first[group + 1] - self.group_first[group])
            first = np.searchsorted(experts[order], np.arange(count + 1)).astype(np.int64)
            self._of_expert[group] = first, _ints(order // width)
        return self._of_expert[group]

    def levels(self, cached: Bools, skip: int = -1) -> tuple[Ints, Ints]:
        """Return the best and the second-best level [S] of every slot, server `skip` left out."""
        return levels_of(
            cached, skip, self.base, self.final, self.slot_of, self.row_first, self.model, self.server_level
        )  # fmt: skip

    def single_values(self, server: int, level: Ints) -> Floats:
        """Return float64 [E]: what each expert adds at a server as a plain sum, given levels without that server."""
        return server_values(
            server, level, self.final, self.seconds, self.server_level, self.slot_of, self.row_first, self.model,
            self.uses, self.bias,
        )  # fmt: skip

    def set_values(self, server: int, group: int, level: Ints) -> tuple[Floats, NDArray[np.int32]]:
        """Return what each exact set of missing members unlocks at a server [A, 2^K], and the sets' members [A, K]."""
        low, high = int(self.set_first[group]), int(self.set_first[group + 1])
        width = int(self.width[low])
        parts = server_sets(
            server, low, high, level, self.final, self.seconds, self.server_level, self.slot_of, self.row_first,
            self.model, self.profile_rows, self.use_first, self.use_profile, self.use_probability, self.member, width,
        )  # fmt: skip
        return parts, np.ascontiguousarray(self.member[low:high, :width])

    def options(self, server: int, group: int, level: Ints, values: Floats, now: Bools) -> tuple[Options, float]:
        """Return what a group with joint sets can hold at a server, and what its experts there now are worth.

        Given levels [S] and single values [E] without that server, and its experts now, bool [E].

        Up to `MAX_ENUMERATED` experts every subset is tried (exact); beyond, the best of greedy chains downwards from
        all experts and upwards, and the set now improved by swaps.
        O(rows sets K^2 + 2^E E) or O(rows sets K^2 + chains (sets K^2 + E^2)).
        """
        experts = np.arange(self.group_first[group], self.group_first[group + 1])
        own = np.ascontiguousarray(values[experts])
        units = self.units[experts]
        parts, member = self.set_values(server, group, level)
        width, capacity = member.shape[1], int(self.capacity_units[server])
        if experts.size <= MAX_ENUMERATED:
            table = all_subsets(parts, member, width, int(experts[0]), own)
            masks = np.arange(table.size)[:, None] >> np.arange(experts.size) & 1
            worth = float(table[int(now[experts] @ (1 << np.arange(experts.size)))])
            return _undominated(experts, masks @ units, table, masks.astype(bool), capacity), worth
        linear = own.copy()
        share = parts / np.maximum(1, np.bitwise_count(np.arange(parts.shape[1])))
        for j in range(width):
            has = (np.arange(parts.shape[1]) >> j & 1).astype(bool)
            linear += np.bincount(member[:, j] - experts[0], weights=share[:, has].sum(axis=1), minlength=experts.size)
        subset_sums(parts)
        of_first, of_set = self.sets_of(group)
        start, weight = int(experts[0]), units.astype(np.float64)
        weights, found, sets = [], [], []
        for pull, upwards in [(0.0, False), *((pull, True) for pull in PULLS)]:
            order, prefix = chain(parts, linear, member, width, start, of_first, of_set, own, weight, pull, upwards)
            place_in = np.empty(order.size, np.int64)
            place_in[order] = np.arange(order.size)
            weights.append(np.concatenate([[0], np.cumsum(units[order])]))
            found.append(prefix)
            sets.append(place_in < np.arange(order.size + 1)[:, None])
        held = now[experts].copy()
        worth = swap_in_group(held, parts, member, width, start, of_first, of_set, own, weight, 0)
        better = swap_in_group(held, parts, member, width, start, of_first, of_set, own, weight, MAX_SWAPS)
        found.append(np.array([worth, better]))
        sets.append(np.stack([now[experts], held]))
        weights.append(sets[-1] @ units)
        return _undominated(
            experts, np.concatenate(weights), np.concatenate(found), np.concatenate(sets), capacity
        ), worth


def _undominated(experts: Ints, weight: Ints, value: Floats, held: Bools, capacity: int) -> Options:
    """Return the options that fit and are worth more than every lighter one; the first holds nothing."""
    value[weight == 0] = 0.0  # up to rounding it was
    order = np.lexsort((-value, weight))
    order = order[weight[order] <= capacity]
    best = np.maximum.accumulate(value[order])
    keep = order[np.concatenate([[True], best[1:] > best[:-1] + 1e-15 * abs(best[:-1])])]
    return Options(experts, weight[keep], value[keep], held[keep])


def _ints(array: NDArray[Any]) -> Ints:
    return np.ascontiguousarray(array, np.int64)


class Cover:
    """A placement with everything needed to change one expert at one server at a time, see `kernels.groups`.

    Memory O(I E N); building costs one pass over the routing tables of all rows.

    Parameters
    ----------
    groups : the problem's groups.
    cached : bool [N, E], the placement to start from.
    """

    def __init__(self, groups: Groups, cached: Bools) -> None:
        self.groups = groups
        self.cached = np.array(cached, order="C")
        self.level, self.second = groups.levels(self.cached)
        slot_model = np.repeat(groups.model, np.diff([*groups.slot_of, groups.num_slots]))
        self.cover = np.repeat((groups.bias[slot_model] * groups.uses)[:, None], groups.step.shape[1], axis=1)
        cover_of(
            self.level, self.cover, groups.slot_of, groups.row_first, groups.model, groups.row_profile,
            groups.entry_first, groups.entry_set, groups.entry_probability, groups.member, groups.width,
        )  # fmt: skip
        self.state = State(self.cached, self.level, self.second, self.cover)
        shape = (groups.model.size, self.cached.shape[0])
        self.gain, self.loss = np.zeros(shape), np.zeros(shape)

    def refresh(self, group: int | None = None) -> None:
        """Bring the tables `gain` and `loss` [E, N] up to date, for one group or all."""
        first, last = (0, self.groups.model.size) if group is None else self.groups.group_first[group : group + 2]
        g = self.groups
        gains_and_losses(
            int(first), int(last), self.level, self.second, g.final, self.cover, g.step, g.level_server, g.slot_of,
            g.row_first, g.model, self.gain, self.loss,
        )  # fmt: skip

    def value_of(self, expert: int, leave: int = -1, enter: int = -1) -> float:
        """Return what it adds to move an expert from server `leave` to server `enter`; -1: only add, or only drop."""
        value: float = change_value(expert, leave, enter, self.state, self.groups.rows)
        return value

    def move(self, expert: int, leave: int = -1, enter: int = -1) -> None:
        """Move an expert from server `leave` to server `enter`, in place; -1: only add, or only drop."""
        change(expert, leave, enter, self.state, self.groups.rows, self.groups.inverted)
