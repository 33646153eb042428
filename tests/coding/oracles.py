"""Independent oracles: exact marginals by enumeration, and messages written down one by one in probabilities."""

import itertools
import math

import numpy as np

from edgeopt.coding import Graph


def marginals(graph: Graph, channel: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return exact log-likelihood ratios of bits, over all words."""
    weight = np.zeros((graph.num_bits, 2))
    for word in itertools.product((0, 1), repeat=graph.num_bits):
        log = -sum(prior[k] for k in range(graph.num_bits) if word[k])
        for j in range(graph.num_symbols):
            neighbours = graph.neighbours[graph.start[j] : graph.start[j + 1]]
            if sum(word[k] for k in neighbours) % 2:
                log -= channel[j]
        for k, value in enumerate(word):
            weight[k, value] += math.exp(log)
    return np.log(weight[:, 0] / weight[:, 1])


def messages(graph: Graph, channel: np.ndarray, prior: np.ndarray, rounds: int) -> np.ndarray:
    """Return what sum-product says after some rounds: pairs of probabilities along every edge, no logarithms, no tanh."""

    def pair(ratio: float) -> np.ndarray:
        return np.array([1 / (1 + math.exp(-ratio)), 1 / (1 + math.exp(ratio))])

    edges = [
        (j, int(k)) for j in range(graph.num_symbols) for k in graph.neighbours[graph.start[j] : graph.start[j + 1]]
    ]
    to_bit = {edge: np.array([0.5, 0.5]) for edge in edges}
    for _ in range(rounds):
        to_symbol = {}
        for j, k in edges:
            value = pair(prior[k])
            for other in edges:
                if other[1] == k and other[0] != j:
                    value = value * to_bit[other]
            to_symbol[j, k] = value / value.sum()
        for j, k in edges:
            even = pair(channel[j])  # probability that the parity of what was looked at is 0, 1
            for other in edges:
                if other[0] == j and other[1] != k:
                    p = to_symbol[other]
                    even = np.array([even[0] * p[0] + even[1] * p[1], even[0] * p[1] + even[1] * p[0]])
            to_bit[j, k] = even / even.sum()
    found = []
    for k in range(graph.num_bits):
        value = pair(prior[k])
        for edge in edges:
            if edge[1] == k:
                value = value * to_bit[edge]
        found.append(math.log(value[0] / value[1]))
    return np.array(found)
