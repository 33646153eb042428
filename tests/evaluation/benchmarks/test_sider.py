"""The benchmark of protecting faces: it runs, and its goals are those of its rows; nothing here asserts a time."""

import json

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import sider


@pytest.mark.slow
def test_sider(capsys: pytest.CaptureFixture[str]):
    """One face and several, of both sizes; the goals are the seconds of one large face that does not stop early."""
    assert sider.main(["--quick", "--json", "--faces", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {(row["size"], row["faces"], row["stop"]) for row in report["rows"]} == {
        (size, count, stop) for size in (32, 64) for count in (1, 2) for stop in (True, False)
    }
    assert all(row["iterations"] <= 1 and row["cpu_s"] > 0 for row in report["rows"])
    wanted = [row["seconds"] for row in report["rows"] if (row["size"], row["faces"], row["stop"]) == (64, 1, False)]
    assert [goal["reached"] for goal in report["goals"]] == wanted
