"""The study of DEER, at a small size."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.deer import BASES, ON_DEMAND, STUDY, Setting, detected, environment, measured
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

TINY = {"start": 0.03, "after": 100, "quiet": [60, 120], "agents": 1, "batch": 4}


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    found = run_study(STUDY, quick=True, changes=TINY, executor="serial", display=False)
    assert found.complete
    for row in found.rows:
        assert ("found" in row) == (row["variant"] in ("deer", "flush-detected", "no-fork", "no-doe", "no-cap"))
        assert 0 <= row["recovery"] <= 100
        assert row["curve"][-1]["step"] == 50
    tables = STUDY.tables(found)
    assert {row["variant"] for row in tables["summary"]} == set(STUDY.variants)
    assert set(STUDY.pictures(found)) == {"cart-pole-200", "pendulum-100", "selection-habit"}
    for claim in STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


@pytest.mark.parametrize("task", [*STUDY.tasks, *ON_DEMAND])
def test_worlds_change_at_their_step(task: str):
    """Up to the change two worlds are one; after it they are not."""
    seeds, rng = [1, 2], np.random.default_rng(0)
    one, other = environment(task, seeds, None), environment(task, seeds, [150, 150])
    differ = []
    for _ in range(300):
        action = rng.uniform(-1, 1, (2, 1)) if task.startswith("pendulum") else rng.integers(2, size=2)
        a, b = one.step(action), other.step(action)
        differ.append(not (np.array_equal(a.following, b.following) and np.array_equal(a.reward, b.reward)))
    assert not any(differ[:150])
    assert any(differ[150:])


def test_measured_by_hand():
    """An agent that falls from 10 to 0 and comes back: area, drop and recovery as they are counted by hand."""
    level = np.concatenate([np.zeros(100), np.full(900, 10.0), np.full(500, 0.0), np.full(1500, 10.0)])
    reward = level.astype(np.float32)[:, None]
    found = measured(reward, np.ones_like(reward, bool), [1000], steps=500, after=2000)
    assert found["area"] == pytest.approx(0.75)
    assert found["drop"] == pytest.approx(1.0)
    assert found["recovered"] == 1.0
    assert found["recovery"] == pytest.approx(480, abs=1)  # of the 200 steps from here on, 180 are as before
    assert [point["step"] for point in found["curve"]][::5] == [-450, 50, 550, 1050, 1550]


def test_detections_by_hand():
    """Right and wrong ones, and how long the first right one took."""
    changes = [(550, 0, 500), (780, 0, 690), (900, 0, 800), (1300, 1, 1200)]
    found = detected(changes, [700, 1200], steps=500, total=1500)
    assert found == {"found": 1.0, "delay": 90.0, "false_alarms": 1000 / 900, "later_alarms": 1000 / 1100}
    assert detected(changes[:3], [700, 1200], 500, 1500)["delay"] is None


def test_starts_are_shared():
    """All bases have a task; the setting's quiet time lets the detector fill its windows before any change."""
    assert {task.rsplit("-", 1)[0] for task in (*STUDY.tasks, *ON_DEMAND)} == set(BASES)
    assert Setting().quiet[0] >= 2 * Setting().detector_window
