"""Kernels of hidden Markov models with categorical symbols, scaled so that nothing underflows.

Arrays, unless said otherwise: sequences int64 [N, T] with -1 for a missing symbol, start [K], transition [K, K] from row
to column, emission [V, K] (symbol first, unlike in `CategoricalHMM`: the states of one symbol lie side by side).
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-150  # the running product of scales goes into the logarithm before it underflows


@kernel
def filter_beliefs(sequences: Ints, start: Floats, transition: Floats, emission: Floats) -> tuple[Floats, Floats]:
    """Return the filtered beliefs [N, T, K] and the log-likelihoods [N]; -inf, and NaN beliefs from there, if impossible.

    belief[n, t] is the distribution of the state at t given the symbols up to t; O(N T K^2).
    """
    num, length = sequences.shape
    states = start.size
    belief = np.empty((num, length, states))
    value = np.zeros(num)
    for n in range(num):
        prior = start.copy()
        product = 1.0
        for t in range(length):
            o = sequences[n, t]
            scale = 0.0
            for k in range(states):
                belief[n, t, k] = prior[k] * (emission[o, k] if o >= 0 else 1.0)
                scale += belief[n, t, k]
            if scale <= 0.0:
                value[n] = -np.inf
                belief[n, t:] = np.nan
                break
            inverse = 1.0 / scale
            for k in range(states):
                belief[n, t, k] *= inverse
            if scale < TINY:
                value[n] += np.log(scale)
            else:
                product *= scale
            if product < TINY:
                value[n] += np.log(product)
                product = 1.0
            for k in range(states):
                prior[k] = 0.0
            for j in range(states):
                for k in range(states):
                    prior[k] += belief[n, t, j] * transition[j, k]
        value[n] += np.log(product)
    return belief, value


@kernel
def expected_counts(
    sequences: Ints, start: Floats, transition: Floats, emission: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the E-step: expected starts [K], moves [K, K] and symbols [V, K] of all sequences, log-likelihoods [N].

    A missing symbol has factor one. What follows a sequence's last symbol says nothing and is left out, so that short
    sequences are filled up with -1. A sequence without symbols counts nothing; an impossible one has -inf.
    """
    num, length = sequences.shape
    states = start.size
    starts, moves, symbols = np.zeros(states), np.zeros((states, states)), np.zeros(emission.shape)
    value = np.zeros(num)
    alpha, factor = np.empty((length, states)), np.empty((length, states))  # factor: symbol's probability / scale
    prior, beta, weighted = np.empty(states), np.empty(states), np.empty(states)
    for n in range(num):
        end = length
        while end > 0 and sequences[n, end - 1] < 0:
            end -= 1
        prior[:] = start
        product = 1.0
        for t in range(end):
            o = sequences[n, t]
            scale = 0.0
            for k in range(states):
                factor[t, k] = emission[o, k] if o >= 0 else 1.0
                alpha[t, k] = prior[k] * factor[t, k]
                scale += alpha[t, k]
            if scale <= 0.0:
                value[n] = -np.inf
                break
            inverse = 1.0 / scale
            for k in range(states):
                factor[t, k] *= inverse
                alpha[t, k] *= inverse
            for k in range(states):
                total = 0.0
                for j in range(states):
                    total += alpha[t, j] * transition[j, k]
                prior[k] = total
            if scale < TINY:
                value[n] += np.log(scale)
            else:
                product *= scale
            if product < TINY:
                value[n] += np.log(product)
                product = 1.0
        if value[n] == -np.inf or end == 0:
            continue
        value[n] += np.log(product)
        beta[:] = 1.0
        for t in range(end - 1, -1, -1):
            o = sequences[n, t]
            if o >= 0:
                for k in range(states):
                    symbols[o, k] += alpha[t, k] * beta[k]
            if t == 0:
                break
            for k in range(states):
                weighted[k] = factor[t, k] * beta[k]
            for j in range(states):
                total = 0.0
                for k in range(states):
                    moves[j, k] += alpha[t - 1, j] * weighted[k]
                    total += transition[j, k] * weighted[k]
                beta[j] = total
        for k in range(states):
            starts[k] += alpha[0, k] * beta[k]
    for j in range(states):
        for k in range(states):
            moves[j, k] *= transition[j, k]  # the same factor in every move from j to k
    return starts, moves, symbols, value


@kernel
def advance_beliefs(
    belief: Floats, outcome: NDArray[np.int8], covered: NDArray[np.bool_], transition: Floats, emission: Floats
) -> None:
    """Move the beliefs of all pairs one round on, in place: condition on the symbol, if there is one, and step.

    belief [E, S, C, K] is the distribution of the coming round's state given everything before; outcome [E, S, C];
    covered [S, C]: other pairs are left alone; transition [S, K, K] and emission [S, V, K] are each server's own.
    A symbol that the belief holds impossible is taken for missing.
    """
    num_servers, num_clients, states = belief.shape[1], belief.shape[2], belief.shape[3]
    for row in range(belief.shape[0] * num_servers):
        e, s = row // num_servers, row % num_servers
        given = np.empty(states)
        for c in range(num_clients):
            if not covered[s, c]:
                continue
            o = outcome[e, s, c]
            scale = 0.0
            for k in range(states):
                given[k] = belief[e, s, c, k] * (emission[s, o, k] if o >= 0 else 1.0)
                scale += given[k]
            for k in range(states):
                given[k] = given[k] / scale if scale > 0.0 else belief[e, s, c, k]
                belief[e, s, c, k] = 0.0
            for j in range(states):
                for k in range(states):
                    belief[e, s, c, k] += given[j] * transition[s, j, k]
