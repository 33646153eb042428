"""The learnt parts: transforms between pictures and numbers, a hyperprior, the degree distribution and the weights of bits."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeopt.coding.bit_planes import PLANES, bit_ratios, entropies, flip_costs, log_chances
from edgeopt.coding.lt_code import DEGREES
from edgeopt.validate import integer

SHRINK = 32
"""Pixels along a side for which there is one number of the hyperprior per channel."""
_LEAST_SIDE = 127  # magnitude at which numbers of the hyperprior are held: they are sent as signed bytes
_LOG_WEIGHT = 1.3862943611198906  # weights of bits are within a factor of 4 of 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large the networks are.

    Parameters
    ----------
    width : channels between layers.
    channels : numbers per 8 x 8 pixels, C.
    hyper : numbers of the hyperprior per 32 x 32 pixels.
    """

    width: int = 48
    channels: int = 16
    hyper: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            integer(name, value, low=1, high=4096)


class Side(NamedTuple):
    """What both ends know before the stream starts, all of it from the hyperprior.

    Parameters
    ----------
    mean, log_scale : [B, C, h, w], of the numbers.
    log_p : [B, C, h, w, 16], of the cells of numbers less their means.
    ratios : [B, C, h, w, 4], log-likelihood ratios of bits.
    log_weights : [B, C, h, w, 4], of bits: how often they are drawn.
    """

    mean: Tensor
    log_scale: Tensor
    log_p: Tensor
    ratios: Tensor
    log_weights: Tensor


def down(given: int, made: int) -> nn.Conv2d:
    """Return a layer that halves both sides."""
    return nn.Conv2d(given, made, 5, stride=2, padding=2)


def up(given: int, made: int) -> nn.ConvTranspose2d:
    """Return a layer that doubles both sides."""
    return nn.ConvTranspose2d(given, made, 5, stride=2, padding=2, output_padding=1)


class Network(nn.Module):
    """All that is learnt.

    Parameters
    ----------
    shape : of the networks.

    Attributes
    ----------
    analysis, synthesis : pictures [B, 3, H, W] in 0, ..., 1 to numbers [B, C, H / 8, W / 8], and back from means and variances
        [B, 2 C, H / 8, W / 8].
    hyper_analysis, hyper_synthesis : numbers to those of the hyperprior [B, hyper, H / 32, W / 32], and these to means and
        logarithms of scales.
    degree_logits, plain_logits : [9], of the degree distribution beside learnt weights of bits, and beside equal ones.
    neighbour : features of a bit to the logarithm of its weight.
    importance : [C], squared error of the picture, summed over it, by a unit of error of a number of each channel.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        n, c, h = shape.width, shape.channels, shape.hyper
        self.analysis = nn.Sequential(down(3, n), nn.GELU(), down(n, n), nn.GELU(), down(n, c))
        self.synthesis = nn.Sequential(up(2 * c, n), nn.GELU(), up(n, n), nn.GELU(), up(n, 3))
        self.hyper_analysis = nn.Sequential(nn.Conv2d(c, n, 3, padding=1), nn.GELU(), down(n, n), nn.GELU(), down(n, h))
        self.hyper_synthesis = nn.Sequential(
            up(h, n), nn.GELU(), up(n, n), nn.GELU(), nn.Conv2d(n, 2 * c, 3, padding=1)
        )
        self.hyper_mean = nn.Parameter(torch.zeros(h))
        self.hyper_log_scale = nn.Parameter(torch.zeros(h))
        start = torch.tensor([0.1, 0.45, 0.2, 0.08, 0.05, 0.05, 0.03, 0.03, 0.01]).log()
        self.degree_logits, self.plain_logits = nn.Parameter(start), nn.Parameter(start.clone())
        first, last = nn.Linear(2 + PLANES, 16), nn.Linear(16, 1)
        nn.init.zeros_(last.weight)  # all bits alike at first
        nn.init.zeros_(last.bias)
        self.neighbour = nn.Sequential(first, nn.GELU(), last)
        self.register_buffer("importance", torch.ones(c))

    importance: Tensor

    def analyse(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers [B, C, H / 8, W / 8] and those of the hyperprior, not yet rounded."""
        numbers = self.analysis(pictures - 0.5)
        return numbers, self.hyper_analysis(numbers).clamp(-_LEAST_SIDE, _LEAST_SIDE)

    def side(self, hyper: Tensor) -> Side:
        """Return what both ends know from the hyperprior [B, hyper, H / 32, W / 32]."""
        mean, log_scale = self.hyper_synthesis(hyper).chunk(2, 1)
        log_p = log_chances(log_scale)
        ratios = bit_ratios(log_p)
        return Side(mean, log_scale, log_p, ratios, self.log_weights(log_p, ratios))

    def log_weights(self, log_p: Tensor, ratios: Tensor) -> Tensor:
        """Return logarithms of the weights [B, C, h, w, 4] of bits: by entropy, plane, and what a wrong one costs."""
        costs = flip_costs(log_p) * self.importance[:, None, None, None]
        planes = torch.eye(PLANES).expand(*ratios.shape, PLANES)
        known = torch.stack([entropies(ratios), 0.25 * (costs + 1e-6).log()], -1)
        features = torch.cat([known, planes], -1).detach()
        found: Tensor = _LOG_WEIGHT * self.neighbour(features)[..., 0].tanh()
        return found

    def synthesise(self, side: Side, mean: Tensor, variance: Tensor) -> Tensor:
        """Return pictures of means and variances [B, C, h, w] of numbers less what `side` expects."""
        given = torch.cat([side.mean + mean, variance], 1)
        return self.synthesis(given) + 0.5  # type: ignore[no-any-return]

    def hyper_bits(self, hyper: Tensor) -> Tensor:
        """Return how many bits each picture's hyperprior [B, hyper, ...] takes at least: -log2 of logistic distributions."""
        centre = hyper - self.hyper_mean[:, None, None]
        scale = self.hyper_log_scale.exp().clamp(0.05, 20)[:, None, None]
        away = centre.abs()  # where differences of probabilities are of small numbers
        chance = torch.sigmoid((0.5 - away) / scale) - torch.sigmoid((-0.5 - away) / scale)
        return -(chance + 1e-9).log2().flatten(1).sum(1)

    @property
    def chances(self) -> Tensor:
        """The degree distribution [9] beside learnt weights."""
        return self.degree_logits.softmax(0)


def degrees() -> Tensor:
    """Return the degrees [9] as a tensor."""
    return torch.tensor(DEGREES, dtype=torch.float64)
