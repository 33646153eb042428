"""`BeliefPropagation`: what parities say of bits, by messages over their graph; compiled to decode, in torch to train."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgeopt.coding import kernels
from edgeopt.coding.lt_code import Graph
from edgeopt.errors import InvalidProblemError
from edgeopt.validate import float_array, int_array, integer

OPERATIONS = 12
"""Floating-point operations per edge and round: two sums, clamp, exp, three and two for both fractions, three products, log."""


_MOST_VALUE = float(np.tanh(kernels.MOST / 2))


class BeliefPropagation:
    r"""Sum-product decoding of parities that have crossed a channel, with what is known of bits beforehand.

    With log-likelihood ratios :math:`L_j` of symbols and :math:`\lambda_k` of bits, messages start at 0 and in every round

    .. math:: m_{k \to j} = \lambda_k + \sum_{j' \ne j} m_{j' \to k}

    .. math:: m_{j \to k} = 2 \tanh^{-1}\Big(\tanh\frac{L_j}{2} \prod_{k' \ne k} \tanh\frac{m_{k' \to j}}{2}\Big)

    held within :math:`\pm 18`. The outcome is :math:`\lambda_k + \sum_j m_{j \to k}`. On a graph without circles it is exact
    once messages have crossed it.

    *Start.* A symbol tells a bit something only once all of its other neighbours are known a little. At first that takes a symbol of
    degree 1, or one whose other neighbours all have :math:`\lambda_k \ne 0`; without any, all messages to bits stay 0 for ever.

    Parameters
    ----------
    graph : of the symbols that were received.

    Notes
    -----
    O(edges x iterations) time, O(edges) memory.

    Examples
    --------
    >>> graph = Graph(2, [0, 1, 3], [0, 0, 1])  # bit 0 itself, and the parity of both
    >>> BeliefPropagation(graph).decode([2.0, 3.0], [0.0, 0.0], 2).round(3)
    array([2.   , 1.693])
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def decode(self, channel: ArrayLike, prior: ArrayLike, iterations: int | Sequence[int]) -> NDArray[np.float64]:
        """Return log-likelihood ratios float64 [K] of bits, positive for 0; for several numbers of iterations [I, K].

        Parameters
        ----------
        channel : float64 [n], log-likelihood ratios of symbols.
        prior : float64 [K], of bits, known beforehand; 0 where nothing is.
        iterations : rounds of messages, T; several are answered by one run to the last of them.
        """
        several = not isinstance(iterations, int | np.integer)
        stops = int_array("iterations", iterations, (None,) if several else (), low=0, dtype=np.int64).reshape(-1)
        if not len(stops) or (np.diff(stops) < 1).any():
            raise InvalidProblemError("iterations: expected at least one number, ascending")
        heard = float_array("channel", channel, (self.graph.num_symbols,))
        known = float_array("prior", prior, (self.graph.num_bits,))
        start, neighbours = self.graph.start, self.graph.neighbours
        symbol = np.tanh(np.clip(heard, -kernels.MOST, kernels.MOST) / 2)
        belief, message = known.copy(), np.zeros(len(neighbours))
        factor, odds = np.empty(len(neighbours)), np.empty(len(neighbours))
        found = []
        for done in range(int(stops[-1]) + 1):
            if done:  # tanh and log are NumPy's, which computes several at once
                kernels.gather(belief, message, neighbours, factor)
                np.tanh(factor, out=factor)
                kernels.combine(symbol, start, factor, _MOST_VALUE, odds)
                np.log(odds, out=message)
                kernels.scatter(known, message, neighbours, belief)
            found += [belief.copy()] if done in stops else []
        return np.stack(found) if several else found[0]

    def propagate(self, channel: Tensor, prior: Tensor, iterations: int, weights: Tensor | None = None) -> Tensor:
        r"""Return log-likelihood ratios [K], differentiable by everything.

        Parameters
        ----------
        channel, prior : as in `decode`, of one floating-point type.
        iterations : T.
        weights : [E], how much of an edge there is, in the order of the graph: factors are
            :math:`1 - w + w \tanh(m / 2)`, and its message to a bit counts w times. Default: all of each.
        """
        iterations = integer("iterations", iterations, low=0)
        neighbours = self._neighbours
        most = _MOST_VALUE if prior.dtype == torch.float64 else 1 - 2.0**-23
        symbol = (channel.clamp(-kernels.MOST, kernels.MOST) / 2).tanh()
        message = prior.new_zeros(len(neighbours))
        belief = prior
        for _ in range(iterations):
            toward = (belief[neighbours] - message).clamp(-kernels.MOST, kernels.MOST)
            factor = (toward / 2).tanh()
            if weights is not None:
                factor = 1 - weights + weights * factor
            parts = [symbol[rows, None] * _others(factor[edges]) for rows, edges in self._by_degree]
            value = torch.cat([part.reshape(-1) for part in parts])[self._place].clamp(-most, most)
            message = ((1 + value) / (1 - value)).log()
            if weights is not None:
                message = weights * message
            belief = prior.index_add(0, neighbours, message)
        return belief

    def expected(self, prior: Tensor, weights: Tensor | None = None) -> Tensor:
        r"""Return the expected value [n] of each symbol, +1 for 0 and -1 for 1: the product of its neighbours'.

        Parameters
        ----------
        prior, weights : as in `propagate`.
        """
        factor = (prior[self._neighbours] / 2).tanh()
        if weights is not None:
            factor = 1 - weights + weights * factor
        found = torch.cat([factor[edges].prod(1) for _, edges in self._by_degree])
        order = torch.cat([rows for rows, _ in self._by_degree])
        return torch.empty_like(found).index_put((order,), found)

    def stream_bits(self, prior: Tensor, weights: Tensor | None = None) -> Tensor:
        r"""Return the rate term in bits: how much the symbols tell whoever knows `prior`, each by itself.

        A symbol is a function of bits, so the divergence of what it is from what is expected of it is its entropy,
        :math:`H_b(\frac{1}{2}(1 - \prod_{k \in N_j} \tanh(\lambda_k / 2)))`. The sum over symbols bounds what all tell together.

        Parameters
        ----------
        prior, weights : as in `propagate`.
        """
        one = ((1 - self.expected(prior, weights)) / 2).clamp(1e-7, 1 - 1e-7)
        return -(one * one.log2() + (1 - one) * (1 - one).log2()).sum()

    @cached_property
    def _neighbours(self) -> Tensor:
        return torch.from_numpy(self.graph.neighbours.copy())

    @cached_property
    def _by_degree(self) -> list[tuple[Tensor, Tensor]]:
        """Symbols [m] of each degree d that occurs, and their edges [m, d]."""
        found = []
        for degree in np.unique(self.graph.degrees):
            rows = np.flatnonzero(self.graph.degrees == degree)
            edges = self.graph.start[rows, None] + np.arange(degree)
            found.append((torch.from_numpy(rows), torch.from_numpy(edges)))
        return found

    @cached_property
    def _place(self) -> Tensor:
        """Where each edge stands when those of all degrees are put one after another."""
        order = torch.cat([edges.reshape(-1) for _, edges in self._by_degree])
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _others(factors: Tensor) -> Tensor:
    """Return for each factor [m, d] the product of all others of its row."""
    one = torch.ones_like(factors[:, :1])
    if factors.shape[1] == 1:
        return one
    before = torch.cat([one, factors[:, :-1].cumprod(1)], 1)
    after = torch.cat([factors[:, 1:].flip(1).cumprod(1).flip(1), one], 1)
    return before * after
