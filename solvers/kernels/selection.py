"""Kernels of client selection: what learners see, the best of many scores, maximum-weight b-matching."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.problems.client_selection.kernels import delivery_bonus

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.int32]
Bools = NDArray[np.bool_]

TOLERANCE = (
    1e-12  # of the largest gain; paths that differ by less are equal: rounding must not make cycles look profitable
)


@kernel
def write_features(
    now: int,
    clients: Ints,
    num_picks: Counts,
    num_covered: Counts,
    fading: Floats,
    compute_s: Floats,
    rate_bps: Floats,
    payload_bits: float,
    timeout_s: float,
    prior_failures: float,
    prior_picks: float,
    last: Counts,
    picked: Counts,
    delivered: Counts,
    features: NDArray[np.float32],
) -> None:
    """Write columns 1 to 4 of the features [E, S, N, 5] of `edgeopt.solvers.client_selection.features.covered_features`.

    clients [S, N] are the ids of the covered; other arrays as in `edgeopt.problems.client_selection.kernels`.
    """
    for e in range(last.shape[0]):
        for s in range(last.shape[1]):
            for i in range(num_covered[s]):
                c = clients[s, i]
                tries, seconds = picked[e, s, c], compute_s[c] + payload_bits / (rate_bps[s, c] * fading[e, c])
                features[e, s, i, 1] = (prior_failures + tries - delivered[e, s, c]) / (prior_picks + tries)
                features[e, s, i, 2] = min(1.0, seconds / timeout_s)
                features[e, s, i, 3] = delivery_bonus(now, last[e, s, c], num_picks[s], num_covered[s])
                features[e, s, i, 4] = tries / max(1, now)


@kernel
def highest(score: Floats, covered: Bools, num_picks: Counts, picks: Counts) -> None:
    """Write into picks [E, S, M], which is full of -1, the num_picks [S] covered clients of highest score [E, S, C].

    By falling score, the lowest id first on ties. O(C + M) per row mostly, O(C M) at worst.
    """
    for e in range(score.shape[0]):
        for s in range(score.shape[1]):
            most, count = num_picks[s], 0
            for c in range(score.shape[2]):
                if not covered[s, c] or (count == most and not score[e, s, c] > score[e, s, picks[e, s, most - 1]]):
                    continue
                count = min(count + 1, most)
                place = count - 1
                while place > 0 and score[e, s, c] > score[e, s, picks[e, s, place - 1]]:
                    picks[e, s, place] = picks[e, s, place - 1]
                    place -= 1
                picks[e, s, place] = c


@kernel
def match(gain: Floats, order: Ints, capacity: Ints) -> Ints:
    """Return the server [C] of each client, -1 for none, that maximises the sum of gains [S, C].

    Every client goes to at most one server, server s takes at most capacity[s]; gains <= 0 are never used. ``order[s]``
    lists the clients by falling gain of server s.

    Notes
    -----
    Places of servers are filled one after another, each along the best alternating path (Kuhn 1955, Munkres 1957), found by
    Bellman and Ford's method on the servers alone: distance[y] is what is gained when server y has lost one client.
    After each place the matching is optimal for the places so far. Hence whatever follows a step "take client c" of a
    path gains at most 0, so that only clients above the best end so far need be looked at. O(P S (S + C)) for P places
    in the worst case, mostly O(P S).
    """
    num_servers, num_clients = gain.shape
    tolerance = TOLERANCE * max(0.0, gain.max())
    owner = np.full(num_clients, -1, np.int64)
    distance = np.empty(num_servers)
    from_server, by_client = np.empty(num_servers, np.int64), np.empty(num_servers, np.int64)
    waiting = np.zeros(num_servers, np.bool_)
    for s in range(num_servers):
        for _ in range(capacity[s]):
            distance[:] = -np.inf
            distance[s], waiting[s], from_server[s] = 0.0, True, -1
            best, last, client = 0.0, s, -1  # the place stays empty
            again = True
            while again:
                again = False
                for x in range(num_servers):
                    if not waiting[x]:
                        continue
                    waiting[x] = False
                    if distance[x] > best + tolerance:
                        best, last, client = distance[x], x, -1
                    for i in range(num_clients):
                        c = order[x, i]
                        if gain[x, c] <= 0.0 or distance[x] + gain[x, c] <= best + tolerance:
                            break
                        y = owner[c]
                        if y < 0:
                            best, last, client = distance[x] + gain[x, c], x, c
                            break
                        after = distance[x] + gain[x, c] - gain[y, c]
                        if y != x and after > distance[y] + tolerance:
                            distance[y], from_server[y], by_client[y] = after, x, c
                            waiting[y] = again = True
            while last >= 0:  # walk the path back, handing over clients
                if client >= 0:
                    owner[client] = last
                client, last = by_client[last], from_server[last]
    return owner
