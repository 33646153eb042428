"""The benchmark of steered decoding: it runs, and its overhead is that of its times; nothing here asserts a time."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
from edgeopt.evaluation.benchmarks import steering

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")


def test_steering(capsys: pytest.CaptureFixture[str]):
    """A row for each batch, and a goal for each row."""
    assert steering.main(["--quick", "--json", "--batch", "1", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in report["rows"]] == [1, 2]
    for row, goal in zip(report["rows"], report["goals"], strict=True):
        assert row["overhead"] == pytest.approx(row["steered"] / (row["adapted"] + row["base"]) - 1)
        assert goal["reached"] == row["overhead"]
    assert steering.main(["--quick", "--batch", "1"]) == 0
    assert "Time per token" in capsys.readouterr().out
