"""`EdgeNetwork`: servers, devices, a cloud, and the links between them."""

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt.built import Built
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.network_random import random_fields
from edgeopt.validate import bool_array, float_array, int_array

if TYPE_CHECKING:
    import networkx as nx

THERMAL_NOISE_W_PER_HZ = 3.98e-21  # -174 dBm/Hz


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EdgeNetwork:
    r"""N edge servers, U devices and one cloud; all numbers that latency, rate and energy models need.

    Device u and server n talk over their own channel, at :math:`W \log_2(1 + P h / (N_0 W))` bit/s each way. Servers
    talk over an undirected backhaul; every server has a link of its own to the cloud.

    ==========  =================================================  =======
    symbol      field                                              unit
    ==========  =================================================  =======
    W[u, n]     ``uplink_bandwidth_hz``, ``downlink_bandwidth_hz``  Hz
    P           ``device_power_w`` [U] up, ``server_power_w`` [N]   W
    h[u, n]     ``channel_gain``                                   1
    N_0         ``noise_w_per_hz``                                 W/Hz
    ==========  =================================================  =======

    Parameters
    ----------
    server_position_m, device_position_m : float64 [N, 2] and [U, 2], metres; they set N and U.
    server_flops, device_flops, cloud_flops : float64 [N], [U] and one number, FLOP/s.
    server_storage_bytes, device_storage_bytes : float64 [N] and [U], bytes for models at rest.
    server_memory_bytes, device_memory_bytes : float64 [N] and [U], bytes while computing.
    server_power_w, device_power_w : float64 [N] and [U], transmit power in W, downlink and uplink.
    uplink_bandwidth_hz, downlink_bandwidth_hz : float64 [U, N], Hz that the pair has for itself.
    channel_gain : float64 [U, N], linear power gain: path loss x shadowing x fading, the same both ways.
    noise_w_per_hz : noise density, W/Hz. Default -174 dBm/Hz.
    coverage : bool [U, N], which servers a device can talk to. Default: all.
    link_servers : int32 [B, 2], the two ends of each backhaul link; kept with the lower end first and sorted. Default: none.
    link_delay_s, link_rate_bps : float64 [B], seconds and bit/s of each backhaul link; a rate may be inf.
    cloud_delay_s, cloud_rate_bps : float64 [N], the same of each server's link to the cloud.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Notes
    -----
    Where an array is expected, one number stands for an array full of it. Arrays are copied and read-only.

    Examples
    --------
    >>> network = EdgeNetwork(
    ...     server_position_m=[[0, 0], [500, 0]], device_position_m=[[100, 50], [420, 0], [510, 20]],
    ...     server_flops=1e13, device_flops=[1e11, 2e11, 2e11], cloud_flops=1e15,
    ...     server_storage_bytes=8e9, device_storage_bytes=1e9, server_memory_bytes=64e9, device_memory_bytes=4e9,
    ...     server_power_w=10, device_power_w=0.2, uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=5e6,
    ...     channel_gain=[[1e-10, 1e-13], [1e-13, 1e-10], [1e-13, 1e-9]],
    ...     link_servers=[[0, 1]], link_delay_s=0.002, link_rate_bps=1e9, cloud_delay_s=0.03, cloud_rate_bps=1e9)
    >>> network
    EdgeNetwork(num_servers=2, num_devices=3, num_links=1)
    >>> network.access_server
    array([0, 1, 1], dtype=int32)
    >>> server_s, cloud_s = network.offload_latency_s(up_bits=8e4, down_bits=8e4, work_flops=1e9)
    >>> (1000 * server_s).round(1)
    array([[ 7.6, 11.8],
           [11.8,  7.6],
           [10.2,  6.1]])
    """

    server_position_m: NDArray[np.float64]
    device_position_m: NDArray[np.float64]
    server_flops: NDArray[np.float64]
    device_flops: NDArray[np.float64]
    cloud_flops: float
    server_storage_bytes: NDArray[np.float64]
    device_storage_bytes: NDArray[np.float64]
    server_memory_bytes: NDArray[np.float64]
    device_memory_bytes: NDArray[np.float64]
    server_power_w: NDArray[np.float64]
    device_power_w: NDArray[np.float64]
    uplink_bandwidth_hz: NDArray[np.float64]
    downlink_bandwidth_hz: NDArray[np.float64]
    channel_gain: NDArray[np.float64]
    noise_w_per_hz: float = THERMAL_NOISE_W_PER_HZ
    coverage: NDArray[np.bool_] = field(default_factory=lambda: np.array(True))
    link_servers: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    link_delay_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    link_rate_bps: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    cloud_delay_s: NDArray[np.float64]
    cloud_rate_bps: NDArray[np.float64]

    random = Built(random_fields)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {}
        for name in ("server_position_m", "device_position_m"):
            checked[name] = float_array(name, getattr(self, name), (None, 2), unit="m")
            if checked[name].size == 0:
                raise InvalidProblemError(f"{name}: expected at least one {name.split('_')[0]}")
        num_servers, num_devices = len(checked["server_position_m"]), len(checked["device_position_m"])
        ends = _sorted_ends(int_array("link_servers", self.link_servers, (None, 2), low=0, high=num_servers - 1))
        length = {"N": num_servers, "U": num_devices, "B": len(ends)}
        for name, (axes, positive, unit) in _FLOATS.items():
            checked[name] = float_array(
                name, getattr(self, name), tuple(length[axis] for axis in axes),
                positive=positive, nonnegative=not positive, finite=name not in _MAY_BE_INFINITE, unit=unit,
            )  # fmt: skip
            if not axes:
                checked[name] = checked[name].item()
        checked["coverage"] = bool_array("coverage", self.coverage, (num_devices, num_servers))
        order = np.lexsort(ends.T[::-1])
        for name, values in (
            ("link_servers", ends),
            ("link_delay_s", checked["link_delay_s"]),
            ("link_rate_bps", checked["link_rate_bps"]),
        ):
            checked[name] = values[order]
            checked[name].flags.writeable = False
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_servers(self) -> int:
        """Edge servers, N."""
        return len(self.server_position_m)

    @property
    def num_devices(self) -> int:
        """Devices, U."""
        return len(self.device_position_m)

    @property
    def num_links(self) -> int:
        """Backhaul links, B."""
        return len(self.link_servers)

    def __repr__(self) -> str:
        return (
            f"EdgeNetwork(num_servers={self.num_servers}, num_devices={self.num_devices}, num_links={self.num_links})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EdgeNetwork):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    # --- rates and latencies -----------------------------------------------------------------------------------

    @property
    def uplink_rate_bps(self) -> NDArray[np.float64]:
        """float64 [U, N], bit/s from device to server; 0 outside coverage."""
        return self._rate_bps(self.uplink_bandwidth_hz, self.device_power_w[:, None])

    @property
    def downlink_rate_bps(self) -> NDArray[np.float64]:
        """float64 [U, N], bit/s from server to device; 0 outside coverage."""
        return self._rate_bps(self.downlink_bandwidth_hz, self.server_power_w)

    def _rate_bps(self, bandwidth_hz: NDArray[np.float64], power_w: NDArray[np.float64]) -> NDArray[np.float64]:
        noise_w = self.noise_w_per_hz * bandwidth_hz
        snr = np.divide(power_w * self.channel_gain, noise_w, out=np.zeros_like(noise_w), where=noise_w > 0)
        return np.where(self.coverage, bandwidth_hz * np.log1p(snr) / np.log(2), 0.0)

    def with_rates(self, uplink_bps: ArrayLike, downlink_bps: ArrayLike | None = None) -> Self:
        r"""Return the network whose devices have measured rates: gains and bandwidths are such that they come out.

        Where only the uplink was measured, gain and bandwidths of a pair are scaled alike, which scales both its rates. Else the
        gain grows by the larger of the two factors, and each bandwidth becomes the one that gives its rate at that gain:
        with :math:`a = P h / N_0`, :math:`W \ln(1 + a / W) = r \ln 2`. That is ours: a measured rate does not say which
        bandwidth it came from.

        Parameters
        ----------
        uplink_bps, downlink_bps : float64 [U], one rate for all servers that cover the device, or [U, N]; bit/s. Pairs of
            rate 0 are no longer covered.

        Raises
        ------
        InvalidProblemError
            If a pair has a rate, but neither gain nor bandwidth.

        Examples
        --------
        >>> network = EdgeNetwork.random(2, 3, seed=0, coverage_radius_m=2000).with_rates([1e6, 2e6, 0])
        >>> network.uplink_rate_bps.round().tolist()
        [[1000000.0, 1000000.0], [2000000.0, 2000000.0], [0.0, 0.0]]
        """
        up = self._measured("uplink_bps", uplink_bps)
        down = None if downlink_bps is None else self._measured("downlink_bps", downlink_bps)
        covered = self.coverage & (up > 0) & (True if down is None else down > 0)
        base = self.replace(coverage=covered)
        now_up, now_down = base.uplink_rate_bps, base.downlink_rate_bps
        if (bad := np.argwhere(covered & ((now_up == 0) | (now_down == 0)))).size:
            u, n = bad[0]
            raise InvalidProblemError(
                f"uplink_bps[{u}]: device {u} has no channel to server {n}, expected gain and bandwidth"
            )
        up_factor = np.divide(up, now_up, out=np.ones_like(up), where=covered)
        if down is None:
            return base.replace(
                channel_gain=base.channel_gain * up_factor,
                uplink_bandwidth_hz=base.uplink_bandwidth_hz * up_factor,
                downlink_bandwidth_hz=base.downlink_bandwidth_hz * up_factor,
            )
        gain = base.channel_gain * np.maximum(up_factor, np.divide(down, now_down, out=np.ones_like(up), where=covered))
        found = {"channel_gain": gain}
        for name, rate, power in (
            ("uplink", up, self.device_power_w[:, None]),
            ("downlink", down, self.server_power_w),
        ):
            reach = np.broadcast_to(power, gain.shape) * gain / self.noise_w_per_hz
            width = getattr(base, f"{name}_bandwidth_hz").copy()
            width[covered] = _bandwidth_hz(rate[covered], reach[covered])
            found[f"{name}_bandwidth_hz"] = width
        return base.replace(**found)

    def _measured(self, name: str, value: ArrayLike) -> NDArray[np.float64]:
        """Return rates [U, N], given [U] or [U, N]."""
        ndim = np.ndim(value)
        shape = (self.num_devices,) if ndim == 1 else self.coverage.shape
        rate = float_array(name, value, shape, nonnegative=True, unit="bit/s")
        return np.broadcast_to(rate[:, None] if ndim == 1 else rate, self.coverage.shape)

    @property
    def access_server(self) -> NDArray[np.int32]:
        """int32 [U], the covering server with the best uplink rate (the lowest index on ties), -1 if there is none."""
        rate = self.uplink_rate_bps
        return np.where(rate.max(axis=1) > 0, rate.argmax(axis=1), -1).astype(np.int32)

    def backhaul_delay_s(self, payload_bits: float = 0.0) -> NDArray[np.float64]:
        """Return the delay [N, N] in seconds of the shortest backhaul paths for a payload, stored and forwarded at each hop.

        Each link takes its delay plus ``payload_bits`` / its rate; servers without a path are inf apart.

        Examples
        --------
        >>> EdgeNetwork.random(1, 5, seed=0).backhaul_delay_s(8e6)
        array([[0.]])
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import dijkstra

        payload = float_array("payload_bits", payload_bits, (), nonnegative=True, unit="bit")
        cost = self.link_delay_s + payload / self.link_rate_bps
        shape = (self.num_servers, self.num_servers)
        graph = csr_array((cost, (self.link_servers[:, 0], self.link_servers[:, 1])), shape=shape)
        return np.asarray(dijkstra(graph, directed=False), np.float64)

    def device_latency_s(self, work_flops: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds [U] that each device needs for `work_flops` (one number, or one per device) by itself."""
        return self._work(work_flops) / self.device_flops

    def offload_latency_s(
        self, up_bits: float, down_bits: float, work_flops: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how long one unit of work takes each device at each server [U, N] and at the cloud [U], in seconds.

        The input goes up to an access server a that covers the device, over the backhaul to server n (or over a's own
        link to the cloud), is worked on, and the output comes back the same way; a is the one that makes this fastest:

        ``up_bits / uplink[u, a] + hop(a, n, up_bits) + work / flops[n] + hop(n, a, down_bits) + down_bits / downlink[u, a]``

        Parameters
        ----------
        up_bits, down_bits : input and output size of one unit of work, bit.
        work_flops : FLOPs of one unit of work, one number or one per device.

        Returns
        -------
        Seconds at the servers, float64 [U, N], and at the cloud, float64 [U]; inf where there is no way.

        Notes
        -----
        O(U N^2) time, O(U N) memory.
        """
        work = self._work(work_flops)
        up = float_array("up_bits", up_bits, (), nonnegative=True, unit="bit").item()
        down = float_array("down_bits", down_bits, (), nonnegative=True, unit="bit").item()
        radio = _seconds(up, self.uplink_rate_bps) + _seconds(down, self.downlink_rate_bps)  # [U, N]
        hop = self.backhaul_delay_s(up) + self.backhaul_delay_s(down).T  # [N, N], access server first
        server = np.full_like(radio, np.inf)
        for a in range(self.num_servers):
            np.minimum(server, radio[:, a, None] + hop[a], out=server)
        server += work[:, None] / self.server_flops
        to_cloud = 2 * self.cloud_delay_s + (up + down) / self.cloud_rate_bps
        return server, (radio + to_cloud).min(axis=1) + work / self.cloud_flops

    def _work(self, work_flops: ArrayLike) -> NDArray[np.float64]:
        return float_array("work_flops", work_flops, (self.num_devices,), nonnegative=True, unit="FLOP")

    # --- graphs and dictionaries -------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, NDArray[Any] | float]:
        """Return all fields by name: read-only arrays, and floats for ``cloud_flops`` and ``noise_w_per_hz``."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, ArrayLike]) -> Self:
        """Build the network from field names and values, as `to_dict` gives them.

        Examples
        --------
        >>> network = EdgeNetwork.random(3, 5, seed=0)
        >>> EdgeNetwork.from_dict(network.to_dict()) == network
        True
        """
        if unknown := sorted(set(values) - set(_FIELDS)):
            raise InvalidProblemError(f"{unknown[0]}: not a field of EdgeNetwork")
        given: dict[str, Any] = dict(values)
        if missing := [name for name in _FIELDS if name not in given and name not in _OPTIONAL]:
            raise InvalidProblemError(f"{missing[0]}: missing")
        return cls(**given)

    def to_graph(self, *, covered_only: bool = False) -> "nx.Graph[str]":
        """Return the network as a networkx graph; `from_graph` turns it into an equal network.

        Nodes ``server-0``, ..., ``device-0``, ..., ``cloud`` have a ``kind`` and the attributes ``flops`` and, but for
        the cloud, ``position_m``, ``storage_bytes``, ``memory_bytes``, ``power_w``. Wired edges have ``delay_s`` and
        ``rate_bps``; wireless ones ``channel_gain``, ``uplink_bandwidth_hz``, ``downlink_bandwidth_hz``, ``covered``.

        Parameters
        ----------
        covered_only : leave out the wireless edges outside coverage; the channels there are then lost.

        Examples
        --------
        >>> graph = EdgeNetwork.random(3, 5, seed=0).to_graph(covered_only=True)
        >>> graph.nodes["server-1"]["kind"], sorted(graph["cloud"])
        ('server', ['server-0', 'server-1', 'server-2'])
        """
        import networkx as nx

        graph: nx.Graph[str] = nx.Graph(noise_w_per_hz=self.noise_w_per_hz)
        for kind, count in (("server", self.num_servers), ("device", self.num_devices)):
            columns = [getattr(self, f"{kind}_{name}").tolist() for name in _NODE]
            for i, row in zip(range(count), zip(*columns, strict=True), strict=True):
                graph.add_node(f"{kind}-{i}", kind=kind, **dict(zip(_NODE, row, strict=True)))
        graph.add_node("cloud", kind="cloud", flops=self.cloud_flops)
        for (a, b), delay, rate in zip(self.link_servers, self.link_delay_s, self.link_rate_bps, strict=True):
            graph.add_edge(f"server-{a}", f"server-{b}", delay_s=float(delay), rate_bps=float(rate))
        for n, (delay, rate) in enumerate(zip(self.cloud_delay_s, self.cloud_rate_bps, strict=True)):
            graph.add_edge(f"server-{n}", "cloud", delay_s=float(delay), rate_bps=float(rate))
        for u, n in np.argwhere(self.coverage | (not covered_only)):
            channel = {name: float(getattr(self, name)[u, n]) for name in _RADIO}
            graph.add_edge(f"device-{u}", f"server-{n}", **channel, covered=bool(self.coverage[u, n]))
        return graph

    @classmethod
    def from_graph(cls, graph: "nx.Graph[Any]", *, defaults: Mapping[str, float] | None = None) -> Self:
        """Build the network from an undirected networkx graph with the attributes that `to_graph` writes.

        Servers and devices are numbered in the order of the graph's nodes. A device and a server without an edge have
        no channel.

        Parameters
        ----------
        graph : nodes of any names; exactly one has the kind ``cloud``, and every server has an edge to it.
        defaults : values for attributes that a node or an edge lacks, by field, for example ``{"device_flops": 1e11}``.

        Raises
        ------
        InvalidProblemError
            Naming the node or edge and what it lacks.

        Examples
        --------
        >>> network = EdgeNetwork.random(3, 5, seed=0)
        >>> EdgeNetwork.from_graph(network.to_graph()) == network
        True
        """
        if graph.is_directed() or graph.is_multigraph():
            raise InvalidProblemError(f"graph: expected an undirected networkx.Graph, got {type(graph).__name__}")
        nodes: dict[str, dict[Hashable, int]] = {"server": {}, "device": {}, "cloud": {}}
        for node, data in graph.nodes(data=True):
            if not isinstance(kind := data.get("kind"), str) or kind not in nodes:
                raise InvalidProblemError(
                    f"node {quoted(node)}: kind = {quoted(kind)}: expected 'server', 'device' or 'cloud'"
                )
            nodes[kind][node] = len(nodes[kind])
        servers, devices, clouds = nodes.values()
        for kind, members in nodes.items():
            if len(members) < 1 or (kind == "cloud" and len(members) > 1):
                number = "exactly" if kind == "cloud" else "at least"
                raise InvalidProblemError(
                    f"graph: expected {number} one node of kind {quoted(kind)}, got {len(members)}"
                )

        def read(data: Mapping[str, Any], attribute: str, name: str, where: str) -> Any:
            if attribute in data:
                return data[attribute]
            if defaults is None or name not in defaults:
                raise InvalidProblemError(f"{where}: no attribute {quoted(attribute)}, and no default {quoted(name)}")
            return defaults[name]

        values: dict[str, Any] = {"link_servers": [], "link_delay_s": [], "link_rate_bps": []}
        for kind in ("server", "device"):
            for name in _NODE:
                values[f"{kind}_{name}"] = [
                    read(graph.nodes[node], name, f"{kind}_{name}", f"node {node!r}") for node in nodes[kind]
                ]
        (cloud,) = clouds
        values["cloud_flops"] = read(graph.nodes[cloud], "flops", "cloud_flops", f"node {cloud!r}")
        values["noise_w_per_hz"] = graph.graph.get("noise_w_per_hz", THERMAL_NOISE_W_PER_HZ)
        for name in _WIRED:
            values[f"cloud_{name}"] = [
                read(graph.get_edge_data(node, cloud, {}), name, f"cloud_{name}", f"edge {(node, cloud)!r}")
                for node in servers
            ]
        for name in (*_RADIO, "coverage"):  # no edge: no gain, no bandwidth, not covered
            values[name] = [[False] * len(servers) for _ in devices]
        for a, b, data in graph.edges(data=True):
            where = f"edge {(a, b)!r}"
            if a in servers and b in servers:
                values["link_servers"].append((servers[a], servers[b]))
                for name in _WIRED:
                    values[f"link_{name}"].append(read(data, name, f"link_{name}", where))
            elif (a in devices and b in servers) or (a in servers and b in devices):
                u, n = (devices[a], servers[b]) if a in devices else (devices[b], servers[a])
                for name in _RADIO:
                    values[name][u][n] = read(data, name, name, where)
                values["coverage"][u][n] = data.get("covered", True)
            elif cloud not in (a, b) or a in devices or b in devices or a == b:
                raise InvalidProblemError(f"{where}: expected a server at one end at least")
        values["link_servers"] = np.array(values["link_servers"], np.int64).reshape(-1, 2)
        return cls(**values)


def _sorted_ends(link_servers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the links with the lower end first; refuse self loops and repetitions, which a matrix would add up."""
    ends = np.sort(link_servers, axis=1)
    seen: dict[tuple[int, ...], int] = {}
    for b, pair in enumerate(map(tuple, ends.tolist())):
        given = f"link_servers[{b}] = {link_servers[b].tolist()}"
        if pair[0] == pair[1]:
            raise InvalidProblemError(f"{given}: expected two different servers")
        if pair in seen:
            raise InvalidProblemError(f"{given}: expected each link once, it is also link_servers[{seen[pair]}]")
        seen[pair] = b
    return ends


def _seconds(bits: float, rate_bps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bits / rate; no rate is no way, even for nothing."""
    return np.divide(bits, rate_bps, out=np.full_like(rate_bps, np.inf), where=rate_bps > 0)


def _bandwidth_hz(rate_bps: NDArray[np.float64], reach_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bandwidths that carry rates where the signal-to-noise ratio is `reach_hz` / bandwidth."""
    from scipy.special import lambertw

    y = rate_bps * np.log(2) / reach_hz  # ln(1 + x) / x with x = reach / bandwidth
    ratio = -lambertw(-y * np.exp(-y), -1).real / y - 1
    return np.asarray(reach_hz / ratio)


_FLOATS = {  # field: axes, whether it must be positive (else non-negative), unit
    "server_flops": ("N", True, "FLOP/s"),
    "device_flops": ("U", True, "FLOP/s"),
    "cloud_flops": ("", True, "FLOP/s"),
    "server_storage_bytes": ("N", False, "byte"),
    "device_storage_bytes": ("U", False, "byte"),
    "server_memory_bytes": ("N", False, "byte"),
    "device_memory_bytes": ("U", False, "byte"),
    "server_power_w": ("N", True, "W"),
    "device_power_w": ("U", True, "W"),
    "uplink_bandwidth_hz": ("UN", False, "Hz"),
    "downlink_bandwidth_hz": ("UN", False, "Hz"),
    "channel_gain": ("UN", False, "linear"),
    "noise_w_per_hz": ("", True, "W/Hz"),
    "link_delay_s": ("B", False, "s"),
    "link_rate_bps": ("B", True, "bit/s"),
    "cloud_delay_s": ("N", False, "s"),
    "cloud_rate_bps": ("N", True, "bit/s"),
}
_MAY_BE_INFINITE = ("link_rate_bps", "cloud_rate_bps")  # a wire whose delay does not depend on the payload
_OPTIONAL = ("noise_w_per_hz", "coverage", "link_servers", "link_delay_s", "link_rate_bps")
_FIELDS = tuple(spec.name for spec in dataclasses.fields(EdgeNetwork))
_NODE = ("position_m", "flops", "storage_bytes", "memory_bytes", "power_w")  # attributes of nodes and edges of a graph
_WIRED = ("delay_s", "rate_bps")
_RADIO = ("channel_gain", "uplink_bandwidth_hz", "downlink_bandwidth_hz")
