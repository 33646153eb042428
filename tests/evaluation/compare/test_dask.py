"""Comparisons on a real Dask cluster of processes on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt import storage
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import compare
from edgeopt.evaluation.compare import cells, executors
from tests.evaluation.fake_solvers import Fake, calls, tiny_problem

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a scheduler and three workers, each its own process; nothing listens beyond this machine."""
    folder = tmp_path_factory.mktemp("dask")
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5"}
    file = folder / "scheduler.json"
    host = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *host]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *host]
    worker += ["--local-directory", str(folder), "--death-timeout", "60"]
    log = (folder / "log").open("w")
    quiet = {"env": environment, "cwd": folder, "stdout": log, "stderr": log}
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        deadline = time.monotonic() + 600
        while not file.exists():
            assert processes[0].poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes += [subprocess.Popen(worker, **quiet) for _ in range(3)]
        yield storage.read_json(file)["address"].removeprefix("tcp://")
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


def test_killed_dask_worker_loses_no_row(address: str, tmp_path: Path):
    """Rows come back from a cluster; when one of its workers is killed on the way, none is missing."""
    modes = ("fine", "raise", "once-kill")
    solvers = [Fake(mode, str(tmp_path)) for mode in modes]
    frame = compare(tiny_problem(), solvers, seeds=(0,), executor=f"dask://{address}")
    assert frame.status.tolist() == ["feasible", "error", "feasible"]
    assert calls(tmp_path)["once-kill-0"] == 2
    more = compare(tiny_problem(), solvers[:1], seeds=range(1, 6), executor=f"dask://{address}")
    assert more.status.tolist() == ["feasible"] * 5


def test_a_solver_that_hangs_on_dask_is_killed(address: str, monkeypatch: pytest.MonkeyPatch):
    """A run that never returns ends as a row, and its worker with it; the other workers go on."""
    with monkeypatch.context() as patch:
        patch.setattr(cells, "GRACE_S", 0.0)
        frame = compare(tiny_problem(), [Fake("hang")], time_limit=0, executor=f"dask://{address}")
    assert frame.status.tolist() == ["error"]
    assert frame.message[0].endswith("its worker was killed")
    more = compare(tiny_problem(), [Fake()], seeds=(7, 8), executor=f"dask://{address}")
    assert more.status.tolist() == ["feasible"] * 2


def test_no_scheduler_is_one_line(monkeypatch: pytest.MonkeyPatch):
    """An address where nothing answers is an error that names it."""
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 0.5)
    with pytest.raises(EdgeOptError, match=r"dask://127\.0\.0\.1:1"):
        compare(tiny_problem(), ["random"], executor="dask://127.0.0.1:1")
