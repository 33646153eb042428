r"""What a layer can be worth with k distinct experts, by how many of its experts each server holds.

Let :math:`R_L` be the experts of a layer that some server of the set L holds. The value of the layer is a sum over sets of servers,
since a user's level k is served by the servers that are at least so near:

.. math:: F_l(x) = \sum_L f_L(R_L), \qquad f_L(R) = \text{saving by the sets of experts inside } R, \text{ over the users and levels of } L

With k distinct experts and :math:`c_n` of them on server n, :math:`|R_L| \le \min(k, \sum_{n \in L} c_n)`. So for any curves
:math:`D_L(j) \ge \max \{ f_L(R) : |R| \le j \}`, and prices per unit of storage,

.. math:: F_l(x) - \sum_{n, e \in l} \lambda_n s_e x_{ne} \le \max_{c : \sum_n c_n \ge k} \; \sum_L D_L(\min(k, c(L))) - \sum_n \lambda_n w_l(c_n)

with :math:`w_l(c)` the size of the c smallest experts. This sees what neither the linear relaxation nor the bound by pairs can: a user
whose near servers hold a third of the experts finds far less than a third of its sets there, and a server holds no more than fits. The
maximum over the counts is found by branch and bound (`kernels.densest.best_counts`).

*Curves.* For up to 16 experts all subsets are tried. Beyond, :math:`D_L` is a densest-subgraph problem with sets for edges. For 0/1
choices y, a set of m experts of which j are chosen is complete only if each of its pairs is, and :math:`[j = m]` is nowhere above
:math:`(j - t)(j - t - 1) / ((m - t)(m - t - 1))`, which is not negative at whole numbers. Any mixture of these gives a quadratic form
in y. For 0/1 choices of exactly k experts, :math:`(1 - y_e)(1 - y_h) \ge 0` may be added with any weight, a pair's
coefficient be split between its two experts as one likes, and then each chosen expert has k - 1 partners, so that

.. math:: D(k) = c + \text{sum of the } k \text{ largest over } e \text{ of } \Big[ a_e + \text{the } k - 1 \text{ largest of } J_{eh} \Big]

is a bound for every choice of these numbers: a Lagrangian of the linearisation of Adams and Sherali (1986). Mixtures are
moved by multiplicative weights, the rest by subgradient steps. Choosing fewer experts serves less, so "exactly k" bounds "at most k".
The combination with sets of servers and the majorants for sets are ours.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.layer_bound import Layer
from edgeopt.solvers.kernels.densest import best_counts, densest_steps
from edgeopt.solvers.kernels.distinct import densest_subsets, sets_inside

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Stop = Callable[[], bool]

STEPS, OWN_STEPS = 200, 30  # of a curve that is sharpened for one size, and of all curves before
SCORES, OWN_SCORES = 300.0, 100.0  # sum of the rates of all steps, halved by the cosine
LENGTH = 0.5  # first step of the multipliers, in the mean weight of a pair of experts
MAX_EXACT, MAX_TABLE = 16, 1 << 26  # all subsets of so many experts are tried, in a table of so many entries
NEAR = 40  # a curve is sharpened if that was not done within this share of the layer's experts
CHUNK = 500_000  # sets that are visited between two looks at the clock
BATCH = 1 << 22  # pairs of experts, over all lists, that are looked at together: 130 MB
ANCHORS = 4  # numbers of experts for which the curves of single users are found
TOLERANCE, MAX_NODES = 1e-4, 50_000  # of branch and bound over counts, relative to the largest value


class Counts:
    """The bound of one layer by how many of its experts each server holds.

    Parameters
    ----------
    groups, layer : the problem and one of its layers.
    capacity : float64 [N], storages, in the units of the layer's sizes.
    stop : whether a limit ends the search for curves, which bound from the first step on.
    """

    def __init__(self, groups: Groups, layer: Layer, capacity: Floats, stop: Stop) -> None:
        self.layer, self.stop = layer, stop
        fits = np.searchsorted(layer.weight, capacity * (1 + 1e-12), side="right") - 1  # up to rounding
        self.most = np.minimum(fits, layer.num_experts).astype(np.int64)
        self._list_sets(groups)
        self.sharpened = {layer.num_experts}
        num_kinds = self.scale.shape[1]
        self.exact = num_kinds == 0 or (layer.num_experts <= MAX_EXACT and num_kinds << layer.num_experts <= MAX_TABLE)
        if num_kinds == 0:
            self.curve = np.zeros((0, layer.num_experts + 1))
        elif self.exact:
            inside = sets_inside(self.member, self.weight, self.first, layer.num_experts)
            self.curve = densest_subsets(self.scale, inside, layer.num_experts)
        else:
            self._bound_curves()

    def _list_sets(self, groups: Groups) -> None:
        """List the sets of each kind of user and level, and what each kind counts for each set of servers."""
        g, layer = groups, self.layer
        levels = np.arange(g.step.shape[1])
        row, level = np.nonzero((g.step[layer.rows] > 0) & (levels < g.cloud_level[layer.rows, None]))
        reached = g.server_level[layer.rows][row] <= level[:, None]
        mask = reached @ (1 << np.arange(reached.shape[1]))
        row, level, mask = row[mask > 0], level[mask > 0], mask[mask > 0]
        self.mask, at_mask = np.unique(mask, return_inverse=True)
        kind, at_kind = np.unique(2 * layer.bundle[row] + (level >= layer.held_level[row]), return_inverse=True)
        self.scale = np.zeros((self.mask.size, kind.size))
        np.add.at(self.scale, (at_mask, at_kind), g.step[layer.rows][row, level])
        member, weight = [np.zeros((0, layer.rest.shape[1]), np.int32)], [np.zeros(0)]
        for b in kind:
            rest, chance = layer.sets_of(int(b) // 2, with_held=bool(b % 2))
            single = layer.uses[:, np.flatnonzero(layer.bundle == b // 2)[0]]
            alone = np.full((np.count_nonzero(single), rest.shape[1]), -1, np.int32)
            alone[:, 0] = np.flatnonzero(single)
            member += [rest, alone]
            weight += [chance, single[single > 0]]
        self.first = np.cumsum([0, *(len(a) + len(b) for a, b in zip(weight[1::2], weight[2::2], strict=True))])
        self.member, self.weight = np.concatenate(member), np.concatenate(weight)

    def _bound_curves(self) -> None:
        """Bound what each kind of user can be served by k experts, and all users of the heaviest set of servers together."""
        num_experts = self.layer.num_experts
        own = Curves(self.member, self.weight, self.first, num_experts)
        self.heaviest = int((self.scale @ own.curve[:, -1]).argmax())
        weight = self.weight * np.repeat(self.scale[self.heaviest], np.diff(self.first))
        member, place = np.unique(self.member[weight > 0], axis=0, return_inverse=True)
        total = np.asarray(np.bincount(place.ravel(), weights=weight[weight > 0]), np.float64)
        self.together = Curves(member, total, np.array([0, total.size]), num_experts)
        for k in np.linspace(0, num_experts, ANCHORS + 1)[1:-1].astype(int).tolist():
            for curves in (own, self.together):
                curves.sharpen(k, OWN_STEPS, OWN_SCORES, self.stop)
        self.curve = self.scale @ own.curve
        self.curve[self.heaviest] = np.minimum(self.curve[self.heaviest], self.together.curve[0])

    def sharpen(self, k: int) -> None:
        """Lower the curve of the heaviest set of servers about k experts, unless that was done near k or it is exact."""
        near = self.layer.num_experts // NEAR
        if self.exact or any(abs(k - other) <= near for other in self.sharpened) or self.stop():
            return
        self.sharpened.add(k)
        self.together.sharpen(k, STEPS, SCORES, self.stop)
        self.curve[self.heaviest] = np.minimum(self.curve[self.heaviest], self.together.curve[0])

    def ceiling(self, price: Floats) -> Floats:
        """Return float64 [E + 1]: quick bounds for every k, at prices [N] per unit of storage."""
        size = np.arange(self.layer.num_experts + 1)
        fits = (self.mask[:, None] >> np.arange(self.most.size) & 1) @ self.most
        reached = np.take_along_axis(self.curve, np.minimum(size, fits[:, None]), axis=1)
        return np.asarray(reached.sum(axis=0) - price.min() * self.layer.weight)

    def bound(self, k: int, price: Floats, known: float = math.inf) -> tuple[float, Floats]:
        """Return what the layer is worth at most with exactly k > 0 distinct experts, and the storage that takes [N].

        Where that is not below the bound that is `known`, the search is not brought to its end.
        """
        value, count = best_counts(
            self.curve, self.mask, k, price, self.layer.weight, self.most, known,
            TOLERANCE * float(self.curve[:, -1].sum()), MAX_NODES,
        )  # fmt: skip
        return value, self.layer.weight[count]


class Curves:
    """Bounds on the weight of the sets inside any k experts, for several lists of sets.

    Parameters
    ----------
    member : int32 [T, K], the experts of each set, -1 where there are fewer than K.
    weight : float64 [T].
    first : int64 [B + 1], the lists.
    num_experts : experts, E.
    """

    def __init__(self, member: NDArray[np.int32], weight: Floats, first: Ints, num_experts: int) -> None:
        self.member, self.weight, self.first = np.ascontiguousarray(member), weight, first.astype(np.int64)
        total = np.array([weight[a:b].sum() for a, b in itertools.pairwise(first)])
        self.curve = np.repeat(total[:, None], num_experts + 1, axis=1)
        self.curve[:, 0] = 0.0
        self.length = LENGTH * total / num_experts**2

    def sharpen(self, k: int, steps: int, scores: float, stop: Stop) -> None:
        """Take steps of the bound for k experts; every step bounds all sizes."""
        num_experts, at_once = self.curve.shape[1] - 1, max(1, BATCH // self.curve.shape[1] ** 2)
        for low in range(0, self.curve.shape[0], at_once):
            lists = slice(low, low + at_once)
            first, curve = self.first[low : low + at_once + 1], np.ascontiguousarray(self.curve[lists])
            single, pairs = np.zeros((len(curve), num_experts)), (len(curve), num_experts, num_experts)
            state = np.zeros(len(curve)), single, np.zeros(pairs), np.zeros(pairs), np.zeros(pairs)
            more = max(1, CHUNK // max(1, int(first[-1] - first[0])))
            for start in range(0, steps, more):
                if stop():
                    break
                densest_steps(
                    self.member, self.weight, first, k, start, min(start + more, steps), steps, scores / steps,
                    self.length[lists], *state, curve,
                )  # fmt: skip
            self.curve[lists] = curve
        # at most k serve no more than k + 1
        self.curve[:] = np.minimum.accumulate(self.curve[:, ::-1], axis=1)[:, ::-1]
