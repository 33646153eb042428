"""Kernels of hidden Markov models with categorical symbols, scaled so that nothing underflows.

Arrays, unless said otherwise: sequences int64 [N, T] with -1 for a missing symbol, start [K], transition [K, K] from row
to column, emission [V, K] (symbol first, unlike in `CategoricalHMM`: the states of one symbol lie side by side).

Beliefs are scaled to sum to one in every step, but a single one may still become too small for a floating-point number,
and matter all the same: the state may be the only one that explains what follows. Where every state leads to every other
by at least `LEAST_PROBABILITY`, it does not matter, as the next step lifts the belief; else a sequence on which a belief
falls below `LEAST_BELIEF`, and every sequence if a probability of the model is below `LEAST_PROBABILITY`, is worked on in
logarithms, which takes several times as long.
"""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-150  # the least scale of a step; and the product of scales goes into the logarithm before it underflows
LEAST_BELIEF = 1e-180  # belief x transition x emission: 1e-180 x 1e-60 x 1e-60 is a normal number
LEAST_PROBABILITY = 1e-60


@kernel
def filter_beliefs(sequences: Ints, start: Floats, transition: Floats, emission: Floats) -> tuple[Floats, Floats]:
    """Return the filtered beliefs [N, T, K] and the log-likelihoods [N]; -inf, and NaN beliefs from there, if impossible.

    belief[n, t] is the distribution of the state at t given the symbols up to t; O(N T K^2).
    """
    num, length = sequences.shape
    belief, factor = np.empty((num, length, start.size)), np.empty((length, start.size))
    value = np.empty(num)
    in_logs, least = _dangers(start, transition, emission)
    logs = _logs(start), _logs(transition), _logs(emission)
    for n in range(num):
        is_safe = not in_logs
        if is_safe:
            value[n], is_safe = _forward(sequences[n], start, transition, emission, least, belief[n], factor)
        if not is_safe:
            value[n] = _forward_in_logs(sequences[n], logs[0], logs[1], logs[2], belief[n], factor[:, 0])
            for t in range(length):
                for k in range(start.size):
                    belief[n, t, k] = np.exp(belief[n, t, k])
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
    rare_moves = np.zeros((states, states))  # of the sequences worked on in logarithms
    value = np.zeros(num)
    alpha, factor = np.empty((length, states)), np.empty((length, states))
    beta, weighted = np.empty(states), np.empty(states)
    in_logs, least = _dangers(start, transition, emission)
    logs = _logs(start), _logs(transition), _logs(emission)
    for n in range(num):
        end = length
        while end > 0 and sequences[n, end - 1] < 0:
            end -= 1
        sequence, is_safe = sequences[n, :end], not in_logs
        if is_safe:
            value[n], is_safe = _forward(sequence, start, transition, emission, least, alpha, factor)
        if not is_safe:
            value[n] = _count_in_logs(
                sequence, logs[0], logs[1], logs[2], alpha, factor[:, 0], starts, rare_moves, symbols
            )
            continue
        if end == 0:
            continue
        beta[:] = 1.0
        for t in range(end - 1, -1, -1):
            o = sequence[t]
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
                beta[j] = total if alpha[t - 1, j] > 0.0 else 0.0  # else it counts for nothing, and may be infinite
        for k in range(states):
            starts[k] += alpha[0, k] * beta[k]
    for j in range(states):
        for k in range(states):
            moves[j, k] = moves[j, k] * transition[j, k] + rare_moves[j, k]  # the same factor in every move from j to k
    return starts, moves, symbols, value


@kernel
def _dangers(start: Floats, transition: Floats, emission: Floats) -> tuple[bool, float]:
    """Return whether all sequences are to be worked on in logarithms, and the belief below which one is."""
    if transition.min() >= LEAST_PROBABILITY:
        return False, 0.0
    return _has_small(start) or _has_small(transition) or _has_small(emission), LEAST_BELIEF


@kernel
def _forward(
    sequence: Ints, start: Floats, transition: Floats, emission: Floats, least: float, belief: Floats, factor: Floats
) -> tuple[float, bool]:
    """Fill in belief [T, K] and factor [T, K], a symbol's probability over the scale; return the log-likelihood.

    And whether that is safe: no belief fell below `least`, no scale below `TINY`, as that of an impossible symbol.
    """
    states = start.size
    prior, product, value = start.copy(), 1.0, 0.0
    for t in range(sequence.size):
        o = sequence[t]
        scale = 0.0
        for k in range(states):
            factor[t, k] = emission[o, k] if o >= 0 else 1.0
            belief[t, k] = prior[k] * factor[t, k]
            scale += belief[t, k]
        if scale < TINY:
            return np.nan, False
        inverse = 1.0 / scale
        for k in range(states):
            factor[t, k] *= inverse
            belief[t, k] *= inverse
            if 0.0 < belief[t, k] < least:
                return np.nan, False
        product *= scale
        if product < TINY:
            value += np.log(product)
            product = 1.0
        for k in range(states):
            total = 0.0
            for j in range(states):
                total += belief[t, j] * transition[j, k]
            prior[k] = total
    return value + np.log(product), True


@kernel
def _forward_in_logs(
    sequence: Ints, start: Floats, transition: Floats, emission: Floats, belief: Floats, scale: Floats
) -> float:
    """Do the same with logarithms of everything, scale [T] instead of the factors; -inf, and NaN beliefs, if impossible."""
    states = start.size
    prior, terms, value = start.copy(), np.empty(states), 0.0
    for t in range(sequence.size):
        o = sequence[t]
        for k in range(states):
            belief[t, k] = prior[k] + (emission[o, k] if o >= 0 else 0.0)
        scale[t] = _log_sum(belief[t])
        if scale[t] == -np.inf:
            belief[t:] = np.nan
            return -np.inf
        value += scale[t]
        for k in range(states):
            belief[t, k] -= scale[t]
        for k in range(states):
            for j in range(states):
                terms[j] = belief[t, j] + transition[j, k]
            prior[k] = _log_sum(terms)
    return value


@kernel
def _count_in_logs(
    sequence: Ints, start: Floats, transition: Floats, emission: Floats, alpha: Floats, scale: Floats, starts: Floats,
    moves: Floats, symbols: Floats,
) -> float:  # fmt: skip
    """Add the expected counts of one sequence, from logarithms of everything; return its log-likelihood."""
    states = start.size
    value = _forward_in_logs(sequence, start, transition, emission, alpha, scale)
    if value == -np.inf or sequence.size == 0:
        return value
    beta, weighted, terms = np.zeros(states), np.empty(states), np.empty(states)
    for t in range(sequence.size - 1, -1, -1):
        o = sequence[t]
        if o >= 0:
            for k in range(states):
                symbols[o, k] += np.exp(alpha[t, k] + beta[k])
        if t == 0:
            break
        for k in range(states):
            weighted[k] = (emission[o, k] if o >= 0 else 0.0) - scale[t] + beta[k]
        for j in range(states):
            for k in range(states):
                terms[k] = transition[j, k] + weighted[k]
                moves[j, k] += np.exp(alpha[t - 1, j] + terms[k])
            beta[j] = _log_sum(terms)
    for k in range(states):
        starts[k] += np.exp(alpha[0, k] + beta[k])
    return value


@kernel
def _log_sum(terms: Floats) -> float:
    """Return the logarithm of the sum of exponentials; -inf if all terms are."""
    most = terms.max()
    if most == -np.inf:
        return -np.inf
    total = 0.0
    for term in terms:
        total += np.exp(term - most)
    return float(most + np.log(total))


@kernel
def _logs(probability: Floats) -> Floats:
    """Return logarithms, -inf for 0."""
    found = np.full(probability.shape, -np.inf)
    for i in range(probability.size):
        if probability.flat[i] > 0.0:
            found.flat[i] = np.log(probability.flat[i])
    return found


@kernel
def _has_small(probability: Floats) -> bool:
    """Whether one is below `LEAST_PROBABILITY`, but not 0."""
    return bool(((probability > 0.0) & (probability < LEAST_PROBABILITY)).any())


@kernel
def advance_beliefs(
    belief: Floats, outcome: NDArray[np.int8], covered: NDArray[np.bool_], transition: Floats, emission: Floats
) -> None:
    """Move the beliefs of all pairs one round on, in place: condition on the symbol, if there is one, and step.

    belief [E, S, C, K] is the distribution of the coming round's state given everything before; outcome [E, S, C];
    covered [S, C]: other pairs are left alone; transition [S, K, K] and emission [S, V, K] are each server's own.
    A symbol that the belief holds impossible is taken for missing. What is possible keeps a belief of `LEAST_BELIEF`,
    so that a state which is out of the question for long is not lost by rounding.
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
            if o >= 0 and scale < TINY:  # impossible, or too small for a product
                given[:] = _logs(belief[e, s, c]) + _logs(emission[s, o])
                most, scale = given.max(), 0.0
                for k in range(states):
                    given[k] = np.exp(given[k] - most) if most > -np.inf else 0.0
                    scale += given[k]
            for k in range(states):
                if scale <= 0.0:
                    given[k] = belief[e, s, c, k]
                else:
                    given[k] /= scale
                    if given[k] < LEAST_BELIEF and belief[e, s, c, k] > 0.0 and (o < 0 or emission[s, o, k] > 0.0):
                        given[k] = LEAST_BELIEF
                belief[e, s, c, k] = 0.0
            for j in range(states):
                for k in range(states):
                    belief[e, s, c, k] += given[j] * transition[s, j, k]
