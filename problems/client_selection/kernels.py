"""Kernels of the client-selection environment: one round of many episodes at once.

Arrays: picks [E, S, M] client ids padded with -1, busy and fading [E, C], rate_bps [S, C], and the memory of each
server, all [E, S, C]: last (round of its last delivery, -1 for none), picked and delivered (counts), outcome (of the
last round: -1 not picked, 0 no conflict, 1 conflict).
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Bools = NDArray[np.bool_]

CONFLICTS, COLLISIONS, BUSY, SENT, DELIVERED = range(5)
"""Columns of the tally of a round."""


@kernel
def play_round(
    picks: Counts,
    num_picks: Counts,
    num_covered: Counts,
    busy: Bools,
    fading: Floats,
    compute_s: Floats,
    rate_bps: Floats,
    payload_bits: float,
    timeout_s: float,
    shares: bool,
    weight: Floats,
    now: int,
    last: Counts,
    picked: Counts,
    delivered: Counts,
    outcome: NDArray[np.int8],
    reward: Floats,
    round_s: Floats,
    tally: Counts,
) -> None:
    """Play round `now` of every episode: update each server's memory, write reward, round_s [E, S] and tally [E, S, 5].

    weight holds the weights of latency, conflicts and fairness. Episodes are independent.
    """
    num_servers, most = picks.shape[1], picks.shape[2]
    num_clients = busy.shape[1]
    for e in range(picks.shape[0]):
        demand = np.zeros(num_clients, np.int64)
        for s in range(num_servers):
            for k in range(most):
                if picks[e, s, k] >= 0:
                    demand[picks[e, s, k]] += 1
        for s in range(num_servers):
            for c in range(num_clients):
                outcome[e, s, c] = -1
            for kind in range(tally.shape[2]):
                tally[e, s, kind] = 0
            longest, fair = 0.0, 0.0
            for k in range(most):
                c = picks[e, s, k]
                if c < 0:
                    continue
                collides, is_busy = demand[c] > 1, busy[e, c]
                seconds = np.inf
                if rate_bps[s, c] > 0.0 and not is_busy and (shares or not collides):
                    seconds = compute_s[c] + demand[c] * payload_bits / (rate_bps[s, c] * fading[e, c])
                longest = max(longest, min(seconds, timeout_s))
                picked[e, s, c] += 1
                outcome[e, s, c] = 1 if collides or is_busy else 0
                tally[e, s, CONFLICTS] += outcome[e, s, c]
                tally[e, s, COLLISIONS] += collides
                tally[e, s, BUSY] += is_busy
                tally[e, s, SENT] += not is_busy
                if seconds <= timeout_s:
                    tally[e, s, DELIVERED] += 1
                    fair += delivery_bonus(now, last[e, s, c], num_picks[s], num_covered[s])
                    delivered[e, s, c] += 1
                    last[e, s, c] = now
            round_s[e, s] = longest
            share = tally[e, s, CONFLICTS] / num_picks[s]
            reward[e, s] = weight[2] * fair / num_picks[s] - weight[0] * longest / timeout_s - weight[1] * share


@kernel
def delivery_bonus(now: int, last: int, num_picks: int, num_covered: int) -> float:
    """Return the fairness that a delivery earns: rounds since the last one over the length of a full cycle, at most 1."""
    if last < 0:
        return 1.0
    return min(1.0, (now - last) * num_picks / num_covered)


@kernel
def bonuses(now: int, last: Counts, num_picks: Counts, num_covered: Counts, bonus: Floats) -> None:
    """Write the fairness that a delivery of each client would earn each server in round `now`, [E, S, C]."""
    for e in range(last.shape[0]):
        for s in range(last.shape[1]):
            for c in range(last.shape[2]):
                bonus[e, s, c] = delivery_bonus(now, last[e, s, c], num_picks[s], num_covered[s])


@kernel
def first_wrong_pick(picks: Counts, num_picks: Counts, coverage: Bools) -> tuple[int, int, int]:
    """Return (e, s, k) of the first pick that is out of range, not covered, double or missing; (-1, -1, -1) if none is.

    k = M stands for more or fewer picks than the server has.
    """
    num_servers, num_clients = coverage.shape
    seen = np.full(num_clients, -1, np.int64)
    for e in range(picks.shape[0]):
        for s in range(num_servers):
            count, row = 0, e * num_servers + s
            for k in range(picks.shape[2]):
                c = picks[e, s, k]
                if c == -1:
                    continue
                if c < 0 or c >= num_clients or not coverage[s, c] or seen[c] == row:
                    return e, s, k
                seen[c] = row
                count += 1
            if count != num_picks[s]:
                return e, s, picks.shape[2]
    return -1, -1, -1
