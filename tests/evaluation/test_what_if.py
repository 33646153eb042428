"""What if: axes from words, points that start from their neighbours, rows that resume, the page and the curves."""

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.evaluation import what_if
from edgeopt.evaluation.plots.what_if import plot_what_if
from edgeopt.evaluation.what_if import DEFAULT, decisions
from edgeopt.evaluation.what_if_axes import Axis, read_axis
from edgeopt.evaluation.what_if_page import decided, write_what_if
from edgeopt.problems import PROBLEMS, ExpertCaching, ModelDownload, SplitTraining
from tests.solvers.model_download.instances import brute_force, random_problem

DOWNLOAD = random_problem(np.random.default_rng(5), num_users=4, band=0.3)
CACHING = ExpertCaching.random(num_servers=3, num_users=12, seed=1)


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["whatif", *map(str, words)])


# --- axes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "index", "values", "multiples"),
    [
        ("bandwidth_hz=1,2", "bandwidth_hz", None, (1.0, 2.0), False),
        ("bandwidth=50..200MHz/4", "bandwidth_hz", None, (50e6, 100e6, 150e6, 200e6), False),
        ("bandwidth=500kHz..1MHz/2", "bandwidth_hz", None, (5e5, 1e6), False),
        ("deadline = 200ms, 2s", "deadline_s", None, (0.2, 2.0), False),
        ("deadline[1]=x0.5..x2/4", "deadline_s", 1, (0.5, 1.0, 1.5, 2.0), True),
        ("energy=50..150%/3", "energy_j", None, (0.5, 1.0, 1.5), True),
        ("energy=1e-3,2e-3J", "energy_j", None, (1e-3, 2e-3), False),
        ("memory=3,1,3GB", "memory_bytes", None, (1e9, 3e9), False),
    ],
)
def test_axes(text: str, field: str, index: int | None, values: tuple[float, ...], multiples: bool):
    """Names without units, entries, ranges with points, lists, units of one value or of the last, multiples, per cent."""
    axis = read_axis(DOWNLOAD, text)
    assert (axis.field, axis.index, axis.multiples) == (field, index, multiples)
    assert axis.values == pytest.approx(values)


def test_a_range_has_nine_points():
    """Unless it says otherwise."""
    assert len(read_axis(DOWNLOAD, "bandwidth=1..9").values) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandwidth", r"expected NAME=LOW..HIGH or NAME=A,B,C"),
        ("band=1..2", "model-download has no numbers called 'band'; it has .*bandwidth_hz"),
        ("model_names=1,2", "has no numbers called 'model_names'"),
        ("bandwidth=1..2GB", "'GB' is no unit of bandwidth_hz; expected Hz, kHz, MHz, GHz, THz, or %"),
        ("bandwidth=x1..2Hz", "expected values or multiples, not both"),
        ("bandwidth=one..two", "expected numbers, each with a unit or none"),
        ("bandwidth=1..2..3", "expected LOW..HIGH with 2 to"),
        ("bandwidth=1..2/1", "expected LOW..HIGH with 2 to"),
        ("bandwidth=1e999,2", "expected finite numbers"),
        ("deadline[9]=1..2", r"deadline_s\[9\]: deadline_s has 4 entries"),
        ("bandwidth[0]=1..2", r"bandwidth_hz\[0\]: bandwidth_hz has no list of entries"),
    ],
)
def test_axes_that_are_none(text: str, expected: str):
    """One line says what was given and what was expected."""
    with pytest.raises(edgeopt.EdgeOptError, match=expected):
        read_axis(DOWNLOAD, text)


def test_values_are_applied():
    """All entries or one, values or multiples; whole numbers stay whole."""
    split = SplitTraining.random(num_devices=3, num_layers=3, seed=1)
    assert Axis("deadline_s", 1, (2.0,), True).applied(DOWNLOAD, 2.0).deadline_s[1] == 2 * DOWNLOAD.deadline_s[1]
    assert Axis("deadline_s", None, (2.0,), False).applied(DOWNLOAD, 2.0).deadline_s.tolist() == [2.0] * 4
    assert Axis("max_batch", None, (0.5,), True).applied(split, 0.51).max_batch.tolist() == [33] * 3
    assert Axis("max_interval", None, (9.4,), False).applied(split, 9.4).max_interval == 9


# --- points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.kind)
def test_every_kind_can_be_varied(kind: Any):
    """Each has a solver to start with, and numbers that say what is decided."""
    field = {
        "expert-caching": "storage=x0.5,x1", "model-download": "bandwidth=x0.5,x1", "split-training": "target=x0.9,x1",
        "client-selection": "timeout=x0.5,x1", "expert-balancing": "load=x0.5,x1",
    }[kind.kind]  # fmt: skip
    rows, interrupted = what_if(kind.random(seed=1).tiny_like(), field, time_limit=1, display=False)
    assert not interrupted
    assert [row["values"] for row in rows] == [[float(v)] for v in re.findall(r"x([\d.]+)", field)]
    assert all(row["feasible"] and row["decisions"] and row["solver"] == DEFAULT[kind.kind] for row in rows)
    assert all(decided(row) for row in rows)


def test_the_grid_against_brute_force():
    """At every point of two parameters the objective is the optimum, and the bound is valid."""
    rows, _ = what_if(DOWNLOAD, ["bandwidth=x0.5..x2/3", "deadline=x0.6,x1"], display=False)
    assert [row["place"] for row in rows] == [[i, j] for i in range(3) for j in range(2)]
    for row in rows:
        band, deadline = row["values"]
        there = DOWNLOAD.replace(bandwidth_hz=DOWNLOAD.bandwidth_hz * band, deadline_s=DOWNLOAD.deadline_s * deadline)
        assert row["objective"] == pytest.approx(brute_force(there)[0])
        assert row["bound"] >= row["objective"] - 1e-9


def test_points_start_from_their_neighbours(monkeypatch: pytest.MonkeyPatch):
    """Each starts from the best solution before it that fits: none for the first, so that the objective never falls."""
    starts: list[Any] = []
    module = importlib.import_module("edgeopt.evaluation.what_if")

    def noted(problem: Any, solver: Any, *, initial_solution: Any, **options: Any) -> Any:
        starts.append(initial_solution)
        assert initial_solution is None or problem.is_feasible(initial_solution)
        return edgeopt.solve(problem, solver, initial_solution=initial_solution, **options)

    monkeypatch.setattr(module, "solve", noted)
    rows, _ = what_if(CACHING, ["storage=x0.5..x2/3", "user_weight=x1,x2"], "random", display=False)
    assert [start is None for start in starts] == [True, False, False, False, False, False]
    values = np.array([row["objective"] for row in rows]).reshape(3, 2)
    assert (np.diff(values, axis=0) >= 0).all()
    starts.clear()
    what_if(CACHING, "server_latency=x1,x2", "random", display=False)
    assert starts[1] is not None


def test_bounds_at_more_hold_at_less():
    """A point has the best bound of all that allow more, here the exact optimum of the last, where all is served."""
    rows, _ = what_if(CACHING, "storage=x0.5..x4/5", "popularity", display=False)
    bounds = [row["bound"] for row in rows]
    assert bounds == sorted(bounds)
    exact, _ = what_if(CACHING, "storage=x0.5..x4/5", "milp", time_limit=5, display=False)
    assert all(bound >= row["objective"] * (1 - 1e-9) for bound, row in zip(bounds, exact, strict=True))


def test_points_without_a_problem():
    """A value that a check refuses is skipped with its reason; an infeasible one says so; neither has numbers."""
    split = SplitTraining.random(num_devices=2, num_layers=3, seed=1)
    rows, _ = what_if(split, "target=x0.01,x1", display=False)
    assert [row["status"] for row in rows] == ["infeasible", "optimal"]
    rows, _ = what_if(split, "memory=1,1e12", "hasfl", display=False)
    assert [row["status"] for row in rows] == ["skipped", "feasible"]
    assert "has no memory for any cut" in rows[0]["message"]
    assert rows[0]["objective"] is None
    assert decided(rows[0]) == rows[0]["message"]


def test_rows_resume(tmp_path: Path):
    """The second run makes nothing anew, one more point is one more row, and a damaged row is made again."""
    first, _ = what_if(DOWNLOAD, "bandwidth=x0.5,x1", out=tmp_path, display=False)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    second, _ = what_if(DOWNLOAD, "bandwidth=x0.5,x1,x2", out=tmp_path, display=False)
    assert [row["seconds"] for row in second[:2]] == [row["seconds"] for row in first]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list((tmp_path / "rows").iterdir())) == 3
    damaged = next(iter(files))
    damaged.write_text(damaged.read_text().replace('"decisions": {', '"decisions": {"x": [], '))
    third, _ = what_if(DOWNLOAD, "bandwidth=x0.5,x1,x2", out=tmp_path, display=False)
    assert [row["objective"] for row in third] == [row["objective"] for row in second]
    assert '"x": []' not in damaged.read_text()


def test_what_cannot_be_varied():
    """Nothing, three parameters, too many points, a solver of another kind."""
    for vary, expected in (
        ([], "0 parameters, expected one or two"),
        (["bandwidth=1,2"] * 3, "3 parameters, expected one or two"),
        (["bandwidth=1..2/999", "deadline=1..2/999"], "expected at most 100000 points"),
    ):
        with pytest.raises(edgeopt.EdgeOptError, match=expected):
            what_if(DOWNLOAD, vary)
    with pytest.raises(edgeopt.EdgeOptError, match="solver = 'exact'"):
        what_if(DOWNLOAD, "bandwidth=1,2", "exact")


# --- what is shown -----------------------------------------------------------------------------------------------


def test_curves():
    """One parameter: the objective with its band; two: a curve for each value of the other, at most seven."""
    rows, _ = what_if(DOWNLOAD, "bandwidth=x0.5..x2/4", display=False)
    axes = plot_what_if(rows)
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == [row["objective"] for row in rows]
    assert len(axes.collections) == 1
    rows, _ = what_if(DOWNLOAD, ["bandwidth=x0.5..x2/3", "deadline=x0.5..x2/8"], display=False)
    assert len(plot_what_if(rows).get_lines()) == 7
    assert len(plot_what_if(rows, along=1).get_lines()) == 3
    with pytest.raises(edgeopt.EdgeOptError, match="rows: expected at least one point"):
        plot_what_if([])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows, _ = what_if(DOWNLOAD, ["bandwidth=x0.5..x2/3", "deadline=x0.001,x1"], display=False)
    write_what_if(rows, tmp_path / "page.html", DOWNLOAD, title="a < b")
    return tmp_path / "page.html"


def test_the_page_has_the_grid(page: Path):
    """Its data are the points, it loads nothing, and text is escaped."""
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [axis["values"] for axis in data["axes"]] == [[0.5, 1.25, 2.0], [0.001, 1.0]]
    assert len(data["points"]) == 6
    assert "a &lt; b" in text
    assert not re.search(r"""(src|href)=["']?(?!data:|#)\w+:|@import|<link""", text)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs a JavaScript engine")
def test_the_sliders_move(page: Path, tmp_path: Path):
    """The script runs on a stub of the page: each place of the sliders shows the numbers of its point."""
    stub = tmp_path / "stub.js"
    stub.write_text(
        """
const html = require("fs").readFileSync(process.argv[2], "utf8");
class Node {
  constructor() { this.c = []; this.l = {}; this.textContent = ""; }
  setAttribute() {} append(...more) { this.c.push(...more); } replaceChildren(...all) { this.c = all; }
  addEventListener(name, call) { this.l[name] = call; }
}
const ids = { data: new Node(), sliders: new Node(), now: new Node(), charts: new Node() };
ids.data.textContent = /id="data">([^]*?)<.script>/.exec(html)[1];
global.document = { getElementById: id => ids[id], createElement: () => new Node(), createElementNS: () => new Node() };
eval(/<script>\\n([^]*?)<.script>/.exec(html)[1]);
const shown = [];
for (const i of [0, 1, 2]) for (const j of [0, 1]) {
  for (const [axis, place] of [[0, i], [1, j]]) {
    const input = ids.sliders.c[axis].c[1];
    input.value = String(place);
    input.l.input();
  }
  shown.push([ids.now.c.slice(0, 4).map(node => node.textContent), ids.charts.c.length]);
}
console.log(JSON.stringify(shown));
"""
    )
    done = subprocess.run(["node", stub, page], capture_output=True, text=True, check=True, timeout=60)
    rows, _ = what_if(DOWNLOAD, ["bandwidth=x0.5..x2/3", "deadline=x0.001,x1"], display=False)
    shown = json.loads(done.stdout)
    assert [entry[1] for entry in shown] == [2] * 6
    assert [entry[0][:3] for entry in shown] == [["status", row["status"], "objective"] for row in rows]
    assert [float(entry[0][3]) for entry in shown] == pytest.approx([row["objective"] for row in rows], rel=1e-5)


def test_decisions_of_a_foreign_kind():
    """There are none, and nothing fails."""
    from tests.solvers.doubles import Foreign

    assert decisions(Foreign(), None) == {}


def test_the_command(tmp_path: Path):
    """For people a table and the page; --json the points and nothing else; bad input in one line."""
    DOWNLOAD.save(tmp_path / "download.json")
    words = [tmp_path / "download.json", "--vary", "bandwidth=x0.5,x1", "--out", tmp_path / "out"]
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    assert "bandwidth_hz, times what it is" in done.stdout
    assert (tmp_path / "out" / "what-if.html").exists()
    done = run(*words, "--json")
    assert [point["values"] for point in json.loads(done.stdout)] == [[0.5], [1.0]]
    for bad, expected in ((["--vary", "x"], "--vary = 'x'"), ([], "--vary")):
        done = run(tmp_path / "download.json", *bad)
        assert done.exit_code == 2
        assert expected in done.stderr


def test_download_is_what_is_varied():
    """The problem of these tests has something to decide."""
    assert isinstance(DOWNLOAD, ModelDownload)
    assert 0 < brute_force(DOWNLOAD)[0] < 4
