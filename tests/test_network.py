import subprocess
import sys
import tracemalloc
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.plots.network import plot_network
from edgeopt.network import EdgeNetwork
from edgeopt.network_random import geometric_links, path_loss_db, place_servers

ARRAYS = (
    "server_position_m", "device_position_m", "server_flops", "device_flops", "server_storage_bytes",
    "device_storage_bytes", "server_memory_bytes", "device_memory_bytes", "server_power_w", "device_power_w",
    "uplink_bandwidth_hz", "downlink_bandwidth_hz", "channel_gain", "coverage", "link_servers", "link_delay_s",
    "link_rate_bps", "cloud_delay_s", "cloud_rate_bps",
)  # fmt: skip


def tiny(**change) -> EdgeNetwork:
    """Three servers in a row, linked 0-1-2; two devices, the first near server 0, the second near server 2.

    Powers, gains, bandwidths and noise are such that SNR = 3 up and 15 down, so that a link carries 2 bit/s/Hz up and
    4 bit/s/Hz down.
    """
    fields = {
        "server_position_m": [[0, 0], [100, 0], [200, 0]],
        "device_position_m": [[0, 10], [200, 10]],
        "server_flops": [10.0, 20.0, 40.0],
        "device_flops": [1.0, 2.0],
        "cloud_flops": 80.0,
        "server_storage_bytes": [5, 6, 7],
        "device_storage_bytes": [1, 2],
        "server_memory_bytes": 8,
        "device_memory_bytes": 3,
        "server_power_w": 15.0,
        "device_power_w": 3.0,
        "uplink_bandwidth_hz": 10.0,
        "downlink_bandwidth_hz": 10.0,
        "channel_gain": 10.0,
        "noise_w_per_hz": 1.0,
        "coverage": [[True, False, False], [False, True, True]],
        "link_servers": [[0, 1], [1, 2]],
        "link_delay_s": [1.0, 2.0],
        "link_rate_bps": [10.0, np.inf],
        "cloud_delay_s": [5.0, 6.0, 7.0],
        "cloud_rate_bps": [10.0, 20.0, 40.0],
    }
    return EdgeNetwork(**(fields | change))


def small_random(seed: int, num_servers: int, num_devices: int) -> EdgeNetwork:
    return EdgeNetwork.random(
        num_servers, num_devices, seed=seed, layout="uniform", coverage_radius_m=500, neighbours=1
    )


def backhaul(network: EdgeNetwork, payload_bits: float) -> nx.Graph:
    graph = nx.empty_graph(network.num_servers)
    for (a, b), delay, rate in zip(network.link_servers, network.link_delay_s, network.link_rate_bps, strict=True):
        graph.add_edge(int(a), int(b), weight=delay + payload_bits / rate)
    return graph


# --- data


def test_arrays_are_read_only_copies_of_one_type():
    """A network cannot change under the problems that were built from it."""
    gain = np.ones((2, 3))
    network = tiny(channel_gain=gain)
    gain[:] = 0
    assert (network.channel_gain == 1).all()
    for name in ARRAYS:
        array = getattr(network, name)
        assert not array.flags.writeable, name
        assert array.flags.c_contiguous, name
    assert {getattr(network, name).dtype.name for name in ARRAYS} == {"float64", "int32", "bool"}


def test_one_number_stands_for_an_array():
    """Scalars broadcast to servers, devices, pairs and links."""
    network = tiny(server_flops=10, channel_gain=2, link_delay_s=1, coverage=True)
    assert network.server_flops.tolist() == [10, 10, 10]
    assert network.channel_gain.shape == network.coverage.shape == (2, 3)
    assert network.link_delay_s.tolist() == [1, 1]


def test_defaults():
    """Without coverage and links everybody is covered and no server reaches another."""
    fields = tiny().to_dict()
    for name in ("coverage", "link_servers", "link_delay_s", "link_rate_bps", "noise_w_per_hz"):
        del fields[name]
    network = EdgeNetwork.from_dict(fields)
    assert network.coverage.all()
    assert network.num_links == 0
    assert network.noise_w_per_hz == 3.98e-21
    assert np.array_equal(network.backhaul_delay_s(), np.where(np.eye(3) == 1, 0, np.inf))


def test_links_are_kept_in_one_order():
    """Networks that differ in how their links are written are equal; delays and rates follow their links."""
    other = tiny(link_servers=[[2, 1], [1, 0]], link_delay_s=[2.0, 1.0], link_rate_bps=[np.inf, 10.0])
    assert other == tiny()
    assert other.link_servers.tolist() == [[0, 1], [1, 2]]


def test_equality_looks_at_every_field():
    """A change of any field makes another network."""
    network = tiny()
    assert network == tiny()
    for name in ("device_flops", "channel_gain", "cloud_flops", "noise_w_per_hz", "link_delay_s", "cloud_rate_bps"):
        assert network.replace(**{name: 2 * getattr(network, name)}) != network, name
    assert network.replace(coverage=True) != network
    assert network != "network"


def test_replace_validates_anew():
    """`replace` keeps the rest and refuses what the constructor refuses."""
    assert tiny().replace(cloud_flops=5).cloud_flops == 5
    with pytest.raises(InvalidProblemError, match=r"^cloud_flops = -5.0: expected a positive number"):
        tiny().replace(cloud_flops=-5)


def test_dictionary_round_trip():
    """`to_dict` gives arrays and floats only, and `from_dict` an equal network."""
    network = tiny()
    values = network.to_dict()
    assert EdgeNetwork.from_dict(values) == network
    assert {type(value) for value in values.values()} == {np.ndarray, float}
    with pytest.raises(InvalidProblemError, match=r"^channel_gain: missing$"):
        EdgeNetwork.from_dict({name: value for name, value in values.items() if name != "channel_gain"})
    with pytest.raises(InvalidProblemError, match=r"^colour: not a field of EdgeNetwork$"):
        EdgeNetwork.from_dict(values | {"colour": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server_flops": [1, 2, -1]}, r"^server_flops\[2\] = -1.0: expected a positive number \(FLOP/s\)$"),
        ({"device_flops": [0, 1]}, r"^device_flops\[0\] = 0.0: expected a positive number \(FLOP/s\)$"),
        ({"cloud_flops": np.inf}, r"^cloud_flops = inf: expected a positive number \(FLOP/s\)$"),
        ({"server_storage_bytes": [1, -1, 1]}, r"^server_storage_bytes\[1\] = -1.0: expected a non-negative number \(byte\)$"),
        ({"device_power_w": 0}, r"^device_power_w\[0\] = 0.0: expected a positive number \(W\)$"),
        ({"channel_gain": [[1, 1, 1], [1, np.nan, 1]]}, r"^channel_gain\[1, 1\] = nan: expected a non-negative number"),
        ({"channel_gain": np.ones((3, 2))}, r"^channel_gain: expected shape \[2, 3\], got \[3, 2\]$"),
        ({"uplink_bandwidth_hz": -1}, r"^uplink_bandwidth_hz\[0, 0\] = -1.0: expected a non-negative number \(Hz\)$"),
        ({"noise_w_per_hz": 0}, r"^noise_w_per_hz = 0.0: expected a positive number \(W/Hz\)$"),
        ({"coverage": [[1, 0, 0], [0, 1, 1]]}, "^coverage: expected booleans, got int64$"),
        ({"server_position_m": np.empty((0, 2))}, "^server_position_m: expected at least one server$"),
        ({"device_position_m": np.empty((0, 2))}, "^device_position_m: expected at least one device$"),
        ({"device_position_m": [[0, 0, 0]]}, r"^device_position_m: expected shape \[any, 2\], got \[1, 3\]$"),
        ({"link_servers": [[0, 1], [1, 3]]}, r"^link_servers\[1, 1\] = 3: expected an integer from 0 to 2$"),
        ({"link_servers": [[0, 1], [2, 2]]}, r"^link_servers\[1\] = \[2, 2\]: expected two different servers$"),
        ({"link_servers": [[0, 1], [1, 0]]}, r"^link_servers\[1\] = \[1, 0\]: expected each link once, it is also link_servers\[0\]$"),
        ({"link_delay_s": [1.0]}, r"^link_delay_s: expected shape \[2\], got \[1\]$"),
        ({"link_rate_bps": [1.0, 0.0]}, r"^link_rate_bps\[1\] = 0.0: expected a positive number \(bit/s\) or inf$"),
        ({"cloud_delay_s": [1, 2, np.inf]}, r"^cloud_delay_s\[2\] = inf: expected a non-negative number \(s\)$"),
    ],
)  # fmt: skip
def test_bad_fields(change, message):
    """The message names the field, the index, the value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        tiny(**change)


# --- rates


def test_rates_by_hand():
    """W log2(1 + P h / (N0 W)): 10 log2(1 + 3 * 10 / 10) = 20 bit/s up, 10 log2(1 + 15 * 10 / 10) = 40 bit/s down."""
    network = tiny()
    covered = network.coverage
    np.testing.assert_allclose(network.uplink_rate_bps, np.where(covered, 20.0, 0.0), rtol=1e-14)
    np.testing.assert_allclose(network.downlink_rate_bps, np.where(covered, 40.0, 0.0), rtol=1e-14)


def test_powers_belong_to_the_sender():
    """The uplink takes the device's power, the downlink the server's: SNR 1, 3, 7 give 1, 2, 3 bit/s/Hz."""
    network = tiny(device_power_w=[1, 3], server_power_w=[1, 3, 7], coverage=True)
    np.testing.assert_allclose(network.uplink_rate_bps, [[10, 10, 10], [20, 20, 20]], rtol=1e-14)
    np.testing.assert_allclose(network.downlink_rate_bps, [[10, 20, 30], [10, 20, 30]], rtol=1e-14)


def test_no_bandwidth_or_gain_is_no_rate():
    """A pair without bandwidth or gain has rate 0, not NaN, and the device is not attached to it."""
    network = tiny(uplink_bandwidth_hz=[[0, 1, 1], [1, 1, 1]], channel_gain=[[1, 1, 1], [1, 1, 0]])
    assert network.uplink_rate_bps[0, 0] == 0
    assert network.uplink_rate_bps[1, 2] == network.downlink_rate_bps[1, 2] == 0
    assert network.access_server.tolist() == [-1, 1]


def test_access_server():
    """The strongest covering server, the lowest index on ties, -1 without coverage."""
    assert tiny().access_server.tolist() == [0, 1]
    stronger = tiny(channel_gain=[[1, 9, 9], [9, 1, 2]])  # gain outside coverage does not count
    assert stronger.access_server.tolist() == [0, 2]
    assert tiny(coverage=False).access_server.tolist() == [-1, -1]


@given(st.integers(0, 10_000), st.floats(1.0, 100.0))
@settings(max_examples=20)
def test_more_power_or_gain_never_slows(seed, factor):
    """Rates grow with gain and power, and more coverage never lengthens an offload."""
    network = small_random(seed, 4, 6)
    louder = network.replace(channel_gain=factor * network.channel_gain)
    assert (louder.uplink_rate_bps >= network.uplink_rate_bps).all()
    wider = network.replace(coverage=True)
    for before, after in zip(
        network.offload_latency_s(1e5, 1e4, 1e9), wider.offload_latency_s(1e5, 1e4, 1e9), strict=True
    ):
        assert (after <= before).all()


# --- latencies


def test_backhaul_by_hand():
    """Delays add along the path, and the payload is sent anew on each link: 1 + 20/10 and 2 + 20/inf."""
    assert tiny().backhaul_delay_s().tolist() == [[0, 1, 3], [1, 0, 2], [3, 2, 0]]
    assert tiny().backhaul_delay_s(20).tolist() == [[0, 3, 5], [3, 0, 2], [5, 2, 0]]
    with pytest.raises(InvalidProblemError, match=r"^payload_bits = -1.0: expected a non-negative number \(bit\)$"):
        tiny().backhaul_delay_s(-1)


def test_links_without_delay():
    """A link that takes no time is a link: it is not lost as an empty matrix entry."""
    network = tiny(link_delay_s=0.0, link_rate_bps=np.inf)
    assert (network.backhaul_delay_s(1e9) == 0).all()


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.0, 1e6, 1e9]))
@settings(max_examples=25)
def test_backhaul_is_the_shortest_path(seed, num_servers, payload):
    """All-pairs delays equal networkx's Dijkstra, also where a link is missing and where a payload reroutes."""
    network = EdgeNetwork.random(num_servers, 1, seed=seed, neighbours=3)
    if num_servers > 2:  # cut one server off
        kept = (network.link_servers != 0).all(axis=1)
        names = ("link_servers", "link_delay_s", "link_rate_bps")
        network = network.replace(**{name: getattr(network, name)[kept] for name in names})
    expected = np.full((num_servers, num_servers), np.inf)
    for a, lengths in nx.all_pairs_dijkstra_path_length(backhaul(network, payload)):
        for b, length in lengths.items():
            expected[a, b] = length
    np.testing.assert_allclose(network.backhaul_delay_s(payload), expected, rtol=1e-12)


def test_offload_by_hand():
    """20 bits up at 20 bit/s, 40 down at 40 bit/s, 40 FLOP, as the class states it.

    Device 0 enters at server 0 only. At server 2: radio 1 + 1, there 1 + 20/10 + 2, back 2 + 1 + 40/10, work 40/40 = 15.
    Device 1 enters at server 2, itself: 1 + 1 + 40/40 = 3. At server 0 it enters at 1: 2 + 3 + 5 + 40/10 = 14.
    Cloud: device 0 over server 0: 2 + 2*5 + 60/10 + 40/80 = 18.5; device 1 over server 2: 2 + 2*7 + 60/40 + 0.5 = 18,
    over server 1: 2 + 2*6 + 60/20 + 0.5 = 17.5.
    """
    server, cloud = tiny().offload_latency_s(up_bits=20, down_bits=40, work_flops=40)
    np.testing.assert_allclose(server[0], [2 + 4, 2 + 3 + 5 + 2, 15], rtol=1e-13)
    np.testing.assert_allclose(server[1], [14, 2 + 2, 3], rtol=1e-13)
    np.testing.assert_allclose(cloud, [18.5, 17.5], rtol=1e-13)


def naive_offload(network, up, down, work):
    """Return the latencies by one loop per index, with networkx for the hops."""
    hop_up = dict(nx.all_pairs_dijkstra_path_length(backhaul(network, up)))
    hop_down = dict(nx.all_pairs_dijkstra_path_length(backhaul(network, down)))
    server = np.full((network.num_devices, network.num_servers), np.inf)
    cloud = np.full(network.num_devices, np.inf)
    for u in range(network.num_devices):
        for a in range(network.num_servers):
            if not network.coverage[u, a]:
                continue
            gain, w_up, w_down = (
                getattr(network, name)[u, a]
                for name in ("channel_gain", "uplink_bandwidth_hz", "downlink_bandwidth_hz")
            )
            rate_up = w_up * np.log2(1 + network.device_power_w[u] * gain / (network.noise_w_per_hz * w_up))
            rate_down = w_down * np.log2(1 + network.server_power_w[a] * gain / (network.noise_w_per_hz * w_down))
            radio = up / rate_up + down / rate_down
            for n in range(network.num_servers):
                there, back = hop_up[a].get(n, np.inf), hop_down[n].get(a, np.inf)
                server[u, n] = min(server[u, n], radio + there + work / network.server_flops[n] + back)
            wire = 2 * network.cloud_delay_s[a] + (up + down) / network.cloud_rate_bps[a]
            cloud[u] = min(cloud[u], radio + wire + work / network.cloud_flops)
    return server, cloud


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.floats(0, 1e7), st.floats(0, 1e7))
@settings(max_examples=25)
def test_offload_equals_the_naive_loop(seed, num_servers, num_devices, up, down):
    """The vectorised minimum over access servers equals a triple loop, uncovered devices included."""
    network = small_random(seed, num_servers, num_devices)
    for got, expected in zip(
        network.offload_latency_s(up, down, 1e9), naive_offload(network, up, down, 1e9), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_the_best_access_server_is_not_always_the_strongest():
    """A weaker channel is worth it when it saves a slow hop: entering at 2 for server 2 beats entering at 1."""
    network = tiny(channel_gain=[[10, 10, 10], [10, 10, 5]], link_delay_s=1000.0)
    server, _ = network.offload_latency_s(20, 40, 40)
    assert network.access_server[1] == 1
    assert server[1, 2] < 10


def test_nobody_covers():
    """A device without coverage reaches nothing, even to send nothing."""
    server, cloud = tiny(coverage=[[False] * 3, [True] * 3]).offload_latency_s(0, 0, 1)
    assert np.isinf(server[0]).all()
    assert np.isinf(cloud[0])
    assert np.isfinite(server[1]).all()
    assert np.isfinite(cloud[1])


def test_device_latency():
    """Work over speed, with one amount of work for all or one each."""
    assert tiny().device_latency_s(4).tolist() == [4, 2]
    assert tiny().device_latency_s([4, 8]).tolist() == [4, 4]
    server, _ = tiny().offload_latency_s(20, 40, [40, 80])
    np.testing.assert_allclose(server[:, 2], [15, 4], rtol=1e-13)
    with pytest.raises(InvalidProblemError, match=r"^work_flops\[1\] = -1.0: expected a non-negative number \(FLOP\)$"):
        tiny().device_latency_s([1, -1])


def test_large_networks_fit():
    """50 servers x 2,000 devices take memory for a few U x N arrays (0.8 MB each), never for U x N x N (40 MB)."""
    network = EdgeNetwork.random(50, 2000, seed=0)
    network.offload_latency_s(1e5, 1e5, 1e9)  # loads scipy
    tracemalloc.start()
    server, cloud = network.offload_latency_s(1e5, 1e5, 1e9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
    assert np.isfinite(server).all()
    assert np.isfinite(cloud).all()


# --- graphs


@pytest.mark.parametrize("network", [tiny(), tiny(coverage=False), EdgeNetwork.random(6, 20, seed=1)], ids=repr)
def test_graph_round_trip(network):
    """`from_graph(to_graph())` gives an equal network, channels outside coverage included."""
    assert EdgeNetwork.from_graph(network.to_graph()) == network


def test_graph_contents():
    """Nodes and edges carry the values of the arrays; with `covered_only` a graph path is a usable path."""
    graph = tiny().to_graph()
    assert graph.nodes["server-2"] == {
        "kind": "server", "position_m": [200, 0], "flops": 40, "storage_bytes": 7, "memory_bytes": 8, "power_w": 15,
    }  # fmt: skip
    assert graph.nodes["cloud"] == {"kind": "cloud", "flops": 80}
    assert graph.edges["server-0", "server-1"] == {"delay_s": 1, "rate_bps": 10}
    assert graph.edges["server-1", "cloud"] == {"delay_s": 6, "rate_bps": 20}
    assert graph.edges["device-0", "server-1"]["covered"] is False
    covered = tiny().to_graph(covered_only=True)
    assert not covered.has_edge("device-0", "server-1")
    assert nx.shortest_path(covered, "device-0", "server-1") == ["device-0", "server-0", "server-1"]


def test_graph_of_other_names_and_defaults():
    """Any node names do, in the graph's order; `defaults` fill what is not given; no edge is no channel."""
    graph = nx.Graph()
    graph.add_node("roof", kind="server", position_m=(0, 0), flops=10)
    graph.add_node(7, kind="device", position_m=(1, 1))
    graph.add_node("mast", kind="server", position_m=(9, 9), flops=20)
    graph.add_node("far", kind="cloud", flops=80)
    graph.add_edge("mast", 7, channel_gain=3.0)
    graph.add_edge("mast", "roof", delay_s=0.5)
    graph.add_edges_from([("roof", "far"), ("mast", "far")])
    defaults = {
        "server_storage_bytes": 1, "server_memory_bytes": 2, "server_power_w": 3, "device_flops": 4,
        "device_storage_bytes": 5, "device_memory_bytes": 6, "device_power_w": 7, "uplink_bandwidth_hz": 8,
        "downlink_bandwidth_hz": 9, "link_rate_bps": 10, "cloud_delay_s": 11, "cloud_rate_bps": 12,
    }  # fmt: skip
    network = EdgeNetwork.from_graph(graph, defaults=defaults)
    assert network.server_flops.tolist() == [10, 20]
    assert network.coverage.tolist() == [[False, True]]
    assert network.channel_gain.tolist() == [[0, 3]]
    assert network.access_server.tolist() == [1]
    assert network.link_servers.tolist() == [[0, 1]]
    assert network.cloud_delay_s.tolist() == [11, 11]
    del defaults["link_rate_bps"]
    message = r"^edge \('roof', 'mast'\): no attribute 'rate_bps', and no default 'link_rate_bps'$"
    with pytest.raises(InvalidProblemError, match=message):
        EdgeNetwork.from_graph(graph, defaults=defaults)


def spoil_kind(graph):
    graph.nodes["device-1"]["kind"] = "phone"


def spoil_kind_by_list(graph):
    graph.nodes["device-1"]["kind"] = []


def spoil_cloud(graph):
    graph.add_node("cloud-2", kind="cloud", flops=1)


def spoil_servers(graph):
    graph.remove_nodes_from([f"server-{n}" for n in range(3)])


def spoil_edge(graph):
    graph.add_edge("device-0", "device-1")


def spoil_cloud_edge(graph):
    graph.remove_edge("server-2", "cloud")


def spoil_device_cloud_edge(graph):
    graph.add_edge("device-0", "cloud")


def spoil_value(graph):
    graph.nodes["server-1"]["flops"] = -2.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_kind, "^node 'device-1': kind = 'phone': expected 'server', 'device' or 'cloud'$"),
        (spoil_kind_by_list, r"^node 'device-1': kind = \[\]: expected 'server', 'device' or 'cloud'$"),
        (spoil_cloud, "^graph: expected exactly one node of kind 'cloud', got 2$"),
        (spoil_servers, "^graph: expected at least one node of kind 'server', got 0$"),
        (spoil_edge, r"^edge \('device-0', 'device-1'\): expected a server at one end at least$"),
        (spoil_device_cloud_edge, r"^edge \('device-0', 'cloud'\): expected a server at one end at least$"),
        (spoil_cloud_edge, r"^edge \('server-2', 'cloud'\): no attribute 'delay_s', and no default 'cloud_delay_s'$"),
        (spoil_value, r"^server_flops\[1\] = -2.0: expected a positive number"),
    ],
)
def test_bad_graphs(spoil, message):
    """The message names the node or edge and what is wrong with it."""
    graph = tiny().to_graph()
    spoil(graph)
    with pytest.raises(InvalidProblemError, match=message):
        EdgeNetwork.from_graph(graph)


def test_directed_graphs_are_refused():
    """A directed graph would have two links where the network has one."""
    with pytest.raises(InvalidProblemError, match=r"^graph: expected an undirected networkx.Graph, got DiGraph$"):
        EdgeNetwork.from_graph(tiny().to_graph().to_directed())


# --- random networks


def test_same_seed_same_network():
    """The same seed gives an equal network, another seed another one."""
    assert EdgeNetwork.random(5, 12, seed=3) == EdgeNetwork.random(5, 12, seed=3)
    assert EdgeNetwork.random(5, 12, seed=3) != EdgeNetwork.random(5, 12, seed=4)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"fading": False}, {"channel_gain"}),
        ({"shadowing_db": 0.0}, {"channel_gain"}),
        ({"carrier_ghz": 28.0}, {"channel_gain"}),
        ({"device_flops": (1.0, 2.0)}, {"device_flops"}),
        ({"server_flops": 5.0}, {"server_flops"}),
        ({"cloud_delay_s": (0.0, 0.1)}, {"cloud_delay_s"}),
        ({"coverage_radius_m": 200.0}, {"coverage"}),
        ({"neighbours": 4}, {"link_servers", "link_delay_s", "link_rate_bps"}),
        ({"layout": "uniform"}, {"server_position_m", "channel_gain", "coverage", "link_servers", "link_delay_s", "link_rate_bps"}),
    ],
)  # fmt: skip
def test_ingredients_have_their_own_streams(change, changed):
    """Changing one ingredient of a seed changes what depends on it and nothing else."""
    one, other = EdgeNetwork.random(8, 15, seed=5), EdgeNetwork.random(8, 15, seed=5, **change)
    differing = {name for name in one.to_dict() if not np.array_equal(getattr(one, name), getattr(other, name))}
    assert differing <= changed
    assert next(iter(change)) in ("layout", "neighbours") or differing == changed


def test_more_devices_leave_the_earlier_ones():
    """The first devices of a larger network of the same seed are those of the smaller one."""
    few, many = EdgeNetwork.random(4, 10, seed=2), EdgeNetwork.random(4, 30, seed=2)
    for name in ("device_position_m", "channel_gain", "device_flops", "coverage"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:10]), name


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from(["grid", "uniform"]))
@settings(max_examples=25)
def test_random_networks_are_usable(seed, num_servers, layout):
    """All is inside the area, the backhaul connected, each device covered by its nearest server and more."""
    network = EdgeNetwork.random(num_servers, 20, seed=seed, layout=layout, area_m=700.0, neighbours=1)
    for position in (network.server_position_m, network.device_position_m):
        assert ((position >= 0) & (position <= 700)).all()
    assert np.isfinite(network.backhaul_delay_s()).all()
    distance = np.linalg.norm(network.device_position_m[:, None] - network.server_position_m, axis=2)
    assert network.coverage[np.arange(20), distance.argmin(axis=1)].all()
    assert (network.access_server >= 0).all()
    assert np.isfinite(network.offload_latency_s(1e5, 1e5, 1e9)[0]).all()


def test_coverage_radius():
    """A given radius is the reach exactly: a device may then be covered by nobody."""
    network = EdgeNetwork.random(3, 200, seed=0, coverage_radius_m=150)
    distance = np.linalg.norm(network.device_position_m[:, None] - network.server_position_m, axis=2)
    assert np.array_equal(network.coverage, distance <= 150)
    assert (network.access_server == -1).any()


def test_path_loss():
    """TR 38.901 by hand: at d3D = 100 m and 1 GHz 22.4 + 2 * 35.3 dB, and 35.3 dB more per decade of distance.

    From 0.5 to 100 GHz and up to 5 km the line-of-sight loss of the same table, two slopes with a breakpoint, lies
    below, so that taking the maximum of both would change nothing.
    """
    ground = np.sqrt(100.0**2 - 8.5**2)
    assert path_loss_db(np.array([ground]), 1.0)[0] == pytest.approx(93.0)
    distance = np.geomspace(0.1, 5000, 400)
    distance_3d = np.hypot(distance, 8.5)
    for carrier_ghz in (0.5, 2.0, 3.5, 28.0, 100.0):
        breakpoint_m = 4 * (10 - 1) * (1.5 - 1) * carrier_ghz * 1e9 / 3e8
        near = 32.4 + 21 * np.log10(distance_3d) + 20 * np.log10(carrier_ghz)
        far = 32.4 + 40 * np.log10(distance_3d) + 20 * np.log10(carrier_ghz) - 9.5 * np.log10(breakpoint_m**2 + 8.5**2)
        line_of_sight = np.where(distance <= breakpoint_m, near, far)
        assert (path_loss_db(distance, carrier_ghz) >= line_of_sight).all()


def test_channel_statistics():
    """Shadowing is normal in dB with the given deviation, fading exponential with mean one."""
    plain = EdgeNetwork.random(20, 1000, seed=0, shadowing_db=0, fading=False).channel_gain
    shadow = EdgeNetwork.random(20, 1000, seed=0, shadowing_db=6, fading=False).channel_gain / plain
    fading = EdgeNetwork.random(20, 1000, seed=0, shadowing_db=0, fading=True).channel_gain / plain
    assert np.std(10 * np.log10(shadow)) == pytest.approx(6, rel=0.02)
    assert abs(np.mean(10 * np.log10(shadow))) < 0.15
    assert np.mean(fading) == pytest.approx(1, rel=0.03)
    assert np.mean(fading > 1) == pytest.approx(np.exp(-1), rel=0.03)


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=25)
def test_backhaul_links_are_tree_and_neighbours(seed, num_points):
    """The links are the Euclidean minimum spanning tree (networkx) joined with each point's nearest neighbours."""
    points = np.random.default_rng(seed).random((num_points, 2))
    graph = nx.Graph()
    for a in range(num_points):
        for b in range(a):
            graph.add_edge(a, b, weight=np.linalg.norm(points[a] - points[b]))
    expected = {tuple(sorted(edge)) for edge in nx.minimum_spanning_edges(graph, data=False)}
    assert set(map(tuple, geometric_links(points, 0).tolist())) == expected
    for a in range(num_points):
        nearest = sorted(graph[a], key=lambda b: graph[a][b]["weight"])[:2]
        expected |= {tuple(sorted((a, b))) for b in nearest}
    assert set(map(tuple, geometric_links(points, 2).tolist())) == expected


def test_points_in_one_place_are_linked():
    """Servers at the same position are connected, although their distance is zero."""
    assert geometric_links(np.zeros((3, 2)), 0).shape == (2, 2)


@pytest.mark.parametrize("num_servers", [1, 2, 3, 5, 7, 12, 50])
def test_grid_layout_spreads(num_servers):
    """Each row of the grid holds as many servers as the next or one less; no two come closer than half a cell."""
    points = place_servers(np.random.default_rng(0), num_servers, 1.0, "grid")
    assert ((points > 0) & (points < 1)).all()
    rows = max(1, round(np.sqrt(num_servers)))
    per_row = np.bincount((points[:, 1] * rows).astype(int), minlength=rows)
    assert np.ptp(per_row) <= 1
    for row in range(rows):
        xs = np.sort(points[(points[:, 1] * rows).astype(int) == row, 0])
        assert all(b - a >= 0.499 / per_row[row] for a, b in pairwise(xs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_servers": 0}, "^num_servers = 0: expected an integer >= 1$"),
        ({"num_devices": 2.5}, "^num_devices = 2.5: expected an integer >= 1$"),
        ({"seed": -1}, "^seed = -1: expected an integer >= 0$"),
        ({"neighbours": -1}, "^neighbours = -1: expected an integer >= 0$"),
        ({"area_m": 0.0}, r"^area_m = 0.0: expected a positive number \(m\)$"),
        ({"carrier_ghz": 3.5e9}, r"^carrier_ghz = 3500000000.0: expected a number from 0.5 to 100 \(GHz\)$"),
        ({"coverage_radius_m": -1.0}, r"^coverage_radius_m = -1.0: expected a non-negative number \(m\)$"),
        ({"shadowing_db": -1.0}, r"^shadowing_db = -1.0: expected a non-negative number \(dB\)$"),
        ({"layout": "hexagon"}, "^layout = 'hexagon': expected 'grid' or 'uniform'$"),
        ({"device_flops": (2.0, 1.0)}, r"^device_flops = \(2.0, 1.0\): expected 0 <= low <= high"),
        ({"device_flops": 0.0}, r"^device_flops\[0\] = 0.0: expected a positive number"),
    ],
)
def test_bad_random_arguments(change, message):
    """The message names the argument, its value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        EdgeNetwork.random(**({"num_servers": 3, "num_devices": 4, "seed": 0} | change))


def test_import_is_light():
    """Importing the module loads none of the graph, sparse-matrix or plotting libraries."""
    code = "import sys, edgeopt.network; print([m for m in ('scipy', 'networkx', 'matplotlib', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- picture


def test_plot_shows_servers_devices_and_links():
    """The picture holds a marker per server and device, a line per link and covering pair, and labels when few."""
    network = tiny()
    ax = plot_network(network)
    other, access, links, devices, servers = ax.collections
    assert len(other.get_segments()) + len(access.get_segments()) == network.coverage.sum()
    assert len(access.get_segments()) == 2
    assert len(links.get_segments()) == 2
    assert np.array_equal(devices.get_offsets(), network.device_position_m)
    assert np.array_equal(servers.get_offsets(), network.server_position_m)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", "1000.00 ms", "2000.00 ms"]
    assert len(ax.get_legend().get_texts()) == 5


def test_plot_uses_the_given_axes():
    """The picture goes into the caller's axes; uncovered devices are told apart; pyplot is not involved."""
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    network = EdgeNetwork.random(30, 400, seed=0, coverage_radius_m=40)
    assert plot_network(network, ax) is ax
    assert not ax.texts
    assert "device without coverage" in [text.get_text() for text in ax.get_legend().get_texts()]
    bare = plot_network(
        network.replace(link_servers=np.empty((0, 2)), link_delay_s=[], link_rate_bps=[]), coverage=False, legend=False
    )
    assert bare.get_legend() is None
    bare.figure.canvas.draw()


@given(
    st.integers(0, 30),
    st.lists(st.floats(1e3, 1e9), min_size=6, max_size=6),
    st.lists(st.floats(1e3, 1e9), min_size=6, max_size=6),
)
def test_measured_rates(seed: int, up: list[float], down: list[float]):
    """Links have the rates that were measured, one way or both; where nothing was measured nobody is covered."""
    network = EdgeNetwork.random(3, 2, seed=seed, coverage_radius_m=3000)
    up_bps, down_bps = np.reshape(up, (2, 3)), np.reshape(down, (2, 3))
    both, one = network.with_rates(up_bps, down_bps), network.with_rates(up_bps)
    np.testing.assert_allclose(both.uplink_rate_bps, up_bps, rtol=1e-6)
    np.testing.assert_allclose(both.downlink_rate_bps, down_bps, rtol=1e-6)
    np.testing.assert_allclose(one.uplink_rate_bps, up_bps, rtol=1e-9)
    np.testing.assert_allclose(
        one.downlink_rate_bps / network.downlink_rate_bps, up_bps / network.uplink_rate_bps, rtol=1e-6
    )
    gone = network.with_rates([0, 5e6])
    assert not gone.coverage[0].any()
    np.testing.assert_allclose(gone.uplink_rate_bps[1], 5e6)
    with pytest.raises(InvalidProblemError, match="has no channel to server 0, expected gain and bandwidth"):
        network.replace(channel_gain=0).with_rates([1e6, 1e6])
