"""Fountain codes: the same graph at both ends, any part of the stream by itself, and the distributions that were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from edgeopt.coding import Graph, LtCode
from edgeopt.coding.lt_code import whole_weights
from edgeopt.errors import InvalidProblemError

CODE = LtCode((1, 2, 3, 8), (0.1, 0.5, 0.3, 0.1), seed=11)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40), st.integers(0, 40))
def test_parts_of_the_stream(seed: int, num_bits: int, count: int, first: int):
    """Symbols are the same in whatever part of the stream they are asked for; neighbours are distinct."""
    code = LtCode((1, 2, 3, 8), (0.1, 0.5, 0.3, 0.1), seed)
    whole, part = code.graph(num_bits, first + count), code.graph(num_bits, count, first=first)
    assert part.neighbours.tolist() == whole.neighbours[whole.start[first] :].tolist()
    for j in range(count):
        own = part.neighbours[part.start[j] : part.start[j + 1]]
        assert len(set(own.tolist())) == len(own) <= 8
    assert (np.isin(part.degrees, code.degrees) | (part.degrees == num_bits)).all()


def test_the_stream_has_no_end_and_is_the_parity_of_neighbours():
    """Chunks of any size, one after another, are the symbols of one graph."""
    bits = np.random.default_rng(0).integers(0, 2, 40)
    chunks = CODE.stream(bits, chunk=7)
    sent = np.concatenate([next(chunks) for _ in range(9)])
    graph = CODE.graph(40, 63)
    expected = [bits[graph.neighbours[graph.start[j] : graph.start[j + 1]]].sum() % 2 for j in range(63)]
    assert sent.tolist() == expected == graph.encode(bits).tolist()


def test_distributions():
    """Degrees and bits come up as often as they should, within five standard deviations."""
    count = 20000
    weights = np.array([1.0, 2, 4, 8])
    graph = LtCode((1, 3), (0.7, 0.3), 5).graph(4, count, weights)
    assert abs((graph.degrees == 1).mean() - 0.7) < 5 * np.sqrt(0.21 / count)
    single = graph.neighbours[graph.start[:-1]][graph.degrees == 1]
    share = np.bincount(single, minlength=4) / len(single)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=5 * 0.5 / np.sqrt(len(single)))


def test_robust_soliton():
    """It sums to one, has the spike where Luby puts it, and the ideal distribution without ripple."""
    code = LtCode.robust_soliton(1000, c=0.1, delta=0.5)
    spike = round(1000 / (0.1 * np.sqrt(1000) * np.log(2000)))
    chances = np.asarray(code.chances)
    assert chances.sum() == pytest.approx(1)
    assert chances[spike - 1] > 5 * chances[spike - 2]
    assert chances[1] / chances[2] == pytest.approx((1 / 2 + 0.024 / 2) / (1 / 6 + 0.024 / 3), rel=0.02)


def test_checksums_differ_where_graphs_do():
    """By seed, weights, degrees, probabilities and number of bits."""
    others = [
        LtCode(CODE.degrees, CODE.chances, 12).checksum(50), CODE.checksum(51), CODE.checksum(50, [2.0] * 49 + [1.0]),
        LtCode((1, 2, 3, 9), CODE.chances, 11).checksum(50), LtCode(CODE.degrees, (0.2, 0.4, 0.3, 0.1), 11).checksum(50),
    ]  # fmt: skip
    assert len({*others, CODE.checksum(50)}) == 6
    assert CODE.checksum(50) == CODE.checksum(50, np.full(50, 3.0))


def test_what_is_refused():
    """Names, indices, values, and what was expected."""
    with pytest.raises(InvalidProblemError, match=r"count = 0: expected an integer >= 1"):
        CODE.graph(10, 0)
    with pytest.raises(InvalidProblemError, match=r"weights\[1\] = 0.0: expected a positive number"):
        CODE.graph(2, 3, [1, 0])
    with pytest.raises(InvalidProblemError, match=r"sums to 0\.9"):
        LtCode((1, 2), (0.5, 0.4))
    with pytest.raises(InvalidProblemError, match="degrees"):
        LtCode((2, 1), (0.5, 0.5))
    with pytest.raises(InvalidProblemError, match="a symbol has neighbours"):
        Graph(3, [0, 0, 2], [1, 2])
    with pytest.raises(InvalidProblemError, match=r"bits\[0\] = 2"):
        CODE.graph(2, 3).encode([2, 0])
    assert whole_weights(2, None).tolist() == [1024, 1024]
