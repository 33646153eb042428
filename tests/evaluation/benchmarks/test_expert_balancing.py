"""The benchmark of expert balancing at a small size; nothing here asserts a time."""

import json

import pytest

from edgeopt.evaluation.benchmarks import expert_balancing
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed


def test_expert_balancing(capsys: pytest.CaptureFixture[str]):
    """A row for each quick solver, none below the bound; the table shows them."""
    assert expert_balancing.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert_well_formed(report, "expert_balancing")
    assert [row["solver"] for row in report["rows"]] == ["eplb", "local-search"]
    assert all(0 <= row["gap"] <= row["worst"] for row in report["rows"])
    assert expert_balancing.main(["--quick"]) == 0
    assert "above the bound" in capsys.readouterr().out
