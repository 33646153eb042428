"""Places and graphs of others: degrees against the great circle, networks on them, hostile XML."""

import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from edgeopt import EdgeNetwork
from edgeopt.errors import EdgeOptError
from edgeopt.places import EARTH_M, read_backhaul, read_places


def great_circle_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the distance of two points in degrees of longitude and latitude, by the haversine."""
    (a, b), (c, d) = (tuple(map(math.radians, point)) for point in (one, other))
    h = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * EARTH_M * math.asin(math.sqrt(h))


POINTS = {"mast": (13.40, 52.52, "server"), "phone": (13.45, 52.50, "device"), "bus": (13.30, 52.55, "device")}


def geojson(path: Path) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {"name": n, "kind": k},
        }
        for n, (lon, lat, k) in POINTS.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_degrees_become_metres(tmp_path: Path):
    """Distances are those on the sphere, and a table says the same as GeoJSON."""
    places = read_places(geojson(tmp_path / "city.geojson"))
    points = list(POINTS.values())
    for i in range(3):
        for j in range(i):
            found = float(np.hypot(*(places.position_m[i] - places.position_m[j])))
            assert found == pytest.approx(great_circle_m(points[i][:2], points[j][:2]), rel=1e-3)
    rows = "\n".join(f"{n};{lat};{lon};{k}" for n, (lon, lat, k) in POINTS.items())
    (tmp_path / "city.csv").write_text(f"name;latitude;longitude;kind\n{rows}\n")
    same = read_places(tmp_path / "city.csv")
    np.testing.assert_allclose(same.position_m, places.position_m)
    assert (same.names, same.kind) == (places.names, places.kind)
    assert (places.position_m[1] > places.position_m[0]).tolist() == [True, False]  # to the east, to the south


def test_places_become_a_network(tmp_path: Path):
    """Servers and devices stand where they are; coverage follows distances."""
    (tmp_path / "masts.csv").write_text("x,y\n0,0\n2000,0\n")
    (tmp_path / "phones.tsv").write_text("x_km\ty_km\tid\n0.1\t0\ta\n1.9\t0.1\tb\n1\t0\tc\n")
    servers = read_places(tmp_path / "masts.csv", kind="server").of("server")
    devices = read_places(tmp_path / "phones.tsv", kind="device").of("device")
    network = EdgeNetwork.random(seed=0, server_position_m=servers, device_position_m=devices, coverage_radius_m=1000)
    assert network.device_position_m.tolist() == [[100, 0], [1900, 100], [1000, 0]]
    assert network.coverage.tolist() == [[True, False], [False, True], [True, True]]
    both = EdgeNetwork.random(num_devices=5, seed=0, server_position_m=servers + np.array([5e4, 7e4]))
    assert both.num_servers == 2
    assert (both.device_position_m >= [5e4, 7e4]).all()


def test_a_graph_becomes_a_backhaul(tmp_path: Path):
    """Nodes are servers; of two edges the faster counts; delays follow from distances where nothing is said."""
    graph = nx.MultiGraph()
    graph.add_node("a", label="Aachen", Longitude=6.08, Latitude=50.78)
    graph.add_node("b", Longitude=6.96, Latitude=50.94)
    graph.add_node("c", label="Bonn")
    graph.add_edge("a", "b", LinkSpeedRaw=1e9)
    graph.add_edge("b", "a", LinkSpeedRaw=1e10)
    graph.add_edge("b", "c", delay_s=0.002, rate_bps=5e8)
    graph.add_edge("c", "c")
    nx.write_graphml(graph, tmp_path / "zoo.graphml")
    found = read_backhaul(tmp_path / "zoo.graphml", delay_s=None)
    assert found.names == ("Aachen", "b", "Bonn")
    assert found.link_servers.tolist() == [[0, 1], [1, 2]]
    assert found.link_rate_bps.tolist() == [1e10, 5e8]
    distance = great_circle_m((6.08, 50.78), (6.96, 50.94))
    assert found.link_delay_s.tolist() == pytest.approx([distance / 2e8, 0.002], rel=1e-3)
    assert np.isnan(found.position_m[2]).all()
    links = {name: getattr(found, name) for name in ("link_servers", "link_delay_s", "link_rate_bps")}
    network = EdgeNetwork.random(3, 2, seed=0).replace(**links)
    assert network.backhaul_delay_s()[0, 2] == pytest.approx(found.link_delay_s.sum())


BOMB = '<?xml version="1.0"?><!DOCTYPE g [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><graphml>&b;</graphml>'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bomb.graphml", BOMB, "has a document type, which may define entities"),
        ("deep.graphml", "<a>" * 60 + "</a>" * 60, "elements more than 50 deep"),
        ("cut.graphml", "<graphml><graph>", "not XML: no element found"),
        ("other.graphml", "<svg></svg>", "not a graph as GraphML"),
        ("a.csv", "x,z\n1,2\n", "columns \\['x', 'z'\\]: expected x and y, or lat and lon"),
        ("a.csv", "x,y\n1,far\n", "row 1: y = 'far': expected a number"),
        ("a.csv", "lat,lon\n91,0\n", "row 1: lat = '91': expected a number from -90 to 90"),
        ("a.csv", "x,y,kind\n1,2,tree\n", "row 1: kind = 'tree': expected server or device"),
        ("a.csv", "x,y\n1\n", "row 1: 1 cells, expected 2"),
        ("a.csv", "x,y\n", "expected a header and at least one row"),
        ("a.csv", 'x,"y\n1,2\n', "no row under the header"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', "features: expected at least one point"),
        ("a.geojson", '{"type": "Point"}', "type = 'Point': expected 'FeatureCollection'"),
        (
            "a.geojson",
            '{"type": "FeatureCollection", "features": [{"geometry": {"type": "Point", "coordinates": [1]}}]}',
            "expected longitude and latitude",
        ),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str):
    """One line."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(EdgeOptError, match=message) as caught:
        read_backhaul(path) if name.endswith("graphml") else read_places(path, kind="server")
    assert "\n" not in str(caught.value)


def test_what_an_edge_lacks(tmp_path: Path):
    """A link without a rate is refused, unless the usual one is told."""
    nx.write_graphml(nx.path_graph(2), tmp_path / "plain.graphml")
    with pytest.raises(EdgeOptError, match="edge '0' - '1': no rate_bps: expected one, or to be told what is usual"):
        read_backhaul(tmp_path / "plain.graphml")
    with pytest.raises(EdgeOptError, match="no delay_s"):
        read_backhaul(tmp_path / "plain.graphml", rate_bps=1e9)
    assert read_backhaul(tmp_path / "plain.graphml", rate_bps=1e9, delay_s=0.001).link_rate_bps.tolist() == [1e9]


def test_metres_and_degrees_do_not_mix(tmp_path: Path):
    """Nor are other kinds asked for."""
    (tmp_path / "a.csv").write_text("x,y,kind\n1,2,server\n")
    (tmp_path / "b.csv").write_text("lat,lon,kind\n1,2,device\n")
    with pytest.raises(EdgeOptError, match="degrees: expected as in"):
        read_places(tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(EdgeOptError, match="kind = 'cloud': expected one of server, device"):
        read_places(tmp_path / "a.csv").of("cloud")
