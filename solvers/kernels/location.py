"""Kernels of one expert's uncapacitated location problem: which servers hold it when each charges a price.

For expert e, with prices f[n] = price[n] * size[e]: maximise over S the sum of ``weight[e, u] * max over n in S of
gain[u, n]`` less the sum of f over S. Experts are independent and run in parallel. held is bool [E, N]; by_server is gain with a
server's users side by side, [M, N, U].
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgeopt.jit import kernel, parallel_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOMENTUM, AIM = 0.7, 0.3  # of subgradient steps: share of the last direction, and of what is left to aim at


@kernel
def _served(held: Bools, by_server: Floats) -> tuple[Floats, Floats, Ints]:
    """Return for each user the best and second best gain [U] within a subset, and the best server, -1 for none."""
    num_users = by_server.shape[1]
    best, second = np.zeros(num_users), np.zeros(num_users)
    server = np.full(num_users, -1)
    for n in range(held.size):
        if held[n]:
            for u in range(num_users):  # without branches, so that it vectorises
                g, b = by_server[n, u], best[u]
                second[u] = max(second[u], min(g, b))
                server[u] = n if g > b else server[u]
                best[u] = max(g, b)
    return best, second, server


@kernel
def _changes(
    weight: Floats, gain: Floats, best: Floats, second: Floats, server: Ints, held: Bools
) -> tuple[Floats, Floats]:
    """Return what servers are worth: [N], and [N, N] what adding n is worth more if r is removed, in row r, column n.

    The first is what a server adds if it is not in the subset, what it would take away if it is. The second is Whitaker's
    (1983): a user of r that n would not have won over falls back on n instead of its second best server.
    """
    num_servers = gain.shape[1]
    values, lost, more = np.zeros(num_servers), np.zeros(num_servers), np.zeros((num_servers, num_servers))
    for u in range(weight.size):
        w, b, c, r = weight[u], best[u], second[u], max(server[u], 0)  # unserved: b = c = 0, so that row 0 gets nothing
        if w > 0.0:
            for n in range(num_servers):
                g = gain[u, n]
                values[n] += w * max(0.0, g - b)
                more[r, n] += w * max(0.0, min(g, b) - c)
            lost[r] += w * (b - c)
    for n in range(num_servers):
        if held[n]:
            values[n] = lost[n]
    return values, more


@parallel_kernel
def values_given_others(weight: Floats, gain: Floats, by_server: Floats, model: Ints, held: Bools) -> Floats:
    """Return [E, N]: the value of each expert at each server given what the other servers hold."""
    num_experts, num_servers = held.shape
    values = np.zeros((num_experts, num_servers))
    for e in prange(num_experts):
        best, second, server = _served(held[e], by_server[model[e]])
        values[e], _ = _changes(weight[e], gain[model[e]], best, second, server, held[e])
    return values


@parallel_kernel
def improve_subsets(
    weight: Floats, gain: Floats, by_server: Floats, model: Ints, size: Floats, price: Floats, held: Bools, max_moves: int,
) -> None:  # fmt: skip
    """Improve every expert's subset by its best addition, removal or swap, up to `max_moves` times, in place."""
    num_experts, num_servers = held.shape
    for e in prange(num_experts):
        reach = gain[model[e]]
        for _ in range(max_moves):
            best, second, server = _served(held[e], by_server[model[e]])
            net, more = _changes(weight[e], reach, best, second, server, held[e])
            for n in range(num_servers):
                net[n] -= price[n] * size[e]
                if held[e, n]:
                    net[n] = -net[n]
            into, out, most = -1, -1, 1e-12 * np.abs(net).max()
            for n in range(num_servers):
                if net[n] > most:
                    into, out, most = (-1, n, net[n]) if held[e, n] else (n, -1, net[n])
            for r in range(num_servers):
                if held[e, r]:
                    for n in range(num_servers):
                        if not held[e, n] and net[r] + net[n] + more[r, n] > most:
                            into, out, most = n, r, net[r] + net[n] + more[r, n]
            if into < 0 and out < 0:
                break
            if into >= 0:
                held[e, into] = True
            if out >= 0:
                held[e, out] = False


@parallel_kernel
def ascent_bounds(
    weight: Floats, gain: Floats, by_server: Floats, order: Ints, model: Ints, size: Floats, price: Floats, held: Bools,
    steps: int,
) -> Floats:  # fmt: skip
    """Return [E]: an upper bound on every expert's best value less price, by dual ascent (Erlenkotter 1978, warm).

    Any thresholds t[u] >= 0 give the bound sum of w t + sum over n of max(0, c[n] - f[n]), where server n collects
    c[n] = sum of w max(0, gain[u, n] - t[u]). They start between the best and the second best gain of a good subset
    `held`, so that each of its servers just collects its price; servers that collect too much are brought down by
    raising thresholds; then thresholds are lowered one by one as far as no server collects more than its price.
    Then so many subgradient steps on all thresholds at once; a step takes about a tenth of the time of the rest.
    order [M, U, N] lists each user's servers by falling gain.
    """
    num_experts, num_users = weight.shape
    num_servers = price.size
    bounds = np.zeros(num_experts)
    for e in prange(num_experts):
        reach, ranking, w = gain[model[e]], order[model[e]], weight[e]
        cost = price * size[e]
        best, second, server = _served(held[e], by_server[model[e]])
        surplus = np.zeros(num_servers)
        for u in range(num_users):
            if server[u] >= 0:
                surplus[server[u]] += w[u] * (best[u] - second[u])
        threshold = np.zeros(num_users)
        for u in range(num_users):
            if server[u] >= 0:
                n = server[u]
                share = cost[n] / surplus[n] if surplus[n] > cost[n] else 1.0
                threshold[u] = best[u] - share * (best[u] - second[u])
        collected = np.zeros(num_servers)
        for u in range(num_users):
            t = threshold[u]
            if w[u] > 0.0:
                for n in range(num_servers):
                    collected[n] += w[u] * max(0.0, reach[u, n] - t)
        for _ in range(num_servers):
            worst = 0
            for n in range(1, num_servers):
                if collected[n] - cost[n] > collected[worst] - cost[worst]:
                    worst = n
            excess = collected[worst] - cost[worst]
            if excess <= 1e-12 * cost[worst] or collected[worst] <= 0.0:
                break
            part = excess / collected[worst]
            for u in range(num_users):
                t = threshold[u]
                above = by_server[model[e], worst, u] - t
                if above > 0.0 and w[u] > 0.0:
                    higher = t + part * above
                    for n in range(num_servers):
                        collected[n] -= w[u] * max(0.0, min(reach[u, n], higher) - t)
                    threshold[u] = higher
        for u in range(num_users):
            if w[u] <= 0.0:
                continue
            active, slack = 0, np.inf
            while slack > 0.0 and active < num_servers and reach[u, ranking[u, active]] >= threshold[u]:
                slack = min(slack, cost[ranking[u, active]] - collected[ranking[u, active]])
                active += 1
            while slack > 0.0 and threshold[u] > 0.0:
                floor = reach[u, ranking[u, active]] if active < num_servers else 0.0
                step = min(slack / w[u], threshold[u] - floor)
                threshold[u] -= step
                for k in range(active):
                    collected[ranking[u, k]] += w[u] * step
                if active == num_servers or threshold[u] > floor:
                    break
                active += 1
                slack = np.inf
                for k in range(active):
                    slack = min(slack, cost[ranking[u, k]] - collected[ranking[u, k]])
        bounds[e] = _descend(w, reach, by_server[model[e]], cost, best, held[e], threshold, steps)
    return bounds


@kernel
def _descend(
    weight: Floats, gain: Floats, by_server: Floats, cost: Floats, best: Floats, held: Bools, threshold: Floats, steps: int,
) -> float:  # fmt: skip
    """Return the least bound that thresholds [U] prove on the way of so many subgradient steps, which change them.

    A step has Polyak's length towards the value of `held`, less each time four steps in a row found nothing. The bound is
    taken from the thresholds alone, so that rounding along the way cannot make it invalid.
    """
    num_users, num_servers = gain.shape
    target = 0.0
    for u in range(num_users):
        target += weight[u] * best[u]
    for n in range(num_servers):
        if held[n]:
            target -= cost[n]
    least, scale, stale = np.inf, 1.0, 0
    kept, direction, slope = threshold.copy(), np.zeros(num_users), np.zeros(num_users)
    collected = np.zeros(num_servers)
    for step in range(steps + 1):
        total = 0.0
        collected[:] = 0.0
        for u in range(num_users):
            total += weight[u] * threshold[u]
            if weight[u] > 0.0:
                for n in range(num_servers):
                    collected[n] += weight[u] * max(0.0, gain[u, n] - threshold[u])
        for n in range(num_servers):
            total += max(0.0, collected[n] - cost[n])
        stale += 1
        if total < least:
            least, stale = total, 0
            kept[:] = threshold
        if step == steps or least - target <= 1e-6 * abs(target):
            break
        if stale == 4:
            scale, stale = 0.5 * scale, 0
            threshold[:] = kept
            direction[:] = 0.0
            continue
        slope[:] = 1.0
        for n in range(num_servers):
            if collected[n] > cost[n]:
                for u in range(num_users):
                    slope[u] -= 1.0 if by_server[n, u] > threshold[u] else 0.0
        for u in range(num_users):
            downhill = 0.0 if threshold[u] <= 0.0 and slope[u] > 0.0 else slope[u]
            direction[u] = downhill + MOMENTUM * direction[u]
        norm = 0.0
        for u in range(num_users):
            norm += weight[u] * direction[u] * direction[u]
        if norm <= 0.0:
            break
        move = scale * (total - least + AIM * (least - target)) / norm
        for u in range(num_users):
            threshold[u] = max(0.0, threshold[u] - move * direction[u])
    return least
