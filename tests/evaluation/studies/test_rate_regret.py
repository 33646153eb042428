"""The study of regret: that the clairvoyant planner is best, against all picks; every variant, tables and pictures."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.rate_regret import (
    CLAIRVOYANT,
    FILE,
    STUDY,
    Setting,
    planner_of,
    play,
    update_seconds,
)
from edgeopt.schedule import RoundPlan, Schedule
from edgeopt.series import KINDS, TimeSeries
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

BITS = 8e6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_nobody_is_faster_than_who_knows_the_future(kind: str, seed: int):
    """Of all picks of 2 of 4 clients in 2 rounds, the clairvoyant's end first: 36 ways, each played."""
    setting = Setting(clients=4, picks=2, rounds=2, megabits=BITS / 1e6, duration_s=30)
    timing = setting.timing(kind, seed)
    ends, picked = play(planner_of(CLAIRVOYANT, timing, setting, seed), timing, 2, BITS)
    plans = [RoundPlan(client=pair) for pair in itertools.combinations(range(4), 2)]
    every = [play(Schedule(rounds), timing, 2, BITS)[0][-1] for rounds in itertools.product(plans, repeat=2)]
    assert ends[-1] == pytest.approx(min(every), rel=1e-12)
    assert picked.sum() == 4


def test_seconds_of_updates():
    """By the trace, or as if the rates of the moment stayed."""
    timing = Setting().timing("steady", 0).at(3.0)
    np.testing.assert_allclose(*(update_seconds(timing, BITS, future=future) for future in (True, False)))
    tunnels = TimeSeries(names=["a"], indptr=[0, 2], time_s=[0, 5], value=[0, 4e6], period_s=10.0)
    timing = timing.replace(
        device_flops=[0.5], uplink=tunnels, now_s=1.0,
        **dict.fromkeys(("uplink_bps", "downlink_bps", "fed_uplink_bps", "fed_downlink_bps", "device_power_w"), 1.0),
    )  # fmt: skip
    assert update_seconds(timing, BITS, future=True) == pytest.approx([6.0])
    assert np.isinf(update_seconds(timing, BITS, future=False))


def test_every_variant_is_played_and_drawn(tmp_path: Path):
    """On every kind of trace; regret is time beyond the best."""
    changes = {"rounds": 4, "clients": 5, "duration_s": 60.0}
    kinds = ["walk", "tunnels"]
    found = run_study(STUDY, quick=True, tasks=kinds, changes=changes, out=tmp_path, executor="serial", display=False)
    assert found.complete
    assert [row["planner"] for row in STUDY.tables(found)["summary"]] == list(STUDY.variants)
    for row in found.rows:
        assert row["regret_s"] == pytest.approx(row["seconds"] - row["best_seconds"])
        assert row["regret"] >= -1e-12
        assert row["variant"] != CLAIRVOYANT or row["regret"] == 0
    pictures = STUDY.pictures(found)
    assert list(pictures) == kinds
    ax = pictures["walk"].draw()
    assert {line.get_label() for line in ax.get_lines()} == set(STUDY.variants) - {CLAIRVOYANT}


def test_on_a_trace_of_ones_own(tmp_path: Path):
    """The columns are the clients, and the seed decides where in the trace the run begins."""
    TimeSeries.random("walk", clients=3, duration_s=40).save(tmp_path / "mine.npz")
    changes: dict[str, Any] = {"trace": str(tmp_path / "mine.npz"), "rounds": 4, "picks": 1}
    found = run_study(STUDY, quick=True, seeds=2, tasks=[FILE], changes=changes, executor="serial", display=False)
    assert found.complete
    one, two = found.of(variant="clairvoyant")
    assert one["seconds"] != two["seconds"]
