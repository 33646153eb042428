"""Time series against a second implementation that walks second by second, and files of others."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import EdgeOptError, InvalidFileError, InvalidProblemError
from edgeopt.series import KINDS, TimeSeries
from edgeopt.series_files import factor_of


def pieces(series: TimeSeries, column: int, until_s: float) -> list[tuple[float, float, float]]:
    """Return (start, end, value) of one column, period after period, up to a time."""
    own = slice(series.indptr[column], series.indptr[column + 1])
    times, values, period = series.time_s[own].tolist(), series.value[own].tolist(), float(series.period_s[column])
    found, base = [], 0.0
    while base < until_s:
        for start, end, value in zip(times, [*times[1:], period], values, strict=True):
            found.append((base + start, base + end, value))
        base += period
    return found


def area(series: TimeSeries, column: int, start_s: float, end_s: float) -> float:
    return sum(
        value * max(0.0, min(end, end_s) - max(start, start_s)) for start, end, value in pieces(series, column, end_s)
    )


@st.composite
def some_series(draw: st.DrawFn) -> TimeSeries:
    columns = draw(st.integers(1, 3))
    steps = [
        draw(st.lists(st.tuples(st.sampled_from((0.5, 1.0, 3.0)), st.sampled_from((0.0, 1.0, 2.5))), min_size=1, max_size=4))
        for _ in range(columns)
    ]  # fmt: skip
    times = [np.cumsum([0.0, *(length for length, _ in own)]) for own in steps]
    return TimeSeries(
        names=[str(c) for c in range(columns)], indptr=np.cumsum([0, *map(len, steps)]),
        time_s=np.concatenate([time[:-1] for time in times]), value=np.concatenate([[v for _, v in own] for own in steps]),
        period_s=[time[-1] for time in times],
    )  # fmt: skip


@given(some_series(), st.floats(0, 40), st.floats(0, 40), st.floats(0, 60))
def test_means_and_seconds(series: TimeSeries, start: float, length: float, amount: float):
    """Means are areas over lengths; a column has carried exactly the amount when its seconds are over, and not before."""
    mean, took = series.mean(start, start + length), series.seconds(amount, start)
    for c in range(series.num_columns):
        if length > 0:
            assert mean[c] * length == pytest.approx(area(series, c, start, start + length), abs=1e-9)
        if np.isinf(took[c]):
            assert area(series, c, 0, series.period_s[c]) == 0
        else:
            assert area(series, c, start, start + took[c]) == pytest.approx(amount, abs=1e-9)
            assert area(series, c, start, start + 0.9 * took[c]) < amount or amount == 0


@given(some_series(), st.floats(0, 20))
def test_values_hold_until_the_next(series: TimeSeries, time: float):
    """The value at a time is that of the piece that the time is in; tables are means."""
    found = series.at(time)
    for c in range(series.num_columns):
        (value,) = (value for start, end, value in pieces(series, c, time + 1e-9) if start <= time < end)
        assert found[c] == value
    table = series.table(3, 0.7, start_s=time)
    for row, values in enumerate(table):
        assert values == pytest.approx(series.mean(time + 0.7 * row, time + 0.7 * (row + 1)), abs=1e-9)


@given(some_series(), st.floats(0, 20))
def test_the_next_change(series: TimeSeries, time: float):
    """It is the end of the piece that the time is in."""
    found = series.next_change(time)
    for c in range(series.num_columns):
        (end,) = (end for start, end, _ in pieces(series, c, time + 1e-9) if start <= time < end)
        assert found[c] == pytest.approx(end)
        assert found[c] > time


@given(some_series(), st.floats(0, 20), st.floats(0, 10), st.floats(0.01, 20))
def test_who_starts_later_is_not_done_earlier(series: TimeSeries, start: float, later: float, amount: float):
    """What the study of regret rests on."""
    first, second = start + series.seconds(amount, start), start + later + series.seconds(amount, start + later)
    assert (first <= second + 1e-9).all()


def test_long_runs_do_not_drift():
    """After ten million periods a constant rate still takes as long as it says."""
    series = TimeSeries.from_table([[1e6], [3e6]], 1.0)
    assert series.seconds(8e6, 2e7) == pytest.approx(4.0, abs=1e-6)
    assert series.seconds(1e6, 2e7 + 0.5) == pytest.approx(0.5 + 0.5e6 / 3e6, abs=1e-6)


def test_columns_and_files(tmp_path: Path):
    """Columns can repeat and be capped; a saved series is the same."""
    series = TimeSeries.random("tunnels", clients=3, duration_s=100, seed=2)
    twice = series.for_clients(5)
    assert twice.names == ("0", "1", "2", "0", "1")
    assert (twice.mean(3, 60)[3:] == series.mean(3, 60)[:2]).all()
    assert series.at_most([1e6, np.inf, 0]).at(0).tolist() == [min(1e6, series.at(0)[0]), series.at(0)[1], 0]
    for name in ("a.json", "a.npz"):
        series.save(tmp_path / name)
        assert TimeSeries.load(tmp_path / name) == series
    with pytest.raises(InvalidFileError, match="quantity = 'rate': expected 'carbon'"):
        TimeSeries.load(tmp_path / "a.npz", "carbon")


def test_random_rates():
    """More clients leave the earlier ones alone; links fail in tunnels only; means stay where they were drawn."""
    for kind in KINDS:
        few, more = (TimeSeries.random(kind, clients=n, duration_s=400, seed=1) for n in (2, 4))
        assert more.take([0, 1]) == few
        assert (more.value == 0).any() == (kind == "tunnels")
    many = TimeSeries.random("walk", clients=400, duration_s=50, mean_bps=(1e6, 1e6), seed=0)
    assert many.mean(0, 50).mean() == pytest.approx(1e6, rel=0.1)
    share = TimeSeries.random("tunnels", clients=50, duration_s=2000, seed=0).value == 0
    assert share.mean() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": []}, r"names = \(\): expected at least one text"),
        ({"indptr": [0, 0, 2]}, "indptr: expected starts ascending from 0 to 2"),
        ({"time_s": [0, 1]}, r"time_s\[1\] = 1.0: expected 0 at the start"),
        ({"indptr": [0, 2], "names": ["a"], "period_s": 9}, r"time_s\[1\] = 0.0: expected a time after the one before"),
        ({"period_s": [1, 0]}, r"period_s\[1\] = 0.0: expected a positive"),
        ({"value": [1, -1]}, r"value\[1\] = -1.0: expected a non-negative number \(bit/s\)"),
        ({"value": [1, 1e60]}, r"value\[1\] = 1e\+60: expected 0 or a magnitude"),
        ({"quantity": "x"}, "quantity = 'x': expected one of rate, carbon, power, availability"),
        ({"quantity": "availability", "value": [1, 2]}, r"value\[1\] = 2.0: expected 0 to 1"),
    ],
)
def test_bad_series(changed: dict, message: str):
    """One line with field, index, value and what was expected."""
    good = {"names": ["a", "b"], "indptr": [0, 1, 2], "time_s": [0, 0], "value": [1, 2], "period_s": 1}
    with pytest.raises(InvalidProblemError, match=message):
        TimeSeries(**good | changed)


# --- files of others -----------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str, name: str = "measured.csv", **options) -> TimeSeries:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return TimeSeries.read(path, **options)


SAME = [
    ("time,client,bps\n0,a,1500000\n10,a,3000000\n0,b,2000000\n", {}),
    ("time;client;rate (Mbit/s)\n0;a;1,5\n10;a;3\n0;b;2\n", {}),
    ("\ufefftime_ms\tue\tthroughput_kbps\n0\ta\t1500\n10000\ta\t3000\n0\tb\t2000\n", {}),
    ("client,timestamp,download [kB/s],noise\nb,2030-01-31T07:30:00Z,250,x\na,2030-01-31T08:30:00+01:00,187.5,\na,2030-01-31 07:30:10,375,\n",
     {"value": "download [kB/s]"}),
    ("Time,a,b\n0,1.5,2\n10,3,\n", {"unit": "Mbit/s"}),
    ("time,client,rate\r\n100,a,1.5\r\n110,a,3\r\n105,a,n/a\r\n100,b,2\r\n", {"unit": "Mb/s"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options"), SAME)
def test_tables_of_the_same_measurements(tmp_path: Path, text: str, options: dict):
    """Marks, decimals, units, dates, wide and long tables, and cells without a value all come to the same."""
    series = read(tmp_path, text, **options)
    order = [series.names.index(name) for name in ("a", "b")]
    found = series.take(order)
    assert found.period_s.tolist() == [20, 20]
    assert (found.at(5) == [1.5e6, 2e6]).all()
    assert (found.at(12) == [3e6, 2e6]).all()


def test_gaps(tmp_path: Path):
    """Without a limit a value holds; with one there is nothing after it. Whoever came late had what they had last."""
    text = "time,client,bps\n0,a,8\n10,a,8\n4,b,6\n8,b,2\n"
    held, gaps = read(tmp_path, text), read(tmp_path, text, hold_s=5)
    assert held.at(1).tolist() == [8, 2]
    assert held.mean(0, 20)[0] == 8
    assert gaps.at(1).tolist() == [8, 0]
    assert [gaps.at(t)[0] for t in (4.9, 5.1, 9.9, 10, 14.9, 15.1)] == [8, 0, 0, 8, 8, 0]


def test_numbered_clients_are_in_order(tmp_path: Path):
    """10 comes after 9."""
    assert read(tmp_path, "time,client,bps\n0,10,1\n0,9,2\n").names == ("9", "10")


def test_mahimahi(tmp_path: Path):
    """Every line lets 1500 bytes through: no bit is lost, and the trace begins again after its last line."""
    times = np.sort(np.random.default_rng(0).integers(0, 2345, 400))
    series = read(tmp_path, "\n".join(map(str, times)), "link.up")
    period = times[-1] / 1000
    assert series.period_s == period
    assert series.mean(0, period) * period == pytest.approx(400 * 1500 * 8)
    for end in (0.1, 0.5, 1.7):
        assert series.mean(0, end) * end == pytest.approx(12000 * (times < 1000 * end).sum())
    assert series.names == ("link",)


def test_mahimahi_with_long_gaps(tmp_path: Path):
    """A trace takes memory for its packets, not for its years; what a last bin lacks of 0.1 s counts."""
    series = read(tmp_path, "0\n5\n60250\n60320\n999999999999\n", "link.up")
    np.testing.assert_allclose(series.time_s, [0, 0.1, 60.2, 60.3, 60.4, 999999999.9], rtol=1e-12)
    np.testing.assert_allclose(series.value, [2.4e5, 0, 1.2e5, 1.2e5, 0, 12000 / 0.099], rtol=1e-5)
    assert series.period_s == 999999999.999


def test_pensieve(tmp_path: Path):
    """A line is the rate since the line before."""
    series = read(tmp_path, "0.5 9.0\n1.5 2.0\n3.5 0.5\n", "norway_bus_1")
    assert (series.at(0.2), series.at(1.5), series.period_s) == (2e6, 0.5e6, 3)


def test_several_files(tmp_path: Path):
    """Each trace is a client of its own length; tables with the same client are one."""
    for name, text in (
        ("a.up", "10\n20\n"),
        ("b.up", "40\n"),
        ("c.csv", "time,bps\n0,1\n"),
        ("d.csv", "time,client,bps\n1,c,3\n"),
    ):
        (tmp_path / name).write_text(text)
    series = TimeSeries.read(*(tmp_path / name for name in ("a.up", "b.up", "c.csv", "d.csv")))
    assert series.names == ("a", "b", "c")
    assert series.period_s.tolist() == [0.02, 0.04, 2]
    assert series.at(1.5)[2] == 3


@pytest.mark.parametrize(
    ("quantity", "text", "options", "value"),
    [
        ("carbon", "datetime,zone,carbon_intensity gCO2/kWh\n2030-01-01 00:00,DE,300\n2030-01-01 01:00,DE,200\n", {}, 300),
        ("carbon", "time (h);intensity (lb/MWh)\n0;1000,5\n1;9\n", {}, 1000.5 * 0.45359237),
        ("availability", "time,client,charging\n0,a,yes\n60,a,no\n", {}, 1),
        ("availability", "time,phone,wifi [%]\n0,a,25\n60,a,100\n", {}, 0.25),
    ],
)  # fmt: skip
def test_other_quantities(tmp_path: Path, quantity, text: str, options: dict, value: float):
    """Carbon intensities and availability come the same way."""
    series = read(tmp_path, text, quantity=quantity, **options)
    assert series.quantity == quantity
    assert series.at(0) == pytest.approx(value)


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lines and cells are counted before anything is made of them."""
    monkeypatch.setattr("edgeopt.series_files.MAX_CELLS", 6)
    assert read(tmp_path, "time,bps\n0,1\n1,1\n").num_samples == 2
    with pytest.raises(InvalidFileError, match="8 cells, expected at most 6"):
        read(tmp_path, "time,bps\n0,1\n1,1\n2,1\n")
    with pytest.raises(InvalidFileError, match="7 lines, expected at most 6"):
        read(tmp_path, "1\n" * 7)


def test_units():
    """Bits and bytes, thousands and powers of two."""
    units = {"bps": 1, "kbit/s": 1e3, "Mbps": 1e6, "mbps": 1e6, "Gb/s": 1e9, "B/s": 8, "KB/s": 8e3, "MiB/s": 8 * 2**20}
    assert {unit: factor_of(unit, "rate") for unit in units} == units
    assert factor_of("gCO\u2082eq/kWh", "carbon") == factor_of("kg/MWh", "carbon") == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty: expected measurements"),
        ("time,client,rate\n0,a,1\n", {}, "column 'rate' does not say its unit: expected one such as 'rate \\(Mbit/s\\)'"),
        ("time,bps\n", {}, "no row under the header"),
        ("client,bps\na,1\n", {}, "expected a header with one such as time"),
        ("time,client,bps\n0,a\n", {}, "row 1: 2 cells, expected 3"),
        ("time,client,bps\n0,a,fast\n", {}, "row 1: bps = 'fast': expected a number"),
        ("time,client,bps\n0,a,-1\n", {}, "row 1: bps = '-1': expected a number >= 0"),
        ("time,client,bps\n0,a,inf\n", {}, "row 1: bps = 'inf': expected a number >= 0"),
        ("time,client,bps\n0,a,1\n0,a,2\n", {}, "'a': two values at 0 s: expected one"),
        ("time,client,bps\n0,a,\n", {}, "'a': nothing was measured"),
        ("time;client;bps\n0;a;1,5\n1;a;1.5\n", {}, "numbers with commas and numbers with points"),
        ("time,client,x,y\n0,a,1,2\n", {}, "expected one such as rate, bandwidth, throughput, or the name"),
        ("time,bps\nsoon,1\n", {}, "row 1: time = 'soon': expected a number"),
        ("time,bps\n2030-01-01,1\n2030-13-01,1\n", {}, "row 2: time = '2030-13-01': expected a time such as"),
        ("time (weeks),bps\n0,1\n", {}, "expected times in one of s, sec"),
        ("time,bps\n0,1\n", {"unit": "furlong"}, "unit = 'furlong': expected one such as bit/s"),
        ("time,bps\n0,1\n", {"value": "x"}, "value = 'x': expected one of the columns"),
        ("time,bps\n0,1\n", {"decimal": ";"}, "decimal = ';': expected '.' or ','"),
        ("time,bps\n0,1\n", {"hold_s": 0}, "hold_s = 0.0: expected a positive number"),
        ("time,bps\n0,1\n", {"format": "x"}, "format = 'x': expected one of table, mahimahi, pensieve"),
        ("5\n3\n", {}, "line 2: '3': expected milliseconds that do not go down"),
        ("0\n", {}, "line 1: 0: expected a time after the start"),
        ("1 2\n", {}, "one line: expected two"),
        ("1 2\n1 3\n", {}, "line 2: 1 s: expected a time after 1"),
        ("1 2\n2 x\n", {}, "line 2: '2 x': expected seconds and a rate"),
        ("1 2\n2 3\n", {"quantity": "carbon"}, "a trace of pensieve: expected a table, for carbon"),
        ("time (h),bps\n1.7e308,1\n", {}, "row 1: time \\(h\\) = '1.7e308': expected a time"),
        ("time,kbit/s\n0,1.7e308\n", {}, "row 1: kbit/s = '1.7e308': expected a number >= 0"),
        ("1 2\n2 1.7e308\n", {}, "value\\[0\\] = inf: expected a non-negative number \\(bit/s\\)"),
        ("-1.7e308 2\n1.7e308 3\n", {}, "line 1: '-1.7e308 2': expected seconds and a rate"),
        ("time,bps\n0,1\x00\n", {}, "null characters"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, text: str, options: dict, message: str):
    """One line that says what is wrong, and where."""
    with pytest.raises(EdgeOptError, match=message) as caught:
        read(tmp_path, text, **options)
    assert "\n" not in str(caught.value)
