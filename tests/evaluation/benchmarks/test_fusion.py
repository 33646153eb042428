"""The benchmark of fusion: it runs, and its goals are those of its rows; nothing here asserts a time."""

import json

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import fusion


def test_fusion(capsys: pytest.CaptureFixture[str]):
    """A row and a goal for each number of streams, and a goal for training."""
    assert fusion.main(["--quick", "--json", "--streams", "1", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["streams"] for row in report["rows"]] == [1, 3]
    reached = [goal["reached"] for goal in report["goals"]]
    assert reached == [*(row["windows_per_s"] for row in report["rows"]), report["minutes"]]
