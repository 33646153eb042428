"""`TimeSeries`: numbers of several columns that hold from one time to the next, such as measured rates of clients."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeopt import storage
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.fields import Fields, check_table, in_file
from edgeopt.npz import numbers
from edgeopt.quantities import UNITS, Quantity
from edgeopt.rng import stream
from edgeopt.validate import float_array, int_array, integer, real

Floats = NDArray[np.float64]
_KIND = "time-series"
_LAYOUT = {"indptr": numbers(1), "time_s": numbers(1), "value": numbers(1), "period_s": numbers(1)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TimeSeries:
    r"""Numbers of C columns over time: rates of clients, carbon intensities of places, who is available.

    A value holds until the next one of its column. After its period a column begins again, as traces of links do, so
    that every time from 0 on has a value. Columns have times of their own.

    Parameters
    ----------
    names : of the columns, such as clients.
    indptr : int64 [C + 1], where the samples of each column begin; each has one at least.
    time_s : float64 [P], seconds, ascending in each column from 0.
    value : float64 [P], >= 0, in `UNITS`; of availability at most 1.
    period_s : float64 [C], after the last time of the column. One number stands for all.
    quantity : ``rate`` (bit/s), ``carbon`` (g of CO2 per kWh), ``power`` (W) or ``availability``.

    Raises
    ------
    InvalidProblemError
        Naming field, index, value and what was expected.

    Examples
    --------
    Two clients: one has 8 Mbit/s for a second and then nothing for another, one has 1 Mbit/s always.

    >>> rates = TimeSeries(names=["bus", "desk"], indptr=[0, 2, 3], time_s=[0, 1, 0], value=[8e6, 0, 1e6], period_s=2)
    >>> rates.at(3.5)
    array([      0., 1000000.])
    >>> rates.mean(0.5, 2.5)
    array([4000000., 1000000.])
    >>> rates.seconds(6e6, 0.5)  # 4 of the 6 Mbit before the gap
    array([1.75, 6.  ])
    """

    names: Sequence[str]
    indptr: NDArray[np.int64]
    time_s: Floats
    value: Floats
    period_s: Floats
    quantity: Quantity = "rate"
    _area: Floats = field(init=False, repr=False)  # [P], integral of the column up to each time
    _total: Floats = field(init=False, repr=False)  # [C], over a period

    def __post_init__(self) -> None:
        if self.quantity not in get_args(Quantity):
            raise InvalidProblemError(f"quantity = {quoted(self.quantity)}: expected one of {', '.join(UNITS)}")
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        if not names or not all(isinstance(name, str) for name in names):
            raise InvalidProblemError(f"names = {quoted(names)}: expected at least one text")
        unit = UNITS[self.quantity]
        value = float_array("value", self.value, (None,), nonnegative=True, ranged=True, unit=unit)
        time = float_array("time_s", self.time_s, (value.size,), nonnegative=True, ranged=True, unit="s")
        indptr = int_array("indptr", self.indptr, (len(names) + 1,), low=0, high=value.size, dtype=np.int64)
        if indptr[0] != 0 or indptr[-1] != value.size or (np.diff(indptr) < 1).any():
            raise InvalidProblemError(
                f"indptr: expected starts ascending from 0 to {value.size}, one sample or more in each"
            )
        first, last = indptr[:-1], indptr[1:] - 1
        begins = np.zeros(value.size, bool)
        begins[first] = True
        early = np.diff(time, prepend=0.0) <= 0
        wrong = np.where(begins, time != 0, early)
        if wrong.any():
            at = int(wrong.argmax())
            expected = "0 at the start of a column" if begins[at] else "a time after the one before"
            raise InvalidProblemError(f"time_s[{at}] = {quoted(float(time[at]))}: expected {expected}")
        period = float_array("period_s", self.period_s, (len(names),), positive=True, ranged=True, unit="s")
        if (short := period <= time[last]).any():
            c = int(short.argmax())
            raise InvalidProblemError(
                f"period_s[{c}] = {quoted(float(period[c]))}: expected more than {time[last[c]]:g}, the last time"
            )
        if self.quantity == "availability" and (bad := np.flatnonzero(value > 1)).size:
            raise InvalidProblemError(f"value[{bad[0]}] = {quoted(float(value[bad[0]]))}: expected 0 to 1")
        ends = np.append(time[1:], 0.0)
        ends[last] = period
        pieces = value * (ends - time)
        sums = [np.cumsum(part) for part in np.split(pieces, indptr[1:-1])]
        checked: dict[str, Any] = {"names": names, "indptr": indptr, "time_s": time, "value": value, "period_s": period}
        checked["_area"] = np.concatenate([np.insert(part[:-1], 0, 0.0) for part in sums])
        checked["_total"] = np.array([part[-1] for part in sums])
        for name, array in checked.items():
            object.__setattr__(self, name, array)

    # --- shape -------------------------------------------------------------------------------------------------

    @property
    def num_columns(self) -> int:
        """Columns, C."""
        return len(self.names)

    @property
    def num_samples(self) -> int:
        """Samples of all columns, P."""
        return self.value.size

    def __repr__(self) -> str:
        return f"TimeSeries({self.quantity}, {self.num_columns} columns, {self.num_samples} samples)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimeSeries):
            return NotImplemented
        arrays = ("indptr", "time_s", "value", "period_s")
        plain = (self.names, self.quantity) == (other.names, other.quantity)
        return plain and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)

    __hash__ = None  # type: ignore[assignment]

    # --- values ------------------------------------------------------------------------------------------------

    def at(self, time_s: ArrayLike, column: ArrayLike | None = None) -> Floats:
        """Return values at a time: float64 [M], of the given columns or of all.

        Parameters
        ----------
        time_s : seconds >= 0, one number or [M].
        column : int [M], numbers of columns. Default: all.
        """
        which, time = self._asked(time_s, column)
        return self.value[self._slot(self.time_s, time - self._whole(time, which) * self.period_s[which], which)]

    def mean(self, start_s: ArrayLike, end_s: ArrayLike, column: ArrayLike | None = None) -> Floats:
        """Return means over time from `start_s` to `end_s`, float64 [M]; the value there where both are the same."""
        which, start = self._asked(start_s, column)
        _, end = self._asked(end_s, which)
        length = end - start
        area = self._integral(end, which) - self._integral(start, which)
        there = length > 0
        found = np.divide(area, length, out=np.array(self.at(start, which)), where=there)
        return np.asarray(np.maximum(found, 0.0))

    def seconds(self, amount: ArrayLike, start_s: ArrayLike, column: ArrayLike | None = None) -> Floats:
        """Return how long each column takes from `start_s` on until its integral has grown by `amount`: of rates, by bits.

        Returns
        -------
        Float64 [M] in seconds; inf for columns that are 0 at all times, 0 for an amount of 0.
        """
        which, start = self._asked(start_s, column)
        wanted = np.broadcast_to(float_array("amount", amount, np.shape(amount), nonnegative=True), which.shape)
        phase = start - self._whole(start, which) * self.period_s[which]
        slot = self._slot(self.time_s, phase, which)
        done = self._area[slot] + self.value[slot] * (phase - self.time_s[slot])
        goal, total = done + wanted, self._total[which]
        rounds = np.ceil(np.divide(goal, total, out=np.ones_like(goal), where=total > 0)) - 1
        rest = np.clip(goal - rounds * total, 0.0, total)
        at = self._slot(self._area, rest, which, strictly=True)  # the last sample at whose start less was done
        left = np.divide(rest - self._area[at], self.value[at], out=np.zeros_like(rest), where=self.value[at] > 0)
        found = rounds * self.period_s[which] + self.time_s[at] + left - phase
        found = np.where(total > 0, np.maximum(found, 0.0), np.inf)
        return np.asarray(np.where(wanted > 0, found, 0.0))

    def next_change(self, time_s: ArrayLike, column: ArrayLike | None = None) -> Floats:
        """Return when each column has its next sample after a time, float64 [M]."""
        which, time = self._asked(time_s, column)
        whole = self._whole(time, which) * self.period_s[which]
        slot = self._slot(self.time_s, time - whole, which)
        last = slot + 1 == self.indptr[which + 1]
        after = np.where(last, self.period_s[which], self.time_s[np.minimum(slot + 1, self.value.size - 1)])
        return np.asarray(np.maximum(whole + after, np.nextafter(time, np.inf)))

    def table(self, rows: int, step_s: float, start_s: float = 0.0) -> Floats:
        """Return means over rows of equal length, float64 [rows, C]: row t is from ``start_s + t step_s`` on."""
        count, step = integer("rows", rows, low=1), real("step_s", step_s, positive=True, unit="s")
        check_table("rows x columns", count, self.num_columns)
        edges = real("start_s", start_s, nonnegative=True, unit="s") + step * np.arange(count + 1)
        time = np.repeat(edges, self.num_columns)
        area = self._integral(time, np.tile(np.arange(self.num_columns), count + 1)).reshape(count + 1, -1)
        return np.asarray(np.maximum(np.diff(area, axis=0) / step, 0.0))

    def _asked(self, time_s: ArrayLike, column: ArrayLike | None) -> tuple[NDArray[np.int64], Floats]:
        if column is None:
            which = np.arange(self.num_columns)
        else:
            which = int_array("column", column, (None,), low=0, high=self.num_columns - 1, dtype=np.int64)
        return which, float_array("time_s", time_s, which.shape, nonnegative=True, unit="s")

    def _whole(self, time: Floats, which: NDArray[np.int64]) -> Floats:
        """Return how many whole periods have gone by; rounded so that what is left is never negative."""
        whole = np.floor(time / self.period_s[which])
        return np.asarray(np.where(whole * self.period_s[which] > time, whole - 1, whole))

    def _integral(self, time: Floats, which: NDArray[np.int64]) -> Floats:
        """Return the integral from 0 to a time."""
        whole = self._whole(time, which)
        phase = time - whole * self.period_s[which]
        slot = self._slot(self.time_s, phase, which)
        return whole * self._total[which] + self._area[slot] + self.value[slot] * (phase - self.time_s[slot])

    def _slot(
        self, keys: Floats, goal: Floats, which: NDArray[np.int64], *, strictly: bool = False
    ) -> NDArray[np.int64]:
        """Return the last sample of each column whose key is at most, or strictly below, a goal; the first if none is."""
        low, high = self.indptr[which].copy(), self.indptr[which + 1] - 1
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = keys[middle] < goal if strictly else keys[middle] <= goal
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low

    # --- other series ------------------------------------------------------------------------------------------

    def take(self, column: ArrayLike) -> Self:
        """Return the series of some columns, which may repeat: ``rates.take([0, 0, 1])`` is for three clients.

        Examples
        --------
        >>> TimeSeries.constant([1e6, 2e6]).take([1, 1]).names
        ('1', '1')
        """
        which = int_array("column", column, (None,), low=0, high=self.num_columns - 1, dtype=np.int64)
        if not which.size:
            raise InvalidProblemError("column: expected at least one")
        sizes = np.diff(self.indptr)[which]
        check_table("samples", int(sizes.sum()))
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        samples = np.arange(indptr[-1]) + np.repeat(self.indptr[which] - indptr[:-1], sizes)
        return dataclasses.replace(
            self, names=[self.names[c] for c in which], indptr=indptr, time_s=self.time_s[samples],
            value=self.value[samples], period_s=self.period_s[which],
        )  # fmt: skip

    def for_clients(self, count: int) -> Self:
        """Return a column for each of so many clients: client u follows column u mod C."""
        return self.take(np.arange(integer("count", count, low=1)) % self.num_columns)

    def at_most(self, limit: ArrayLike) -> Self:
        """Return the series with no value above a limit, one number or one of each column."""
        most = float_array("limit", limit, (self.num_columns,), nonnegative=True, finite=False)
        return dataclasses.replace(self, value=np.minimum(self.value, np.repeat(most, np.diff(self.indptr))))

    # --- making, reading and writing ---------------------------------------------------------------------------

    @classmethod
    def constant(cls, value: ArrayLike, quantity: Quantity = "rate") -> Self:
        """Return columns 0, 1, ... of a value each that never changes."""
        given = float_array("value", np.atleast_1d(np.asarray(value)), (None,), nonnegative=True)
        return cls(
            names=[str(c) for c in range(given.size)], indptr=np.arange(given.size + 1), time_s=np.zeros(given.size),
            value=given, period_s=np.ones(given.size), quantity=quantity,
        )  # fmt: skip

    @classmethod
    def from_table(
        cls, value: ArrayLike, step_s: float, *, names: Sequence[str] | None = None, quantity: Quantity = "rate"
    ) -> Self:
        """Return columns whose values stand in a table [T, C], one row after another every `step_s` seconds.

        Examples
        --------
        >>> TimeSeries.from_table([[1e6], [3e6]], step_s=60).mean(0, 120)
        array([2000000.])
        """
        table = float_array("value", value, (None, None), nonnegative=True, unit=UNITS.get(quantity, ""))
        step = real("step_s", step_s, positive=True, unit="s")
        rows, columns = table.shape
        if not table.size:
            raise InvalidProblemError(f"value: expected rows and columns, got shape {list(table.shape)}")
        return cls(
            names=[str(c) for c in range(columns)] if names is None else names,
            indptr=rows * np.arange(columns + 1), time_s=np.tile(step * np.arange(rows), columns),
            value=table.T.ravel(), period_s=rows * step, quantity=quantity,
        )  # fmt: skip

    @classmethod
    def random(
        cls,
        kind: str = "walk",
        *,
        clients: int = 20,
        duration_s: float = 600.0,
        mean_bps: tuple[float, float] = (2e6, 2e7),
        seed: int = 0,
    ) -> Self:
        """Return rates that are made up, one sample a second.

        ============  ==========================================================================================
        kind          rates
        ============  ==========================================================================================
        ``steady``    never change
        ``fading``    a log-normal factor of mean one, drawn anew every second (sigma = 0.8)
        ``walk``      the same factor, correlated over a minute: ``exp(-1 s / 60 s)`` from second to second
        ``tunnels``   as ``walk``, and no link at all for 20 s now and then, a fifth of the time
        ============  ==========================================================================================

        Parameters
        ----------
        clients : C.
        duration_s : length of the trace.
        mean_bps : ``(low, high)``, range of the clients' mean rates, drawn log-uniformly.
        seed : same seed, same rates; more clients leave the earlier ones alone.
        """
        if kind not in KINDS:
            raise InvalidProblemError(f"kind = {quoted(kind)}: expected one of {', '.join(KINDS)}")
        count, rows = (
            integer("clients", clients, low=1),
            max(1, round(real("duration_s", duration_s, positive=True, unit="s"))),
        )
        check_table("seconds x clients", rows, count)
        low, high = float_array("mean_bps", mean_bps, (2,), positive=True, unit="bit/s").tolist()
        table = np.empty((rows, count))
        for c in range(count):  # a stream for each client
            rng = stream(seed, "random rates", c)
            mean = low * (high / low) ** rng.random()
            table[:, c] = mean * _factor(kind, rng.standard_normal(rows), rng.random(rows))
        return cls.from_table(table, 1.0)

    @classmethod
    def read(cls, *paths: str | os.PathLike[str], quantity: Quantity = "rate", **options: Any) -> Self:
        r"""Read what others have measured: tables, Mahimahi's and Pensieve's traces; see `edgeopt.series_files.read_series`.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "rates.csv"
        >>> _ = path.write_text("time;client;rate (Mbit/s)\n0;a;1,5\n10;a;3\n0;b;2\n")
        >>> rates = TimeSeries.read(path)
        >>> rates.names, rates.at(5)
        (('a', 'b'), array([1500000., 2000000.]))
        """
        from edgeopt.series_files import read_series

        return cls(**read_series(paths, quantity, **options))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the series to a ``.json`` or ``.npz`` file, atomically."""
        header = {"kind": _KIND, "schema_version": 1, "quantity": self.quantity, "names": list(self.names)}
        storage.save(path, header, {name: getattr(self, name) for name in _LAYOUT})

    @classmethod
    def load(cls, path: str | os.PathLike[str], quantity: Quantity | None = None) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        quantity : what is expected. Default: any.

        Raises
        ------
        InvalidFileError
            If the file is corrupt, too large, no series, or of another quantity; the message starts with the path.
        """

        def layout(header: dict[str, Any]) -> Mapping[str, Any]:
            given = Fields(header)
            given.expect("kind", _KIND)
            given.expect("schema_version", 1)
            return _LAYOUT

        header, arrays = storage.load(path, layout)
        if missing := [name for name in _LAYOUT if name not in arrays]:
            raise InvalidFileError(f"{path}: {missing[0]}: array is missing")
        with in_file(path):
            given = Fields(header)
            found: Any = given.choice("quantity", tuple(UNITS))
            if quantity not in (None, found):
                raise InvalidFileError(f"quantity = {found!r}: expected {quantity!r}")
            kept: dict[str, Any] = {name: arrays[name] for name in _LAYOUT}
            return cls(names=given.texts("names"), quantity=found, **kept)

    def statistics(self) -> dict[str, Any]:
        """Return what there is in plain values: sizes, the longest period, and mean, least and greatest value."""
        mean = self._total / self.period_s
        return {
            "quantity": self.quantity,
            "unit": UNITS[self.quantity],
            "columns": self.num_columns,
            "samples": self.num_samples,
            "period_s": float(self.period_s.max()),
            "mean": float(mean.mean()),
            "least": float(self.value.min()),
            "greatest": float(self.value.max()),
        }


KINDS = ("steady", "fading", "walk", "tunnels")
"""What `TimeSeries.random` knows."""
_SIGMA, _CORRELATED_S = 0.8, 60.0
_TUNNEL_S, _TUNNELS = 20, 0.2


def _factor(kind: str, normal: Floats, uniform: Floats) -> Floats:
    if kind == "steady":
        return np.ones_like(normal)
    log = normal
    if kind != "fading":
        from scipy.signal import lfilter

        keep = np.exp(-1 / _CORRELATED_S)
        new = np.sqrt(1 - keep**2)
        log = lfilter([new], [1, -keep], normal, zi=[(1 - new) * normal[0]])[0]  # stationary from the start
    factor = np.exp(_SIGMA * log - _SIGMA**2 / 2)
    if kind == "tunnels":
        begins = uniform < _TUNNELS / (_TUNNEL_S * (1 - _TUNNELS))
        inside = np.convolve(begins, np.ones(_TUNNEL_S))[: normal.size] > 0
        inside[0] = inside[-1] = False  # so that every client has a link at some time
        factor = np.where(inside, 0.0, factor)
    return np.asarray(factor)
