"""Kernels over subsets of servers, written as bit masks: server n is bit n.

A *column* (e, S) says that the servers in S hold expert e. Columns are kept per expert in CSR form: those of expert e
are ``first[e]:first[e + 1]``, with mask [C] and value [C], the seconds they save.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@parallel_kernel
def subset_values(weight: Floats, gain: Floats, model: Ints) -> Floats:
    """Return [E, 2^N]: the value of every set of servers for each expert, O(E (U N^2 + N 2^N)), gain [M, U, N]."""
    num_experts, num_users = weight.shape
    num_servers = gain.shape[2]
    table = np.zeros((num_experts, 1 << num_servers))
    full = (1 << num_servers) - 1
    for e in prange(num_experts):
        row = table[e]
        order = np.empty(num_servers, np.int64)
        for u in range(num_users):
            w, own = weight[e, u], gain[model[e], u]
            if w <= 0.0:
                continue
            for n in range(num_servers):  # insertion sort by falling gain
                j = n
                while j > 0 and own[order[j - 1]] < own[n]:
                    order[j] = order[j - 1]
                    j -= 1
                order[j] = n
            prefix = 0
            for j in range(num_servers):
                prefix |= 1 << order[j]
                following = own[order[j + 1]] if j + 1 < num_servers else 0.0
                row[prefix] += w * (own[order[j]] - following)  # saved unless all of the prefix is missing
        bits = 1
        while bits <= full:  # row[mask] = sum over the prefixes inside mask
            for mask in range(full + 1):
                if mask & bits:
                    row[mask] += row[mask ^ bits]
            bits *= 2
        total = row[full]
        for mask in range((full + 1) // 2):
            lost = row[full ^ mask]
            row[full ^ mask] = total - row[mask]
            row[mask] = total - lost
    return table


@kernel
def subset_prices(price: Floats) -> Floats:
    """Return [2^N]: the sum of the prices [N] in every subset."""
    table = np.zeros(1 << price.size)
    for n in range(price.size):
        bit = 1 << n
        for s in range(bit):
            table[bit + s] = table[s] + price[n]
    return table


@parallel_kernel
def best_subsets(table: Floats, size: Floats, prices: Floats) -> tuple[Floats, Ints]:
    """Return for each expert the largest ``table[e, S] - size[e] * prices[S]`` and the subset that gives it, lowest first."""
    num_experts, num_subsets = table.shape
    value, choice = np.empty(num_experts), np.empty(num_experts, np.int64)
    for e in prange(num_experts):
        best, at = table[e, 0], 0
        for s in range(1, num_subsets):
            net = table[e, s] - size[e] * prices[s]
            if net > best:
                best, at = net, s
        value[e], choice[e] = best, at
    return value, choice


@kernel
def near_columns(
    table: Floats, size: Floats, prices: Floats, best: Floats, allowed: float
) -> tuple[Ints, Ints, Floats]:
    """Return (first, mask, value) of all columns that fall short of their expert's best by at most `allowed`."""
    num_experts, num_subsets = table.shape
    first = np.zeros(num_experts + 1, np.int64)
    for e in range(num_experts):
        count = 0
        for s in range(num_subsets):
            count += best[e] - (table[e, s] - size[e] * prices[s]) <= allowed
        first[e + 1] = first[e] + count
    mask, value = np.empty(first[-1], np.int64), np.empty(first[-1])
    at = 0
    for e in range(num_experts):
        for s in range(num_subsets):
            if best[e] - (table[e, s] - size[e] * prices[s]) <= allowed:
                mask[at], value[at] = s, table[e, s]
                at += 1
    return first, mask, value


@kernel
def keep_columns(
    first: Ints, mask: Ints, value: Floats, size: Floats, prices: Floats, best: Floats, allowed: float
) -> tuple[Ints, Ints, Floats]:
    """Return the columns that fall short of their expert's best at the prices of subsets [2^N] by at most `allowed`."""
    kept_first = np.zeros_like(first)
    kept = np.empty(mask.size, np.int64)
    count = 0
    for e in range(size.size):
        for c in range(first[e], first[e + 1]):
            if best[e] - (value[c] - size[e] * prices[mask[c]]) <= allowed:
                kept[count] = c
                count += 1
        kept_first[e + 1] = count
    return kept_first, mask[kept[:count]], value[kept[:count]]


@kernel
def column_losses(first: Ints, mask: Ints, value: Floats, size: Floats, prices: Floats, best: Floats) -> Floats:
    """Return [C]: by how much each column falls short of its expert's best value [E] at the prices of subsets [2^N]."""
    loss = np.empty(mask.size)
    for e in range(size.size):
        for c in range(first[e], first[e + 1]):
            loss[c] = best[e] - (value[c] - size[e] * prices[mask[c]])
    return loss


@kernel
def best_columns(first: Ints, mask: Ints, value: Floats, size: Floats, prices: Floats) -> tuple[Floats, Ints]:
    """Return for each expert the largest value less price over its columns, prices of subsets [2^N], and the column that gives it."""
    num_experts = size.size
    best, choice = np.empty(num_experts), np.empty(num_experts, np.int64)
    for e in range(num_experts):
        best[e], choice[e] = -np.inf, first[e]
        for c in range(first[e], first[e + 1]):
            net = value[c] - size[e] * prices[mask[c]]
            if net > best[e]:
                best[e], choice[e] = net, c
    return best, choice


@kernel
def masks_to_cached(mask: Ints, num_servers: int) -> NDArray[np.bool_]:
    """Return bool [N, E] from one mask per expert."""
    cached = np.zeros((num_servers, mask.size), np.bool_)
    for e in range(mask.size):
        for n in range(num_servers):
            cached[n, e] = (mask[e] >> n) & 1
    return cached


@kernel
def cached_to_masks(cached: NDArray[np.bool_]) -> Ints:
    """Return one mask per expert from bool [N, E]."""
    mask = np.zeros(cached.shape[1], np.int64)
    for n in range(cached.shape[0]):
        for e in range(cached.shape[1]):
            if cached[n, e]:
                mask[e] |= 1 << n
    return mask


@kernel
def exchange(
    rng: np.random.Generator,
    mask: Ints,
    loss: Floats,
    first: Ints,
    current: Ints,
    bucket_first: Ints,
    bucket: Ints,
    units: Ints,
    group: Ints,
    price: Floats,
    slack: Ints,
    delta_first: Ints,
    delta_group: Ints,
    delta_up: Ints,
    hot: float,
    cooling: float,
    penalty: float,
    paired: float,
    scan: int,
    proposals: int,
    energy: float,
    lowest: float,
    best: Ints,
) -> tuple[float, float]:
    """Anneal chains of exchanges over near-optimal columns; return (energy, lowest energy seen), the rest in place.

    The energy of a feasible choice of columns is what it falls short of the Lagrangian bound: the sum of its columns'
    losses plus the price of the storage left over. One proposal picks a server and a small change of how many experts
    of each size it holds (`delta_*`; a plain swap is one up and one down), carries out each part by the cheapest of
    up to `scan` experts in a bucket (server, size group), compensates at the other servers that these columns touch
    by the opposite part of the same size, and accepts the whole chain by Metropolis' rule if every storage holds.

    mask, loss [C]; first [E + 1]; current [E] column per expert; units, group [E]; price per unit, slack [N].
    bucket lists the experts of bucket n * G + g that have columns with and without server n.
    """
    num_servers = slack.size
    num_groups = (bucket_first.size - 1) // num_servers
    limit = 12  # columns changed in one chain
    wanted = np.zeros((num_groups, 2), np.int64)  # servers at which the chain is to take out, or put in, a size
    changed_expert, changed_from = np.empty(limit, np.int64), np.empty(limit, np.int64)
    todo_server, todo_group, todo_up = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    temperature = hot
    for _ in range(proposals):
        temperature *= cooling
        server, delta = rng.integers(0, num_servers), rng.integers(0, delta_first.size - 1)
        todo = 0
        for k in range(delta_first[delta], delta_first[delta + 1]):
            todo_server[todo], todo_group[todo], todo_up[todo] = server, delta_group[k], delta_up[k]
            todo += 1
        if num_servers > 1 and rng.random() < paired:
            other = (server + 1 + rng.integers(0, num_servers - 1)) % num_servers
            for k in range(delta_first[delta], delta_first[delta + 1]):
                todo_server[todo], todo_group[todo], todo_up[todo] = other, delta_group[k], 1 - delta_up[k]
                todo += 1
        wanted[:, 0], wanted[:, 1] = 0, 0
        for k in range(todo):
            wanted[todo_group[k], todo_up[k]] |= 1 << todo_server[k]
        changes, difference, possible = 0, 0.0, True
        while todo > 0 and possible:
            todo -= 1
            n, g, up = todo_server[todo], todo_group[todo], todo_up[todo]
            start = bucket_first[n * num_groups + g]
            length = bucket_first[n * num_groups + g + 1] - start
            if length == 0 or changes == limit:
                possible = False
                break
            bit, todo_needed = 1 << n, 0
            at = rng.integers(0, length)
            chosen, chosen_expert, least = -1, -1, np.inf
            for _ in range(min(length, scan)):
                e = bucket[start + at]
                at = at + 1 if at + 1 < length else 0
                now = mask[current[e]]
                if ((now >> n) & 1) == up:
                    continue
                for c in range(first[e], first[e + 1]):
                    if ((mask[c] >> n) & 1) != up:
                        continue
                    cost = loss[c] - loss[current[e]]
                    others = (mask[c] ^ now) & ~bit
                    others &= ~((mask[c] & wanted[g, 1]) | (now & wanted[g, 0]))
                    while others:
                        cost += penalty
                        others &= others - 1
                    if cost < least:
                        fresh = True
                        for k in range(changes):
                            fresh &= changed_expert[k] != e
                        if fresh:
                            least, chosen, chosen_expert = cost, c, e
            if chosen < 0:
                possible = False
                break
            e = chosen_expert
            touched = mask[chosen] ^ mask[current[e]]
            others = touched & ~bit
            while others:
                todo_needed += 1
                others &= others - 1
            if todo + todo_needed > todo_server.size:
                possible = False
                break
            changed_expert[changes], changed_from[changes] = e, current[e]
            changes += 1
            difference += loss[chosen] - loss[current[e]]
            current[e] = chosen
            m = 0
            while touched:
                if touched & 1:
                    holds = (mask[chosen] >> m) & 1
                    slack[m] += -units[e] if holds else units[e]
                    difference += price[m] * (-units[e] if holds else units[e])
                    if m != n:
                        at = todo - 1  # what was to be done there anyway is done
                        while at >= 0 and (todo_server[at] != m or todo_group[at] != g or todo_up[at] != holds):
                            at -= 1
                        if at >= 0:
                            todo -= 1
                            todo_server[at], todo_group[at], todo_up[at] = (
                                todo_server[todo],
                                todo_group[todo],
                                todo_up[todo],
                            )
                        else:
                            todo_server[todo], todo_group[todo], todo_up[todo] = m, g, 1 - holds
                            todo += 1
                touched >>= 1
                m += 1
        if possible:
            for n in range(num_servers):
                possible &= slack[n] >= 0
        if possible and (difference <= 0.0 or rng.random() < np.exp(-difference / temperature)):
            energy += difference
            if energy < lowest - 1e-15 * abs(energy):
                lowest = energy
                best[:] = current
        else:
            for k in range(changes - 1, -1, -1):
                e = changed_expert[k]
                touched = mask[current[e]] ^ mask[changed_from[k]]
                m = 0
                while touched:
                    if touched & 1:
                        slack[m] += units[e] if (mask[current[e]] >> m) & 1 else -units[e]
                    touched >>= 1
                    m += 1
                current[e] = changed_from[k]
    return energy, lowest
