"""The study of joint plans: every variant runs and is drawn, and the plan that it makes is what its rows say."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.joint_plan import DECISIONS, EQUAL, SEQUENCE, STUDY, SYSTEM, competition, decided
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_every_variant_shares_out_and_is_drawn(tmp_path: Path):
    """Values are weighted worths, blocks are within what there is, and nobody is better than the joint bound."""
    found = run_study(
        STUDY, quick=True, changes={"solve_s": 5.0, "blocks": 2}, out=tmp_path, executor="serial", display=False
    )
    assert found.complete
    (joint,) = found.of(variant=SYSTEM)
    assert joint["value"] <= joint["bound"]
    assert joint["gap"] <= found.setting.gap
    for row in found.rows:
        worth = sum(row[f"{name}_weight"] * row[f"{name}_worth"] for name in DECISIONS)
        assert row["value"] == pytest.approx(worth)
        assert row["value"] <= joint["bound"] * 1.01  # solves end by the clock, in plans of their own
        for resource in ("storage", "bandwidth", "energy"):
            assert sum(row.get(f"{name}_{resource}", 0) for name in DECISIONS) <= found.setting.blocks
    summary = STUDY.tables(found)["summary"]
    assert [row["variant"] for row in summary] == [SYSTEM, EQUAL, SEQUENCE]
    pictures = STUDY.pictures(found)
    assert list(pictures) == ["values", "shares", "bounds"]
    assert len(pictures["values"].draw().patches) == 3
    assert len(pictures["bounds"].draw().get_lines()) == 2
    assert sum(patch.get_height() for patch in pictures["shares"].draw().patches) == sum(
        count for name, count in joint.items() if name.endswith(("storage", "bandwidth", "energy"))
    )


def test_who_is_first_has_the_largest_priority():
    """One after another goes by what the decisions count, and equal shares do not look at it."""
    setting = STUDY.setting(quick=True, changes={"solve_s": 5.0})
    on = competition(setting, 0)
    assert on.weights == {"caching": 3.0, "download": 9.0, "training": 1.0}
    plan = on.plan({"storage": 2, "bandwidth": 2, "energy": 2})
    first = decided(plan, SEQUENCE, setting)
    assert first.worth["download"] >= 0.99
    assert decided(plan, EQUAL, setting).blocks["caching"] == {"storage": 1}
