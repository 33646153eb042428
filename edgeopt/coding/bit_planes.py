"""Bits of quantised numbers: a Gaussian's cells, their Gray code, what it says of each bit, and means once bits are half known."""

import torch
from torch import Tensor

PLANES = 4
CELLS = 1 << PLANES
LOWEST = -(CELLS // 2)
MOST_RATIO = 12.0
"""Magnitude at which what a bit is known beforehand is held."""
LEAST_SCALE, MOST_SCALE = 0.1, 8.0

_CELL = torch.arange(CELLS)
_GRAY = _CELL ^ (_CELL >> 1)
BITS = ((_GRAY[:, None] >> torch.arange(PLANES - 1, -1, -1)) & 1).float()
"""float32 [16, 4], the bits of each cell, the most significant first: neighbours differ in one."""
VALUES = (_CELL + LOWEST).float()
"""float32 [16], -8, ..., 7."""


def cells_of(residual: Tensor) -> Tensor:
    """Return the cells int64 of numbers: rounded, and held within -8, ..., 7."""
    return residual.round().clamp(LOWEST, LOWEST + CELLS - 1).long() - LOWEST


def log_chances(log_scale: Tensor) -> Tensor:
    """Return the log-probability [..., 16] of every cell under a Gaussian of mean 0; they sum to 1.

    Parameters
    ----------
    log_scale : [...], logarithm of the standard deviation, held within those of `LEAST_SCALE` and `MOST_SCALE`.

    Examples
    --------
    >>> found = log_chances(torch.zeros(())).exp()
    >>> round(float(found.sum()), 6), round(float(found[8]), 4)  # within half a standard deviation
    (1.0, 0.3829)
    """
    scale = log_scale.exp().clamp(LEAST_SCALE, MOST_SCALE)[..., None]
    values = VALUES.to(scale).abs()
    chance = torch.special.ndtr((0.5 - values) / scale) - torch.special.ndtr((-0.5 - values) / scale)
    found: Tensor = (chance + 1e-9).log().log_softmax(-1)
    return found


def bit_ratios(log_p: Tensor) -> Tensor:
    """Return the log-likelihood ratios [..., 4] of the bits of cells with log-probabilities [..., 16], within ±12."""
    one = log_p.exp() @ BITS.to(log_p)
    one = one.clamp(1e-7, 1 - 1e-7)
    return ((1 - one) / one).log().clamp(-MOST_RATIO, MOST_RATIO)


def flip_costs(log_p: Tensor) -> Tensor:
    """Return by how much the square of the number changes on average when a bit is taken for its opposite, [..., 4].

    Examples
    --------
    >>> flip_costs(torch.full((16,), 1 / 16.0).log()).tolist()  # of four equally likely bits, the first costs most
    [85.0, 21.0, 5.0, 1.0]
    """
    index = torch.zeros(CELLS, PLANES, dtype=torch.long)
    place = {tuple(row): cell for cell, row in enumerate(BITS.int().tolist())}
    for cell, row in enumerate(BITS.int().tolist()):
        for plane in range(PLANES):
            index[cell, plane] = place[tuple(bit ^ (p == plane) for p, bit in enumerate(row))]
    squared = (VALUES[:, None] - VALUES[index]).square()  # [16, 4]
    return log_p.exp() @ squared.to(log_p)


def soft_values(log_p: Tensor, extrinsic: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return means and variances of numbers: :math:`P(i) \propto p(i) \prod_l \sigma(\pm \Lambda_l)` over their cells.

    Parameters
    ----------
    log_p : [..., 16], what was known beforehand.
    extrinsic : [..., 4], log-likelihood ratios of bits, without what was known beforehand.
    """
    signs = (1 - 2 * BITS).to(log_p)  # [16, 4]
    log_q = log_p + torch.nn.functional.logsigmoid(extrinsic[..., None, :] * signs).sum(-1)
    q = log_q.softmax(-1)
    values = VALUES.to(log_p)
    mean = q @ values
    return mean, (q @ values.square() - mean.square()).clamp_min(0)


def entropies(ratios: Tensor) -> Tensor:
    """Return the binary entropies in bits of log-likelihood ratios."""
    p = torch.sigmoid(ratios)
    q = torch.sigmoid(-ratios)
    return (
        -(p * torch.nn.functional.logsigmoid(ratios) + q * torch.nn.functional.logsigmoid(-ratios)) / 0.6931471805599453
    )
