"""What a run leaves behind, as table, file and plain values."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import RoundPlan
from edgeopt.training import History
from edgeopt.training.costs.timing import PhaseTime
from edgeopt.training.history import client_seconds, straggler

ROWS: list[dict[str, float | int]] = [
    {"round": 0, "seconds": 1.5, "accuracy": float("nan")},
    {"round": 1, "seconds": 3.0, "accuracy": 0.5},
    {"round": 2, "seconds": 4.5, "accuracy": 0.4},
]


def phase(entry: list[int], seconds: list[float], start_s: float = 0.0) -> PhaseTime:
    """Return a phase whose clients only compute."""
    zeros = np.zeros(len(entry))
    fields: dict[str, Any] = {"down_s": zeros, "compute_s": np.array(seconds), "up_s": zeros, "energy_j": zeros}
    return PhaseTime(
        name="x", start_s=start_s, seconds=max(seconds, default=0.0), entry=np.array(entry, np.int64),
        served=np.zeros(0, np.int64), server_s=np.zeros(0), **fields,
    )  # fmt: skip


def test_tables_and_columns():
    """The table has the rows; a column is one number of each."""
    history = History(rows=list(ROWS))
    frame = history.to_frame()
    assert frame["seconds"].tolist() == history.column("seconds").tolist() == [1.5, 3.0, 4.5]
    assert frame["accuracy"].isna().tolist() == [True, False, False]
    assert History().to_frame().empty


def test_the_first_round_that_reaches_an_accuracy():
    """Rounds without evaluation do not count."""
    history = History(rows=list(ROWS))
    assert history.first_reach(0.4) == ROWS[1]
    assert history.first_reach(0.6) is None


def test_infinity_is_a_word():
    """A loss beyond all numbers, which JSON does not have, is the text that `float` reads."""
    rows = History(rows=[{"round": 0, "test_loss": float("inf"), "accuracy": 0.5}]).to_json()["rows"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == [{"round": 0, "test_loss": "inf", "accuracy": 0.5}]


def test_plain_values(tmp_path: Path):
    """JSON has None where nothing was measured; CSV reads back; a run without rows has a header only."""
    history = History(rows=list(ROWS), reason="because")
    document = json.loads(json.dumps(history.to_json(), allow_nan=False))
    assert (document["rounds"], document["interrupted"], document["reason"]) == (3, False, "because")
    assert [row["accuracy"] for row in document["rows"]] == [None, 0.5, 0.4]
    history.to_csv(tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert str([{name: float(value) for name, value in row.items()} for row in read]) == str(
        [{name: float(value) for name, value in row.items()} for row in ROWS]
    )
    History().to_csv(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "round\n"


def test_last_replies():
    """A client's seconds run to its last reply; who got no message has none."""
    plan = RoundPlan(client=[3, 1, 2])
    phases = [phase([0, 1], [2.0, 5.0]), phase([0], [1.0], start_s=5.0)]
    np.testing.assert_array_equal(client_seconds(plan, phases), [6.0, 5.0, np.nan])


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([], None),
        ([phase([], [])], None),
        ([phase([1], [4.0])], 1),
        ([phase([0, 1], [2.0, 5.0]), phase([0, 1, 2], [3.0, 1.0, 2.0], 5.0)], 1),
        ([phase([0, 1], [2.0, 3.0]), phase([0, 1, 2], [3.0, 1.0, 1.5], 3.0)], 3),
        ([phase([0, 1, 2], [9.0, 8.9, 1.0]), phase([0, 1, 2], [1.0, 1.0, 3.0], 9.0)], 2),
    ],
)
def test_the_straggler(phases: list[PhaseTime], expected: int | None):
    """It is the client without whom the phases would last least: not one that another would have held up as well."""
    assert straggler(RoundPlan(client=[3, 1, 2]), phases) == expected
