"""The benchmark of belief propagation runs; nothing here asserts a time."""

import pytest

pytest.importorskip("torch")
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed, in_own_process


@pytest.mark.slow
def test_quick_run():
    report = in_own_process("fountain")
    assert_well_formed(report, "fountain")
    (row,) = report["rows"]
    assert row["equal"]
    assert row["bits"] == 4096
    assert abs(row["edges"] - 10_000) < 300
