"""The objective of expert caching as a sum of products of "some server of this set holds this expert"."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt.display import one_line


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    r"""The objective as :math:`F(x) = \sum_t v_t \prod_{e \in R_t} [\text{a server of } S_t \text{ holds } e]`.

    Let :math:`b_1 > \dots > b_L > 0` be the distinct gains of a user and :math:`P_k` the servers with gain at least
    :math:`b_k`, a prefix of the user's ranking. An expert saves
    :math:`\sum_k (b_k - b_{k+1}) [P_k \text{ holds } e]`, with :math:`b_{L+1} = 0`. Under the maximum, let R be the
    experts of a set that the device lacks. Without a cache all of R take the cloud's time c, the others the device's
    time d, so the set saves :math:`\min(\min_{e \in R} saving_e, c - d)` (without the cap if R is the whole set,
    nothing if d >= c), and the least of staircases over the same steps is
    :math:`\sum_k (b_k - b_{k+1}) \prod_{e \in R} [P_k \text{ holds } e]`. Terms with equal R and S are merged over
    users and sets.

    Parameters
    ----------
    experts : int64 [T, K], the experts R of each term, -1 where it has fewer.
    server_set : int64 [T], the set S of each term.
    value : float64 [T], v > 0.
    holds : bool [number of sets, N], the servers of each set.
    num_experts : E.
    """

    experts: NDArray[np.int64]
    server_set: NDArray[np.int64]
    value: NDArray[np.float64]
    holds: NDArray[np.bool_]
    num_experts: int

    __repr__ = one_line

    @classmethod
    def of(cls, problem: Any, check: Callable[[], object] = lambda: None) -> "Terms":
        """Return the terms of a problem, for every K and latency; `check` is called before each model, and may leave by raising."""
        parts = [_terms_of_model(problem, m, check) for m in range(len(problem.models))]
        first_set = np.cumsum([0, *(holds.shape[0] for *_, holds in parts)])
        width = problem.top_k
        return cls(
            experts=np.concatenate([_widen(experts, width) for experts, *_ in parts]),
            server_set=np.concatenate([ids + first for (_, ids, *_), first in zip(parts, first_set, strict=False)]),
            value=np.concatenate([value for _, _, value, _ in parts]),
            holds=np.concatenate([holds for *_, holds in parts]),
            num_experts=problem.num_experts,
        )

    def objective(self, cached: NDArray[np.bool_]) -> float:
        """Return F of a placement bool [N, E]: what the problem itself says, by another way."""
        held = self.holds.astype(np.int64) @ cached > 0  # (sets, E)
        served = (self.experts < 0) | held[self.server_set[:, None], self.experts]
        return float(self.value @ served.all(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    r"""The 0/1 variables of the terms: x[n, e], then z, then y.

    z = [some server of S holds e] for pairs (S, e) of several servers, y = [all experts of R are held in S] for terms
    of several experts; with one server z is an x, with one expert y is a z or an x. Their constraints are
    :math:`z_{Se} \le \sum_{n \in S} x_{ne}` and :math:`y_t \le z_{S_t e}` for e in R.

    Parameters
    ----------
    terms : the terms.
    z_set, z_expert : int64 [Z], server set and expert of each z.
    joint : int64 [Y], the term of each y.
    literal : int64 [T, K], the x or z column of each expert of each term, -1 where there is none.
    of_term : int64 [T], the column that is 1 when the term counts.
    """

    terms: Terms
    z_set: NDArray[np.int64]
    z_expert: NDArray[np.int64]
    joint: NDArray[np.int64]
    literal: NDArray[np.int64]
    of_term: NDArray[np.int64]

    __repr__ = one_line

    @classmethod
    def of(cls, problem: Any, check: Callable[[], object] = lambda: None) -> "Columns":
        """Return the numbered variables of a problem's terms; `check` is called between parts, and may leave by raising."""
        terms, num_experts = Terms.of(problem, check), problem.num_experts
        check()
        is_alone = (terms.holds.sum(axis=1) == 1)[terms.server_set][:, None]
        pair = terms.server_set[:, None] * num_experts + terms.experts
        pairs = np.unique(pair[(terms.experts >= 0) & ~is_alone])
        check()
        num_x = terms.holds.shape[1] * num_experts
        server = terms.holds.argmax(axis=1)[terms.server_set][:, None] if terms.holds.size else terms.experts
        literal = np.where(is_alone, server * num_experts + terms.experts, num_x + np.searchsorted(pairs, pair))
        literal[terms.experts < 0] = -1
        joint = np.flatnonzero((terms.experts >= 0).sum(axis=1) > 1)
        of_term = literal[:, 0].copy()
        of_term[joint] = num_x + pairs.size + np.arange(joint.size)
        return cls(terms, pairs // num_experts, pairs % num_experts, joint, literal, of_term)

    @property
    def first_z(self) -> int:
        """The column of the first z: how many x there are."""
        return int(self.terms.holds.shape[1]) * self.terms.num_experts

    @property
    def first_y(self) -> int:
        """The column of the first y."""
        return self.first_z + self.z_set.size

    @property
    def num_columns(self) -> int:
        """Columns in all."""
        return self.first_y + self.joint.size

    def cost(self) -> NDArray[np.float64]:
        """Return float64 [columns]: what each column adds to the objective."""
        cost = np.zeros(self.num_columns)
        np.add.at(cost, self.of_term, self.terms.value)
        return cost

    def links(self) -> sparse.csr_array:
        """Return the rows z - sum of x <= 0, then y - z <= 0."""
        num_z = self.z_set.size
        row, server = np.nonzero(self.terms.holds[self.z_set])
        z = np.arange(num_z)
        y, slot = np.nonzero(self.literal[self.joint] >= 0)
        link = num_z + np.arange(y.size)
        rows = np.concatenate([row, z, link, link])
        x = server * self.terms.num_experts + self.z_expert[row]
        literal = self.literal[self.joint[y], slot]
        column = np.concatenate([x, self.first_z + z, literal, self.first_y + y])
        value = np.repeat([-1.0, 1.0, -1.0, 1.0], [row.size, num_z, y.size, y.size])
        return sparse.csr_array((value, (rows, column)), shape=(num_z + y.size, self.num_columns))

    def values(self, cached: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the best values of all columns for a placement bool [N, E]."""
        held = self.terms.holds.astype(np.int64) @ cached > 0
        xz = np.concatenate([cached.ravel(), held[self.z_set, self.z_expert]])
        literal = self.literal[self.joint]
        return np.concatenate([xz, (xz[literal] | (literal < 0)).all(axis=1)])


def count_nonzeros(problem: Any) -> int:
    """Return how many nonzeros a model of these terms has at most, without building them."""
    total: int = problem.num_servers * problem.num_experts
    for m, model in enumerate(problem.models):
        levels = _Levels.of(problem, m)
        total += int((levels.holds.sum(axis=1) + 1).sum()) * model.num_experts
        if _shares(problem, model.top_k)[1] > 0:
            classes = _Classes.of(problem, m)
            sets_per_class = np.diff(model.indptr)[classes.profile]
            levels_per_class = np.diff((levels.full @ classes.weight).tocsc().indptr)
            pairs = min(int(sets_per_class @ levels_per_class), model.sets.shape[0] * levels.holds.shape[0])
            total += 2 * model.top_k * pairs
    return int(total)


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """Steps of every user's staircase.

    Parameters
    ----------
    holds : bool [S, N], the distinct prefix sets.
    full, capped : float64 [S, U], height of each step; capped at what a device-held expert leaves to save.
    """

    holds: NDArray[np.bool_]
    full: sparse.csr_array
    capped: sparse.csr_array

    @classmethod
    def of(cls, problem: Any, m: int) -> "_Levels":
        gain = problem.gain_s[m]  # (U, N)
        num_users, num_servers = gain.shape
        order = np.argsort(-gain, axis=1, kind="stable")
        level = np.take_along_axis(gain, order, axis=1)
        user, step = np.nonzero(level > np.append(level[:, 1:], np.zeros((num_users, 1)), axis=1))
        rank = np.argsort(order, axis=1, kind="stable")
        prefix = rank[user] <= step[:, None]  # (steps, N)
        packed, ids = np.unique(np.packbits(prefix, axis=1), axis=0, return_inverse=True)
        shape = (packed.shape[0], num_users)
        cap = (problem.cloud_latency_s[m] - problem.device_latency_s[m])[:, None]

        def heights(level: NDArray[np.float64]) -> sparse.csr_array:
            below = np.append(level[:, 1:], np.zeros((num_users, 1)), axis=1)
            table = sparse.csr_array(((level - below)[user, step], (ids.ravel(), user)), shape=shape)
            table.eliminate_zeros()
            return table

        return cls(
            holds=np.unpackbits(packed, axis=1, count=num_servers).astype(bool),
            full=heights(level),
            capped=heights(np.minimum(level, np.maximum(0.0, cap))),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    """Users of one model who share a profile and what their devices hold.

    Parameters
    ----------
    profile : int64 [G], the profile of each class.
    device : bool [G, E_m], what its devices hold.
    weight : float64 [U, G], the weight of each user in the column of its class.
    """

    profile: NDArray[np.int64]
    device: NDArray[np.bool_]
    weight: sparse.csr_array

    @classmethod
    def of(cls, problem: Any, m: int) -> "_Classes":
        device = problem.device_mask()[:, problem.first_expert[m] : problem.first_expert[m + 1]]
        profile = problem.profile[:, m].astype(np.int64)
        rows = np.column_stack([profile, np.packbits(device, axis=1)])
        _, first, ids = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        users = np.arange(problem.num_users)
        weight = problem.user_weight * problem.request[:, m]
        table = sparse.csr_array((weight, (users, ids.ravel())), shape=(users.size, first.size))
        table.eliminate_zeros()
        return cls(profile=profile[first], device=device[first], weight=table)


def _shares(problem: Any, top_k: int) -> tuple[float, float]:
    """Return the factors of the sum and of the maximum in the latency of a set of K experts."""
    if problem.latency == "sum" or top_k == 1:
        return 1.0, 0.0
    return (0.0, 1.0) if problem.latency == "max" else (1.0 - problem.theta, problem.theta * top_k)


def _terms_of_model(
    problem: Any, m: int, check: Callable[[], object]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return experts, server set and value of each term of one model, and its server sets."""
    top_k = problem.models[m].top_k
    of_sum, of_max = _shares(problem, top_k)
    check()
    levels, classes = _Levels.of(problem, m), _Classes.of(problem, m)
    found = []
    if of_sum > 0:
        found.append(_sum_entries(problem, m, classes, of_sum))
    if of_max > 0:
        found.append(_max_entries(problem, m, classes, of_max))
    group, experts, probability, is_capped = (np.concatenate(column) for column in zip(*found, strict=True))
    check()
    distinct, ids = distinct_rows(experts, problem.models[m].num_experts)
    shape = (classes.profile.size, distinct.shape[0])
    value = sparse.csr_array((levels.full.shape[0], distinct.shape[0]))
    for chosen, height in ((~is_capped, levels.full), (is_capped, levels.capped)):
        use = sparse.csr_array((probability[chosen], (group[chosen], ids[chosen])), shape=shape)
        check()
        value = value + height @ classes.weight @ use
    table = value.tocoo()
    keep = table.data > 0
    server_set, row = (axis[keep].astype(np.int64) for axis in table.coords)
    experts = distinct[row]
    experts[experts >= 0] += problem.first_expert[m]
    return experts, server_set, table.data[keep], levels.holds


_Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]


def _sum_entries(problem: Any, m: int, classes: _Classes, share: float) -> _Entries:
    """Return class, experts, weight and whether the cap applies: one expert each, summed over its sets."""
    model = problem.models[m]
    uses = np.where(classes.device, 0.0, share * model.uses[classes.profile])
    group, expert = np.nonzero(uses)
    return group, _widen(expert[:, None], model.top_k), uses[group, expert], np.zeros(group.size, bool)


def _max_entries(problem: Any, m: int, classes: _Classes, share: float) -> _Entries:
    """Return the same for the maximum: the experts of each set that the device lacks."""
    model = problem.models[m]
    start, length = model.indptr[classes.profile], np.diff(model.indptr)[classes.profile]
    group = np.repeat(np.arange(length.size), length)
    entry = np.arange(group.size) + np.repeat(start - np.append(0, np.cumsum(length)[:-1]), length)
    sets = model.sets[model.indices[entry]].astype(np.int64)  # (entries, K)
    remote = ~classes.device[group[:, None], sets]
    experts = np.sort(np.where(remote, sets, model.num_experts), axis=1)  # experts of the device last
    experts[experts == model.num_experts] = -1
    probability = share * model.probability[entry]
    keep = (experts[:, 0] >= 0) & (probability > 0)
    return group[keep], experts[keep], probability[keep], ~remote.all(axis=1)[keep]


def distinct_rows(experts: NDArray[np.int64], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of experts [any, K], -1 for none, and for each row which of them it is.

    Rows as single numbers sort much faster, and let other threads run meanwhile; where those get too large, rows do.
    """
    base, width = num_experts + 1, experts.shape[1]
    if base**width >= 2**62:
        distinct, ids = np.unique(experts, axis=0, return_inverse=True)
        return distinct, ids.ravel()
    place = base ** np.arange(width)[::-1]
    number, ids = np.unique((experts + 1) @ place, return_inverse=True)
    return number[:, None] // place % base - 1, ids


def _widen(experts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    return np.pad(experts, ((0, 0), (0, width - experts.shape[1])), constant_values=-1)
