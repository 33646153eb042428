"""Rounds on TensorBoard."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeopt import StaticPlanner
from edgeopt.errors import MissingDependencyError
from edgeopt.training import FedAvg, train
from edgeopt.training.tensorboard import TensorBoardWriter
from tests.training.small_tasks import small_plan, small_task, small_timing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rows_are_written(tmp_path: Path):
    """What TensorBoard reads back are the rows: every number that was measured, at its round and virtual time."""
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoardWriter(tmp_path) as writer:
        history = train(
            small_task(),
            FedAvg(),
            StaticPlanner(small_plan()),
            small_timing(),
            rounds=4,
            evaluate_every=2,
            on_round=writer,
        )
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(history.rows[0]) - {"round"}
    for name in events.Tags()["scalars"]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["round"], row[name]) for row in history.rows if not math.isnan(row[name])]
        for (step, value), (round, number) in zip(found, expected, strict=True):
            assert step == round
            assert value == pytest.approx(number, rel=1e-6)
    assert [event.wall_time for event in events.Scalars("seconds")] == [row["seconds"] for row in history.rows]
    assert [event.step for event in events.Scalars("accuracy")] == [1, 3]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeopt\[tensorboard\]'"):
        TensorBoardWriter(tmp_path)
