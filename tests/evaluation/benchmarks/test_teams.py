"""The benchmark of agents that learn together runs; nothing here asserts a time."""

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.benchmarks import teams
from tests.evaluation.benchmarks.test_benchmarks import assert_well_formed, in_own_process


@pytest.mark.slow
def test_quick_run():
    report = in_own_process_even_if_goals_are_missed()
    assert_well_formed(report, "teams")
    assert [row["agents"] for row in report["rows"]] == [4, 12] * 3
    assert len(report["goals"]) == 3


def in_own_process_even_if_goals_are_missed() -> dict:
    return in_own_process("teams")


def test_exponent_of_a_power():
    rows = [{"agents": n, "update_s": 0.01 * n**1.5} for n in teams.AGENTS]
    assert teams.exponent(rows) == pytest.approx(1.5)
