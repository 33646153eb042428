"""The benchmark of the vault: it runs, and its goals are those of its rows; nothing here asserts a time."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("cryptography")
from edgeopt.evaluation.benchmarks import vault


def test_vault(capsys: pytest.CaptureFixture[str]):
    """A row for each size, and of what was restored its goal is judged."""
    assert vault.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["size"] for row in report["rows"]] == [32, 64]
    assert all(row["restored_db"] >= 30 for row in report["rows"])
    reached = [goal["reached"] for goal in report["goals"]]
    assert reached == [row[name] for row in report["rows"] for name in ("hide_s", "restore_s", "least_db")]
    assert [(row["pictures"], row["size"]) for row in report["worth"]] == [("faces", 32), ("photographs", 32)]
    assert [row["hidden"] for row in report["alone"]] == ["a face", "random bits"]
    assert report["alone"][0]["revealed_db"] > 25
