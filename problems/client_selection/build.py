"""What building client-selection problems from an edge network takes: a time-out, and enough coverage."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.network import EdgeNetwork
from edgeopt.validate import float_array, int_array


def usual_timeout_s(
    compute_s: NDArray[np.float64], rate_bps: NDArray[np.float64], coverage: NDArray[np.bool_], payload_bits: float
) -> float:
    """Return 1.5 times the seconds that an update of nine of ten covered pairs stays below.

    compute_s is [C], rate_bps and coverage are [S, C].
    """
    payload = float_array("payload_bits", payload_bits, (), positive=True, unit="bit").item()
    if (bad := np.argwhere(coverage & (rate_bps <= 0))).size:
        s, c = bad[0]
        raise InvalidProblemError(f"uplink_rate_bps[{c}, {s}] = 0.0: expected a positive rate (bit/s) where covered")
    if not coverage.any():
        raise InvalidProblemError("coverage: expected a server that covers a client")
    seconds = compute_s + payload / np.where(coverage, rate_bps, np.inf)
    return 1.5 * float(np.quantile(seconds[coverage], 0.9))


def well_covered_network(
    num_servers: int, num_clients: int, picks: int, seed: int, network: EdgeNetwork | None
) -> EdgeNetwork:
    """Return the network, or a random one, in which every server covers at least `picks` devices.

    A server that covers fewer also covers those of its strongest channels.
    """
    if network is None:
        network = EdgeNetwork.random(num_servers, num_clients, seed=seed)
    wanted = int_array("picks", picks, (), low=1, high=network.num_devices).item()
    coverage = network.coverage.copy()
    strength = np.where(coverage, np.inf, network.channel_gain)
    for s in np.flatnonzero(coverage.sum(axis=0) < wanted):
        coverage[np.argsort(-strength[:, s], kind="stable")[:wanted], s] = True
    return network.replace(coverage=coverage)
