"""The mixed-integer programme of model download behind `milp`: linear rows, and tangents of what is convex."""

from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.background import Action
from edgeopt.solvers.model_download.milp_pair import (
    SLACK,
    Pair,
    energy_excess,
    least_hz,
    levels_hz,
    make_pair,
    needed_hz,
    rates,
)

if TYPE_CHECKING:
    import highspy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TANGENTS = 10  # of each convex function to begin with


class Rows:
    """Rows of a programme, added in blocks of as many nonzeros each."""

    def __init__(self) -> None:
        self._columns: list[Ints] = []
        self._values: list[Floats] = []
        self._lower: list[Floats] = []
        self._upper: list[Floats] = []

    def add(self, columns: list[Ints | int], values: list[Floats | float], lower: float, upper: float) -> None:
        """Add a block: entry j of every row has column ``columns[j]`` and value ``values[j]``, [rows] each."""
        entries = np.broadcast_arrays(*map(np.atleast_1d, [*columns, *values]))
        self._columns.append(np.stack(entries[: len(columns)], axis=1))
        self._values.append(np.stack(entries[len(columns) :], axis=1).astype(np.float64))
        self._lower.append(np.full(entries[0].size, lower))
        self._upper.append(np.full(entries[0].size, upper))

    @property
    def num_blocks(self) -> int:
        """Blocks added so far."""
        return len(self._columns)

    def matrix(self, num_columns: int, start: int = 0) -> tuple[sparse.csr_array, Floats, Floats]:
        """Return the rows from block `start` on, and their lower and upper bounds."""
        blocks = self._columns[start:]
        indptr = np.cumsum(np.concatenate([[0], *(np.full(b.shape[0], b.shape[1]) for b in blocks)]), dtype=np.int64)
        columns = np.concatenate([b.ravel() for b in blocks])
        values = np.concatenate([v.ravel() for v in self._values[start:]])
        shape = (indptr.size - 1, num_columns)
        matrix = sparse.csr_array((values, columns, indptr), shape=shape)
        return matrix, np.concatenate(self._lower[start:]), np.concatenate(self._upper[start:])


class DownloadModel:
    r"""Programme of a problem, a column x for each user with each allowed model, everything else in proportion to x.

    .. math:: \max \sum v x, \quad \sum_i x_{ki} \le 1, \quad \sum b \le B, \quad
        s_l T + \sum_{j \ge l} (V_j x + C_j z_j / f^{max}) \le D x, \quad \sum_l w_l \le E x, \quad x \le z_l \le \rho x,
        \quad T \ge x \, S / r(b / x), \quad w_l \ge a C_l (f^{max})^2 x^3 / z_l^2, \quad x \in \{0, 1\}

    with T the download time, :math:`s_l` the share of the bits up to layer l, z the highest frequency over that of a layer and w its
    energy. The last two are convex; they are replaced by tangents, so the programme is a relaxation. With frequency
    levels, binaries choose one for each layer instead; with resource blocks, b counts them. Every limit is wider by
    `SLACK`, so that no plan is lost that the problem accepts within its tolerance.

    Parameters
    ----------
    problem : the problem.
    check : called again and again meanwhile; may leave by raising.
    """

    def __init__(self, problem: ModelDownload, check: Action = lambda: None) -> None:
        self.problem = problem
        self.limit_hz = problem.bandwidth_hz * (1 + SLACK)
        self.pairs: list[Pair] = []
        self._rows = Rows()
        self._upper: list[Floats] = []
        self._integer: list[NDArray[np.bool_]] = []
        self.num_columns = 0
        for user, model in np.argwhere(problem.allowed).tolist():
            check()
            if (pair := make_pair(problem, user, model, self.num_columns, self.limit_hz)) is not None:
                self.pairs.append(pair)
                self._add_pair(pair)
        self.x = np.array([pair.first for pair in self.pairs], np.int64)
        self.user = np.array([pair.user for pair in self.pairs], np.int64)
        self.hz = np.array([pair.hz for pair in self.pairs])
        self._least_hz = np.array([least_hz(problem, pair.user, pair.model) for pair in self.pairs])
        self.value = problem.value[self.user, [pair.model for pair in self.pairs]]
        self.is_open = np.ones(self.x.size, bool)
        """bool [pairs], whether a pair has not been found to need more than there is."""
        if self.pairs:
            self._add_tangents()

    # --- variables and rows ------------------------------------------------------------------------------------

    def _add_columns(self, upper: list[float], integer: bool) -> Ints:
        self._upper.append(np.array(upper, float))
        self._integer.append(np.full(len(upper), integer))
        self.num_columns += len(upper)
        return np.arange(self.num_columns - len(upper), self.num_columns)

    def _add_pair(self, pair: Pair) -> None:
        (x,) = self._add_columns([1.0], True)
        most = self.limit_hz / pair.hz
        counts_blocks = pair.hz == self.problem.resource_block_hz  # not where they are finer than matters
        (band,) = self._add_columns([float(np.floor(most)) if counts_blocks else most], counts_blocks)
        (transfer,) = self._add_columns([1.0], False)
        self._rows.add([band, x], [1.0, -most], -np.inf, 0.0)
        if pair.time is None or pair.energy is None:
            self._rows.add([transfer, x], [pair.bits, -pair.free], -np.inf, 0.0)
            return
        layers, levels = pair.time.shape
        if self.problem.frequency_levels is None:
            settings = self._add_columns([pair.stretch] * layers, False)[:, None]
            energy = self._add_columns([1.0] * layers, False)
            self._rows.add([settings[:, 0], x], [1.0, -1.0], 0.0, np.inf)
            self._rows.add([settings[:, 0], x], [1.0, -pair.stretch], -np.inf, 0.0)
            self._rows.add([*energy, x], [*[1.0] * layers, -1.0], -np.inf, 0.0)
        else:
            settings = self._add_columns([1.0] * layers * levels, True).reshape(layers, levels)
            self._rows.add([*settings.T, x], [*[1.0] * levels, -1.0], 0.0, 0.0)
            self._rows.add([*settings.ravel(), x], [*pair.energy.ravel(), -1.0], -np.inf, 0.0)
        left = self._add_columns([1.0] * layers + [0.0], False)  # compute time from each layer to the last
        self._rows.add([left[:-1], left[1:], *settings.T], [1.0, -1.0, *-pair.time.T], 0.0, 0.0)
        self._rows.add([transfer, left[:-1], x], [pair.bits, 1.0, -pair.free], -np.inf, 0.0)

    def _add_tangents(self) -> None:
        """Add tangents spread evenly, on logarithmic scales, over what each convex function may be asked for."""
        for share in np.geomspace(1.0, self.limit_hz / self._least_hz, TANGENTS):
            self._add_rate_tangents(np.arange(self.x.size), self._least_hz * share)
        z, least, most = [], [], []
        for pair in self.pairs:
            if pair.energy is not None and self.problem.frequency_levels is None:
                layers = pair.energy.shape[0]
                z.append(pair.first + 3 + np.arange(layers))
                least.append(np.clip(np.sqrt(pair.energy[:, 0]), 1.0, pair.stretch))  # w <= 1
                most.append(np.full(layers, pair.stretch))
        self._z = np.concatenate(z) if z else np.zeros(0, np.int64)
        if z:
            limited = [pair for pair in self.pairs if pair.energy is not None]
            count = [pair.bits.size for pair in limited]
            self._z_pair = np.repeat([k for k, pair in enumerate(self.pairs) if pair.energy is not None], count)
            self._w = self._z + np.repeat(count, count)
            self._full_energy = np.concatenate([pair.energy[:, 0] for pair in limited if pair.energy is not None])
            for at in np.geomspace(np.concatenate(least), np.concatenate(most), TANGENTS):
                self._add_energy_tangents(np.arange(self._z.size), at)

    def _seconds(self, pairs: Ints, hz: Floats) -> tuple[Floats, Floats]:
        """Return download times over a bandwidth in shares of the deadlines, and their slopes."""
        problem, users = self.problem, self.user[pairs]
        bits = problem.model_bits[[self.pairs[k].model for k in pairs]]
        rate, slope = rates(problem, users, hz)
        time = bits / (problem.deadline_s[users] * (1 + SLACK)) / rate
        return time, -time / rate * slope

    def _add_rate_tangents(self, pairs: Ints, hz: Floats) -> None:
        time, slope = self._seconds(pairs, hz)
        x = self.x[pairs]
        self._rows.add([x + 2, x, x + 1], [1.0, hz * slope - time, -slope * self.hz[pairs]], 0.0, np.inf)

    def _add_energy_tangents(self, which: Ints, at: Floats) -> None:
        energy = self._full_energy[which] / at**2
        columns: list[Ints | int] = [self._w[which], self.x[self._z_pair[which]], self._z[which]]
        self._rows.add(columns, [1.0, -3.0 * energy, 2.0 * energy / at], 0.0, np.inf)

    def cut(self, values: Floats) -> bool:
        """Add the tangents at a point of what it violates; return whether there were any."""
        x = values[self.x]
        taken = np.flatnonzero(x > 0.5)
        hz = np.maximum(values[self.x[taken] + 1] / x[taken] * self.hz[taken], self._least_hz[taken] * (1 - SLACK))
        time, _ = self._seconds(taken, hz)
        short = time > values[self.x[taken] + 2] / x[taken]
        if short.any():
            self._add_rate_tangents(taken[short], hz[short])
        if not self._z.size:
            return bool(short.any())
        which = np.flatnonzero(x[self._z_pair] > 0.5)
        share = x[self._z_pair[which]]
        at = np.maximum(1.0, values[self._z[which]] / share)
        energy = self._full_energy[which] / at**2
        low = energy > values[self._w[which]] / share
        if low.any():
            self._add_energy_tangents(which[low], at[low])
        return bool(short.any() or low.any())

    def cut_choice(self, values: Floats, tolerance: float) -> bool:
        """Add the tangents where what is chosen at a point needs more bandwidth than it has there, by more than a share."""
        taken = np.flatnonzero(values[self.x] > 0.5)
        hz = np.array([needed_hz(self.problem, self.pairs[k], self._frequency(k, values)) for k in taken.tolist()])
        hz = np.maximum(hz, self._least_hz[taken])
        short = np.isfinite(hz) & (values[self.x[taken] + 1] * self.hz[taken] < hz * (1 - tolerance))
        if short.any():
            self._add_rate_tangents(taken[short], hz[short])
        return bool(short.any())

    def forbid(self, values: Floats, served: Container[int]) -> None:
        """Close the pairs chosen at a point that cannot be served; if there are none, forbid to choose all of them."""
        taken = np.flatnonzero(values[self.x] > 0.5)
        if hopeless := [k for k in taken.tolist() if k not in served]:
            self.is_open[hopeless] = False
        else:
            self._rows.add([*self.x[taken]], [1.0] * taken.size, -np.inf, taken.size - 1.0)

    def join(self, check: Action = lambda: None) -> None:
        """Add the rows that bind users together: one model for each, and the bandwidth; `check` as above."""
        for user in np.unique(self.user):
            check()
            own = self.x[(self.user == user) & self.is_open]
            if own.size > 1:
                self._rows.add([*own], [1.0] * own.size, -np.inf, 1.0)
        share = self.hz / self.limit_hz
        self._rows.add([*self.x + 1], [*share], -np.inf, 1.0)

    # --- for HiGHS ---------------------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """Blocks of rows so far."""
        return self._rows.num_blocks

    def rows(self, start: int) -> tuple[sparse.csr_array, Floats, Floats]:
        """Return the rows from block `start` on, and their lower and upper bounds."""
        return self._rows.matrix(self.num_columns, start)

    def alone(self) -> "highspy.HighsLp":
        """Return the linear programme of every pair for itself: the least bandwidth, or x = 0 above twice the limit."""
        cost = np.zeros(self.num_columns)
        cost[self.x] = 2.0 * self.limit_hz / self.hz
        cost[self.x + 1] = -1.0
        return self._lp(cost, relaxed=True)

    def together(self, scale: float) -> "highspy.HighsLp":
        """Return the mixed-integer programme, its objective times `scale`."""
        cost = np.zeros(self.num_columns)
        cost[self.x] = self.value * scale
        return self._lp(cost, relaxed=False)

    def _lp(self, cost: Floats, *, relaxed: bool) -> "highspy.HighsLp":
        module = highs_module()
        matrix, lower, upper = self.rows(0)
        lp: highspy.HighsLp = module.HighsLp()
        lp.sense_ = module.ObjSense.kMaximize
        lp.num_row_, lp.num_col_ = matrix.shape
        most = np.concatenate(self._upper)
        most[self.x[~self.is_open]] = 0.0
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(self.num_columns), most
        lp.row_lower_, lp.row_upper_ = lower, upper
        lp.a_matrix_.format_ = module.MatrixFormat.kRowwise
        lp.a_matrix_.num_row_, lp.a_matrix_.num_col_ = matrix.shape
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        if not relaxed:
            kinds = module.HighsVarType
            integer = np.concatenate(self._integer)
            lp.integrality_ = [kinds.kInteger if flag else kinds.kContinuous for flag in integer]
        return lp

    # --- plans -------------------------------------------------------------------------------------------------

    def serve(self, index: int, values: Floats) -> tuple[float, Floats] | None:
        """Return bandwidth (Hz) and frequencies [L] that serve a pair, after a point's frequencies; None if none do."""
        pair, problem = self.pairs[index], self.problem
        frequency = self._frequency(index, values)
        if energy_excess(problem, pair, frequency) > 0.0:
            return None
        hz = needed_hz(problem, pair, frequency)
        if (block := problem.resource_block_hz) is not None:
            hz = np.ceil(hz / block) * block
        return (hz, frequency) if hz <= self.limit_hz else None

    def _frequency(self, index: int, values: Floats) -> Floats:
        """Return a pair's frequencies [L] at a point, scaled down as far as its energy asks for."""
        pair, problem = self.pairs[index], self.problem
        top, low = min(problem.top_frequency_hz[pair.user], pair.top), problem.min_frequency_hz[pair.user]
        if pair.energy is None:
            return np.full(pair.bits.size, top)
        layers, levels = pair.energy.shape
        if problem.frequency_levels is not None:
            y = values[pair.first + 3 :][: layers * levels].reshape(layers, levels)
            return np.asarray(levels_hz(problem, pair.user)[y.argmax(axis=1)])
        z = values[pair.first + 3 :][:layers] / values[pair.first]
        frequency = np.clip(top / np.maximum(z, 1.0), low, top)
        if energy_excess(problem, pair, frequency) <= 0.0:
            return np.asarray(frequency)
        least, most = low / top, 1.0
        for _ in range(60):
            middle = (least + most) / 2
            if energy_excess(problem, pair, np.maximum(low, frequency * middle)) > 0.0:
                most = middle
            else:
                least = middle
        return np.asarray(np.maximum(low, frequency * least))

    def plan(self, served: dict[int, tuple[float, Floats]]) -> DownloadPlan:
        """Return the plan that serves some pairs, each over its bandwidth at its frequencies."""
        model = np.full(self.problem.num_users, -1, np.int32)
        bandwidth = np.zeros(self.problem.num_users)
        order = sorted(served, key=lambda index: self.pairs[index].user)
        for index in order:
            pair = self.pairs[index]
            model[pair.user], bandwidth[pair.user] = pair.model, served[index][0]
        frequency = np.concatenate([np.zeros(0), *(served[index][1] for index in order)])
        return DownloadPlan(model=model, bandwidth_hz=bandwidth, frequency_hz=frequency)
