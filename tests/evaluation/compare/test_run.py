"""Comparisons: every run ends in a row, whatever happens on the way."""

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import compare, comparison_rows, read_rows
from edgeopt.evaluation.compare.executors import SpawnPool
from edgeopt.evaluation.compare.rows import COLUMNS, Row, add_gaps, as_rows, read_row, rows_frame
from edgeopt.evaluation.compare.worker import Job
from edgeopt.solvers import get_solver
from tests.evaluation.fake_solvers import Fake, calls, meet, tiny_problem

cells_module = sys.modules["edgeopt.evaluation.compare.cells"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find `tests` however pytest was started."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "calls"
    made.mkdir()
    return made


def test_one_row_per_run():
    """Every (instance, solver, seed) has one row, with the columns promised and what `solve` says."""
    problems = {"a": tiny_problem(), "b": tiny_problem(2.0)}
    frame = compare(problems, ["random", Fake()], seeds=(0, 1), executor="serial")
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == len(frame[["instance", "solver", "seed"]].drop_duplicates()) == 8
    one = frame[(frame.instance == "b") & (frame.solver == "random") & (frame.seed == 1)].iloc[0]
    assert one.objective == edgeopt.solve(problems["b"], "random", seed=1).objective
    assert frame[frame.solver == "fake"].objective.tolist() == [3.0, 3.0, 6.0, 6.0]
    assert not frame.attrs["interrupted"]


def test_gap_to_best_known():
    """The best known value is the best of references and rows; gaps are relative to it in either sense."""
    frame = compare({"a": tiny_problem()}, [Fake()], executor="serial", references={"a": 4.0})
    assert frame.best_known[0] == 4.0
    assert frame.gap_to_best[0] == 0.25
    rows = [{"instance": "a", "sense": "min", "feasible": True, "objective": value} for value in (4.0, 5.0)]
    assert [row["gap_to_best"] for row in add_gaps(rows)] == [0.0, 0.25]
    infeasible = {"instance": "a", "sense": "min", "feasible": False, "objective": 1.0}
    assert add_gaps([*rows, infeasible])[2]["gap_to_best"] is None


def test_failures_are_rows(caplog: pytest.LogCaptureFixture):
    """Skipping, raising and exiting solvers give rows that say why; tracebacks go to the log."""
    modes = ("skip", "raise", "exit", "fine")
    with caplog.at_level(logging.ERROR, "edgeopt"):
        frame = compare(tiny_problem(), [Fake(mode) for mode in modes], executor="serial")
    assert frame.status.tolist() == ["skipped", "error", "error", "feasible"]
    assert frame.message[0] == "expected three users and good will"
    assert frame.message[1] == "RuntimeError: a fault of two lines"
    assert frame.solver.tolist() == ["fake(mode=skip)", "fake(mode=raise)", "fake(mode=exit)", "fake"]
    assert frame.objective[:3].isna().all()
    assert "Traceback" in caplog.text


def test_rows_are_strict_json_with_history_and_solution(tmp_path: Path):
    """A row file holds history and solution, and no NaN or infinity."""
    rows, _ = comparison_rows({"a": tiny_problem()}, [Fake(), Fake("skip")], executor="serial", out=tmp_path)
    texts = [path.read_text() for path in (tmp_path / "rows").glob("*.json")]
    assert len(texts) == 2
    for text in texts:
        json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert rows[0]["solution"] == {"cached": [[0], [1], [2]]}
    assert rows[0]["history"][-1][2:] == [3.0, 10.0]
    assert {row["key"] for row in read_rows(tmp_path)} == {row["key"] for row in rows}


def test_resume_runs_only_what_is_missing(tmp_path: Path, folder: Path):
    """Finished rows are not run again; a truncated file, a foreign file and a failed run are."""
    solvers = [Fake(mode, str(folder)) for mode in ("fine", "once-raise")]
    arguments = {"seeds": (0, 1, 2), "executor": "serial", "out": tmp_path / "out"}
    first, _ = comparison_rows(tiny_problem(), solvers, **arguments)
    assert [row["status"] for row in first] == ["feasible"] * 3 + ["error"] * 3
    files = {row["seed"]: tmp_path / "out" / "rows" / f"{row['key']}.json" for row in first[:3]}
    files[0].write_text(files[0].read_text()[:-40])
    files[1].write_text("[]")
    second, _ = comparison_rows(tiny_problem(), solvers, **arguments)
    assert [row["status"] for row in second] == ["feasible"] * 6
    expected = {"fine-0": 2, "fine-1": 2, "fine-2": 1}
    assert calls(folder) == expected | {f"once-raise-{seed}": 2 for seed in range(3)}
    third, _ = comparison_rows({"renamed": tiny_problem()}, solvers, **arguments)
    assert sum(calls(folder).values()) == 11
    assert {row["instance"] for row in third} == {"renamed"}


@pytest.mark.parametrize("change", [{"time_limit": 9.0}, {"seeds": (7,)}, {"stop": edgeopt.MaxIterations(5)}])
def test_other_runs_have_other_rows(tmp_path: Path, folder: Path, change: dict):
    """Seed, limits, parameters and contents are part of a row's key: nothing stale is ever returned."""
    solver = Fake("fine", str(folder))
    compare(tiny_problem(), [solver], executor="serial", out=tmp_path)
    compare(tiny_problem(), [solver], executor="serial", out=tmp_path, **change)
    compare(tiny_problem(2.0), [solver], executor="serial", out=tmp_path)
    assert sum(calls(folder).values()) == 3
    assert len(list((tmp_path / "rows").iterdir())) == 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["once-interrupt", "once-interrupt-inside"])
@pytest.mark.parametrize("executor", ["serial", None])
def test_interrupt_keeps_what_is_done(tmp_path: Path, folder: Path, mode: str, executor: str | None):
    """Ctrl-C, in a solver or between, returns the rows so far; the same call goes on and repeats none of them."""
    solvers = [Fake("fine", str(folder)), Fake(mode, str(folder)), Fake("once-fine", str(folder))]
    arguments = {"executor": executor, "out": tmp_path / "out"}
    frame = compare(tiny_problem(), solvers, **arguments)
    assert frame.attrs["interrupted"]
    assert frame.status.tolist() == ["feasible"]
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 1
    again = compare(tiny_problem(), solvers, **arguments)
    assert not again.attrs["interrupted"]
    assert again.status.tolist() == ["feasible"] * 3
    assert calls(folder) == {"fine-0": 1, f"{mode}-0": 2, "once-fine-0": 1}


def test_killed_worker_loses_no_row(folder: Path):
    """A run that kills its worker once is repeated, one that always does becomes an error row; no other run is repeated."""
    modes = ("fine", "kill", "once-kill", "raise")
    frame = compare(tiny_problem(), [Fake(mode, str(folder)) for mode in modes], jobs=2)
    assert frame.status.tolist() == ["feasible", "error", "feasible", "error"]
    assert calls(folder) == {"fine-0": 1, "kill-0": 3, "once-kill-0": 2, "raise-0": 1}
    assert frame.message[1].startswith("its worker died 3 times")


def test_workers_are_other_processes_with_one_thread():
    """By default runs happen in spawned processes whose environment says one thread."""
    frame = compare(tiny_problem(), [Fake("environment")], seeds=(0, 1))
    assert all("threads 1 " in message for message in frame.message)
    assert all(not message.endswith(f" {os.getpid()}") for message in frame.message)


def test_given_executor_is_used_and_left_open():
    """Any executor will do, and it still works afterwards."""
    with ThreadPoolExecutor(2) as pool:
        frame = compare(tiny_problem(), [Fake()], seeds=range(5), executor=pool)
        assert pool.submit(len, "abc").result() == 3
    assert frame.objective.tolist() == [3.0] * 5


def test_given_executor_that_breaks_loses_no_row():
    """A caller's pool cannot be started again: what it did not run is there as error rows."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        frame = compare(tiny_problem(), [Fake(), Fake("kill")], seeds=range(3), executor=pool)
    assert len(frame) == 6
    assert set(frame.status) <= {"feasible", "error"}
    assert (frame[frame.solver != "fake"].status == "error").all()


class StubEngine:
    """Answers every call at once but those of one seed, which it ends when asked for the second time."""

    window = 2

    def __init__(self, stuck: int) -> None:
        self.stuck, self.asked = stuck, 0

    def submit(self, fn: Callable[[Job], Row], task: Job) -> Future[Row]:
        future: Future[Row] = Future()
        if task.seed != self.stuck:
            future.set_result(fn(task))
        return future

    def kill(self, call: Future[Row]) -> bool:
        assert not call.done()
        self.asked += 1
        return self.asked == 2

    def close(self, *, now: bool) -> None:
        assert not now


def test_a_run_that_does_not_return_is_an_error_row(monkeypatch: pytest.MonkeyPatch):
    """Overdue runs are ended as soon as the engine can, and their rows say why; the others are not disturbed."""
    engine = StubEngine(stuck=1)
    monkeypatch.setattr(cells_module, "open_engine", lambda executor, jobs: engine)
    monkeypatch.setattr(cells_module, "GRACE_S", 0.0)
    frame = compare(tiny_problem(), [Fake()], seeds=(0, 1, 2, 3), time_limit=0)
    assert engine.asked == 2
    assert frame.status.tolist() == ["feasible", "error", "feasible", "feasible"]
    assert frame.message[1] == "did not return within 0 s after its time limit of 0 s: its worker was killed"


def test_a_solver_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch):
    """A solver that never returns ends as a row all the same, with real workers."""
    monkeypatch.setattr(cells_module, "GRACE_S", 0.0)
    frame = compare(tiny_problem(), [Fake("hang")], seeds=(0, 1), time_limit=0)
    assert frame.status.tolist() == ["error"] * 2
    assert frame.message.str.contains("its worker was killed").all()


def test_killing_a_worker_leaves_the_others_alone(folder: Path):
    """One worker of a pool is killed: a call on the other one ends as if nothing had been, and the next calls find two."""
    pool = SpawnPool(2)
    try:
        hanging = pool.submit(meet, folder / "hanging", folder / "never")
        other = pool.submit(meet, folder / "other", folder / "go")
        while len(list(folder.iterdir())) < 2:
            assert not hanging.done()
            assert not other.done()
            time.sleep(0.02)
        assert pool.kill(hanging)
        assert isinstance(hanging.exception(), BrokenExecutor)
        again = pool.submit(os.getpid)
        assert again.result() != int((folder / "hanging").read_text())
        (folder / "go").touch()
        assert other.result() == int((folder / "other").read_text())
    finally:
        pool.close(now=True)


DRIVER = """
import sys
from edgeopt.evaluation import compare
from tests.evaluation.fake_solvers import Fake, tiny_problem
folder, out = sys.argv[1:]
compare(tiny_problem(), [Fake("fine", folder), Fake("once-hang", folder)], seeds=(0, 1), jobs=2, out=out)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_kill_9_leaves_no_worker_and_no_broken_row(tmp_path: Path, folder: Path):
    """Workers end with a comparison that is killed; what it had done is whole, and the next one repeats none of it."""
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-c", DRIVER, str(folder), str(tmp_path / "out")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        while not (folder / "once-hang-1").exists() or not (folder / "once-hang-0").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate(
            timeout=60
        )  # the workers have the other end of this pipe, too: it ends when they have ended
    rows = list((tmp_path / "out" / "rows").iterdir())
    assert [read_row(path)["status"] for path in rows] == ["feasible"] * 2
    (tmp_path / "out" / "rows" / ".name.json.12345678.part").write_text("what a writer that was killed leaves")
    solvers = [Fake("fine", str(folder)), Fake("once-hang", str(folder))]
    frame = compare(tiny_problem(), solvers, seeds=(0, 1), out=tmp_path / "out", executor="serial")
    assert frame.status.tolist() == ["feasible"] * 4
    assert calls(folder) == {"fine-0": 1, "fine-1": 1, "once-hang-0": 2, "once-hang-1": 2}
    assert all(path.suffix == ".json" for path in (tmp_path / "out" / "rows").iterdir())


FROM_STANDARD_INPUT = """
from dataclasses import dataclass
from edgeopt.evaluation import comparison_rows
from tests.evaluation.fake_solvers import Fake, tiny_problem
@dataclass(frozen=True)
class Own(Fake):
    pass
if __name__ == "__main__":
    for row in comparison_rows(tiny_problem(), [Fake(), Own()], jobs=2)[0]:
        print(row["status"], row["message"])
"""


def test_a_script_from_standard_input():
    """It has no file that workers could run: they run without, and only what it defines itself is out of their reach."""
    done = run_script(["-"], FROM_STANDARD_INPUT)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].split() == ["feasible"]
    assert lines[1].startswith("error")
    assert "'Own'" in lines[1]
    assert lines[1].endswith("must live in a module that workers can import")


def test_a_script_without_a_guard_is_told_so(tmp_path: Path):
    """Workers that run the script again cannot start: one error that says what is expected, not rows of dead workers."""
    script = tmp_path / "script.py"
    script.write_text(FROM_STANDARD_INPUT.replace('if __name__ == "__main__"', "if True"))
    done = run_script([str(script)])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "edgeopt.errors.EdgeOptError: worker processes do not start: expected `if"
    )
    assert done.stdout == ""


def run_script(words: list[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *words], input=text, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_what_cannot_be_sent_to_a_worker_is_an_error_row():
    """A solver that cannot be pickled is said so, once, and does not take a worker along."""
    frame = compare(tiny_problem(), [Fake(folder=Unsendable("elsewhere")), Fake()])
    assert frame.status.tolist() == ["error", "feasible"]
    assert frame.message[0] == "EdgeOptError: cannot be sent to a worker: stays here"


class Unsendable(str):
    """Text that refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("stays here")


def test_bad_arguments():
    """What cannot be meant is refused at once, with a hint."""
    with pytest.raises(EdgeOptError, match="did you mean 'random'"):
        compare(tiny_problem(), ["randon"])
    with pytest.raises(EdgeOptError, match="seeds"):
        compare(tiny_problem(), ["random"], seeds=())
    with pytest.raises(EdgeOptError, match="jobs = 0"):
        compare(tiny_problem(), ["random"], jobs=0)
    with pytest.raises(EdgeOptError, match="at least one instance"):
        compare([], ["random"])
    with pytest.raises(EdgeOptError, match="facility-tiny"):
        compare(["facility-tinny"], ["random"])


def test_list_of_problems_and_files(tmp_path: Path):
    """Problems without a name are numbered, files go by their stem, clashes are resolved, and nothing is merged."""
    tiny_problem(2.0).save(tmp_path / "two.json")
    tiny_problem(3.0).save(tmp_path / "two.npz")
    files = [str(tmp_path / "two.json"), tmp_path / "two.npz"]
    frame = compare([tiny_problem(), *files, "facility-tiny"], [Fake()], executor="serial")
    assert frame.instance.tolist() == ["instance-1", "two", str(files[1]), "facility-tiny"]
    assert frame.objective[:3].tolist() == [3.0, 6.0, 9.0]
    assert frame.status[3] == "skipped"


def test_default_is_every_solver():
    """Without a choice, all solvers of the kind have a row."""
    names = [solver.name for solver in edgeopt.solvers.solvers_of("expert-caching")]
    frame = compare({"a": tiny_problem()}, executor="serial", time_limit=2.0)
    assert frame.solver.tolist() == names


def test_what_is_not_installed_is_skipped_until_it_is(tmp_path: Path):
    """A solver that lacks a package gives a skipped row with what to install, and is tried again by the next comparison."""
    (tmp_path / "calls").mkdir()
    fake = Fake("once-lack", str(tmp_path / "calls"))
    for status in ("skipped", "feasible"):
        rows, _ = comparison_rows({"tiny": tiny_problem()}, [fake], out=tmp_path, executor="serial")
        assert [row["status"] for row in rows] == [status]
        assert ("pip install it" in rows[0]["message"]) == (status == "skipped")


def test_arguments_of_other_types():
    """One solver, one seed, arrays, generators and no limit are what lists and infinity are."""
    usual, _ = comparison_rows(["facility-tiny"], ["random"], (0, 1), executor="serial")
    keys = [row["key"] for row in usual]
    solver = get_solver("expert-caching", "random")
    for solvers, seeds, limit in (
        ("random", np.arange(2), None),
        (solver, [np.int64(0), 1.0], math.inf),
        ((name for name in ["random"]), (seed for seed in (0, 1)), None),
        (np.array(["random"]), range(2), np.inf),
    ):
        rows, _ = comparison_rows((name for name in ["facility-tiny"]), solvers, seeds, limit, executor="serial")
        assert [row["key"] for row in rows] == keys
    two = (get_solver("expert-caching", name) for name in ("random", "greedy"))
    rows, _ = comparison_rows("facility-tiny", two, (seed for seed in (0, 1)), executor="serial")
    assert [(row["solver"], row["seed"]) for row in rows] == [
        ("random", 0),
        ("random", 1),
        ("greedy", 0),
        ("greedy", 1),
    ]
    assert len(comparison_rows("facility-tiny", "random", np.int64(1), executor="serial")[0]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": np.arange(0)}, "seeds: expected at least one"),
        ({"seeds": [0, -1]}, "seeds[1] = -1: expected an integer >= 0"),
        ({"seeds": [1.5]}, "seeds[0] = 1.5: expected an integer >= 0"),
        ({"seeds": "01"}, "seeds = '01': expected a list"),
        ({"seeds": True}, "seeds[0] = True: expected an integer >= 0"),
        ({"seeds": None}, "seeds = None: expected a list"),
        ({"solvers": 5}, "solvers = 5: expected a list"),
        ({"solvers": ["random", 5]}, "solvers[1]: expected a Solver, got 5"),
        ({"solvers": []}, "solvers: expected at least one"),
        ({"time_limit": "5"}, "time_limit = '5': expected seconds >= 0, or None for no limit"),
        ({"stop": 5}, "stop: expected a StopCriterion, got 5"),
        ({"problems": None}, "problems = None: expected a list"),
        ({"problems": [7]}, "problems: expected problems, files or names, got 7"),
        ({"problems": {"a": 7}}, "problems: expected problems, files or names, got 7"),
    ],
)
def test_arguments_of_the_wrong_type(options: dict, message: str):
    """What is no list of runs is refused in one line before any run."""
    fields = {"problems": "facility-tiny", "solvers": ["random"], "executor": "serial"}
    with pytest.raises(EdgeOptError, match=f"^{re.escape(message)}$"):
        comparison_rows(**fields | options)


def test_rows_of_any_kind():
    """Rows come from frames, generators and single mappings; what has none is refused in one line."""
    row = {"solver": "greedy", "seed": np.int64(1)}
    for data in (
        [row],
        (each for each in [row]),
        row,
        (row,),
        rows_frame([row]).iloc[:, :0].assign(solver=["greedy"], seed=[1]),
    ):
        assert [(found["solver"], found["seed"]) for found in as_rows(data)] == [("greedy", 1)]
    for wrong, message in ((None, "rows = None: expected a list"), ([5], r"rows\[0\] = 5: expected a row, a mapping")):
        with pytest.raises(EdgeOptError, match=f"^{message}"):
            as_rows(wrong)
