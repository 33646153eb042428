"""Files of others that `TimeSeries.read` knows: tables of measurements, and traces of Mahimahi and Pensieve."""

import csv
import datetime
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import in_file
from edgeopt.files import read_file
from edgeopt.quantities import UNITS, Quantity
from edgeopt.validate import real

Floats = NDArray[np.float64]

MAX_TEXT = 64 << 20
"""Bytes of a file."""
MAX_CELLS = 8 << 20
"""Lines of a trace, or cells of a table: each takes some hundred bytes while it is read."""
PACKET_BITS = 1500 * 8
"""What one line of a Mahimahi trace lets through."""
BIN_MS = 100
"""Packets of a Mahimahi trace are counted over so long."""

Fields = dict[str, Any]


class Column(NamedTuple):
    """What was measured of one client: times as the file has them, values in the unit of the quantity, and its length.

    A column without a period shares the clock of the others of its file.
    """

    name: str
    time_s: Floats
    value: Floats
    period_s: float | None = None


class Hints(NamedTuple):
    """What the user says where a file does not."""

    unit: str | None = None
    time: str | None = None
    client: str | None = None
    value: str | None = None
    decimal: str | None = None
    hold_s: float = math.inf


def read_series(
    paths: Sequence[str | os.PathLike[str]],
    quantity: Quantity = "rate",
    *,
    format: str | None = None,
    unit: str | None = None,
    time: str | None = None,
    client: str | None = None,
    value: str | None = None,
    decimal: str | None = None,
    hold_s: float = math.inf,
) -> Fields:
    """Return the fields of the `TimeSeries` in some files.

    Parameters
    ----------
    paths : one file or more. Clients of the same name in several tables are one.
    quantity : what was measured.
    format : ``table``, ``mahimahi`` or ``pensieve``. Default: by the first line of each file.
    unit : of the values, such as ``Mbit/s``, ``kB/s``, ``g/kWh``. Default: as the header says.
    time, client, value : names of the columns. Default: by usual names; where no column has values, every column but that of
        the time is a client.
    decimal : ``.`` or ``,``. Default: the comma where numbers have commas and no points.
    hold_s : how long a value counts where no other follows; then there is a gap, in which it is 0. Default: as long as it takes.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise InvalidProblemError("paths: expected at least one file")
    if format is not None and format not in SERIES_FORMATS:
        raise InvalidProblemError(f"format = {quoted(format)}: expected one of {', '.join(SERIES_FORMATS)}")
    if decimal not in (None, ".", ","):
        raise InvalidProblemError(f"decimal = {quoted(decimal)}: expected '.' or ','")
    hold = real("hold_s", hold_s, positive=True, finite=False, unit="s")
    hints = Hints(unit, time, client, value, decimal, hold)
    if unit is not None:
        factor_of(unit, quantity)
    found: list[Column] = []
    for path in files:
        with in_file(path):
            lines = _lines(path)
            chosen = format or _format_of(lines)
            if chosen != "table" and quantity != "rate":
                raise InvalidFileError(f"a trace of {chosen}: expected a table, for {quantity}")
            found += SERIES_FORMATS[chosen](path, lines, quantity, hints)
    with in_file(files[0] if len(files) == 1 else ", ".join(map(str, files))):
        return _joined(found, quantity, hold)


# --- columns into a series -----------------------------------------------------------------------------------------


def _joined(columns: Sequence[Column], quantity: Quantity, hold_s: float) -> Fields:
    """Bring columns of equal names together, and to a clock that begins at 0."""
    named: dict[str, list[Column]] = {}
    for column in columns:
        named.setdefault(column.name, []).append(column)
    if (alone := next((name for name, own in named.items() if len(own) > 1 and own[0].period_s), None)) is not None:
        raise InvalidFileError(f"{quoted(alone)}: two traces of that name: expected different names of files")
    names = _ordered(list(named))
    tables = [column for column in columns if column.period_s is None]
    start = min((column.time_s.min() for column in tables), default=0.0)
    parts: list[tuple[Floats, Floats]] = []
    for name in names:
        time = np.concatenate([column.time_s for column in named[name]])
        value = np.concatenate([column.value for column in named[name]])
        order = np.argsort(time, kind="stable")
        time, value = time[order], value[order]
        if named[name][0].period_s is None:
            time = time - start
            if (twice := np.flatnonzero(np.diff(time) <= 0)).size:
                raise InvalidFileError(f"{quoted(name)}: two values at {time[twice[0]]:g} s: expected one")
        parts.append((time, value))
    own = [named[name][0].period_s for name in names]
    shared = [i for i, period in enumerate(own) if period is None]
    if shared:  # the last values hold as long as values usually do
        end = max(parts[i][0][-1] for i in shared)
        common = end + max(_usual_step(parts[i][0]) for i in shared)
        if not common > end:
            raise InvalidFileError(f"times up to {end:g} s: expected steps that are not lost beside them")
        for i in shared:
            parts[i], own[i] = _filled(*parts[i], common, hold_s), common
    return {
        "names": names,
        "indptr": np.concatenate([[0], np.cumsum([time.size for time, _ in parts])]),
        "time_s": np.concatenate([time for time, _ in parts]),
        "value": np.concatenate([value for _, value in parts]),
        "period_s": np.array(own, np.float64),
        "quantity": quantity,
    }


def _filled(time: Floats, value: Floats, period_s: float, hold_s: float) -> tuple[Floats, Floats]:
    """Return samples from 0 on, with zeros where a value has held for long enough."""
    until = np.append(time[1:], period_s)
    gaps = np.flatnonzero(until - time > hold_s)
    time = np.insert(time, gaps + 1, time[gaps] + hold_s)
    value = np.insert(value, gaps + 1, 0.0)
    if time[0] > 0:  # nothing yet: what was measured last, as one period follows the other
        time, value = np.insert(time, 0, 0.0), np.insert(value, 0, value[-1] if math.isinf(hold_s) else 0.0)
    return time, value


def _usual_step(time: Floats) -> float:
    return float(np.median(np.diff(time))) if time.size > 1 else 1.0


def _ordered(names: list[str]) -> list[str]:
    """Return names as they came, or in the order of numbers if they are such."""
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names):
        return sorted(names, key=int)
    return names


# --- traces --------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    data = read_file(path, MAX_TEXT)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFileError(f"{path}: not all of it is UTF-8") from None
    if "\x00" in text:
        raise InvalidFileError(f"{path}: has null characters: expected text")
    if (count := text.count("\n")) > MAX_CELLS:
        raise InvalidFileError(f"{path}: {count} lines, expected at most {MAX_CELLS}")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InvalidFileError(f"{path}: empty: expected measurements")
    return lines


def _format_of(lines: Sequence[str]) -> str:
    words = lines[0].split()
    if len(words) == 1 and words[0].isascii() and words[0].isdecimal():
        return "mahimahi"
    return "pensieve" if len(words) == 2 and all(_is_number(word) for word in words) else "table"


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _mahimahi(path: Path, lines: Sequence[str], quantity: Quantity, hints: Hints) -> list[Column]:
    """Lines of milliseconds, each lets a packet of 1500 bytes through; the trace begins again after the last."""
    times = np.empty(len(lines), np.int64)
    for i, line in enumerate(lines):
        word = line.strip()
        if not (word.isascii() and word.isdecimal() and len(word) < 13) or (i and int(word) < times[i - 1]):
            raise InvalidFileError(f"{path}: line {i + 1}: {quoted(word)}: expected milliseconds that do not go down")
        times[i] = int(word)
    last = int(times[-1])
    if last <= 0:
        raise InvalidFileError(f"{path}: line {len(lines)}: 0: expected a time after the start")
    bins = -(-last // BIN_MS)
    full, packets = np.unique(np.minimum(times // BIN_MS, bins - 1), return_counts=True)
    start = np.unique(np.concatenate([[0], full, full + 1]))  # bins with packets, and those where nothing begins
    start = start[start < bins]
    bits = np.zeros(start.size)
    bits[np.searchsorted(start, full)] = PACKET_BITS * packets
    milliseconds = np.minimum(BIN_MS, last - BIN_MS * start)
    return [Column(path.stem, BIN_MS * start / 1000, 1000 * bits / milliseconds, last / 1000)]


def _pensieve(path: Path, lines: Sequence[str], quantity: Quantity, hints: Hints) -> list[Column]:
    """Lines of seconds and Mbit/s: what was measured since the line before; the trace begins again after the last."""
    rows = np.empty((len(lines), 2))
    factor = factor_of(hints.unit or "Mbit/s", quantity)
    for i, line in enumerate(lines):
        words = line.split()
        if len(words) == 2 and all(_is_number(word) for word in words):
            rows[i] = [float(word) for word in words]
        else:
            rows[i] = math.nan
        if not (abs(rows[i, 0]) <= _MOST_S and rows[i, 1] >= 0):
            raise InvalidFileError(f"{path}: line {i + 1}: {quoted(line.strip())}: expected seconds and a rate")
        if i and rows[i, 0] <= rows[i - 1, 0]:
            raise InvalidFileError(f"{path}: line {i + 1}: {words[0]} s: expected a time after {rows[i - 1, 0]:g}")
    if len(rows) < 2:
        raise InvalidFileError(f"{path}: one line: expected two, as a rate is that since the line before")
    time = rows[:, 0] - rows[0, 0]
    return [Column(path.stem, time[:-1], _scaled(rows[1:, 1], factor), float(time[-1]))]


# --- tables --------------------------------------------------------------------------------------------------------

_TIMES = ("time", "timestamp", "t", "date", "datetime", "date time", "seconds", "utc", "zeit")
_CLIENTS = ("client", "device", "user", "ue", "phone", "name", "zone", "region", "country", "place", "id")
_VALUES: dict[Quantity, tuple[str, ...]] = {
    "rate": ("rate", "bandwidth", "throughput", "bitrate", "speed", "uplink", "downlink", "goodput"),
    "carbon": ("carbon intensity", "carbon", "intensity", "co2"),
    "power": ("power", "spare power", "solar", "wind", "production", "generation"),
    "availability": ("available", "availability", "charging", "wifi", "wi-fi", "plugged in", "idle", "free"),
}
_MISSING = ("", "nan", "na", "n/a", "null", "none", "-")
_MOST_S = 1e15
_TRUE, _FALSE = ("1", "true", "yes", "y", "on"), ("0", "false", "no", "n", "off")
_TIME_UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0}  # fmt: skip
_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_RATE = re.compile(
    r"(|k|K|m|M|g|G|Ki|ki|Mi|mi|Gi|gi)(b|bit|bits|B|byte|bytes|Byte|Bytes)(/s|/sec|ps|_per_second| per second)"
)
_CARBON = re.compile(r"(g|kg|lb|lbs)( ?co2(eq|e)?)? ?(/|_per_| per )(kwh|mwh)", re.IGNORECASE)
_GRAMS, _KWH = {"g": 1.0, "kg": 1e3, "lb": 453.59237, "lbs": 453.59237}, {"kwh": 1.0, "mwh": 1e3}


def factor_of(unit: str, quantity: Quantity) -> float:
    """Return what numbers in a unit are multiplied by; a capital B is bytes, a small one bits.

    Examples
    --------
    >>> factor_of("kB/s", "rate"), factor_of("Mbit/s", "rate"), factor_of("kg/MWh", "carbon")
    (8000.0, 1000000.0, 1.0)
    """
    if quantity == "rate" and (found := _RATE.fullmatch(unit.strip())):
        return _PREFIX[found[1].lower()] * (8 if found[2][0] == "B" or found[2].startswith("byte") else 1)
    if quantity == "carbon" and (found := _CARBON.fullmatch(unit.strip().replace("\u2082", "2"))):
        return _GRAMS[found[1].lower()] / _KWH[found[5].lower()]
    if quantity == "power" and (found := re.fullmatch(r"(|k|M|G)W", unit.strip())):
        return _PREFIX[found[1].lower()]
    if quantity == "availability" and unit in ("", "1", "%"):
        return 0.01 if unit == "%" else 1.0
    usual = {"rate": "bit/s, kbit/s, Mbit/s, Gbit/s, B/s, kB/s, MB/s", "carbon": "g/kWh, kg/MWh, lb/MWh", "power": "W, kW, MW", "availability": "none, or %"}  # fmt: skip
    raise InvalidProblemError(f"unit = {quoted(unit)}: expected one such as {usual[quantity]}")


class _Header(NamedTuple):
    """A column of a table: its name without the unit, its unit if it has one, and what stands there."""

    name: str
    unit: str | None
    full: str


def _header(cell: str) -> _Header:
    full = " ".join(cell.split())
    if brackets := re.fullmatch(r"(.*?)[ _]*[(\[]([^()\[\]]*)[)\]]", full):
        return _Header(_plain_name(brackets[1]), brackets[2].strip(), full)
    for split in re.finditer("[ _]", full):
        rest = full[split.end() :]
        if rest in _TIME_UNITS or _RATE.fullmatch(rest) or _CARBON.fullmatch(rest):
            return _Header(_plain_name(full[: split.start()]), rest, full)
    return _Header(_plain_name(full), full if _RATE.fullmatch(full) or _CARBON.fullmatch(full) else None, full)


def _plain_name(text: str) -> str:
    return text.strip().lower().replace("_", " ")


def _table(path: Path, lines: Sequence[str], quantity: Quantity, hints: Hints) -> list[Column]:
    """Read a header, and a row for each measurement, or for each time with a column for each client."""
    mark = max(",;\t", key=lines[0].count)
    if (count := len(lines) + sum(line.count(mark) for line in lines)) > MAX_CELLS:
        raise InvalidFileError(f"{path}: {count} cells, expected at most {MAX_CELLS}")
    try:
        rows = list(csv.reader(io.StringIO("\n".join(line.rstrip("\r") for line in lines)), delimiter=mark))
    except csv.Error as error:
        raise InvalidFileError(f"{path}: {error}") from None
    head = [_header(cell) for cell in rows[0]]
    rows = rows[1:]
    if not rows:
        raise InvalidFileError(f"{path}: no row under the header: expected at least one")
    if (bad := next((i for i, row in enumerate(rows) if len(row) != len(head)), None)) is not None:
        raise InvalidFileError(f"{path}: row {bad + 1}: {len(rows[bad])} cells, expected {len(head)} as in the header")
    columns = list(zip(*rows, strict=True))
    at_time = _find(path, "time", head, hints.time, _TIMES)
    if at_time is None:
        said = quoted([column.full for column in head])
        raise InvalidFileError(f"{path}: columns {said}: expected a header with one such as time or timestamp")
    at_client = _find(path, "client", head, hints.client, _CLIENTS)
    at_value = _find(path, "value", head, hints.value, _VALUES[quantity])
    if at_value is None and at_client is not None:
        rest = [i for i in range(len(head)) if i not in (at_time, at_client)]
        if len(rest) != 1:
            usual = ", ".join(_VALUES[quantity][:3])
            raise InvalidFileError(
                f"{path}: columns {quoted([column.full for column in head])}: expected one such as {usual}, or the name of one"
            )
        at_value = rest[0]
    numeric = [at_value] if at_value is not None else [i for i in range(len(head)) if i != at_time]
    if not numeric:
        raise InvalidFileError(f"{path}: only times: expected a column of values")
    decimal = hints.decimal or _decimal_mark(path, [columns[i] for i in numeric])
    time = _times(path, head[at_time], columns[at_time], decimal)
    found = [_values(path, head[i], columns[i], decimal, quantity, hints.unit) for i in numeric]
    if at_value is None:
        return [
            _measured(path, head[i].full or f"column {i + 1}", time, value)
            for i, value in zip(numeric, found, strict=True)
        ]
    if at_client is None:
        return [_measured(path, path.stem, time, found[0])]
    names, which = np.unique([name.strip() for name in columns[at_client]], return_inverse=True)
    first = {name: i for i, name in reversed(list(enumerate(which.tolist())))}
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    parts = [_measured(path, str(names[which[own[0]]]), time[own], found[0][own]) for own in groups]
    return sorted(parts, key=lambda part: first[int(np.searchsorted(names, part.name))])


def _measured(path: Path, name: str, time: Floats, value: Floats) -> Column:
    """Return a column without the times at which nothing was measured."""
    there = np.isfinite(value)
    if not there.any():
        raise InvalidFileError(f"{path}: {quoted(name)}: nothing was measured: expected at least one value")
    return Column(name, time[there], value[there])


def _find(path: Path, what: str, head: Sequence[_Header], wanted: str | None, usual: Sequence[str]) -> int | None:
    """Return the column of a name, or of the first usual name there is."""
    if wanted is not None:
        fitting = [i for i, column in enumerate(head) if wanted.strip().lower() in (column.full.lower(), column.name)]
        if len(fitting) != 1:
            said = quoted([column.full for column in head])
            raise InvalidFileError(f"{path}: {what} = {quoted(wanted)}: expected one of the columns {said}")
        return fitting[0]
    for name in usual:
        for i, column in enumerate(head):
            words = column.name.split()
            if column.name == name or (len(name) > 2 and (words[:1] == [name] or words[-1:] == [name])):
                return i
    if what == "value":
        return next((i for i, c in enumerate(head) if c.unit is not None and c.unit == c.full), None)
    return None


def _decimal_mark(path: Path, columns: Sequence[Sequence[str]]) -> str:
    """Return the comma if numbers have commas and no points."""
    commas = any("," in cell for cells in columns for cell in cells)
    points = any("." in cell for cells in columns for cell in cells)
    if commas and points:
        raise InvalidFileError(f"{path}: numbers with commas and numbers with points: expected to be told decimal")
    return "," if commas else "."


def _cells(path: Path, column: _Header, cells: Sequence[str], decimal: str) -> Floats:
    found = np.empty(len(cells))
    for i, cell in enumerate(cells):
        text = cell.strip()
        if text.lower() in _MISSING:
            found[i] = math.nan
            continue
        try:
            found[i] = float(text.replace(",", ".") if decimal == "," else text)
        except ValueError:
            raise InvalidFileError(f"{path}: row {i + 1}: {column.full} = {quoted(cell)}: expected a number") from None
    return found


def _scaled(values: Floats, factor: float) -> Floats:
    """Return values in another unit: infinite where floating-point numbers end, which is refused later."""
    with np.errstate(over="ignore"):
        return values * factor


def _times(path: Path, column: _Header, cells: Sequence[str], decimal: str) -> Floats:
    """Return seconds: numbers in the unit of the header, or dates with times."""
    texts = [cell.strip() for cell in cells]
    if any(c in texts[0][1:] for c in "-:T/") and not _is_number(texts[0]):
        found = np.empty(len(texts))
        for i, text in enumerate(texts):
            try:
                date = datetime.datetime.fromisoformat(text)
            except ValueError:
                raise InvalidFileError(
                    f"{path}: row {i + 1}: {column.full} = {quoted(text)}: expected a time such as 2030-01-31 07:30"
                ) from None
            found[i] = (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
        return found
    unit = column.unit or "s"
    if unit.lower() not in _TIME_UNITS:
        raise InvalidFileError(
            f"{path}: column {quoted(column.full)}: expected times in one of {', '.join(_TIME_UNITS)}"
        )
    mark = decimal if decimal == "," and not any("." in text for text in texts) else "."
    found = _scaled(_cells(path, column, cells, mark), _TIME_UNITS[unit.lower()])
    if (bad := np.flatnonzero(~np.isfinite(found) | (np.abs(found) > _MOST_S))).size:
        raise InvalidFileError(f"{path}: row {bad[0] + 1}: {column.full} = {quoted(cells[bad[0]])}: expected a time")
    return found


def _values(
    path: Path, column: _Header, cells: Sequence[str], decimal: str, quantity: Quantity, unit: str | None
) -> Floats:
    """Return values in the unit of the quantity, nan where a cell says nothing."""
    if quantity == "availability" and unit is None:
        words = [cell.strip().lower() for cell in cells]
        if all(word in (*_TRUE, *_FALSE, *_MISSING) for word in words):
            return np.array([math.nan if word in _MISSING else float(word in _TRUE) for word in words])
    told = unit or column.unit
    if told is None and quantity == "rate":
        raise InvalidFileError(
            f"{path}: column {quoted(column.full)} does not say its unit: expected one such as 'rate (Mbit/s)', or a unit"
        )
    factor = factor_of(told or UNITS[quantity], quantity)
    found = _scaled(_cells(path, column, cells, decimal), factor)
    if (bad := np.flatnonzero((found < 0) | np.isinf(found))).size:
        raise InvalidFileError(
            f"{path}: row {bad[0] + 1}: {column.full} = {quoted(cells[bad[0]])}: expected a number >= 0"
        )
    return found


SERIES_FORMATS: dict[str, Callable[[Path, Sequence[str], Quantity, Hints], list[Column]]] = {
    "table": _table,
    "mahimahi": _mahimahi,
    "pensieve": _pensieve,
}
"""Formats that `TimeSeries.read` knows, by name."""
