"""One layer of the bound by distinct experts: what it can be worth with at most k of its experts cached."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.kernels.distinct import pair_weights, values_at_servers, values_of_subsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_ENUMERATED = 10  # a layer of up to so many experts is bounded subset by subset
MAX_ANCHORS = 8  # choices of shares kept per layer
RATE = 1.0  # length of the first step of the shares


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Which levels of each row every set of servers reaches; row S - 1 of a table is the bit mask S.

    Parameters
    ----------
    level : int64 [R, 2^N - 1], the best level that a set of servers offers a row, at most that of the cloud.
    holds : bool [2^N - 1, N].
    """

    level: Ints
    holds: Bools

    @classmethod
    def of(cls, groups: Groups) -> "Places":
        """Return the places of a problem's groups, O(R N 2^N)."""
        num_servers = groups.problem.num_servers
        holds = (np.arange(1, 1 << num_servers)[:, None] >> np.arange(num_servers) & 1).astype(bool)
        level = np.broadcast_to(groups.cloud_level[:, None], (groups.cloud_level.size, len(holds))).copy()
        for n in range(num_servers):
            level[:, holds[:, n]] = np.minimum(level[:, holds[:, n]], groups.server_level[:, n, None])
        return cls(level, holds)

    def seconds(self, groups: Groups, rows: slice, held: Ints | None = None) -> Floats:
        """Return [rows, S]: what a set of servers saves, or what is left of it beside an expert at the level `held` [rows]."""
        level, cloud, seconds = self.level[rows], groups.cloud_level[rows, None], groups.seconds[rows]
        if held is not None:
            level = np.minimum(np.maximum(level, held[:, None]), cloud)
        return np.asarray(np.take_along_axis(seconds, cloud, 1) - np.take_along_axis(seconds, level, 1))


@dataclass(slots=True, eq=False)
class Anchor:
    """One choice of shares, and what follows from it.

    Parameters
    ----------
    score : float64 [O, E, E], logarithms of the odds of each ordered pair, one table for all classes or one for each.
    own : float64 [E, S], what a head at the servers S saves without a partner.
    joint : float64 [E, S, E], what it saves with each partner.
    sums : float64 [E, S, E], the sum of the k largest of those; empty where subsets are enumerated.
    steps : how often the shares have been changed.
    """

    score: Floats
    own: Floats
    joint: Floats
    sums: Floats
    steps: int = 0


class Layer:
    """The experts of one layer, the sets that users activate there, and shares of what the sets save.

    A *class* is a bundle of users and levels whose sets count alike: gain [C, S] is what the servers S save it per unit of
    probability. Classes are coarse, all levels of the users of one profile with the same experts on the device at once, or fine,
    each level of each user by itself; only shares that may differ from class to class reach the linear relaxation.

    Parameters
    ----------
    groups, places : the problem.
    group : which of its groups.
    size : float64 [E], storage of the experts of the layer.
    """

    def __init__(self, groups: Groups, places: Places, group: int, size: Floats) -> None:
        self.groups, self.places, self.group, self.size = groups, places, group, size
        self.first_expert = int(groups.group_first[group])
        model = int(groups.model[self.first_expert])
        self.rows = slice(int(groups.row_first[model]), int(groups.row_first[model + 1]))
        num_rows, start = self.rows.stop - self.rows.start, int(groups.slot_of[self.first_expert])
        slots = slice(start, start + num_rows * size.size)
        self.final = groups.final[slots].reshape(size.size, num_rows)
        held = np.where(self.final, groups.base[slots].reshape(size.size, num_rows), 0)
        self.held_level = np.asarray(held.max(axis=0, initial=0))
        self.uses = np.where(self.final, 0.0, groups.bias[model] * groups.uses[slots].reshape(size.size, num_rows))
        self.plain = self.uses @ places.seconds(groups, self.rows)
        self.weight = np.concatenate([[0.0], np.cumsum(np.sort(size))])
        self._bundle()
        self._classes(fine=False)
        score = np.zeros((1, size.size, size.size))
        self.anchors: dict[int, Anchor] = {-1: Anchor(score, *self._tables(score))}

    @property
    def num_experts(self) -> int:
        """Experts of the layer, E."""
        return self.size.size

    @property
    def is_enumerated(self) -> bool:
        """Whether every subset of the layer's experts is bounded by itself."""
        return self.num_experts <= MAX_ENUMERATED

    @staticmethod
    def entries(groups: Groups, group: int) -> int:
        """Return how many numbers the tables of a layer take, at most."""
        count = int(groups.group_first[group + 1] - groups.group_first[group])
        return count * count * (3 * (1 << groups.problem.num_servers) + groups.cloud_level.size)

    @property
    def fine_entries(self) -> int:
        """How many numbers the shares of fine classes take."""
        return int((self.groups.step[self.rows] > 0).sum()) * self.num_experts**2

    def _bundle(self) -> None:
        """Find the bundles of users alike, and list what each activates: sets without and then with experts of the device."""
        g, low, high = self.groups, int(self.groups.set_first[self.group]), int(self.groups.set_first[self.group + 1])
        profile = g.row_profile[self.rows]
        keys = np.column_stack([profile, self.final.T])
        _, first_row, self.bundle = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self.bundle = self.bundle.ravel()
        member = g.member[low:high].astype(np.int64) - self.first_expert
        starts, middles, rests, chances, total = [0], [], [], [], 0
        for row in first_row:
            p = int(profile[row])
            entries = slice(g.entry_first[p], g.entry_first[p + 1])
            own = (g.entry_set[entries] >= low) & (g.entry_set[entries] < high)
            sets, chance = g.entry_set[entries][own] - low, g.entry_probability[entries][own]
            rest = member[sets, : int(g.width[low]) if high > low else 1]
            held = self.final[:, row][rest]
            order = np.argsort(held.any(axis=1), kind="stable")
            order = order[~held[order].all(axis=1) & (chance[order] > 0)]
            rest = np.sort(np.where(held, self.num_experts, rest)[order], axis=1)
            rest[rest == self.num_experts] = -1
            middles.append(total + int((~held[order].any(axis=1)).sum()))
            total += order.size
            starts.append(total)
            rests.append(rest.astype(np.int32))
            chances.append(chance[order])
        self.rest = np.concatenate(rests) if rests else np.zeros((0, 1), np.int32)
        self.chance = np.concatenate([np.zeros(0), *chances])
        self._starts, self._middles = np.array(starts), np.array(middles, np.int64)

    def _classes(self, *, fine: bool) -> None:
        g, rows, places = self.groups, self.rows, self.places
        start, middle, end = self._starts[:-1], self._middles, self._starts[1:]
        if fine:
            levels = np.arange(g.step.shape[1])
            row, level = np.nonzero((g.step[rows] > 0) & (levels < g.cloud_level[rows, None]))
            bundle = self.bundle[row]
            self.first = start[bundle]
            self.last = np.where(level >= self.held_level[row], end[bundle], middle[bundle])
            self.gain = g.step[rows][row, level, None] * (places.level[rows][row] <= level[:, None])
        else:
            count = start.size
            self.first, self.last = np.concatenate([start, middle]), np.concatenate([middle, end])
            self.gain = np.zeros((2 * count, len(places.holds)))
            np.add.at(self.gain, self.bundle, places.seconds(g, rows))
            np.add.at(self.gain, count + self.bundle, places.seconds(g, rows, self.held_level))
        used = (self.last > self.first) & (self.gain[:, -1] > 0)
        self.first, self.last, self.gain = self.first[used], self.last[used], np.ascontiguousarray(self.gain[used])

    def sets_of(self, bundle: int, *, with_held: bool) -> tuple[NDArray[np.int32], Floats]:
        """Return the sets of a bundle of users and their probability, those with experts of the device if asked."""
        sets = slice(int(self._starts[bundle]), int(self._starts[bundle + 1] if with_held else self._middles[bundle]))
        return self.rest[sets], self.chance[sets]

    def refine(self) -> None:
        """Give every level of every user shares of its own, from where the common ones stand."""
        self._classes(fine=True)
        for anchor in self.anchors.values():
            anchor.score = np.repeat(anchor.score, max(1, len(self.gain)), axis=0)
            anchor.steps = 0

    def _tables(self, score: Floats) -> tuple[Floats, Floats, Floats]:
        """Return `own`, `joint` and `sums` of an `Anchor` from its scores."""
        count, which = self.num_experts, np.arange(len(self.gain)) * (len(score) > 1)
        odds = np.exp(np.clip(score, -300.0, 300.0))
        pairs, alone = pair_weights(odds, which, self.first, self.last, self.rest, self.chance)
        own, joint = self.plain.copy(), np.zeros((count, self.gain.shape[1], count))
        values_at_servers(pairs, alone, self.gain, own, joint)
        if self.is_enumerated:
            return own, joint, np.zeros((0, 0, 0))
        sums = np.zeros_like(joint)
        np.cumsum(-np.sort(-joint, axis=2)[:, :, :-1], axis=2, out=sums[:, :, 1:])
        return own, joint, sums

    def profile(self, price: Floats) -> tuple[Floats, list[tuple[int, int]]]:
        """Return [E + 1]: bounds with at most k distinct experts, and for each k its anchor and its subset of experts.

        price [S] is what a unit of storage costs at all servers of S. The subset is -1 where subsets are not enumerated.
        """
        count, keys = self.num_experts, list(self.anchors)
        cost = self.size[:, None] * price
        if self.is_enumerated:
            table = np.array([values_of_subsets(a.own - cost, a.joint) for a in self.anchors.values()])
            anchor, value = table.argmin(axis=0), table.min(axis=0)
            members = np.bitwise_count(np.arange(value.size))
            best = [int(np.where(members <= k, value, -1.0).argmax()) for k in range(count + 1)]
            return value[best], [(keys[int(anchor[subset])], subset) for subset in best]
        rows = []
        for a in self.anchors.values():
            head = ((a.own - cost)[:, :, None] + a.sums).max(axis=1).clip(0.0)
            total = np.cumsum(-np.sort(-head, axis=0), axis=0).diagonal()
            rows.append(np.concatenate([[0.0], total]))
        table = np.array(rows)
        # a placement with at most k experts is one with at most k + 1
        at = count - np.array([int(table.min(axis=0)[k:][::-1].argmin()) for k in range(count + 1)])
        return table.min(axis=0)[at], [(keys[int(table[:, k].argmin())], -1) for k in at]

    def choose(self, key: int, subset: int, k: int, price: Floats) -> tuple[Ints, Bools]:
        """Return each head's servers as a row of `Places`, -1 for none, and its partners [E, E], that attain a bound."""
        anchor, count = self.anchors[key], self.num_experts
        base = anchor.own - self.size[:, None] * price
        if self.is_enumerated:
            member = (subset >> np.arange(count) & 1).astype(bool)
            value = base + anchor.joint[:, :, member].sum(axis=2)
            at = np.where(member & (value.max(axis=1) > 0), value.argmax(axis=1), -1)
            return at, np.asarray((at >= 0)[:, None] & member & ~np.eye(count, dtype=bool))
        value = base + anchor.sums[:, :, k - 1]
        heads = np.argsort(-value.max(axis=1), kind="stable")[:k]
        at, partner = np.full(count, -1), np.zeros((count, count), bool)
        heads = heads[value[heads].max(axis=1) > 0]
        at[heads] = value[heads].argmax(axis=1)
        best = np.argsort(-anchor.joint[heads, at[heads]], axis=1, kind="stable")[:, : k - 1]
        partner[heads[:, None], best] = True
        partner[np.arange(count), np.arange(count)] = False
        return at, partner

    def shift(self, key: int, subset: int, k: int, at: Ints, partner: Bools) -> None:
        """Take shares off the pairs that a choice serves, in the anchor for its subset or its number of experts.

        Multiplicative weights: every set by itself moves its shares to the pairs that are served least.
        """
        step = max(1, math.ceil(self.num_experts / MAX_ANCHORS))
        aim = subset if self.is_enumerated else min(self.num_experts, step * math.ceil(k / step))
        if aim not in self.anchors:
            source = self.anchors[key]
            if len(self.anchors) > MAX_ANCHORS:
                aim = key
            else:
                self.anchors[aim] = Anchor(source.score.copy(), source.own, source.joint, source.sums)
        anchor = self.anchors[aim]
        anchor.steps += 1
        if len(anchor.score) > 1:
            served = np.where(at >= 0, self.gain[:, at] / self.gain[:, -1:], 0.0)
        else:
            total = self.gain.sum(axis=0)
            served = (
                np.where(at >= 0, total[at] / total[-1], 0.0)[None]
                if total.size and len(self.gain)
                else np.zeros((1, at.size))
            )
        anchor.score -= RATE / math.sqrt(anchor.steps) * served[:, :, None] * partner
        anchor.own, anchor.joint, anchor.sums = self._tables(anchor.score)
