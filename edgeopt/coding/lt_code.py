"""`LtCode`: an endless stream of parities of a few bits each; whoever knows the seed knows of which. And its `Graph`."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.coding import kernels
from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.validate import float_array, int_array, integer, probabilities, real, seed_number

Bits = NDArray[np.uint8]

DEGREES = (1, 2, 3, 4, 5, 8, 9, 19, 65)
"""Degrees between which a learnt distribution chooses."""
MAX_BITS = 1 << 20
_TOP = 1024  # the largest weight as a whole number
SPREAD = 64
"""The largest weight of a bit over the least: below it, weights are raised."""
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Graph:
    """Which bits each symbol is the parity of.

    Parameters
    ----------
    num_bits : K.
    start : int64 [n + 1], where the neighbours of each symbol start.
    neighbours : int64 [E], bits.
    first : number in the stream of the first symbol.
    """

    num_bits: int
    start: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    first: int = 0

    def __post_init__(self) -> None:
        bits = integer("num_bits", self.num_bits, low=1, high=MAX_BITS)
        start = int_array("start", self.start, (None,), low=0, dtype=np.int64)
        neighbours = int_array("neighbours", self.neighbours, (None,), low=0, high=bits - 1, dtype=np.int64)
        if not len(start) or start[0] != 0 or start[-1] != len(neighbours) or (np.diff(start) < 1).any():
            raise InvalidProblemError(f"start: expected 0, ..., {len(neighbours)}, ascending: a symbol has neighbours")
        for name, value in (("num_bits", bits), ("start", start), ("neighbours", neighbours)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Graph(num_bits={self.num_bits}, num_symbols={self.num_symbols}, num_edges={self.num_edges})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (self.num_bits, self.first) == (other.num_bits, other.first) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("start", "neighbours")
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_symbols(self) -> int:
        """Symbols, n."""
        return len(self.start) - 1

    @property
    def num_edges(self) -> int:
        """Edges, E."""
        return len(self.neighbours)

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """int64 [n], neighbours of each symbol."""
        return np.diff(self.start)

    def encode(self, bits: ArrayLike) -> Bits:
        """Return the parities uint8 [n] of bits [K]."""
        given = int_array("bits", bits, (self.num_bits,), low=0, high=1, dtype=np.uint8)
        return np.asarray(kernels.parities(given, self.start, self.neighbours))


@dataclass(frozen=True, eq=False)
class LtCode:
    """A fountain code: symbol j is the parity of d_j distinct bits, drawn in proportion to their weights.

    Neighbours of symbol j follow from the seed, j and the weights alone, in whole numbers: any part of the stream can be made
    by itself, the same on every machine.

    Parameters
    ----------
    degrees : int [D], ascending; where there are fewer bits than a degree says, all of them are neighbours.
    chances : float64 [D], probabilities of degrees, in steps of 2^-32.
    seed : that sender and receivers share.

    References
    ----------
    M. Luby, LT codes, FOCS 2002; weights after unequal protection of N. Rahnavard et al., IEEE Trans. Inf. Theory 53, 2007.

    Examples
    --------
    >>> code = LtCode((1, 2, 3), (0.2, 0.5, 0.3), seed=7)
    >>> graph = code.graph(num_bits=10, count=4)
    >>> graph == LtCode((1, 2, 3), (0.2, 0.5, 0.3), seed=7).graph(10, 4)
    True
    >>> graph.encode([1] * 10).tolist() == (graph.degrees % 2).tolist()
    True
    """

    degrees: Sequence[int]
    chances: NDArray[np.float64] | Sequence[float]
    seed: int = 0

    def __post_init__(self) -> None:
        degrees = int_array("degrees", self.degrees, (None,), low=1, high=MAX_BITS, dtype=np.int64)
        if not len(degrees) or (np.diff(degrees) < 1).any():
            raise InvalidProblemError("degrees: expected at least one, ascending")
        object.__setattr__(self, "degrees", tuple(degrees.tolist()))
        object.__setattr__(self, "chances", probabilities("chances", self.chances, (len(degrees),), tolerance=1e-6))
        object.__setattr__(self, "seed", seed_number("seed", self.seed))

    def __repr__(self) -> str:
        return f"LtCode(degrees={len(self.degrees)}, mean_degree={self.mean_degree:.3g}, seed={self.seed})"

    @classmethod
    def robust_soliton(cls, num_bits: int, *, c: float = 0.03, delta: float = 0.5, seed: int = 0) -> Self:
        r"""Return the code with Luby's robust soliton distribution for K bits.

        Parameters
        ----------
        num_bits : K.
        c, delta : of the spike at :math:`K / R`, :math:`R = c \sqrt{K} \ln(K / \delta)`.

        Examples
        --------
        >>> LtCode.robust_soliton(4096).mean_degree > 5
        True
        """
        bits = integer("num_bits", num_bits, low=2, high=MAX_BITS)
        c, delta = real("c", c, positive=True), real("delta", delta, positive=True)
        degree = np.arange(1, bits + 1)
        ideal = np.where(degree > 1, 1 / (degree * np.maximum(degree - 1, 1)), 1 / bits)
        ripple = c * np.sqrt(bits) * np.log(bits / delta)
        spike = min(bits, max(1, round(bits / ripple))) if ripple > 0 else bits
        extra = np.where(degree < spike, ripple / (degree * bits), 0.0)
        extra[spike - 1] = ripple * max(0.0, np.log(ripple / delta)) / bits
        chances = ideal + np.maximum(extra, 0)
        return cls(tuple(degree.tolist()), chances / chances.sum(), seed)

    @property
    def mean_degree(self) -> float:
        """Mean of the degrees."""
        return float(np.dot(self.degrees, self.chances))

    def graph(self, num_bits: int, count: int, weights: ArrayLike | None = None, *, first: int = 0) -> Graph:
        """Return the graph of symbols first, ..., first + count - 1.

        Parameters
        ----------
        num_bits : K.
        count : symbols, n.
        weights : float64 [K], > 0: how often a bit is drawn, relative to others. Default: all alike.
        first : number of the first one in the stream.
        """
        start, neighbours, _ = self.draws(num_bits, count, weights, first=first)
        return Graph(num_bits, start, neighbours, first)

    def draws(
        self, num_bits: int, count: int, weights: ArrayLike | None = None, *, first: int = 0, further: Any = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return starts [n + 1], neighbours [E] in the order drawn, and which degree [n] each symbol has.

        Parameters
        ----------
        num_bits, count, weights, first : as in `graph`.
        further : int [D], so many neighbours are drawn for a symbol of each degree instead; the first of them are its own.
        """
        bits = integer("num_bits", num_bits, low=1, high=MAX_BITS)
        n = integer("count", count, low=1)
        first = integer("first", first, low=0, high=1 << 38)
        of = kernels.draw_degrees(self._key, first, n, self._upto)
        lengths = np.minimum(np.asarray(self.degrees if further is None else further, np.int64), bits)[of]
        start = np.concatenate([[0], np.cumsum(lengths)])
        table = np.cumsum(whole_weights(bits, weights))
        return start, kernels.draw_neighbours(self._key, first, start, table), of

    def stream(self, bits: ArrayLike, weights: ArrayLike | None = None, *, chunk: int = _CHUNK) -> Iterator[Bits]:
        """Yield symbols without end, uint8 [chunk] at a time."""
        chunk = integer("chunk", chunk, low=1)
        given = int_array("bits", bits, (None,), low=0, high=1, dtype=np.uint8)
        first = 0
        while True:
            yield self.graph(len(given), chunk, weights, first=first).encode(given)
            first += chunk

    def checksum(self, num_bits: int, weights: ArrayLike | None = None) -> int:
        """Return a number that is equal where graphs are: of key, degrees, their probabilities, and weights."""
        parts = (
            np.array([self._key], np.uint64),
            np.array(self.degrees, np.int64),
            self._upto,
            whole_weights(num_bits, weights),
        )
        return zlib.crc32(b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts))

    @cached_property
    def _key(self) -> np.uint64:
        return np.uint64(stream(self.seed, "fountain").integers(1 << 63))

    @cached_property
    def _upto(self) -> NDArray[np.int64]:
        upto = np.round(np.cumsum(self.chances) * 2.0**32).astype(np.int64)
        upto[-1] = 1 << 32
        return upto


def whole_weights(num_bits: int, weights: ArrayLike | None) -> NDArray[np.int64]:
    """Return weights [K] as whole numbers, at most `SPREAD` apart: sums of them are exact.

    Examples
    --------
    >>> whole_weights(4, [1, 2, 4, 0.001])
    array([ 256,  512, 1024,   16])
    """
    bits = integer("num_bits", num_bits, low=1, high=MAX_BITS)
    if weights is None:
        return np.full(bits, _TOP, np.int64)
    given = float_array("weights", weights, (bits,), positive=True)
    whole: NDArray[np.int64] = np.maximum(np.round(given * (_TOP / given.max())), _TOP // SPREAD).astype(np.int64)
    return whole
