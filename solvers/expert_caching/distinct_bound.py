r"""Upper bounds for latency ``max`` and ``mix`` that count the distinct experts of each layer.

The linear relaxation caches layers by halves: half of every expert serves half of every set. In truth a set is served only if
all of its experts are cached, so with few of a layer's experts hardly any set is complete, and what a layer is worth is
convex at first in the number of its distinct experts. The bound keeps that. For prices :math:`\lambda_n \ge 0` per unit of storage,

.. math:: OPT \le \sum_n \lambda_n Q_n + \max \Big\{ \sum_l W_l(k_l) : \sum_l w_l(k_l) \le \sum_n Q_n \Big\}

where :math:`w_l(k)` is the size of the k smallest experts of layer l, and :math:`W_l(k)` is nowhere below
:math:`F_l(x) - \sum_{n, e \in l} \lambda_n s_e x_{ne}` for any x that caches at most k distinct experts of layer l.

*Proof.* Let x be feasible and cache the experts :math:`T_l` of layer l. Each is stored at least once, so
:math:`\sum_l w_l(|T_l|) \le \sum_l \sum_{e \in T_l} s_e \le \sum_n Q_n`: the sizes :math:`k_l = |T_l|` are allowed. Adding the prices of
free storage, which are not negative, :math:`F(x) \le \sum_n \lambda_n Q_n + \sum_l [F_l(x) - \sum_{n, e \in l} \lambda_n s_e x_{ne}]`, and each
bracket is at most :math:`W_l(k_l)`.

*One layer.* Let :math:`z_{ek} = 1` if e is served to a user from its level k or below, and :math:`y_h = 1` if h is cached anywhere. A set A, less what
the device holds, is served by level k only if :math:`z_{ek} y_h = 1` for each ordered pair of its experts. Hence for any shares
:math:`\alpha_{eh} \ge 0` that sum to one over these pairs, :math:`[A \text{ served}] \le \sum_{e, h} \alpha_{eh} z_{ek} y_h`. The *head* e then picks its servers
S, and at most k - 1 *partners* h:

.. math:: W_l(k) = \text{sum of the } k \text{ largest over } e \text{ of } \max_S \Big[ \text{the } k - 1 \text{ largest of } J_{eSh} + D_{eS} - s_e \lambda(S) \Big]^+

with J and D what the shares of pairs, and sets of one expert, add up to over users and levels. Layers of few experts are bounded
subset by subset instead, with the same partners for all heads. Shares are moved by multiplicative weights to the pairs that are served least,
prices by a subgradient method; every step's bound is valid. With shares for each user and level the bound is at least as good as the linear relaxation
in the limit, since a share that does not look at the partner is one of the choices.

`DistinctBound.close` lowers the profiles further, by how many of a layer's experts each server holds (`count_bound`).

The constraint on distinct experts follows from the storages; it says something because it is kept whole while the storages are priced.
"""

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems import Placement
from edgeopt.solve import Run
from edgeopt.solvers.expert_caching.count_bound import Counts
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.layer_bound import Layer, Places
from edgeopt.solvers.kernels.distinct import best_sizes
from edgeopt.solvers.kernels.subsets import subset_prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_SERVERS = 10  # up to so many, all subsets of servers are priced
MAX_ENTRIES = 1 << 26  # most numbers in the tables of all layers
MAX_FINE = 1 << 20  # most shares that are kept for every user and level
GRID = 4096  # units of storage that the sizes of layers are chosen in
MOMENTUM, AIM, PATIENCE, SMALLEST_STEP = 0.6, 0.2, 6, 0.02  # as in `dual`, for a function that falls meanwhile
FIRST = 0.07  # of what a unit of storage saves: the best prices are mostly about that, since most copies are the first of their kind
FARTHEST = 0.1  # share of the bound that a placement may be below it, for the length of steps
COARSE = 30  # steps with common shares, where each user and level may have its own


class DistinctBound:
    """The bound for one problem: prices, and shares for each layer.

    Parameters
    ----------
    groups : the problem's groups, without a surrogate.
    """

    def __init__(self, groups: Groups) -> None:
        problem = groups.problem
        if groups.exact_units:
            size, self.capacity = groups.units.astype(np.float64), groups.capacity_units.astype(np.float64)
        else:
            size = problem.expert_bytes
            self.capacity = np.minimum(problem.storage_limit, size.sum())
        places = Places.of(groups)
        self.holds = places.holds
        first = groups.group_first
        self.layers = [Layer(groups, places, g, size[first[g] : first[g + 1]]) for g in range(groups.num_groups)]
        self.groups, self.counts = groups, list[Counts]()
        self.first = np.cumsum([0, *(layer.num_experts + 1 for layer in self.layers)])
        total = float(self.capacity.sum())
        grain = 1.0 if groups.exact_units and total <= GRID else total / GRID
        weight = np.concatenate([layer.weight for layer in self.layers])
        # rounding down all sizes keeps every choice that fits
        self._weight = (
            np.floor(weight / grain * (1 - 1e-12)).astype(np.int64) if grain != 1.0 else weight.astype(np.int64)
        )
        self._room = int(total / grain * (1 + 1e-12))
        self._may_refine = sum(layer.fine_entries for layer in self.layers) <= MAX_FINE
        self._price = self._at = self._direction = np.zeros(self.capacity.size)
        self._best, self._scale, self._stale, self._steps = math.inf, 1.0, 0, 0

    @staticmethod
    def supports(groups: Groups) -> bool:
        """Whether the tables are small enough."""
        if groups.problem.num_servers > MAX_SERVERS:
            return False
        return sum(Layer.entries(groups, g) for g in range(groups.num_groups)) <= MAX_ENTRIES

    def evaluate(self, price: Floats, *, learn: bool = True) -> tuple[float, Floats]:
        """Return the bound at some prices [N] and the storage that its choice uses [N]; with `learn`, move the shares."""
        of_set = subset_prices(price)[1:]
        profiles, found = zip(*(layer.profile(of_set) for layer in self.layers), strict=True)
        value, sizes, counted = self._choose(price, np.concatenate(profiles))
        used = np.zeros_like(price)
        for number, (layer, at_size, k) in enumerate(zip(self.layers, found, sizes.tolist(), strict=True)):
            if not k:
                continue
            if number in counted:
                used += counted[number]
                continue
            key, subset = at_size[k]
            at, partner = layer.choose(key, subset, k, of_set)
            chosen = at >= 0
            used += self.holds[at[chosen]].T.astype(np.float64) @ layer.size[chosen]
            if learn:
                layer.shift(key, subset, k, at, partner)
        return float(value + price @ self.capacity), used

    def _choose(self, price: Floats, profile: Floats) -> tuple[float, Ints, dict[int, Floats]]:
        """Return the best sum of the profiles, the sizes, and the storage [N] of the layers that their counts bound."""
        for number, counts in enumerate(self.counts):
            own = profile[self.first[number] : self.first[number + 1]]
            np.minimum(own, counts.ceiling(price), out=own)
        storage: dict[tuple[int, int], Floats | None] = {}
        while True:
            value, sizes = best_sizes(profile, self.first, self._weight, self._room)
            chosen = [(number, k) for number, k in enumerate(sizes.tolist()) if k]
            fresh = [key for key in chosen if key not in storage] if self.counts else []
            if not fresh or self.counts[0].stop():
                found = {number: storage.get((number, k)) for number, k in chosen}
                return value, sizes, {number: used for number, used in found.items() if used is not None}
            for number, k in fresh:
                counts, at = self.counts[number], self.first[number] + k
                counts.sharpen(k)
                bound, used = counts.bound(k, price, profile[at])
                storage[number, k] = used if bound < profile[at] else None
                profile[at] = min(profile[at], bound)

    def close(self, run: Run[Placement], steps: int) -> None:
        """Lower the bound by the counts of each layer, and by so many more steps of the prices."""
        if self._best == math.inf:
            self._start(run)
        with run.building():
            self.counts = [Counts(self.groups, layer, self.capacity, run.stopped) for layer in self.layers]
        self._price, self._scale, self._stale = self._at, 1.0, 0
        self._direction = np.zeros_like(self._price)
        for _ in range(steps):
            if not run.step() or run.gap < 1e-9:
                break
            self._step(run)

    def descend(self, run: Run[Placement], steps: int) -> None:
        """Lower the bound by so many more steps of prices and shares, and report it to the run.

        The run's limits end the steps; one of its iterations is one step.
        """
        if self._best == math.inf:
            self._start(run)
        for _ in range(steps):
            if not run.step() or run.gap < 1e-9:
                break
            self._steps += 1
            if self._steps == COARSE and self._may_refine:
                for layer in self.layers:
                    layer.refine()
                self._scale, self._stale = 1.0, 0
            self._step(run)

    def _start(self, run: Run[Placement]) -> None:
        """Take a share of what a unit of storage saves in the best placement for the first prices."""
        lower, total = run.objective or 0.0, float(self.capacity.sum())
        self._price = self._at = np.full(self.capacity.size, FIRST * lower / total if total else 0.0)
        self._best, _ = self.evaluate(self._price, learn=False)
        run.tighten(self._best)

    def _step(self, run: Run[Placement]) -> None:
        """Evaluate at the present prices, move the shares, and take a deflected Polyak step with the prices."""
        value, used = self.evaluate(self._price)
        if value < self._best - 1e-9 * abs(self._best):
            self._best, self._at, self._stale = value, self._price, 0
            run.tighten(value)
        else:
            self._stale += 1
            if self._stale == PATIENCE:
                self._scale, self._stale, self._price = max(self._scale / 2, SMALLEST_STEP), 0, self._at
        self._direction = self.capacity - used + MOMENTUM * self._direction
        self._direction[(self._price <= 0) & (self._direction > 0)] = 0.0
        if norm := float(self._direction @ self._direction):
            # early placements are far off, and steps that aim at them are too long
            gap = np.clip(self._best - (run.objective or 0.0), 1e-9 * abs(self._best), FARTHEST * abs(self._best))
            aim = value - self._best + AIM * gap
            self._price = np.maximum(0.0, self._price - self._scale * aim / norm * self._direction)
