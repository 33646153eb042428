"""The command line: clean JSON, one-line errors, nothing lost on Ctrl-C."""

import json
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from tests.evaluation.fake_solvers import tiny_problem

KEYS = {
    "problem", "solver", "seed", "status", "limit", "objective", "bound", "gap", "guarantee", "feasible", "seconds",
    "message", "sense",
}  # fmt: skip
EDGEOPT = [sys.executable, "-m", "edgeopt"]


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    tiny_problem().save(tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


def test_solve_json(instance: Path):
    """--json prints exactly one document with the promised keys, null where there is no number."""
    done = run("solve", instance, "--solver", "random", "--seed", 3, "--json")
    assert done.exit_code == 0, done.stderr
    document = strict(done.stdout)
    assert set(document) == KEYS
    assert set(document["seconds"]) == {"build", "compile", "solve", "total"}
    assert (document["problem"], document["solver"], document["seed"]) == ("expert-caching", "random", 3)
    assert done.stderr == ""


def test_solve_with_prices(instance: Path):
    """--prices says what more of each limit is worth, also as JSON."""
    done = run("solve", instance, "--solver", "greedy", "--prices", "--json")
    assert done.exit_code == 0, done.stderr
    document = strict(done.stdout)
    assert set(document) == KEYS | {"prices"}
    assert all(price["name"].startswith("storage_bytes[") for price in document["prices"])
    people = run("solve", instance, "--solver", "greedy", "--prices").stdout
    assert all(price["name"] in people for price in document["prices"])


def test_solve_for_people(instance: Path):
    """Without --json there is a summary."""
    done = run("solve", instance, "--solver", "random")
    assert done.exit_code == 0
    assert "objective" in done.stdout


def test_solve_writes_a_result_to_start_from(instance: Path, tmp_path: Path):
    """--output keeps the solution; --initial-solution starts from it and is never worse."""
    file = tmp_path / "result.json"
    assert run("solve", instance, "--solver", "greedy", "--output", file).exit_code == 0
    first = strict(file.read_text())
    assert first["solution"]["cached"]
    done = run("solve", instance, "--solver", "random", "--initial-solution", file, "--json")
    assert strict(done.stdout)["objective"] >= first["objective"]


def test_solve_param(instance: Path):
    """--param sets a hyper-parameter; unknown names list the known ones, wrong types say what is expected."""
    assert run("solve", instance, "--solver", "greedy", "--param", "lazy=false").exit_code == 0
    unknown = run("solve", instance, "--solver", "greedy", "--param", "lasy=false")
    assert (unknown.exit_code, "lazy" in unknown.stderr) == (2, True)
    wrong = run("solve", instance, "--solver", "greedy", "--param", "lazy=5")
    assert (wrong.exit_code, "lazy = 5: expected true or false" in wrong.stderr) == (2, True)


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Return command lines that are wrong, each with what its message must contain."""
    tiny, broken, foreign = folder / "tiny.json", folder / "broken.npz", folder / "foreign.json"
    tiny_problem().save(tiny)
    tiny_problem().save(broken)
    broken.write_bytes(broken.read_bytes()[:300])
    document = json.loads(tiny.read_text())
    document["arrays"]["storage_bytes"][1] = -4
    (folder / "negative.json").write_text(json.dumps(document))
    foreign.write_text('{"kind": "travelling"}')
    solve = ["solve", tiny, "--solver", "random"]
    return {
        "missing": (["solve", folder / "none.json", "--solver", "random"], "none.json: No such file"),
        "folder": (["describe", f"{folder}/"], "expected a name that ends in"),
        "truncated": (["describe", broken], "broken.npz: "),
        "field": (["describe", folder / "negative.json"], "negative.json: storage_bytes[1] = -4.0: expected"),
        "kind": (["describe", foreign], "foreign.json: "),
        "library": (["describe", "facility-tyni"], "did you mean 'facility-tiny'"),
        "solver": (["solve", tiny, "--solver", "gredy"], "did you mean 'greedy'"),
        "output": ([*solve, "--output", folder / "no" / "r.json"], "there is no folder"),
        "output folder": ([*solve, "--output", folder], "is a folder"),
        "initial": ([*solve, "--initial-solution", tiny], "tiny.json: problem: value is missing"),
        "option": ([*solve, "--time-limit", "soon"], "--time-limit"),
        "command": (["slove"], "slove"),
        "param": ([*solve, "--param", "steps"], "expected KEY=VALUE"),
        "instances": (["compare"], "at least one instance"),
        "more": (["compare", "--instances", "all"], "expected 'library'"),
        "names": (["compare", tiny, "--solvers", "gredy"], "did you mean 'greedy'"),
        "executor": (["compare", tiny, "--executor", "ray"], "executor = 'ray'"),
        "kind of solver": (["solvers", "travelling"], "expected one of"),
        "latency": (["generate", "expert-caching", "--latency", "mix", "-o", folder / "x.npz"], "mix:THETA"),
    }


@pytest.mark.parametrize("case", [
    "missing", "folder", "truncated", "field", "kind", "library", "solver", "output", "output folder", "initial",
    "option", "command", "param", "instances", "more", "names", "executor", "kind of solver", "latency",
])  # fmt: skip
def test_bad_input_is_one_line(case: str, tmp_path: Path):
    """Bad input: exit status 2 and one line that names the culprit, no traceback, nothing on standard output."""
    words, expected = bad_inputs(tmp_path)[case]
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback(tmp_path: Path):
    """--debug, anywhere on the line, adds the traceback."""
    done = run("describe", tmp_path / "none.json", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr


def test_compare_json(instance: Path):
    """Compare --json prints an array with one object per run."""
    done = run("compare", instance, "--solvers", "random,greedy", "--seeds", 2, "--executor", "serial", "--json")
    assert done.exit_code == 0, done.stderr
    rows = strict(done.stdout)
    assert [(row["solver"], row["seed"]) for row in rows] == [
        ("random", 0),
        ("random", 1),
        ("greedy", 0),
        ("greedy", 1),
    ]
    assert all(KEYS | {"instance", "best_known", "gap_to_best"} == set(row) for row in rows)


def test_compare_out(instance: Path, tmp_path: Path):
    """--out holds rows and a report, and the second call reuses the rows; the table names every solver."""
    words = ("compare", instance, "--solvers", "random,greedy", "--executor", "serial", "--out", tmp_path / "out")
    first, second = run(*words), run(*words)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    assert "greedy" in first.stdout
    assert len(list((tmp_path / "out" / "rows").glob("*.json"))) == 2
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()


def test_describe(instance: Path):
    """Describe shows the facts of files and of library instances."""
    document = strict(run("describe", instance, "--json").stdout)
    assert document["facts"]["servers"] == 3
    assert document["problem"] == "expert-caching"
    known = strict(run("describe", "facility-tiny", "--json").stdout)
    assert known["best_known"]["objective"] == pytest.approx(16.3347, abs=1e-4)
    assert "servers" in run("describe", "facility-tiny").stdout


def test_solvers():
    """Every solver is listed with its guarantee and a summary."""
    names = [solver.name for solver in edgeopt.solvers.solvers_of("expert-caching")]
    listed = strict(run("solvers", "expert-caching", "--json").stdout)
    assert [entry["name"] for entry in listed] == names
    assert all(entry["guarantee"] and entry["summary"] and entry["supports"] for entry in listed)
    assert all(name in run("solvers").stdout for name in names)


def test_info():
    """Info shows versions, machine, extras and the folder of kernels."""
    document = strict(run("info", "--json").stdout)
    assert set(document) == {"versions", "machine", "extras", "kernel_cache"}
    assert "numpy" in run("info").stdout


def test_help():
    """Every command has help; no command at all shows it."""
    assert "solve" in run().stdout
    for command in ("solve", "compare", "generate", "solvers", "describe", "info"):
        assert run(command, "--help").exit_code == 0


@pytest.mark.skipif(not hasattr(edgeopt.problems.ExpertCaching, "random"), reason="no generator yet")
@pytest.mark.parametrize(
    "options", [["--latency", "sum"], ["--latency", "mix:0.3", "--top-k", "2"], ["--trace", "mixtral8"]]
)
def test_generate(tmp_path: Path, options: list[str]):
    """Generate writes a loadable instance, the same for the same seed, another for another."""
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    sizes = ("--servers", 3, "--devices", 6, "--experts", 8, "--layers", 2)
    for file, seed in zip(files, (1, 1, 2), strict=True):
        done = run("generate", "expert-caching", *sizes, *options, "--seed", seed, "-o", file)
        assert done.exit_code == 0, done.stderr
    one, same, other = (edgeopt.load(file) for file in files)
    assert one.describe()["servers"] == 3
    assert one == same
    assert one != other


def test_process_prints_json_only(instance: Path):
    """A real process: one JSON document on standard output, also through ``python -m edgeopt``."""
    done = subprocess.run(
        [*EDGEOPT, "solve", str(instance), "--solver", "greedy", "--json"], capture_output=True, text=True, check=True
    )
    assert set(strict(done.stdout)) == KEYS


def test_broken_pipe_is_quiet():
    """A reader that goes away causes no traceback."""
    process = subprocess.Popen(
        [*EDGEOPT, "solvers", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.wait()
    assert process.stderr.read() == ""
    process.stderr.close()


def test_interrupted_solve_prints_the_incumbent(tmp_path: Path):
    """Ctrl-C while solving prints the best solution so far and exits with 130."""
    code = (
        "import os, signal, sys\n"
        "from edgeopt import cli\n"
        "from edgeopt.solve import Run\n"
        "offer = Run.offer\n"
        "def interrupting(self, *args):\n"
        "    offer(self, *args)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "Run.offer = interrupting\n"
        "sys.argv = ['edgeopt', 'solve', 'facility-tiny', '--solver', 'random', '--json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    document = strict(done.stdout)
    assert document["limit"] == "interrupt"
    assert document["objective"] > 0


@pytest.mark.parametrize(
    "where",
    [
        "edgeopt.evaluation.instances.library.load_instance",
        "edgeopt.solvers.get_solver",
        "edgeopt.problems.ExpertCaching.violations",
        "edgeopt.solve.Run.offer",
        "edgeopt.solve.Run.result",
        "edgeopt.result.Result.save",
        "edgeopt.result.Result.to_json",
    ],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interrupted_solve_writes_what_it_has(
    instance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: bool
):
    """Ctrl-C while loading, building, solving, judging, writing or printing: status 130, a solution printed and written."""
    module, _, name = where.rpartition(".")
    owner: Any = pkgutil.resolve_name(module) if module != "edgeopt.solvers" else sys.modules[module]
    function = getattr(owner, name)

    def interrupted(*given: Any, **options: Any) -> Any:
        if not after:
            signal.raise_signal(signal.SIGINT)
        value = function(*given, **options)
        if after:
            signal.raise_signal(signal.SIGINT)
        monkeypatch.undo()
        return value

    monkeypatch.setattr(owner, name, interrupted)
    output = tmp_path / "result.json"
    done = run("solve", instance, "--solver", "greedy", "--output", output, "--json")
    written = strict(output.read_text())
    assert done.exit_code == 130, done.output
    assert strict(done.stdout)["objective"] == written["objective"] >= 0
    assert written["solution"] is not None
    again = run("solve", instance, "--solver", "random", "--initial-solution", output, "--json")
    assert again.exit_code == 0
    assert strict(again.stdout)["objective"] >= written["objective"]


# --- streams and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["é", "$\\frac{$", "中\udce9"])
def test_names_that_cannot_be_written_are_escaped(tmp_path: Path, name: str):
    """On a terminal of ASCII, names of other letters, bytes that are no text, or formulas lose no row, table or report."""
    file = tmp_path / f"{name}.json"
    tiny_problem().save(file)
    words = ["compare", str(file), "--solvers", "greedy", "--executor", "serial", "--out", str(tmp_path / "out")]
    done = CliRunner(charset="ascii").invoke(cli.app, words)
    assert done.exit_code == 0, done.stderr
    assert name.encode("ascii", "backslashreplace").decode() in done.stdout
    assert "greedy" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (row,) = (tmp_path / "out" / "rows").iterdir()
    assert strict(row.read_text())["instance"] == name


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_output_to_a_full_disk_is_one_line():
    """What cannot be printed is an error of one line, also when Python flushes once more at its end."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*EDGEOPT, "solvers"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "edgeopt: No space left on device\n"


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch):
    """Without a standard output, as ``>&-`` leaves it, commands do their work."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as end:
        cli.app(["solvers", "expert-caching"])
    assert end.value.code == 0
    sys.stdout.close()


def test_what_the_system_lacks_is_no_bug(monkeypatch: pytest.MonkeyPatch, instance: Path):
    """An error of the system that names no file is said as it is."""
    monkeypatch.setattr(
        "edgeopt.evaluation.instances.library.load_instance", failing(OSError(11, "Resource unavailable"))
    )
    done = run("describe", instance)
    assert (done.exit_code, done.stderr) == (1, "edgeopt: Resource unavailable\n")


def failing(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EOFError("Ran out of input"), "EOFError: Ran out of input (a bug"),
        (MemoryError("Unable to allocate 8 EiB\nfor an array"), "not enough memory: Unable to allocate 8 EiB for an"),
    ],
)
def test_an_error_is_what_it_is(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, instance: Path):
    """The end of a file is no interrupt, although the library for command lines takes it for Ctrl-D; no memory is no bug."""
    monkeypatch.setattr("edgeopt.evaluation.instances.library.load_instance", failing(error))
    done = run("describe", instance)
    assert done.exit_code == 1
    assert done.stderr.strip().startswith(f"edgeopt: {message}")


def test_warnings_are_one_line_each(monkeypatch: pytest.MonkeyPatch, instance: Path):
    """What Python and other packages warn of takes a line, not a page; where matplotlib keeps its fonts is not said."""
    load = edgeopt.load

    def warn(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("overflow\nin a product", RuntimeWarning, stacklevel=1)
        logging.getLogger("numba.core").warning("of two\nlines")
        logging.getLogger("matplotlib").warning("created a temporary cache directory")
        return load(name)

    monkeypatch.setattr("edgeopt.evaluation.instances.library.load_instance", warn)
    done = run("describe", instance)
    assert done.exit_code == 0
    assert done.stderr == "edgeopt: overflow in a product\nedgeopt: of two lines\n"


def test_a_back_end_left_behind_does_not_hold_the_process():
    """The command line ends with its own status, all printed, whatever a back end that was left behind still does."""
    code = (
        "import sys, threading\n"
        "from edgeopt import cli\n"
        "from edgeopt.solvers import background\n"
        "background.EXIT_S = 1000.0\n"
        "thread = threading.Thread(target=threading.Event().wait, daemon=True)\n"
        "background._threads.add(thread)\n"
        "thread.start()\n"
        "sys.argv = ['edgeopt', 'solve', 'facility-tiny', '--solver', 'random', '--json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert strict(done.stdout)["feasible"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupted_compare_keeps_its_rows(tmp_path: Path):
    """Ctrl-C at a running comparison leaves its finished rows, prints them and exits with 130."""
    out = tmp_path / "out"
    words = [*EDGEOPT, "compare", "facility-full", "--solvers", "random,lagrangian", "--json", "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list((out / "rows").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [row["solver"] for row in strict(stdout)] == ["random"]
    assert "Traceback" not in stderr
