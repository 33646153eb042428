"""Kernels over subsets of servers against enumeration."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.expert_caching.exchange import buckets, deltas
from edgeopt.solvers.kernels import subsets as module

few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
servers = st.integers(1, 4)


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def members(mask: int) -> list[int]:
    """Return the servers of a mask."""
    return [n for n in range(int(mask).bit_length()) if mask >> n & 1]


def tables(seed: int, num_servers: int, num_experts: int = 4) -> tuple[Any, Any, Any]:
    """Return (table [E, 2^N], size [E], price [N]) of multiples of 1/4: exact sums and many ties."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 9, (num_experts, 1 << num_servers)) / 4
    table[:, 0] = 0.0
    return table, rng.integers(1, 4, num_experts).astype(float), rng.integers(0, 4, num_servers) / 4


def net(table: Any, size: Any, price: Any, e: int, mask: int) -> float:
    """Return the value less price of one column."""
    return float(table[e, mask] - size[e] * sum(price[n] for n in members(mask)))


@few
@given(seeds, servers, st.sampled_from([(3, 4, 2), (1, 3, 1), (2, 1, 1)]))
def test_tables_of_subsets(seed: int, num_servers: int, shape: tuple[int, int, int]) -> None:
    """Value of every subset for every expert and its summed price, the empty subset and useless users included."""
    num_experts, num_users, num_models = shape
    rng = np.random.default_rng(seed)
    weight, price = rng.integers(0, 4, (num_experts, num_users)) / 4, rng.integers(0, 5, num_servers) / 4
    gain = rng.integers(0, 5, (num_models, num_users, num_servers)) / 4
    model = np.sort(rng.integers(0, num_models, num_experts))
    values, prices = module.subset_values(weight, gain, model), module.subset_prices(price)
    for mask in range(1 << num_servers):
        held = members(mask)
        assert prices[mask] == sum(price[n] for n in held)
        for e in range(num_experts):
            best = [max((gain[model[e], u, n] for n in held), default=0.0) for u in range(num_users)]
            assert values[e, mask] == np.dot(weight[e], best)


@few
@given(seeds, servers)
def test_best_subsets(seed: int, num_servers: int) -> None:
    """The best subset by enumeration, the lowest mask at a tie."""
    table, size, price = tables(seed, num_servers)
    value, choice = module.best_subsets(table, size, module.subset_prices(price))
    for e in range(size.size):
        every = [net(table, size, price, e, mask) for mask in range(1 << num_servers)]
        assert value[e] == max(every)
        assert choice[e] == every.index(max(every))


def test_best_subset_of_nothing_is_empty() -> None:
    """Without value, or at prices that eat it up, the empty subset wins the tie."""
    for table in (np.zeros((2, 8)), np.tile(np.array([0.0, 1, 1, 2, 1, 2, 2, 3]), (2, 1))):
        value, choice = module.best_subsets(table, np.ones(2), module.subset_prices(np.ones(3)))
        assert value.tolist() == [0.0, 0.0]
        assert choice.tolist() == [0, 0]


@few
@given(seeds, servers, st.sampled_from([0.0, 0.25, 0.75, 2.0, 1e300]))
def test_near_columns(seed: int, num_servers: int, allowed: float) -> None:
    """Exactly the columns that fall short of the best by at most `allowed`, per expert, by ascending mask."""
    table, size, price = tables(seed, num_servers)
    best, _ = module.best_subsets(table, size, module.subset_prices(price))
    first, mask, value = module.near_columns(table, size, module.subset_prices(price), best, allowed)
    assert first[0] == 0
    for e in range(size.size):
        near = [s for s in range(1 << num_servers) if best[e] - net(table, size, price, e, s) <= allowed]
        assert mask[first[e] : first[e + 1]].tolist() == near
        assert value[first[e] : first[e + 1]].tolist() == table[e, near].tolist()
        assert near, "the best column is always near"
    assert first[-1] == mask.size == value.size


@few
@given(seeds, servers, st.sampled_from([0.0, 0.25, 1.0]))
def test_columns_at_other_prices(seed: int, num_servers: int, allowed: float) -> None:
    """Losses, best and kept columns of a list of columns at new prices are those of its own enumeration."""
    table, size, price = tables(seed, num_servers)
    prices = module.subset_prices(price)
    first, mask, value = module.near_columns(table, size, prices, module.best_subsets(table, size, prices)[0], 1.0)
    fresh = np.random.default_rng(seed + 1).integers(0, 5, num_servers) / 4
    of_set = module.subset_prices(fresh)
    best, choice = module.best_columns(first, mask, value, size, of_set)
    loss = module.column_losses(first, mask, value, size, of_set, best)
    kept_first, kept_mask, kept_value = module.keep_columns(first, mask, value, size, of_set, best, allowed)
    for e in range(size.size):
        here = range(first[e], first[e + 1])
        nets = [net(table, size, fresh, e, mask[c]) for c in here]
        assert best[e] == max(nets)
        assert choice[e] == first[e] + nets.index(max(nets))
        assert loss[first[e] : first[e + 1]].tolist() == [max(nets) - one for one in nets]
        near = [c for c in here if loss[c] <= allowed]
        kept = slice(kept_first[e], kept_first[e + 1])
        assert kept_mask[kept].tolist() == mask[near].tolist()
        assert kept_value[kept].tolist() == value[near].tolist()


@few
@given(seeds, st.integers(1, 62), st.integers(1, 5))
def test_masks_and_placements_are_the_same_thing(seed: int, num_servers: int, num_experts: int) -> None:
    """Placement to masks and back changes nothing, up to 62 servers; server n is bit n."""
    cached = np.random.default_rng(seed).random((num_servers, num_experts)) < 0.5
    mask = module.cached_to_masks(cached)
    assert [members(one) for one in mask] == [np.flatnonzero(column).tolist() for column in cached.T]
    assert np.array_equal(module.masks_to_cached(mask, num_servers), cached)


class Annealing:
    """A random state of the exchange search: columns, storages, buckets, and the caller's bookkeeping."""

    def __init__(self, seed: int, sizes: tuple[int, ...], num_servers: int = 3, num_experts: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.num_servers = num_servers
        lists = [np.unique(np.append(rng.integers(0, 1 << num_servers, 5), 0)) for _ in range(num_experts)]
        self.first = np.concatenate([[0], np.cumsum([one.size for one in lists])])
        self.mask = np.concatenate(lists).astype(np.int64)
        self.loss = rng.random(self.mask.size)
        self.units = rng.choice(sizes, num_experts).astype(np.int64)
        self.group = np.unique(self.units, return_inverse=True)[1].astype(np.int64)
        self.price = rng.random(num_servers) / 4
        self.current = np.array([rng.integers(a, b) for a, b in zip(self.first[:-1], self.first[1:], strict=True)])
        self.capacity = self.used(self.current) + rng.integers(0, 4, num_servers)
        self.slack = self.capacity - self.used(self.current)
        self.energy = self.energy_of(self.current)
        self.best, self.lowest = self.current.copy(), self.energy
        self.bucket = buckets(self.mask, self.first, self.group, num_servers)
        self.delta = deltas(self.units, self.group)

    def used(self, columns: Any) -> Any:
        """Return [N]: units that a choice of columns takes."""
        return module.masks_to_cached(self.mask[columns], self.num_servers) @ self.units

    def energy_of(self, columns: Any) -> float:
        """Return the energy of a choice of columns, from its definition."""
        return float(self.loss[columns].sum() + self.price @ (self.capacity - self.used(columns)))

    def anneal(self, proposals: int, kernel: Any = module.exchange) -> None:
        """Make so many proposals."""
        self.energy, self.lowest = kernel(
            self.rng, self.mask, self.loss, self.first, self.current, *self.bucket, self.units, self.group, self.price,
            self.slack, *self.delta, 0.3, 0.999, 0.05, 0.4, 5, proposals, self.energy, self.lowest, self.best,
        )  # fmt: skip


@settings(max_examples=20)
@given(seeds, st.sampled_from([(1,), (1, 2), (2, 3, 5)]), st.sampled_from([1, 7, 400]))
def test_exchange_keeps_its_books(seed: int, sizes: tuple[int, ...], proposals: int) -> None:
    """After any number of proposals slack and energy are those of the current columns, no storage is exceeded.

    The best columns are feasible, their energy is `lowest`, and it is no higher than the start or the current one.
    """
    state = Annealing(seed, sizes)
    if not state.bucket[1].size:
        return
    start = state.energy
    for _ in range(3):
        state.anneal(proposals)
        assert ((state.first[:-1] <= state.current) & (state.current < state.first[1:])).all()
        assert ((state.first[:-1] <= state.best) & (state.best < state.first[1:])).all()
        assert np.array_equal(state.slack, state.capacity - state.used(state.current))
        assert (state.slack >= 0).all()
        assert (state.used(state.best) <= state.capacity).all()
        assert state.energy == pytest.approx(state.energy_of(state.current), abs=1e-9)
        assert state.lowest == pytest.approx(state.energy_of(state.best), abs=1e-9)
        assert state.lowest <= min(start, state.energy) + 1e-9


def test_exchange_finds_the_better_swap() -> None:
    """Two experts and one place: the search trades the costly expert for the cheap one, the optimum."""
    state = Annealing(0, (1,), num_servers=1, num_experts=2)
    state.first, state.mask = np.array([0, 2, 4]), np.array([0, 1, 0, 1])
    state.loss, state.price = np.array([0.0, 5.0, 5.0, 0.0]), np.zeros(1)  # expert 0 wants out, expert 1 wants in
    state.units, state.group = np.ones(2, np.int64), np.zeros(2, np.int64)
    state.current, state.capacity, state.slack = np.array([1, 2]), np.array([1]), np.array([0])
    state.energy = state.lowest = state.energy_of(state.current)
    state.best = state.current.copy()
    state.bucket, state.delta = buckets(state.mask, state.first, state.group, 1), deltas(state.units, state.group)
    state.anneal(200)
    assert state.energy_of(state.best) == state.lowest == 0.0
    assert state.best.tolist() == [0, 3]


@pytest.mark.parametrize("seed", range(3))
def test_exchange_compiled_equals_uncompiled(seed: int) -> None:
    """The same seed gives the same chain of proposals, to the bit, compiled or not."""
    states = [Annealing(seed, (1, 2)) for _ in range(2)]
    for state, kernel in zip(states, (module.exchange, python(module.exchange)), strict=True):
        state.anneal(60, kernel)
    one, other = states
    assert (one.energy, one.lowest) == (other.energy, other.lowest)
    assert np.array_equal(one.current, other.current)
    assert np.array_equal(one.best, other.best)
    assert np.array_equal(one.slack, other.slack)


def test_compiled_equals_uncompiled() -> None:
    """Compiled kernels give the same bits as the Python they are written in."""
    rng = np.random.default_rng(2)
    weight, gain, model = rng.random((4, 5)), rng.random((2, 5, 3)), np.array([0, 0, 1, 1])
    price, size, table = rng.random(3), rng.random(4), rng.random((4, 8))
    prices = module.subset_prices(price)
    best, _ = module.best_subsets(table, size, prices)
    columns = module.near_columns(table, size, prices, best, 0.5)
    cached = rng.random((3, 4)) < 0.5
    for kernel, arguments in (
        (module.subset_values, (weight, gain, model)),
        (module.subset_prices, (price,)),
        (module.best_subsets, (table, size, prices)),
        (module.near_columns, (table, size, prices, best, 0.5)),
        (module.keep_columns, (*columns, size, prices, best, 0.2)),
        (module.column_losses, (*columns, size, prices, best)),
        (module.best_columns, (*columns, size, prices)),
        (module.cached_to_masks, (cached,)),
        (module.masks_to_cached, (module.cached_to_masks(cached), 3)),
    ):
        compiled, plain = kernel(*arguments), python(kernel)(*arguments)
        several = isinstance(compiled, tuple)
        pairs = zip(compiled, plain, strict=True) if several else [(compiled, plain)]
        assert all(np.array_equal(x, y) for x, y in pairs), kernel
