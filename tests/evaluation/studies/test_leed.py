"""The study of LEED, at a small size."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.leed import STUDY, TASKS, Setting, learner_of, reached, team_of
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    found = run_study(STUDY, quick=True, executor="serial", display=False)
    assert found.complete
    for row in found.rows:
        assert row["planner"] > row["untrained"]
        assert [point["update"] for point in row["curve"]] == list(range(1, 7))
        weight = [point["weight"] for point in row["curve"]]
        if row["variant"] in ("ippo", "central", "clone-then-ppo"):
            assert weight == [0.0] * 6
        if row["variant"] == "leed":
            assert weight == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0])
    tables = STUDY.tables(found)
    assert [row["variant"] for row in tables["summary"]] == list(STUDY.variants)
    assert set(STUDY.pictures(found)) == {"route-4-share"}
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


@pytest.mark.parametrize("task", TASKS)
def test_variants_differ_from_the_system_in_what_they_are_called_for(task: str):
    """Networks, steps and discounts are those of the task in every variant."""
    system = learner_of(task, "leed", Setting())
    for variant in STUDY.variants:
        own = learner_of(task, variant, Setting())
        differing = {f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(system, f.name)}
        assert differing <= {"weight", "cloning", "critic"}
        assert bool(differing) == (variant not in ("leed", "noise-0.15", "noise-0.4"))
    assert team_of(task).num_agents == int(task.rpartition("-")[2])


def test_when_a_share_is_reached():
    """The middle of the first five updates whose mean is enough; never is nothing, or all updates of a baseline."""
    share = np.array([0.0, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1])
    assert reached(share, own=True) == 5
    assert reached(share[:6], own=True) is None
    assert reached(share[:6], own=False) == 6
    assert reached(share[:2], own=False) == 2
