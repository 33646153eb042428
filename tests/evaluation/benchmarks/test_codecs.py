"""The benchmark of codecs: every codec is in it, the peer's error is that of a rank, nothing here asserts a time."""

import json
import math

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import codecs
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.training import CODECS


def test_codecs(capsys: pytest.CaptureFixture[str]):
    """A row for each, for each size of a mini-batch; errors of what is exact are nothing, of ranks at least the SVD's."""
    assert codecs.main(["--quick", "--json"]) == 0
    report: Row = json.loads(capsys.readouterr().out)
    assert report["benchmark"] == "codecs"
    assert [found["samples"] for found in report["tables"]] == [4, 8]
    for found in report["tables"]:
        rows = {row["codec"]: row for row in found["rows"]}
        assert list(rows) == [*(kind.name for kind in CODECS), codecs.PEER]
        assert (rows["identity"]["error"], rows["identity"]["share"]) == (0, 1)
        assert all(row["seconds"] > 0 and math.isfinite(row["error"]) for row in rows.values())
        for name in ("nsc", codecs.PEER):
            assert rows[name]["error"] == pytest.approx(found["svd_error"], abs=1e-5)  # all directions there are
    assert len(report["goals"]) == 4
    assert codecs.main(["--quick", "--samples", "4"]) == 0
    assert "encode and decode" in capsys.readouterr().out
