"""Random networks: places, channels, coverage and backhaul; `random_fields` is behind `EdgeNetwork.random`."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fields import check_table
from edgeopt.rng import stream
from edgeopt.validate import float_array, int_array, real

Layout = Literal["grid", "uniform"]
Range = tuple[float, float]

SERVER_HEIGHT_M = 10.0  # antenna heights of the urban-micro street canyon, TR 38.901 Table 7.2-1
DEVICE_HEIGHT_M = 1.5
SHADOWING_DB = 7.82  # standard deviation that goes with the path loss below, Table 7.4.1-1

_JITTER = 0.25  # of a grid cell, each way


def random_fields(
    num_servers: int = 10,
    num_devices: int = 100,
    *,
    seed: int,
    server_position_m: ArrayLike | None = None,
    device_position_m: ArrayLike | None = None,
    area_m: float = 1000.0,
    layout: Layout = "grid",
    coverage_radius_m: float | None = None,
    carrier_ghz: float = 3.5,
    shadowing_db: float = SHADOWING_DB,
    fading: bool = True,
    uplink_bandwidth_hz: float = 5e6,
    downlink_bandwidth_hz: float = 20e6,
    server_power_w: float = 10.0,
    device_power_w: float = 0.2,
    server_flops: Range | float = (1e13, 5e13),
    device_flops: Range | float = (1e11, 1e12),
    cloud_flops: float = 1e15,
    server_storage_bytes: Range | float = (16e9, 64e9),
    device_storage_bytes: Range | float = (1e9, 4e9),
    server_memory_bytes: Range | float = (32e9, 128e9),
    device_memory_bytes: Range | float = (2e9, 8e9),
    neighbours: int = 2,
    link_delay_s: Range | float = (0.5e-3, 2e-3),
    link_rate_bps: Range | float = (1e9, 10e9),
    cloud_delay_s: Range | float = (20e-3, 40e-3),
    cloud_rate_bps: Range | float = (0.5e9, 1e9),
) -> dict[str, Any]:
    """Return a random network on a square, with 3GPP urban-micro channels and a connected backhaul.

    Every ingredient has its own random stream: the same seed places devices equally whatever the other arguments,
    and more devices leave the earlier ones where they are.

    Parameters
    ----------
    num_servers, num_devices : N and U.
    server_position_m, device_position_m : where they are, [N, 2] and [U, 2], such as `edgeopt.places.read_places` reads them.
        Default: drawn. Where servers are given, `area_m` is the longer side of what they span.
    seed : whole number >= 0.
    area_m : side of the square, m.
    layout : ``grid`` (one server per cell, off its centre by up to a quarter of the cell) or ``uniform``.
    coverage_radius_m : reach of a server, m, and no further. Default: one mean cell width, and a device is always
        covered by its nearest server.
    carrier_ghz : carrier frequency, 0.5 to 100 GHz.
    shadowing_db : standard deviation of the log-normal shadowing, dB; 0 for none.
    fading : Rayleigh fading, that is a factor exponential with mean 1 on each gain.
    neighbours : backhaul links from each server to its nearest ones, on top of a minimum spanning tree.
    uplink_bandwidth_hz, downlink_bandwidth_hz, server_power_w, device_power_w, cloud_flops : as the fields.
    server_flops, device_flops, ..., cloud_rate_bps : ``(low, high)``, drawn uniformly, or one number for all.

    References
    ----------
    Path loss: 3GPP TR 38.901, Table 7.4.1-1, UMi street canyon, NLOS.

    Examples
    --------
    >>> from edgeopt.network import EdgeNetwork
    >>> EdgeNetwork.random(4, 20, seed=1)
    EdgeNetwork(num_servers=4, num_devices=20, num_links=5)
    """
    given = {"server_position_m": server_position_m, "device_position_m": device_position_m}
    placed = {name: float_array(name, value, (None, 2), unit="m") for name, value in given.items() if value is not None}
    n = len(placed["server_position_m"]) if "server_position_m" in placed else num_servers
    u = len(placed["device_position_m"]) if "device_position_m" in placed else num_devices
    n, u = int_array("num_servers", n, (), low=1).item(), int_array("num_devices", u, (), low=1).item()
    check_table("devices x servers", u, n)
    check_table("servers x servers", n, n)
    int_array("seed", seed, (), low=0, dtype=np.int64)
    int_array("neighbours", neighbours, (), low=0)
    float_array("area_m", area_m, (), positive=True, unit="m")
    float_array("shadowing_db", shadowing_db, (), nonnegative=True, unit="dB")
    if not 0.5 <= real("carrier_ghz", carrier_ghz) <= 100:
        raise InvalidProblemError(f"carrier_ghz = {quoted(carrier_ghz)}: expected a number from 0.5 to 100 (GHz)")
    corner = np.zeros(2)
    if "server_position_m" in placed:
        server = placed["server_position_m"]
        corner, area_m = server.min(axis=0), max(float(np.ptp(server, axis=0).max()), 1.0)
    else:
        server = place_servers(stream(seed, "server_position_m"), n, area_m, layout)
    drawn_devices = corner + area_m * stream(seed, "device_position_m").random((u, 2))
    device = placed.get("device_position_m", drawn_devices)
    distance = distances_m(device, server)
    loss_db = path_loss_db(distance, carrier_ghz)
    loss_db += shadowing_db * stream(seed, "shadowing").standard_normal((u, n))
    gain = 10 ** (-loss_db / 10)
    if fading:
        gain *= stream(seed, "fading").standard_exponential((u, n))
    links = geometric_links(server, neighbours)
    ranges: dict[str, tuple[Range | float, int]] = {
        "server_flops": (server_flops, n),
        "device_flops": (device_flops, u),
        "server_storage_bytes": (server_storage_bytes, n),
        "device_storage_bytes": (device_storage_bytes, u),
        "server_memory_bytes": (server_memory_bytes, n),
        "device_memory_bytes": (device_memory_bytes, u),
        "link_delay_s": (link_delay_s, len(links)),
        "link_rate_bps": (link_rate_bps, len(links)),
        "cloud_delay_s": (cloud_delay_s, n),
        "cloud_rate_bps": (cloud_rate_bps, n),
    }
    drawn = {name: draw(stream(seed, name), name, limits, size) for name, (limits, size) in ranges.items()}
    return drawn | {
        "server_position_m": server,
        "device_position_m": device,
        "cloud_flops": cloud_flops,
        "server_power_w": server_power_w,
        "device_power_w": device_power_w,
        "uplink_bandwidth_hz": uplink_bandwidth_hz,
        "downlink_bandwidth_hz": downlink_bandwidth_hz,
        "channel_gain": gain,
        "coverage": cover(distance, coverage_radius_m, area_m),
        "link_servers": links,
    }


def path_loss_db(distance_m: NDArray[np.float64], carrier_ghz: float) -> NDArray[np.float64]:
    r"""Return the path loss in dB at a ground distance, urban micro street canyon without line of sight.

    .. math:: PL = 22.4 + 35.3 \log_{10} d_{3D} + 21.3 \log_{10} f_c - 0.3 (h_{UT} - 1.5)

    with antennas at 10 m and h_UT = 1.5 m. Up to 5 km it stays above the line-of-sight loss, so that the maximum
    of the two, which the report asks for, is this formula.

    References
    ----------
    3GPP TR 38.901, Study on channel model for frequencies from 0.5 to 100 GHz, Table 7.4.1-1.

    Examples
    --------
    >>> path_loss_db(np.array([100.0]), carrier_ghz=3.5).round(1)
    array([104.6])
    """
    distance_3d = np.hypot(distance_m, SERVER_HEIGHT_M - DEVICE_HEIGHT_M)
    return np.asarray(
        22.4 + 35.3 * np.log10(distance_3d) + 21.3 * np.log10(carrier_ghz) - 0.3 * (DEVICE_HEIGHT_M - 1.5)
    )


def place_servers(rng: np.random.Generator, num_servers: int, area_m: float, layout: Layout) -> NDArray[np.float64]:
    """Return positions [N, 2] in metres: one per cell of a near-square grid, off its centre by up to a quarter of a cell, or uniform."""
    offset = rng.random((num_servers, 2))
    if layout == "uniform":
        return area_m * offset
    if layout != "grid":
        raise InvalidProblemError(f"layout = {quoted(layout)}: expected 'grid' or 'uniform'")
    rows = max(1, round(np.sqrt(num_servers)))
    per_row = np.full(rows, num_servers // rows)
    per_row[: num_servers % rows] += 1
    row = np.repeat(np.arange(rows), per_row)
    column = np.concatenate([np.arange(count) for count in per_row])
    cell = np.stack([area_m / per_row[row], np.full(num_servers, area_m / rows)], axis=1)
    return cell * (np.stack([column, row], axis=1) + 0.5 + _JITTER * (2 * offset - 1))


def distances_m(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances [A, B] between points [A, 2] and points [B, 2]."""
    return np.hypot(one[:, None, 0] - other[:, 0], one[:, None, 1] - other[:, 1])


def cover(distance_m: NDArray[np.float64], radius_m: float | None, area_m: float) -> NDArray[np.bool_]:
    """Return coverage [U, N] from distances [U, N]: within the radius, or by default one mean cell width and always the nearest."""
    num_devices, num_servers = distance_m.shape
    reach = area_m / np.sqrt(num_servers) if radius_m is None else radius_m
    covered: NDArray[np.bool_] = distance_m <= float_array("coverage_radius_m", reach, (), nonnegative=True, unit="m")
    if radius_m is None:
        covered[np.arange(num_devices), distance_m.argmin(axis=1)] = True
    return covered


def geometric_links(position_m: NDArray[np.float64], neighbours: int) -> NDArray[np.int64]:
    """Return links [B, 2]: the Euclidean minimum spanning tree, which connects all, and each point's nearest neighbours.

    Examples
    --------
    >>> geometric_links(np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), neighbours=0)
    array([[0, 1],
           [1, 2]])
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    num_points = len(position_m)
    distance = distances_m(position_m, position_m)
    linked = minimum_spanning_tree(1.0 + distance).toarray() > 0  # the same tree, and no zeros, which mean no edge
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(axis=1, kind="stable")[:, : min(neighbours, num_points - 1)]
    np.put_along_axis(linked, nearest, True, axis=1)
    return np.argwhere(np.triu(linked | linked.T, k=1))


def draw(rng: np.random.Generator, name: str, limits: Range | float, size: int) -> NDArray[np.float64]:
    """Return `size` numbers uniform in ``(low, high)``; a single number stands for itself."""
    low, high = float_array(name, limits, (2,)).tolist()
    if not 0 <= low <= high:
        raise InvalidProblemError(f"{name} = ({quoted(low)}, {quoted(high)}): expected 0 <= low <= high")
    return rng.uniform(low, high, size)
