"""Kernels of the facility-location form: marginal values, lazy greedy, gradients of the multilinear extension.

Arrays, unless said otherwise: weight [E, U], gain [M, U, N], model [E], best [E, U] (the gain each user already gets
for each expert), values and prices per expert and server [E, N].
"""

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@parallel_kernel
def marginals(weight: Floats, gain: Floats, model: Ints, best: Floats) -> Floats:
    """Return [E, N]: what caching expert e at server n would add, O(E U N)."""
    num_experts, num_users = weight.shape
    num_servers = gain.shape[2]
    values = np.zeros((num_experts, num_servers))
    for e in prange(num_experts):
        row = np.zeros(num_servers)
        reach = gain[model[e]]
        for u in range(num_users):
            w, b = weight[e, u], best[e, u]
            if w > 0.0:
                for n in range(num_servers):  # the inner loop over servers has no reduction, so it vectorises
                    row[n] += w * max(0.0, reach[u, n] - b)
        values[e] = row
    return values


@parallel_kernel
def best_of(cached: Bools, gain: Floats, model: Ints) -> Floats:
    """Return [E, U]: the best gain of every user for every expert under a placement [N, E]."""
    num_servers, num_experts = cached.shape
    num_users = gain.shape[1]
    best = np.zeros((num_experts, num_users))
    for e in prange(num_experts):
        reach = gain[model[e]]
        for n in range(num_servers):
            if cached[n, e]:
                for u in range(num_users):
                    best[e, u] = max(best[e, u], reach[u, n])
    return best


@kernel
def _before(key: Floats, i: int, j: int) -> bool:
    """Whether item i comes before item j: larger key first, lower index at a tie."""
    return bool(key[i] > key[j] or (key[i] == key[j] and i < j))


@kernel
def _sift_down(heap: Ints, size: int, key: Floats, at: int) -> None:
    item = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(key, heap[child + 1], heap[child]):
            child += 1
        if not _before(key, heap[child], item):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@kernel
def _sift_up(heap: Ints, key: Floats, at: int) -> None:
    item = heap[at]
    while at > 0 and _before(key, item, heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = item


@kernel
def build_heap(key: Floats) -> Ints:
    """Return the heap of all items with a positive key, largest first."""
    heap = np.flatnonzero(key > 0.0)
    for at in range(heap.size // 2 - 1, -1, -1):
        _sift_down(heap, heap.size, key, at)
    return heap


@kernel
def _marginal(w: Floats, reach: Floats, b: Floats) -> float:
    """Return what users of weights w [U] gain by a server's reach [U] above b [U]."""
    num_users = w.size
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0  # four sums, so that additions overlap
    u = 0
    while u + 3 < num_users:
        s0 += w[u] * max(0.0, reach[u] - b[u])
        s1 += w[u + 1] * max(0.0, reach[u + 1] - b[u + 1])
        s2 += w[u + 2] * max(0.0, reach[u + 2] - b[u + 2])
        s3 += w[u + 3] * max(0.0, reach[u + 3] - b[u + 3])
        u += 4
    while u < num_users:
        s0 += w[u] * max(0.0, reach[u] - b[u])
        u += 1
    return (s0 + s1) + (s2 + s3)


@parallel_kernel
def values_at(server: int, cached: Bools, weight: Floats, by_server: Floats, model: Ints) -> Floats:
    """Return [E]: the value of each expert at one server given what the others hold under a placement [N, E].

    by_server is [M, N, U] so that one server's users lie side by side.
    """
    num_servers, num_experts = cached.shape
    values = np.zeros(num_experts)
    for e in prange(num_experts):
        reach = by_server[model[e]]
        others = np.zeros(reach.shape[1])
        for n in range(num_servers):
            if cached[n, e] and n != server:
                for u in range(others.size):
                    others[u] = max(others[u], reach[n, u])
        values[e] = _marginal(weight[e], reach[server], others)
    return values


@parallel_kernel
def _marginals_of(
    items: Ints, weight: Floats, gain_by_server: Floats, model: Ints, bytes_of: Floats, best: Floats, per_byte: bool,
    key: Floats,
) -> None:  # fmt: skip
    """Bring the keys of some items, numbered n * E + e, up to date."""
    num_experts = weight.shape[0]
    for i in prange(items.size):
        n, e = items[i] // num_experts, items[i] % num_experts
        value = _marginal(weight[e], gain_by_server[model[e], n], best[e])
        key[items[i]] = value / bytes_of[e] if per_byte else value


class Picking(NamedTuple):
    """A greedy under way, changed in place. Items are numbered n * E + e.

    Parameters
    ----------
    heap : int64, the items left, of which the first `size` of `lazy_greedy` count.
    key : float64 [N * E], marginal values (per byte) when last computed.
    seen : int64 [N * E], how many copies of its expert there were then, -1 before the kernel has computed any.
    copies : int64 [E].
    cached : bool [N, E].
    left : float64 [N], free storage.
    best : float64 [E, U].
    """

    heap: Ints
    key: Floats
    seen: Ints
    copies: Ints
    cached: Bools
    left: Floats
    best: Floats

    @classmethod
    def of(cls, value: Floats, capacity: Floats, num_users: int) -> "Picking":
        """Return the start from first marginal values (per byte) [N, E] of an empty placement."""
        key, num_experts = np.ascontiguousarray(value).ravel(), value.shape[1]
        return cls(
            build_heap(key), key, np.full(key.size, -1), np.zeros(num_experts, np.int64), np.zeros(value.shape, np.bool_),
            np.array(capacity), np.zeros((num_experts, num_users)),
        )  # fmt: skip


@kernel
def lazy_greedy(
    picking: Picking, size: int, weight: Floats, gain_by_server: Floats, model: Ints, bytes_of: Floats, per_byte: bool,
    picks: int, batch: int,
) -> int:  # fmt: skip
    """Take up to `picks` items by largest marginal value (per byte), in place; return the size the heap is left with.

    Marginal values that were computed before can by submodularity only be too large, so an item whose fresh value still
    leads the heap is the true maximum (Minoux 1978). It is fresh if its expert has no more copies than when it was computed.
    gain_by_server is [M, N, U] so that one item's users lie side by side.

    Up to `batch` items that lead the heap and are not fresh are computed at once, by all threads: what is picked is the
    same, and few of them would not have been looked at anyway.
    """
    heap, key, seen, copies, cached, left, best = picking
    num_experts = weight.shape[0]
    items = np.empty(batch, np.int64)
    while size > 0 and picks > 0:
        item = heap[0]
        n, e = item // num_experts, item % num_experts
        if bytes_of[e] > left[n] or key[item] <= 0.0:  # storage only shrinks: it will never fit again
            size -= 1
            heap[0] = heap[size]
            _sift_down(heap, size, key, 0)
            continue
        if seen[item] < copies[e]:
            if batch == 1:
                value = _marginal(weight[e], gain_by_server[model[e], n], best[e])
                key[item], seen[item] = value / bytes_of[e] if per_byte else value, copies[e]
                _sift_down(heap, size, key, 0)
                continue
            count = 0
            while size > 0 and count < batch:
                item = heap[0]
                n, e = item // num_experts, item % num_experts
                fits = bytes_of[e] <= left[n]
                if fits and seen[item] == copies[e]:
                    break
                size -= 1
                heap[0] = heap[size]
                _sift_down(heap, size, key, 0)
                if fits:
                    items[count], seen[item] = item, copies[e]
                    count += 1
            _marginals_of(items[:count], weight, gain_by_server, model, bytes_of, best, per_byte, key)
            for i in range(count):
                heap[size] = items[i]
                _sift_up(heap, key, size)
                size += 1
            continue
        reach, b = gain_by_server[model[e], n], best[e]
        cached[n, e] = True
        left[n] -= bytes_of[e]
        for v in range(b.size):
            b[v] = max(b[v], reach[v])
        copies[e] += 1
        picks -= 1
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, size, key, 0)
    return size


@kernel
def shares_left(gain: Floats) -> Floats:
    """Return [M, N, N]: which share of what server n gives to all users alike is left once they have server r, in row r, column n."""
    num_models, num_users, num_servers = gain.shape
    left = np.zeros((num_models, num_servers, num_servers))
    for m in range(num_models):
        for u in range(num_users):
            for r in range(num_servers):
                for n in range(num_servers):
                    left[m, r, n] += max(0.0, gain[m, u, n] - gain[m, u, r])
        for n in range(num_servers):
            total = gain[m, :, n].sum()
            for r in range(num_servers):
                left[m, r, n] = min(1.0, left[m, r, n] / total) if total > 0.0 else 0.0
    return left


@kernel
def fill_in_turns(
    cached: Bools, left: Floats, copies: Ints, value: Floats, bytes_of: Floats, model: Ints, share: Floats
) -> None:
    """Fill the storage that is left, in place: first experts without a copy get one, then those with one a second, and so on.

    In each turn the experts come by their largest first value [N, E], and each takes the server of its largest value that has room.
    What further copies are worth is guessed: first values times the least share [M, N, N] that a copy elsewhere leaves, see
    `shares_left`. O(N E) per turn.
    """
    num_servers, num_experts = cached.shape
    guess = value.T.copy()
    largest = np.zeros(num_experts)
    for e in range(num_experts):
        largest[e] = guess[e].max()
        for r in range(num_servers):
            if cached[r, e]:
                guess[e] = np.minimum(guess[e], value[:, e] * share[model[e], r])
    order = np.argsort(-largest)
    least, room = bytes_of.min(), left.max()
    for turn in range(num_servers):
        for e in order:
            if copies[e] > turn or bytes_of[e] > room:
                continue
            at = -1
            for n in range(num_servers):
                if bytes_of[e] <= left[n] and not cached[n, e] and (at < 0 or guess[e, n] > guess[e, at]):
                    at = n
            if at >= 0:
                cached[at, e] = True
                left[at] -= bytes_of[e]
                copies[e] += 1
                guess[e] = np.minimum(guess[e], value[:, e] * share[model[e], at])
        room = left.max()
        if room < least:
            break


@parallel_kernel
def server_gradient(
    server: int, y: Floats, weight: Floats, gain: Floats, model: Ints, order: Ints, rank: Ints
) -> Floats:
    """Return [E]: derivative of the multilinear extension with respect to y[server, e], O(E U N).

    order [M, U, N] lists each user's servers by falling gain, rank is its inverse. A user is served by the first
    server of its order that holds the expert, so the derivative is P(no earlier one holds it) times what this server
    gives more than the first later one on average.
    """
    num_experts, num_users = weight.shape
    num_servers = y.shape[0]
    gradient = np.zeros(num_experts)
    for e in prange(num_experts):
        m = model[e]
        held = np.empty(num_servers)
        for n in range(num_servers):
            held[n] = y[n, e]
        total = 0.0
        for u in range(num_users):
            own = gain[m, u, server]
            if own <= 0.0 or weight[e, u] <= 0.0:
                continue
            k = rank[m, u, server]
            free = 1.0
            for j in range(k):
                free *= 1.0 - held[order[m, u, j]]
            if free <= 0.0:
                continue
            later, absent = 0.0, 1.0
            for j in range(k + 1, num_servers):
                n = order[m, u, j]
                if gain[m, u, n] <= 0.0 or absent <= 0.0:
                    break
                later += absent * held[n] * gain[m, u, n]
                absent *= 1.0 - held[n]
            total += weight[e, u] * free * (own - later)
        gradient[e] = total
    return gradient
