"""What the three stages of training minimise: of transforms, of the code alone, and of both together. All of a batch of pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeopt.coding.belief_propagation import BeliefPropagation
from edgeopt.coding.bit_planes import BITS, LEAST_SCALE, MOST_SCALE, PLANES, cells_of, flip_costs, soft_values
from edgeopt.coding.channels import Awgn
from edgeopt.coding.density_evolution import density_evolution
from edgeopt.coding.lt_code import DEGREES, Graph, LtCode
from edgeopt.coding.transforms import Network, Side, degrees

SCALE = 255.0**2
_ROUNDS, _LOADS, _SNR_DB = (2, 5, 10, 20), (0.3, 1.5), (-2.0, 10.0)
"""What is drawn for a mini-batch: iterations, and ranges of symbols per bit and of ratios in dB."""
_CLASSES, _SHORT = 32, 0.85
"""Bits that density evolution follows, and what a symbol counts in it: codes of a few thousand bits are behind their limit."""
_FURTHER = (2, 3, 4, 5, 8, 9, 9, 19, 65)
"""Neighbours that are drawn for a symbol of each degree, so that one more could have been its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    r"""What the terms of the loss weigh: mean squared error of values 0, ..., 255, plus these, each per pixel.

    Parameters
    ----------
    rate : of a bit of entropy, of the numbers given the hyperprior, and of the hyperprior.
    alpha : of a bit that the stream's symbols tell, each by itself.
    beta : of a message between a symbol and a bit.
    """

    rate: float = 300.0
    alpha: float = 1.0
    beta: float = 0.01


def transforms_loss(
    network: Network, pictures: Tensor, rng: np.random.Generator, weights: Weights, step: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of transforms alone: what decoding says of bits is that of a channel of random quality.

    Half of the pictures have all bits decoded; for the others a bit's extrinsic ratio is N(mu, 2 mu), mu random.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    side, hyper, residual, bits = _analysed(network, pictures, generator)
    count = len(pictures)
    quality = torch.exp(math.log(0.05) + math.log(8 / 0.05) * torch.rand(count, generator=generator))
    quality = torch.where(torch.arange(count) % 2 == 0, 36.0, quality).view(-1, 1, 1, 1, 1)
    extrinsic = (1 - 2 * bits) * quality + (2 * quality).sqrt() * torch.randn(bits.shape, generator=generator)
    return _loss(network, pictures, side, hyper, residual, extrinsic, rng, weights)


def _analysed(network: Network, pictures: Tensor, generator: torch.Generator) -> tuple[Side, Tensor, Tensor, Tensor]:
    """Return side information by noisy hyper numbers, these, what numbers differ from their means by, and their bits."""
    numbers, hyper = network.analyse(pictures)
    hyper = hyper + torch.rand(hyper.shape, generator=generator) - 0.5
    side = network.side(hyper)
    residual = numbers - side.mean
    return side, hyper, residual, BITS[cells_of(residual.detach())]


def _loss(
    network: Network,
    pictures: Tensor,
    side: Side,
    hyper: Tensor,
    residual: Tensor,
    extrinsic: Tensor,
    rng: np.random.Generator,
    weights: Weights,
) -> tuple[Tensor, dict[str, float]]:
    """Return squared error and entropy, as terms and together."""
    mean, variance = soft_values(side.log_p, extrinsic)
    _, before = soft_values(side.log_p, torch.zeros_like(extrinsic))
    # rounding has no slope. As of a linear estimate, a share 1 - variance / variance before of a change gets through
    gain = (1 - variance / before.clamp_min(1e-6)).clamp(0, 1).detach()
    mean = mean + gain * (residual - residual.detach())
    made = network.synthesise(side, mean, variance)
    error = SCALE * (made - pictures).square().mean()
    pixels = pictures.shape[0] * pictures.shape[2] * pictures.shape[3]
    noise = torch.from_numpy(rng.random(residual.shape, np.float32)) - 0.5
    own = relaxed_bits(residual + noise, side.log_scale).sum() / pixels
    header = network.hyper_bits(hyper).sum() / pixels
    loss = error + weights.rate * (own + header)
    return loss, {"error": float(error.detach()), "bits_per_pixel": float((own + header).detach())}


def relaxed_bits(residual: Tensor, log_scale: Tensor) -> Tensor:
    """Return -log2 of the Gaussian's probability within half a unit of a number."""
    scale = log_scale.exp().clamp(LEAST_SCALE, MOST_SCALE)
    away = residual.abs()
    chance: Tensor = torch.special.ndtr((0.5 - away) / scale) - torch.special.ndtr((-0.5 - away) / scale)
    return -(chance + 1e-9).log2()


@torch.no_grad()
def importance(network: Network, pictures: Tensor, seed: int) -> Tensor:
    """Return the squared error [C], summed over a picture of values 0, ..., 255, by an error of 1 in a number of each channel."""
    numbers, hyper = network.analyse(pictures)
    side = network.side(hyper.round())
    whole = (numbers - side.mean).round()
    nothing = torch.zeros_like(whole)
    made = network.synthesise(side, whole, nothing)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for channel in range(numbers.shape[1]):
        changed = whole.clone()
        signs = torch.randint(0, 2, changed[:, channel].shape, generator=generator) * 2.0 - 1
        changed[:, channel] += signs
        found.append(SCALE * (network.synthesise(side, changed, nothing) - made).square().sum() / signs.numel())
    return torch.stack(found)


def code_loss(
    network: Network, pictures: Tensor, rng: np.random.Generator, weights: Weights, step: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of the degree distributions and of the weights of bits, by density evolution for a sample of bits.

    An error is what wrong bits cost.
    """
    with torch.no_grad():
        _, hyper = network.analyse(pictures)
        side = network.side(hyper.round())
        costs = flip_costs(side.log_p) * network.importance[:, None, None, None]
    at = torch.from_numpy(rng.choice(side.ratios.numel(), _CLASSES, replace=False))
    log_weights = network.log_weights(side.log_p, side.ratios).reshape(-1)[at]
    prior = torch.sigmoid(-side.ratios.reshape(-1)[at]).double()
    cost = costs.reshape(-1)[at].double()
    rounds = int(rng.choice(_ROUNDS))
    load, snr_db = rng.uniform(*_LOADS), rng.uniform(*_SNR_DB)
    share = torch.full((_CLASSES,), 1 / _CLASSES, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    said = {}
    per_pixel = PLANES * network.shape.channels / 64
    for name, logits, weight in (
        ("error", network.degree_logits, log_weights.double().exp()),
        ("plain_error", network.plain_logits, torch.ones(_CLASSES, dtype=torch.float64)),
    ):
        chances = logits.double().softmax(0)
        found = density_evolution(
            degrees(), chances, load=_SHORT * load, snr_db=snr_db, prior=prior, weight=weight, share=share,
            iterations=rounds,
        )  # fmt: skip
        error = (cost * found.error[-1]).mean() * per_pixel / 3
        messages = 2 * rounds * load * per_pixel * (degrees() * chances).sum()
        total = total + error + weights.beta * messages
        said[name] = float(error.detach())
    return total, said


def joint_loss(
    network: Network, pictures: Tensor, rng: np.random.Generator, weights: Weights, step: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of everything, with graphs that are drawn and belief propagation unrolled.

    Parameters
    ----------
    step : share of the stage that is done, by which the temperature of the degrees falls from 1 to 0.3.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    side, hyper, residual, bits = _analysed(network, pictures, generator)
    count, size = len(pictures), bits[0].numel()
    symbols = max(1, round(size * rng.uniform(*_LOADS)))
    rounds = int(rng.choice(_ROUNDS[:3]))
    decoder, own = _drawn(network, side, symbols, rng)
    weight = _edge_weights(network, side, decoder.graph, own, generator, 1 - 0.7 * step)
    flat = bits.reshape(-1).to(torch.uint8).numpy()
    graph = own.graph
    heard = [
        Awgn(rng.uniform(*_SNR_DB)).receive(graph.encode(flat)[j * symbols : (j + 1) * symbols], rng)
        for j in range(count)
    ]
    prior = side.ratios.reshape(-1)
    channel = torch.from_numpy(np.concatenate(heard).astype(np.float32))
    extrinsic = decoder.propagate(channel, prior, rounds, weight) - prior
    loss, said = _loss(network, pictures, side, hyper, residual, extrinsic.view_as(side.ratios), rng, weights)
    pixels = count * pictures.shape[2] * pictures.shape[3]
    told = decoder.stream_bits(prior, weight) / pixels
    messages = 2 * rounds * symbols * count * (degrees().float() * network.chances).sum() / pixels
    loss = loss + weights.alpha * told + weights.beta * messages
    return loss, said | {"told_per_pixel": float(told.detach()), "messages_per_pixel": float(messages.detach())}


@dataclass(frozen=True)
class _Own:
    """The graph that was drawn, within one with more edges.

    Parameters
    ----------
    graph : without further edges.
    place : int64 [E], number of each edge of the larger graph among the neighbours of its symbol.
    degree : int64 [E], of its symbol.
    of : int64 [n], which degree each symbol has.
    symbol : int64 [E].
    """

    graph: Graph
    place: np.ndarray
    degree: np.ndarray
    of: np.ndarray
    symbol: np.ndarray


def _drawn(network: Network, side: Side, symbols: int, rng: np.random.Generator) -> tuple[BeliefPropagation, _Own]:
    """Return a decoder for the graphs of all pictures side by side, with further edges, and which are their own."""
    chances = network.chances.detach().double().numpy()
    size = side.ratios[0].numel()
    log_weights = side.log_weights.detach().reshape(len(side.ratios), -1)
    starts, neighbours, classes = [], [], []
    for i, own in enumerate(log_weights.double().exp().numpy()):
        code = LtCode(DEGREES, chances / chances.sum(), int(rng.integers(1 << 62)))
        start, near, of = code.draws(size, symbols, own, further=_FURTHER)
        starts.append(np.diff(start))
        neighbours.append(near + i * size)
        classes.append(of)
    lengths, near, of = (np.concatenate(parts) for parts in (starts, neighbours, classes))
    start = np.concatenate([[0], np.cumsum(lengths)])
    symbol = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(near)) - start[symbol]
    degree = np.minimum(np.asarray(DEGREES)[of], size)
    mine = place < degree[symbol]
    total = size * len(log_weights)
    graph = Graph(total, np.concatenate([[0], np.cumsum(degree)]), near[mine])
    return BeliefPropagation(Graph(total, start, near)), _Own(graph, place, degree[symbol], of, symbol)


def _edge_weights(
    network: Network, side: Side, graph: Graph, own: _Own, generator: torch.Generator, temperature: float
) -> Tensor:
    """Return 1 for a symbol's own edges and 0 for further ones, with slopes by the degree distribution and the weights of bits.

    A degree is one of several by Gumbel noise, given which one it is; with a softmax at a temperature in its place, an edge is there
    as far as degrees are that have it. How often a bit is drawn weighs its edges in proportion.
    """
    log_p = network.degree_logits.log_softmax(0)
    of = torch.from_numpy(own.of)
    u = torch.rand(len(of), len(log_p), generator=generator).clamp(1e-6, 1 - 1e-6)
    top = -(-u.gather(1, of[:, None]).log()).log()
    other = -(-u.log() / log_p.exp() + (-top).exp()).log()
    noisy = torch.where(torch.arange(len(log_p)) == of[:, None], top + log_p - log_p.detach(), other)
    soft = (noisy / temperature).softmax(1)
    there = soft.flip(1).cumsum(1).flip(1)  # [n, D]: of this degree or a larger one
    least = torch.from_numpy(np.searchsorted(DEGREES, own.place, side="right"))  # the first degree that has the edge
    slope = there[torch.from_numpy(own.symbol), least.clamp_max(len(log_p) - 1)]
    mine = torch.from_numpy((own.place < own.degree).astype(np.float32))
    log_weight = side.log_weights.reshape(len(side.ratios), -1).log_softmax(1).reshape(-1)
    drawn = log_weight[torch.from_numpy(graph.neighbours.copy())]
    return mine + (slope - slope.detach()) + mine * (drawn - drawn.detach())


def batch_of(pictures: Sequence[np.ndarray], count: int, crop: int, rng: np.random.Generator) -> Tensor:
    """Return random squares float32 [count, 3, crop, crop] of pictures uint8 [H, W, 3], turned and mirrored at random."""
    found = []
    for _ in range(count):
        picture = pictures[int(rng.integers(len(pictures)))]
        y, x = (int(rng.integers(side - crop + 1)) for side in picture.shape[:2])
        part = np.rot90(picture[y : y + crop, x : x + crop], int(rng.integers(4)))
        found.append(part[:, ::-1] if rng.random() < 0.5 else part)
    return torch.from_numpy(np.stack(found).astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
