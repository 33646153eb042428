"""The benchmark of solving again at small sizes; nothing here asserts a time."""

import json
import math

import pytest

import edgeopt
from edgeopt.evaluation.benchmarks import warm_start
from edgeopt.problems import PROBLEMS, ExpertBalancing
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed


def test_warm_start(capsys: pytest.CaptureFixture[str]):
    """A row for each case, of every kind, each solved; the table shows them."""
    assert warm_start.main(["--quick", "--seconds", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "warm_start")
    assert {row["case"].split(",")[0] for row in report["rows"]} == {kind.kind for kind in PROBLEMS}
    assert all(row["cold_s"] > 0 and row["warm_whole_s"] > 0 for row in report["rows"])


def test_when_a_run_is_as_good():
    """From the first record within a thousandth; never, where none is."""
    result = edgeopt.solve(ExpertBalancing.random(num_devices=2, num_experts=4), "local-search")
    first = next(one for one in result.history if one.objective is not None)
    assert warm_start.as_good_s(result, first.objective) == first.seconds
    assert warm_start.as_good_s(result, 0.5 * result.objective) == math.inf
