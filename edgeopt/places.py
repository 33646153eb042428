"""Where servers and devices are, and how servers are linked, from files of others: tables, GeoJSON, GraphML."""

import csv
import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.files import read_file
from edgeopt.json_text import parse_json_object
from edgeopt.validate import real

Floats = NDArray[np.float64]

MAX_TEXT = 16 << 20
"""Bytes of a file of places or of a graph."""
MAX_DEPTH = 50
"""Elements of XML inside each other."""
EARTH_M = 6371008.8
LIGHT_IN_FIBRE_M_PER_S = 2e8
KINDS = ("server", "device")

_NAMES = ("name", "id", "label", "node")
_EAST = {"x_m": 1.0, "x": 1.0, "x_km": 1000.0, "easting": 1.0}
_NORTH = {"y_m": 1.0, "y": 1.0, "y_km": 1000.0, "northing": 1.0}
_LATITUDE, _LONGITUDE = ("lat", "latitude"), ("lon", "lng", "long", "longitude")


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Named points, servers and devices among them.

    Parameters
    ----------
    names : of the P places.
    position_m : float64 [P, 2], metres to the east and to the north.
    kind : ``server`` or ``device`` of each.
    """

    names: tuple[str, ...]
    position_m: Floats
    kind: tuple[str, ...]

    __repr__ = one_line

    def of(self, kind: str) -> Floats:
        """Return the positions [.., 2] of the servers, or of the devices."""
        if kind not in KINDS:
            raise InvalidProblemError(f"kind = {quoted(kind)}: expected one of {', '.join(KINDS)}")
        return self.position_m[[own == kind for own in self.kind]]


@dataclass(frozen=True, slots=True, eq=False)
class Backhaul:
    """Servers and the links between them.

    Parameters
    ----------
    names : of the N servers.
    position_m : float64 [N, 2], metres to the east and to the north; nan where the file does not say.
    link_servers : int64 [B, 2], the ends of each link, once each.
    link_delay_s, link_rate_bps : float64 [B].
    """

    names: tuple[str, ...]
    position_m: Floats
    link_servers: NDArray[np.int64]
    link_delay_s: Floats
    link_rate_bps: Floats

    __repr__ = one_line


def read_places(*paths: str | os.PathLike[str], kind: str | None = None) -> Places:
    """Read where servers and devices are: ``.csv`` or ``.tsv`` tables, and GeoJSON (``.geojson``, ``.json``).

    A table has a header with ``x`` and ``y`` in metres (``x_km`` and ``y_km`` in kilometres), or ``lat`` and ``lon`` in
    degrees; and if there are, ``name`` and ``kind``. GeoJSON has points, with ``name`` and ``kind`` among their properties.
    Degrees become metres around the middle of all places of all files, on a sphere: right to a thousandth within some 50 km.

    Parameters
    ----------
    paths : files; those with degrees do not go with those with metres.
    kind : ``server`` or ``device``, of places that do not say what they are. Default: they are refused.

    Raises
    ------
    InvalidFileError
        Naming file, row or feature, value and what was expected.
    """
    if not paths:
        raise InvalidProblemError("paths: expected at least one file")
    if kind is not None and kind not in KINDS:
        raise InvalidProblemError(f"kind = {quoted(kind)}: expected one of {', '.join(KINDS)}")
    found: list[tuple[str, float, float, str]] = []
    degrees: list[bool] = []
    for path in map(Path, paths):
        with in_file(path):
            rows, angular = _features(path, kind) if path.suffix in (".geojson", ".json") else _rows(path, kind)
        found += rows
        degrees.append(angular)
        if angular != degrees[0]:
            raise InvalidFileError(f"{path}: {'degrees' if angular else 'metres'}: expected as in {paths[0]}")
    points = np.array([(east, north) for _, east, north, _ in found], np.float64)
    kinds = tuple(own for *_, own in found)
    return Places(tuple(name for name, *_ in found), _metres(points) if degrees[0] else points, kinds)


def read_backhaul(
    path: str | os.PathLike[str], *, delay_s: float | None = None, rate_bps: float | None = None
) -> Backhaul:
    """Read a graph as GraphML, as networkx writes it and topologies of networks are published in: its nodes are servers.

    Edges may have ``delay_s`` and ``rate_bps`` (or ``LinkSpeedRaw``), nodes ``x_m`` and ``y_m`` or ``Latitude`` and
    ``Longitude``. Directions are left aside; of several edges between two servers the one of most rate counts. Files with a
    document type are refused: they can define entities that expand without end.

    Parameters
    ----------
    delay_s : of edges that do not say. Default: the distance at 2/3 of the speed of light, where positions are known.
    rate_bps : of edges that do not say. Default: they are refused.

    Raises
    ------
    InvalidFileError
        Naming file, node or edge, and what was expected.
    """
    for name, value in (("delay_s", delay_s), ("rate_bps", rate_bps)):
        if value is not None:
            real(name, value, nonnegative=name == "delay_s", positive=name == "rate_bps")
    with in_file(path):
        graph = _graph(path)
        nodes = list(graph.nodes(data=True))
        if not nodes:
            raise InvalidFileError(f"{path}: no node: expected servers")
        position = _positions(nodes)
        number = {node: i for i, (node, _) in enumerate(nodes)}
        links: dict[tuple[int, int], tuple[float, float]] = {}
        for a, b, data in graph.edges(data=True):
            where = f"edge {quoted(a)} - {quoted(b)}"
            ends = (min(number[a], number[b]), max(number[a], number[b]))
            if ends[0] == ends[1]:
                continue
            rate = _attribute(where, data, ("rate_bps", "LinkSpeedRaw"), rate_bps)
            distance = float(np.hypot(*(position[ends[0]] - position[ends[1]])))
            usual = delay_s if delay_s is not None or math.isnan(distance) else distance / LIGHT_IN_FIBRE_M_PER_S
            delay = _attribute(where, data, ("delay_s",), usual)
            if not (rate > 0 and delay >= 0):
                raise InvalidFileError(f"{where}: {rate:g} bit/s, {delay:g} s: expected a rate above 0 and a delay")
            if ends not in links or rate > links[ends][1]:
                links[ends] = (delay, rate)
    names = tuple(str(data.get("label", node)) for node, data in nodes)
    values = np.array(list(links.values()), np.float64).reshape(-1, 2)
    return Backhaul(names, position, np.array(list(links), np.int64).reshape(-1, 2), values[:, 0], values[:, 1])


# --- positions -----------------------------------------------------------------------------------------------------


def _metres(degrees: Floats) -> Floats:
    """Return metres to the east and north of the middle, given longitudes and latitudes."""
    middle = (degrees.min(axis=0) + degrees.max(axis=0)) / 2
    scale = np.pi / 180 * EARTH_M * np.array([np.cos(np.pi / 180 * middle[1]), 1.0])
    return np.asarray((degrees - middle) * scale)


def _kind(where: str, value: object, kind: str | None) -> str:
    said = str(value).strip().lower() if value not in (None, "") else kind
    if said not in KINDS:
        raise InvalidFileError(f"{where}: kind = {quoted(value)}: expected server or device, or to be told which")
    return said


def _coordinate(where: str, value: object, most: float = 1e9) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not abs(found) <= most:
        raise InvalidFileError(f"{where} = {quoted(value)}: expected a number from -{most:g} to {most:g}")
    return found


def _rows(path: Path, kind: str | None) -> tuple[list[tuple[str, float, float, str]], bool]:
    try:
        text = read_file(path, MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFileError(f"{path}: not all of it is UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or "\x00" in text:
        raise InvalidFileError(f"{path}: expected a header and at least one row of text")
    try:
        head, *rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=max(",;\t", key=lines[0].count))
    except (csv.Error, ValueError) as error:
        raise InvalidFileError(f"{path}: {' '.join(str(error).split())}") from None
    if not rows:  # a quotation mark that nobody closes makes one cell of all lines
        raise InvalidFileError(f"{path}: no row under the header: expected at least one")
    names = [name.strip().lower().replace(" ", "_") for name in head]
    at = {name: i for i, name in reversed(list(enumerate(names)))}
    angular = any(name in at for name in _LATITUDE)
    axes = (dict.fromkeys(_LONGITUDE, 1.0), dict.fromkeys(_LATITUDE, 1.0)) if angular else (_EAST, _NORTH)
    found = [next((name for name in axis if name in at), None) for axis in axes]
    if found[0] is None or found[1] is None:
        raise InvalidFileError(f"{path}: columns {quoted(names)}: expected x and y, or lat and lon")
    name_at = next((at[name] for name in _NAMES if name in at), None)
    places = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        if len(row) != len(names):
            raise InvalidFileError(f"{where}: {len(row)} cells, expected {len(names)} as in the header")
        east, north = (
            axis[name] * _coordinate(f"{where}: {name}", row[at[name]], (180.0, 90.0)[i] if angular else 1e9)
            for i, (axis, name) in enumerate(zip(axes, (found[0], found[1]), strict=True))
        )
        own = _kind(where, row[at["kind"]] if "kind" in at else None, kind)
        places.append((str(number - 1) if name_at is None else row[name_at].strip(), east, north, own))
    return places, angular


def _features(path: Path, kind: str | None) -> tuple[list[tuple[str, float, float, str]], bool]:
    document = Fields(parse_json_object(path, read_file(path, MAX_TEXT)), f"{path}: ")
    document.expect("type", "FeatureCollection")
    places = []
    for number, feature in enumerate(document.tables("features")):
        where = f"{path}: features[{number}]"
        geometry = feature.table("geometry")
        if (shape := geometry.text("type")) != "Point":
            raise InvalidFileError(f"{where}: geometry.type = {quoted(shape)}: expected Point")
        point = geometry.entries("coordinates")
        if len(point) not in (2, 3):
            raise InvalidFileError(f"{where}: geometry.coordinates = {quoted(point)}: expected longitude and latitude")
        east = _coordinate(f"{where}: longitude", point[0], 180.0)
        north = _coordinate(f"{where}: latitude", point[1], 90.0)
        told: Mapping[str, Any] = dict(feature.table("properties")) if feature["properties"] is not None else {}
        own = _kind(where, told.get("kind"), kind)
        name = next((told[name] for name in _NAMES if told.get(name) is not None), number)
        places.append((quoted(name).strip("'"), east, north, own))
    if not places:
        raise InvalidFileError(f"{path}: features: expected at least one point")
    return places, True


# --- graphs --------------------------------------------------------------------------------------------------------


def _graph(path: str | os.PathLike[str]) -> Any:
    """Return the graph in a GraphML file, after a first look that refuses what plain ones lack."""
    import networkx as nx

    data = read_file(path, MAX_TEXT)
    _refuse_strange_xml(path, data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of values without a type, which are looked at below
            return nx.parse_graphml(data, node_type=str)
    except Exception as error:  # noqa: BLE001 - on hostile text its parser raises a dozen kinds
        raise InvalidFileError(f"{path}: not a graph as GraphML: {quoted(str(error))[1:-1]}") from None


def _refuse_strange_xml(path: str | os.PathLike[str], data: bytes) -> None:
    from xml.parsers import expat

    def refuse(*_: object) -> None:
        raise InvalidFileError(f"{path}: has a document type, which may define entities: expected plain GraphML")

    depth = 0

    def enter(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidFileError(f"{path}: elements more than {MAX_DEPTH} deep: expected plain GraphML")

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler, parser.EndElementHandler = refuse, enter, leave
    try:
        parser.Parse(data, True)
    except InvalidFileError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InvalidFileError(f"{path}: not XML: {quoted(str(error))[1:-1]}") from None


def _positions(nodes: Sequence[tuple[Any, Mapping[str, Any]]]) -> Floats:
    """Return metres [N, 2] of nodes; nan where one does not say, or not as the others do."""
    for east, north, angular in (("x_m", "y_m", False), ("Longitude", "Latitude", True)):
        there = [east in data and north in data for _, data in nodes]
        if any(there):
            found = np.full((len(nodes), 2), np.nan)
            most = (180.0, 90.0) if angular else (1e9, 1e9)
            for i, (node, data) in enumerate(nodes):
                if there[i]:
                    found[i] = [_coordinate(f"node {quoted(node)}: {name}", data[name], most[k]) for k, name in enumerate((east, north))]  # fmt: skip
            if angular:
                found[there] = _metres(found[there])
            return found
    return np.full((len(nodes), 2), np.nan)


def _attribute(where: str, data: Mapping[str, Any], names: Sequence[str], usual: float | None) -> float:
    value = next((data[name] for name in names if name in data), usual)
    if value is None:
        raise InvalidFileError(f"{where}: no {names[0]}: expected one, or to be told what is usual")
    return _coordinate(f"{where}: {names[0]}", value, 1e18)
