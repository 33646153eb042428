"""The benchmark of systems of split learning runs; nothing here asserts a time."""

import json

import pytest
from rich.console import Console

torch = pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import split_systems
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


@pytest.mark.slow
def test_split_systems(capsys: pytest.CaptureFixture[str]):
    """A row and a goal for each system; the table can be printed."""
    assert split_systems.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert_well_formed(report, "split_systems")
    assert [row["system"] for row in report["rows"]] == list(split_systems.SYSTEMS)
    assert all(row["ratio"] == row["round_s"] / row["splitfed_s"] for row in report["rows"])
    split_systems.show(report, Console(file=None, quiet=True))
