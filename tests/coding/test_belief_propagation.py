"""Messages over graphs: exact on trees, equal to a second implementation, differentiable, and started by what starts them."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from edgeopt.coding import Awgn, BeliefPropagation, Graph, LtCode
from edgeopt.errors import InvalidProblemError
from tests.coding import oracles


def ragged(lists: list[list[int]], num_bits: int) -> Graph:
    return Graph(num_bits, np.concatenate([[0], np.cumsum([len(row) for row in lists])]), np.concatenate(lists))


def random_tree(rng: np.random.Generator, num_bits: int) -> Graph:
    """Return symbols that join what was not joined yet, and some that repeat single bits."""
    groups = list(range(num_bits))
    rows = []
    for _ in range(num_bits):
        members = rng.choice(num_bits, min(num_bits, int(rng.integers(1, 4))), replace=False)
        if len({groups[k] for k in members}) == len(members):
            rows.append(members.tolist())
            to = groups[members[0]]
            old = {groups[k] for k in members}
            groups = [to if group in old else group for group in groups]
    return ragged(rows or [[0]], num_bits)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_exact_on_trees(seed: int, num_bits: int):
    """On a graph without circles, after as many rounds as it is wide, the outcome is that of enumerating all words."""
    rng = np.random.default_rng(seed)
    graph = random_tree(rng, num_bits)
    structure = nx.Graph(
        (("s", j), k) for j in range(graph.num_symbols) for k in graph.neighbours[graph.start[j] : graph.start[j + 1]]
    )
    assert nx.is_forest(structure)
    channel, prior = 2 * rng.standard_normal(graph.num_symbols), rng.standard_normal(num_bits)
    found = BeliefPropagation(graph).decode(channel, prior, 2 * num_bits)
    np.testing.assert_allclose(found, oracles.marginals(graph, channel, prior), atol=1e-8)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_both_implementations_equal_a_third(seed: int, rounds: int):
    """Compiled and torch give, with circles as well, what messages in probabilities give."""
    rng = np.random.default_rng(seed)
    graph = LtCode((1, 2, 3, 5), (0.2, 0.4, 0.3, 0.1), seed).graph(8, 14)
    channel, prior = 2 * rng.standard_normal(14), rng.standard_normal(8)
    expected = oracles.messages(graph, channel, prior, rounds)
    decoder = BeliefPropagation(graph)
    np.testing.assert_allclose(decoder.decode(channel, prior, rounds), expected, atol=1e-8)
    found = decoder.propagate(torch.tensor(channel), torch.tensor(prior), rounds)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_both_are_equal_at_the_size_of_a_picture():
    """4,096 bits, to 1e-6, also where messages are held; one run answers several numbers of rounds."""
    rng = np.random.default_rng(0)
    graph = LtCode((1, 2, 3, 8, 65), (0.1, 0.5, 0.2, 0.15, 0.05), 3).graph(4096, 5000)
    for scale in (1.0, 30.0):
        channel, prior = scale * rng.standard_normal(5000), scale * rng.standard_normal(4096)
        decoder = BeliefPropagation(graph)
        found = decoder.decode(channel, prior, [0, 3, 12])
        np.testing.assert_array_equal(found[0], prior)
        np.testing.assert_array_equal(found[1], decoder.decode(channel, prior, 3))
        other = decoder.propagate(torch.tensor(channel), torch.tensor(prior), 12)
        np.testing.assert_allclose(found[2], other, atol=1e-6)


def test_what_starts_it():
    """Without symbols of degree 1 nothing moves, unless something is known beforehand, or one such symbol is there."""
    rng = np.random.default_rng(1)
    bits = (rng.random(300) < 0.11).astype(np.uint8)
    graph = LtCode((2, 3), (0.6, 0.4), 1).graph(300, 700)
    assert graph.degrees.min() == 2
    channel = Awgn(6).receive(graph.encode(bits), rng)
    decoder = BeliefPropagation(graph)
    assert (decoder.decode(channel, np.zeros(300), 50) == 0).all()
    known = np.full(300, np.log(0.89 / 0.11))
    found = decoder.decode(channel, known, 50)
    assert ((found < 0) != bits).mean() < 0.02 < ((known < 0) != bits).mean()
    one = Graph(300, np.append(graph.start, graph.start[-1] + 1), np.append(graph.neighbours, 0))
    begun = BeliefPropagation(one).decode(np.append(channel, 9.0 - 18.0 * bits[0]), np.zeros(300), 50)
    assert ((begun < 0) != bits).mean() < 0.2


def test_gradients():
    """By ratios of symbols, of bits, and by weights of edges, against finite differences; a factor of 0 divides nothing."""
    rng = np.random.default_rng(2)
    graph = LtCode((1, 2, 3, 4), (0.2, 0.4, 0.3, 0.1), 2).graph(6, 9)
    decoder = BeliefPropagation(graph)
    prior = rng.standard_normal(6)
    prior[0] = 0.0
    inputs = [torch.tensor(x, requires_grad=True) for x in (rng.standard_normal(9), prior, rng.random(graph.num_edges))]
    assert torch.autograd.gradcheck(lambda c, p, w: decoder.propagate(c, p, 4, w), inputs)
    whole = decoder.propagate(*inputs[:2], 4, torch.ones(graph.num_edges, dtype=torch.float64))
    torch.testing.assert_close(whole, decoder.propagate(*inputs[:2], 4))


def test_an_edge_of_weight_0_is_none():
    """A graph with more edges, those of weight 0, is the graph without them."""
    rng = np.random.default_rng(3)
    small, large = ragged([[0, 1], [2], [1, 3]], 4), ragged([[0, 1, 3], [2, 0], [1, 3]], 4)
    weights = torch.tensor([1.0, 1, 0, 1, 0, 1, 1], dtype=torch.float64)
    channel, prior = torch.tensor(rng.standard_normal(3)), torch.tensor(rng.standard_normal(4))
    found = BeliefPropagation(large).propagate(channel, prior, 5, weights)
    torch.testing.assert_close(found, BeliefPropagation(small).propagate(channel, prior, 5))


def test_what_is_refused():
    """Ratios that are not numbers, of the wrong number, and iterations that do not ascend."""
    decoder = BeliefPropagation(ragged([[0], [0, 1]], 2))
    with pytest.raises(InvalidProblemError, match=r"channel\[1\] = nan"):
        decoder.decode([1.0, np.nan], [0.0, 0.0], 1)
    with pytest.raises(InvalidProblemError, match=r"prior: expected shape \[2\]"):
        decoder.decode([1.0, 1.0], [0.0], 1)
    with pytest.raises(InvalidProblemError, match="ascending"):
        decoder.decode([1.0, 1.0], [0.0, 0.0], [2, 1])
