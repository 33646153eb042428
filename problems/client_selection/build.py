"""Building client-selection problems from an edge network, given or random."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.network import EdgeNetwork
from edgeopt.problems.client_selection.instance import Mode
from edgeopt.series import TimeSeries
from edgeopt.validate import float_array, int_array, integer, real


def network_fields(
    network: EdgeNetwork,
    *,
    picks: ArrayLike = 4,
    work_flops: ArrayLike = 1e12,
    payload_bits: float = 4e7,
    timeout_s: float | None = None,
    rounds: int = 100,
    rate_sigma: float = 0.0,
    regime_transition: ArrayLike | None = None,
    busy_probability: ArrayLike | None = None,
    busy: ArrayLike | None = None,
    mode: Mode = "fail",
    latency_weight: float = 1.0,
    conflict_weight: float = 1.0,
    fairness_weight: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Build a problem from a network: its devices are the clients, coverage and uplink rates are its own.

    Parameters
    ----------
    network : servers, devices, channels.
    work_flops : FLOPs of one local update, one number or [C].
    timeout_s : Default: 1.5 times what nine of ten covered pairs stay below.
    picks, payload_bits, rounds, ..., seed : as the fields.

    Examples
    --------
    >>> from edgeopt import EdgeNetwork
    >>> from edgeopt.problems import ClientSelection
    >>> problem = ClientSelection.from_network(EdgeNetwork.random(3, 30, seed=1), picks=2, rounds=50)
    >>> problem.num_servers, problem.num_clients, problem.picks.tolist()
    (3, 30, [2, 2, 2])
    """
    compute, rate = network.device_latency_s(work_flops), network.uplink_rate_bps.T
    if timeout_s is None:
        timeout_s = usual_timeout_s(compute, rate, network.coverage.T, payload_bits)
    return {
        "coverage": network.coverage.T,
        "picks": picks,
        "compute_s": compute,
        "payload_bits": payload_bits,
        "rate_bps": rate,
        "timeout_s": timeout_s,
        "rounds": rounds,
        "rate_sigma": rate_sigma,
        "regime_transition": regime_transition,
        "busy_probability": busy_probability,
        "busy": busy,
        "mode": mode,
        "latency_weight": latency_weight,
        "conflict_weight": conflict_weight,
        "fairness_weight": fairness_weight,
        "seed": seed,
    }


def rates_fields(
    rates: TimeSeries,
    *,
    round_s: float,
    rounds: int | None = None,
    available: TimeSeries | None = None,
    coverage: ArrayLike | None = None,
    picks: ArrayLike = 4,
    compute_s: ArrayLike = 0.0,
    payload_bits: float = 4e7,
    timeout_s: float | None = None,
    mode: Mode = "fail",
    latency_weight: float = 1.0,
    conflict_weight: float = 1.0,
    fairness_weight: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Build a problem from measured rates: the tables of rates and of busy clients are theirs, nothing is left to chance.

    Parameters
    ----------
    rates : a column for each client. A round has each client's mean rate over its `round_s` seconds, towards all servers.
    round_s : seconds of a round.
    rounds : default: as many as the longest column lasts.
    available : when clients can be picked, a column for each. Who cannot at the start of a round, or has no link in it, is
        busy.
    coverage : bool [S, C]. Default: one server, which covers all.
    timeout_s : default: 1.5 times what nine of ten clients stay below at their mean rates.
    picks, compute_s, ..., seed : as the fields.

    Examples
    --------
    >>> from edgeopt.problems import ClientSelection
    >>> from edgeopt.series import TimeSeries
    >>> problem = ClientSelection.from_rates(TimeSeries.random("tunnels", clients=6, seed=1), round_s=10, picks=2)
    >>> problem.rounds, problem.rate_bps.shape, problem.busy.any()
    (60, (60, 1, 6), np.True_)
    """
    step = real("round_s", round_s, positive=True, unit="s")
    count = max(1, int(rates.period_s.max() // step)) if rounds is None else integer("rounds", rounds, low=1)
    table = rates.table(count, step)  # (T, C)
    usual = rates.mean(np.zeros(rates.num_columns), rates.period_s)
    if (never := np.flatnonzero(usual == 0)).size:
        raise InvalidProblemError(f"rates: {quoted(rates.names[never[0]])} never has a link, expected a rate above 0")
    busy = table == 0
    if available is not None:
        if available.num_columns != rates.num_columns:
            raise InvalidProblemError(f"available: {available.num_columns} columns, expected {rates.num_columns}")
        starts = step * np.arange(count)
        busy |= np.stack([available.at(np.full(rates.num_columns, start)) for start in starts]) < 0.5  # fmt: skip
    covered = np.ones((1, rates.num_columns), bool) if coverage is None else np.asarray(coverage)
    compute = float_array("compute_s", compute_s, (rates.num_columns,), nonnegative=True, unit="s")
    if timeout_s is None:
        timeout_s = usual_timeout_s(compute, np.broadcast_to(usual, covered.shape), covered, payload_bits)
    return {
        "coverage": covered,
        "picks": picks,
        "compute_s": compute,
        "payload_bits": payload_bits,
        "rate_bps": np.repeat(np.where(table > 0, table, usual)[:, None], len(covered), axis=1),
        "timeout_s": timeout_s,
        "rounds": count,
        "busy": busy,
        "mode": mode,
        "latency_weight": latency_weight,
        "conflict_weight": conflict_weight,
        "fairness_weight": fairness_weight,
        "seed": seed,
    }


def random_fields(
    *,
    num_servers: int = 5,
    num_clients: int = 60,
    picks: int = 4,
    mode: Mode = "fail",
    rounds: int = 100,
    rate_sigma: float = 0.3,
    regime_transition: ArrayLike = ((0.97, 0.03), (0.06, 0.94)),
    busy_probability: ArrayLike = (0.05, 0.75),
    latency_weight: float = 1.0,
    conflict_weight: float = 1.0,
    fairness_weight: float = 1.0,
    seed: int = 0,
    network: EdgeNetwork | None = None,
) -> dict[str, Any]:
    """Build a random problem: a random network, fading rates, clients that are calm or loaded for a while.

    Parameters
    ----------
    num_servers, num_clients : size of the random network, unless `network` is given.
    picks : clients per server and round; servers that cover fewer also reach the next strongest channels.
    mode, rounds, ..., fairness_weight : as the fields. By default two regimes, which last 33 and 17 rounds.
    seed : same seed, same problem; also decides what chance decides.
    network : take this network instead of a random one.

    Examples
    --------
    >>> from edgeopt.problems import ClientSelection
    >>> ClientSelection.random(seed=7) == ClientSelection.random(seed=7)
    True
    """
    return network_fields(
        well_covered_network(num_servers, num_clients, picks, seed, network),
        picks=picks, mode=mode, rounds=rounds, rate_sigma=rate_sigma, regime_transition=regime_transition,
        busy_probability=busy_probability, latency_weight=latency_weight, conflict_weight=conflict_weight,
        fairness_weight=fairness_weight, seed=seed,
    )  # fmt: skip


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
