"""Density evolution: how likely bits are still wrong after every round of messages, for codes of many bits. In torch, to learn by."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edgeopt.coding.channels import Awgn
from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.validate import integer

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_X = torch.from_numpy(_NODES)
_P = torch.from_numpy(_WEIGHTS / _WEIGHTS.sum())
_LARGEST = 60.0  # mean of a message beyond which it is certain


@dataclass(frozen=True)
class Evolution:
    """What density evolution has found.

    Parameters
    ----------
    error : [T + 1, M], probability that a bit of each class is wrong after so many rounds.
    mean : [T], mean of a message from a symbol of degree 2 or more to a bit.
    """

    error: Tensor
    mean: Tensor

    __repr__ = one_line


def density_evolution(
    degrees: Tensor,
    chances: Tensor,
    *,
    load: float | Tensor,
    snr_db: float,
    prior: Tensor,
    weight: Tensor,
    share: Tensor,
    iterations: int,
) -> Evolution:
    r"""Follow the mean of messages over an infinite random graph; differentiable by `chances`, `weight` and `prior`.

    A message from a symbol to a bit, seen from the bit's true value, is taken for :math:`N(\mu, 2 \mu)`; those of symbols of degree 1
    have the mean :math:`\mu_{ch}` of the channel's ratios, all others share one mean :math:`\mu`. A bit of class m has Poisson
    numbers i, k of both kinds of neighbours, with means load x mean degree x weight x their share of edges, so that what it knows
    without one of them is

    .. math:: u = \pm \lambda_m + N(S, 2 S), \quad S = i \mu_{ch} + k \mu,

    with + where its likelier value is true. With :math:`a` the mean of :math:`\tanh(u / 2)` over edges and :math:`\omega_d` the
    share of degree d among the edges of the second kind, :math:`\mu = \sum_d \omega_d \, \varphi^{-1}(\varphi(\mu_{ch}) \, a^{d - 1})`,
    where :math:`\varphi(\mu)` is the mean of :math:`\tanh(x / 2)`, :math:`x \sim N(\mu, 2 \mu)`. One mean for many symbols is the
    approximation of S.-Y. Chung et al., IEEE Trans. Inf. Theory 47, 2001; classes with priors, and Poisson numbers of neighbours of
    two kinds, are ours.

    Parameters
    ----------
    degrees, chances : [D], the degree distribution.
    load : symbols per bit, n / K.
    snr_db : of white Gaussian noise.
    prior : [M], probability that a bit of a class is 1.
    weight : [M], how often its bits are drawn, relative to others.
    share : [M], of bits; they sum to 1.
    iterations : rounds, T.

    Examples
    --------
    >>> half = torch.tensor([0.5], dtype=torch.float64)
    >>> one, two = torch.ones(1, dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    >>> stuck = density_evolution(two, one, load=9.0, snr_db=9.0, prior=half, weight=one, share=one, iterations=5)
    >>> round(float(stuck.error[-1, 0]), 9)  # without symbols of degree 1 and without priors nothing starts
    0.5
    """
    iterations = integer("iterations", iterations, low=0)
    if not 0 < float(load) < np.inf:
        raise InvalidProblemError(f"load = {float(load):g}: expected a positive number")
    degrees, chances = degrees.double(), chances.double()
    mean_degree = (degrees * chances).sum()
    of_edges = degrees * chances / mean_degree
    single = torch.where(degrees == 1, of_edges, 0.0).sum()  # share of edges at symbols of degree 1
    others = torch.where(degrees == 1, 0.0, of_edges) / (1 - single).clamp_min(1e-12)
    weight = weight / (share * weight).sum()
    number = load * mean_degree * weight  # [M]
    ones, ones_chance = _poisson(number * single)  # [C1], [M, C1]
    rest, rest_chance = _poisson(number * (1 - single))
    chance = (ones_chance[:, :, None] * rest_chance[:, None]).flatten(1)  # [M, C], C = C1 x C2
    prior = prior.clamp(1e-9, 1 - 1e-9)
    ratio = ((1 - prior) / prior).log()
    signed = torch.stack([ratio, -ratio])  # [2, M]
    sides = torch.stack([1 - prior, prior])
    of_symbol = torch.tensor(2 / Awgn(snr_db).noise_variance, dtype=torch.float64).clamp_max(_LARGEST)
    channel = _knowledge(of_symbol)
    errors = [prior.minimum(1 - prior)]
    means = []
    mean = torch.zeros(chance.shape[1], dtype=torch.float64)
    for _ in range(iterations):
        spread = (2 * mean).clamp_min(1e-12).sqrt()
        u = (signed[:, :, None] + mean)[..., None] + spread[:, None] * _X  # [2, M, C, nodes]
        known = (((u / 2).tanh() @ _P) * chance * sides[:, :, None]).sum((0, 2))  # [M]
        a = (share * weight * known).sum().clamp(0.0, 1.0)
        mu = (others * _inverse(channel * a ** (degrees - 1))).sum()
        means.append(mu)
        mean = (of_symbol * ones[:, None] + mu * rest).flatten()
        spread = (2 * mean).clamp_min(1e-12).sqrt()
        below = torch.special.ndtr(-(signed[:, :, None] + mean) / spread)  # [2, M, C]
        errors.append((below * chance * sides[:, :, None]).sum((0, 2)))
    return Evolution(torch.stack(errors), torch.stack(means) if means else torch.empty(0, dtype=torch.float64))


def _poisson(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers [C] and their probabilities [M, C] for means [M]."""
    largest = float(mean.detach().max())
    counts = torch.arange(int(largest + 5 * largest**0.5 + 5), dtype=torch.float64)
    chance = (torch.special.xlogy(counts, mean[:, None]) - mean[:, None] - torch.lgamma(counts + 1)).exp()
    return counts, chance / chance.sum(1, keepdim=True)


@cache
def _table() -> tuple[Tensor, Tensor]:
    """Return means of messages, and what messages of these means know, both ascending."""
    means = torch.cat(
        [torch.zeros(1), torch.logspace(-6, float(np.log10(_LARGEST)), 400, dtype=torch.float64)]
    ).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x, p = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    known = ((means[:, None] + (2 * means).sqrt()[:, None] * x) / 2).tanh() @ p
    known[0] = 0.0
    return means, known.cummax(0).values


def _knowledge(mean: Tensor) -> Tensor:
    """Return E tanh(x / 2), x ~ N(mean, 2 mean)."""
    means, known = _table()
    return _between(mean, means, known)


def _inverse(known: Tensor) -> Tensor:
    """Return the mean of the message that knows so much."""
    means, table = _table()
    return _between(known, table, means)


def _between(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly; beyond the ends, hold."""
    held = at.clamp(float(xs[0]), float(xs[-1]))
    right = torch.searchsorted(xs, held.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (held - x0) * ((y1 - y0) / (x1 - x0).clamp_min(1e-300))
