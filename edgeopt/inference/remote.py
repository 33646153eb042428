"""Steered decoding at the edge: the base model at a server sends a few log-probabilities, the adapter is at the device. Ours."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.network import EdgeNetwork
from edgeopt.profile import ModelProfile
from edgeopt.validate import integer

TOKEN_BYTES = 4
"""Of a token id that is sent alone."""
_VALUE_BYTES = 2  # of a log-probability


def top_log_probabilities(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a remote base sends of its scores [..., V]: the likeliest tokens int64 [..., m], and half-precision [..., m + 1].

    The latter are their log-probabilities, and at last the logarithm of what all others have together. m is `count`, or V if
    that is less.
    """
    count = min(integer("count", count, low=1), scores.shape[-1])
    log_q = scores.float().log_softmax(-1)
    values, tokens = log_q.topk(count)
    rest = log_q.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    return tokens, torch.cat([values, rest], -1).half()


def received(tokens: torch.Tensor, values: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return the log-probabilities [..., V] that a device makes of them: other tokens share what is left evenly."""
    others = vocabulary - tokens.shape[-1]
    rest = values[..., -1:].float() - float(np.log(max(1, others)))
    return rest.repeat(*[1] * (rest.ndim - 1), vocabulary).scatter(-1, tokens, values[..., :-1].float())


def steering_bytes(count: int, vocabulary: int) -> int:
    """Return the bytes that a remote base sends per token: m ids of as many whole bytes as they need, m + 1 values of two.

    Examples
    --------
    >>> steering_bytes(32, 49152), steering_bytes(32, 128256)
    (130, 162)
    """
    vocabulary = integer("vocabulary", vocabulary, low=1)
    count = min(integer("count", count, low=1), vocabulary)
    return count * (((vocabulary - 1).bit_length() + 7) // 8 + _VALUE_BYTES) + _VALUE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SteeringLatency:
    """Seconds per token of steered decoding for each of U devices, by where the two passes run.

    Parameters
    ----------
    device : float64 [U], both passes at the device, one after the other.
    remote : float64 [U], the base pass at the best server while the adapted pass runs at the device; the token goes up, the top
        log-probabilities come down. inf where there is no server in reach.
    server : float64 [U], both passes at the best server; one token goes up and one comes down.
    bytes_down : per token, of `remote`.
    """

    device: NDArray[np.float64]
    remote: NDArray[np.float64]
    server: NDArray[np.float64]
    bytes_down: int

    __repr__ = one_line


def steering_latency(
    profile: ModelProfile, network: EdgeNetwork, *, tokens: int, count: int, vocabulary: int
) -> SteeringLatency:
    """Return what a token of steered decoding takes in a network; work is counted in FLOPs, as everywhere in `EdgeNetwork`.

    Parameters
    ----------
    profile : of the base model; the adapter's own work is left out.
    tokens : of the sample that `profile` was measured with: 128 for the bundled language models. A token takes its share
        of the forward pass, as it does with a cache of keys and values.
    count, vocabulary : log-probabilities that are sent per token, and tokens that there are.

    Examples
    --------
    >>> import edgeopt
    >>> network = edgeopt.EdgeNetwork.random(1, 2, seed=0, fading=False)
    >>> found = steering_latency(edgeopt.model_profile("gpt2"), network, tokens=128, count=32, vocabulary=50257)
    >>> found.bytes_down, bool((found.remote < found.device).all())
    (130, True)
    """
    work = profile.total_forward_flops / integer("tokens", tokens, low=1)
    if work <= 0:
        raise InvalidProblemError(f"profile: {profile.name} takes no work: expected FLOPs")
    down = steering_bytes(count, vocabulary)
    one = network.device_latency_s(work)
    base, _ = network.offload_latency_s(8 * TOKEN_BYTES, 8 * down, work)
    both, _ = network.offload_latency_s(8 * TOKEN_BYTES, 8 * TOKEN_BYTES, 2 * work)
    return SteeringLatency(
        device=2 * one, remote=np.maximum(one, base.min(axis=1)), server=both.min(axis=1), bytes_down=down
    )
