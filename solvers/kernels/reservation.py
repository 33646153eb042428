"""Kernels of the reservation policy: what every server believes of its clients, and whom it picks by that.

Clients are counted by their position among those that a server covers: arrays [E, S, N] of E episodes, S servers and at
most N covered clients, of which count [S] are there. load [E, S, N, 2] is the belief of a client's load, calm or
loaded, in the coming round; taken [E, S, L, N] the chance that another server picks the client in a phase; held [E, S, L, N] whether the server
holds it there. phases [S] is L of each server.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel
from edgeopt.problems.client_selection.kernels import delivery_bonus

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.int32]
Outcomes = NDArray[np.int8]
Bools = NDArray[np.bool_]

LEAST = 1e-6  # of a chance whose logarithm is taken
FIRST = 1e9  # times all weights: more than all else in a score


@kernel
def look(
    now: int,
    clients: Ints,
    count: Counts,
    num_picks: Counts,
    fading: Floats,
    compute_s: Floats,
    rate_bps: Floats,
    payload_bits: float,
    timeout_s: float,
    last: Counts,
    latency: Floats,
    bonus: Floats,
) -> None:
    """Write what servers see of their clients: latency as a share of the time-out, and the fairness of a delivery.

    clients [S, N] are ids; fading [E, C], rate_bps [S, C] and last [E, S, C] are those of the environment.
    """
    for e in range(last.shape[0]):
        for s in range(last.shape[1]):
            for i in range(count[s]):
                c = clients[s, i]
                latency[e, s, i] = (compute_s[c] + payload_bits / (rate_bps[s, c] * fading[e, c])) / timeout_s
                bonus[e, s, i] = delivery_bonus(now, last[e, s, c], num_picks[s], count[s])


@kernel
def choose(
    now: int,
    phases: Counts,
    count: Counts,
    num_picks: Counts,
    weight: Floats,
    patience: float,
    shares: bool,
    hold: float,
    grid: Floats,
    latency: Floats,
    bonus: Floats,
    busy: Floats,
    taken: Floats,
    held: Bools,
    noise: Floats,
    picks: Counts,
) -> None:
    """Write the picks [E, S, M], positions, -1 to fill up, of most expected reward among those of a few scores.

    A pick is free of conflicts with chance p = (1 - busy)(1 - taken) and is worth u = w_f bonus^patience d - w_c (1 - p)
    + noise, d being the chance that it delivers. A round lasts until its slowest pick, and to the time-out if one fails:
    with P the product of the chances, its time is 1 - P (1 - the largest latency). For each g in grid, the clients of
    highest u + g w_l (log d - latency) are candidates; the set of most mean of u less w_l times its time is taken. Small
    g puts what may fail into one round, large g makes a round of sure and fast picks. Held clients are worth `hold` p more,
    and come before all others if it is infinite.
    weight holds the weights of latency, conflicts and fairness. O(n) per server for each g, n being its clients.
    """
    most, clients = picks.shape[2], latency.shape[2]
    chance, worth, score = np.empty(clients), np.empty(clients), np.empty(clients)
    logs, cost = np.empty(clients), np.empty(clients)
    chosen = np.empty(most, np.int64)
    for e in range(picks.shape[0]):
        for s in range(picks.shape[1]):
            phase, wanted = now % phases[s], num_picks[s]
            for i in range(count[s]):
                idle = 1.0 - busy[e, s, i]
                free = idle * (1.0 - taken[e, s, phase, i])
                chance[i] = 0.0 if latency[e, s, i] > 1.0 else idle if shares else free
                fair = chance[i] if bonus[e, s, i] >= 1.0 else bonus[e, s, i] ** patience * chance[i]
                worth[i] = weight[2] * fair - weight[1] * (1.0 - free) + noise[e, s, i]
                if held[e, s, phase, i]:
                    worth[i] += hold * free if hold < np.inf else FIRST
                cost[i] = min(1.0, latency[e, s, i])
                logs[i] = weight[0] * (np.log(max(LEAST, chance[i])) - cost[i])
            best = -np.inf
            for g in grid:
                for i in range(count[s]):
                    score[i] = worth[i] + g * logs[i]
                _highest(score, count[s], wanted, chosen)
                value, sure, longest = 0.0, 1.0, 0.0
                for k in range(wanted):
                    i = chosen[k]
                    value += worth[i] / wanted
                    sure *= chance[i]
                    longest = max(longest, cost[i])
                value -= weight[0] * (1.0 - sure * (1.0 - longest))
                if value > best:
                    best = value
                    for k in range(wanted):
                        picks[e, s, k] = chosen[k]
            for k in range(wanted, most):
                picks[e, s, k] = -1


@kernel
def _highest(score: Floats, count: int, wanted: int, chosen: Ints) -> None:
    """Write the positions of the `wanted` highest of the first `count` scores, the first on ties."""
    found = 0
    for i in range(count):
        if found == wanted and not score[i] > score[chosen[wanted - 1]]:
            continue
        found = min(found + 1, wanted)
        place = found - 1
        while place > 0 and score[i] > score[chosen[place - 1]]:
            chosen[place] = chosen[place - 1]
            place -= 1
        chosen[place] = i


@kernel
def hear(
    phase: Counts,
    count: Counts,
    outcome: Outcomes,
    arrived: Bools,
    slip: float,
    prior: float,
    forget: float,
    transition: Floats,
    often: Floats,
    load: Floats,
    busy: Floats,
    taken: Floats,
    held: Bools,
) -> None:
    """Take in the outcomes [E, S, N] of the round whose phase [S] is given, and move the loads one round on, in place.

    Without a conflict the client is idle and held, and another server comes here next time with chance `slip`. With one, it was
    busy or taken, by Bayes' rule; an update that arrived all the same says that it was taken. What is believed of the
    phase then moves a share `forget` towards `prior`, tried or not. often [E, S, 2] is how often a client of a load is busy.
    """
    after = np.empty(2)
    for e in range(outcome.shape[0]):
        for s in range(outcome.shape[1]):
            at = phase[s]
            for i in range(count[s]):
                o = outcome[e, s, i]
                if o >= 0:
                    q, total = taken[e, s, at, i], 0.0
                    seen = 2 if o == 1 and arrived[e, s, i] else o
                    for k in range(2):
                        after[k] = load[e, s, i, k] * _likelihood(seen, q, often[e, s, k])
                        total += after[k]
                    for k in range(2):
                        load[e, s, i, k] = after[k] / total
                    q = slip if seen == 0 else 1.0 if seen == 2 else q / total
                    held[e, s, at, i] = seen == 0 or (held[e, s, at, i] and q < 0.5)
                    taken[e, s, at, i] = q
                taken[e, s, at, i] += forget * (prior - taken[e, s, at, i])
                busy[e, s, i] = _step(load[e, s, i], transition[e, s], often[e, s], after)


@kernel
def _step(belief: Floats, transition: Floats, often: Floats, after: Floats) -> float:
    """Move a belief one round on, in place, and return how likely the client then is busy."""
    after[0] = belief[0] * transition[0, 0] + belief[1] * transition[1, 0]
    after[1] = belief[0] * transition[0, 1] + belief[1] * transition[1, 1]
    belief[:] = after
    return float(after[0] * often[0] + after[1] * often[1])


@kernel
def fit_loads(
    rounds: int,
    count: Counts,
    outcomes: Outcomes,
    others: NDArray[np.float32],
    iterations: int,
    priors: Floats,
    transition: Floats,
    often: Floats,
    load: Floats,
    busy: Floats,
) -> None:
    """Fit the load model of every episode and server to its outcomes so far, in place, and filter the loads anew.

    Expectation maximisation of a hidden Markov model of two loads in which a pick conflicts unless the client is idle
    and nobody else comes. outcomes [E, S, N, T] are -1 for no pick, 0 for none, 1 for a conflict, 2 for one that was
    certainly another server; others [E, S, N, T] is how likely another server was held to come. A client's chain starts
    with its first pick, from the stationary distribution; what that says of the moves is left out. transition
    [E, S, 2, 2] and often [E, S, 2] are the model, priors [4, 2] pseudo-counts of the moves from either load and of
    (busy, idle) in either. O(T) per client that was ever picked, and iteration.
    """
    alpha, beta, weighted, after = np.empty((rounds, 2)), np.empty(2), np.empty(2), np.empty(2)
    moves, was = np.empty((2, 2)), np.empty((2, 2))
    for row in range(transition.shape[0] * transition.shape[1]):
        e, s = row // transition.shape[1], row % transition.shape[1]
        a, b = transition[e, s], often[e, s]
        for step in range(iterations + 1):
            moves[:], was[:] = priors[:2], priors[2:]
            for i in range(count[s]):
                seen, chance, belief = outcomes[e, s, i], others[e, s, i], load[e, s, i]
                settle(a, belief)
                busy[e, s, i] = belief[0] * b[0] + belief[1] * b[1]
                first, last = 0, 0
                while first < rounds and seen[first] < 0:
                    first += 1
                for t in range(first, rounds):
                    if seen[t] >= 0:
                        total = 0.0
                        for k in range(2):
                            belief[k] *= _likelihood(seen[t], chance[t], b[k])
                            total += belief[k]
                        for k in range(2):
                            belief[k] /= total
                        last = t
                    alpha[t] = belief
                    busy[e, s, i] = _step(belief, a, b, after)
                if step == iterations or first == rounds:
                    continue
                beta[:] = 1.0
                for t in range(last, first - 1, -1):
                    total = 0.0
                    for k in range(2):
                        weighted[k] = alpha[t, k] * beta[k]
                        total += weighted[k]
                    if seen[t] >= 0:
                        for k in range(2):
                            like = _likelihood(seen[t], chance[t], b[k])
                            part = b[k] / like if seen[t] == 1 else 0.0
                            was[k, 0] += weighted[k] / total * part
                            was[k, 1] += weighted[k] / total * (1.0 - part)
                            beta[k] *= like
                    if t == first:
                        break
                    for j in range(2):
                        after[j] = a[j, 0] * beta[0] + a[j, 1] * beta[1]
                    total = alpha[t - 1, 0] * after[0] + alpha[t - 1, 1] * after[1]
                    for j in range(2):
                        for k in range(2):
                            moves[j, k] += alpha[t - 1, j] * a[j, k] * beta[k] / total
                    for k in range(2):
                        beta[k] = after[k] / (after[0] + after[1])
            if step < iterations:
                for k in range(2):
                    b[k] = was[k, 0] / (was[k, 0] + was[k, 1])
                    for j in range(2):
                        a[k, j] = moves[k, j] / (moves[k, 0] + moves[k, 1])


@kernel
def settle(transition: Floats, belief: Floats) -> None:
    """Write the stationary distribution of a chain of two states whose moves all have a chance."""
    belief[0] = transition[1, 0] / (transition[0, 1] + transition[1, 0])
    belief[1] = 1.0 - belief[0]


@kernel
def _likelihood(seen: int, others: float, often: float) -> float:
    """Return the chance of an outcome, up to a factor, of a client that is busy `often`: 1 is a conflict, the rest not."""
    return 1.0 - (1.0 - often) * (1.0 - others) if seen == 1 else 1.0 - often
