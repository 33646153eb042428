"""The benchmark of unequal ranks at a small size."""

import json

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import unequal_ranks


def test_it_runs_and_all_ways_end_with_the_same_adapters(capsys: pytest.CaptureFixture[str]):
    """A report with times of three ways, their difference and the goals; the table shows it."""
    assert unequal_ranks.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["valid"]
    assert report["difference"] < 1e-5
    assert set(report["round_s"]) == {"one batch", "grouped by rank", "one by one"}
    assert len(report["goals"]) == 2
    assert unequal_ranks.main(["--quick"]) == 0
    assert "grouped by rank" in capsys.readouterr().out
