"""Channels that bits cross as +1 and -1, with what a receiver knows of each symbol: its log-likelihood ratio."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.network import EdgeNetwork
from edgeopt.validate import int_array, integer, real

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_FADES, _CHANCES = np.polynomial.laguerre.laggauss(32)


class Channel(Protocol):
    """What carries symbols; a positive log-likelihood ratio speaks for bit 0, which is sent as +1."""

    @property
    def snr_db(self) -> float:
        """Mean signal-to-noise ratio, dB."""
        ...

    def receive(self, bits: ArrayLike, rng: np.random.Generator) -> Floats:
        """Return log-likelihood ratios [n] of bits [n] that were sent."""
        ...

    @property
    def capacity(self) -> float:
        """Bits that a symbol carries at most, with equally likely +1 and -1."""
        ...


@dataclass(frozen=True)
class Awgn:
    r"""White Gaussian noise: :math:`r = u + N(0, \sigma^2)`, and the ratio is :math:`2 r / \sigma^2`.

    Parameters
    ----------
    snr_db : :math:`-10 \log_{10} \sigma^2`, power of a symbol over that of the noise in its one dimension, dB.

    Examples
    --------
    >>> round(Awgn(0.0).capacity, 3), round(Awgn(10.0).capacity, 3)
    (0.486, 0.997)
    """

    snr_db: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "snr_db", real("snr_db", self.snr_db, unit="dB"))

    @property
    def noise_variance(self) -> float:
        """Variance of the noise where a symbol has power 1."""
        return float(10 ** (-self.snr_db / 10))

    def receive(self, bits: ArrayLike, rng: np.random.Generator) -> Floats:
        """Return log-likelihood ratios [n] of bits [n] that were sent."""
        sent = 1.0 - 2.0 * int_array("bits", bits, (None,), low=0, high=1)
        received = sent + math.sqrt(self.noise_variance) * rng.standard_normal(len(sent))
        return np.asarray(2 * received / self.noise_variance)

    @cached_property
    def capacity(self) -> float:
        """Bits that a symbol carries at most, with equally likely +1 and -1."""
        return float(_capacity(np.array([1 / self.noise_variance]))[0])


@dataclass(frozen=True)
class RayleighBlock:
    r"""Rayleigh fading that stays for a block of symbols, known to the receiver: :math:`r = h u + N(0, \sigma^2)`.

    Parameters
    ----------
    snr_db : mean of :math:`h^2 / \sigma^2`, dB.
    block : symbols that share a gain h; :math:`h^2` is exponential with mean 1.
    """

    snr_db: float
    block: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "snr_db", real("snr_db", self.snr_db, unit="dB"))
        object.__setattr__(self, "block", integer("block", self.block, low=1))

    def receive(self, bits: ArrayLike, rng: np.random.Generator) -> Floats:
        """Return log-likelihood ratios [n] of bits [n] that were sent."""
        sent = 1.0 - 2.0 * int_array("bits", bits, (None,), low=0, high=1)
        variance = 10 ** (-self.snr_db / 10)
        gain = np.sqrt(rng.exponential(size=-(-len(sent) // self.block))).repeat(self.block)[: len(sent)]
        received = gain * sent + math.sqrt(variance) * rng.standard_normal(len(sent))
        return np.asarray(2 * gain * received / variance)

    @cached_property
    def capacity(self) -> float:
        """Bits that a symbol carries at most over many blocks, with equally likely +1 and -1."""
        return float(_CHANCES @ _capacity(_FADES * 10 ** (self.snr_db / 10)))


CHANNELS: dict[str, type[Awgn] | type[RayleighBlock]] = {"awgn": Awgn, "rayleigh": RayleighBlock}
"""Channels by name."""


def channel_of(name: str, snr_db: float) -> Channel:
    """Return a channel by its name.

    Examples
    --------
    >>> channel_of("rayleigh", 5)
    RayleighBlock(snr_db=5.0, block=64)
    """
    if name not in CHANNELS:
        raise InvalidProblemError(f"channel = {quoted(name)}: expected one of {', '.join(CHANNELS)}")
    return CHANNELS[name](snr_db)


def link_snr_db(network: EdgeNetwork, server: int = 0, bandwidth_hz: float | None = None) -> Floats:
    r"""Return the signal-to-noise ratio :math:`P h / (N_0 W)` [U] in dB at which devices hear a server; -inf outside its coverage.

    A pulse of bandwidth W carries two real symbols, each with half of its power and half of its noise.

    Parameters
    ----------
    network : gives power, gains and noise.
    server : that sends.
    bandwidth_hz : W, of one stream for all. Default: the downlink bandwidth of each pair.

    Examples
    --------
    >>> network = EdgeNetwork.random(1, 3, seed=0, fading=False)
    >>> link_snr_db(network, bandwidth_hz=1e6).shape
    (3,)
    """
    server = integer("server", server, low=0, high=network.num_servers - 1)
    width = network.downlink_bandwidth_hz[:, server]
    if bandwidth_hz is not None:
        width = np.full_like(width, real("bandwidth_hz", bandwidth_hz, positive=True, unit="Hz"))
    heard = network.coverage[:, server] & (width > 0)
    power = network.server_power_w[server] * network.channel_gain[:, server]
    snr = np.divide(power, network.noise_w_per_hz * width, out=np.zeros_like(width), where=heard)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(snr))


def _capacity(snr: Floats) -> Floats:
    """Return 1 - E log2(1 + exp(-L)) for L ~ N(2 snr, 4 snr)."""
    ratio = 2 * snr[:, None] + 2 * np.sqrt(snr[:, None]) * _NODES
    return np.asarray(1 - np.logaddexp(0, -ratio) @ _WEIGHTS / math.log(2))
