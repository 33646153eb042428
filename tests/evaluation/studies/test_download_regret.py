"""The study of downloads over time: what its rows say, on made-up traces and on one's own; tables and pictures."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.download_regret import FILE, STUDY, Setting
from edgeopt.series import TimeSeries
from edgeopt.solvers.model_download import clairvoyant_bound, rolling_horizon
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_every_variant_is_served_and_drawn(tmp_path: Path):
    """Rows are of the same requests and links; done, late and refused are all there is."""
    kinds = ["steady", "tunnels"]
    found = run_study(
        STUDY, quick=True, seeds=1, tasks=kinds, changes={"requests": 12}, out=tmp_path, executor="serial", display=False
    )  # fmt: skip
    assert found.complete
    assert [row["solver"] for row in STUDY.tables(found)["summary"]] == list(STUDY.variants)
    for row in found.rows:
        assert 0 <= row["done"] <= row["bound"] <= 12.001
        assert row["regret"] == pytest.approx(1 - row["share"])
        assert row["done"] / 12 + row["late"] + row["refused"] == pytest.approx(1)
    problem, arrival, rates = Setting(requests=12).requested("tunnels", 0)
    (row,) = found.of(variant="slide", task="tunnels")
    assert row["done"] == rolling_horizon(problem, arrival, rates=rates).num_done > 0
    assert row["bound"] == clairvoyant_bound(problem, arrival, rates=rates)
    pictures = STUDY.pictures(found)
    assert list(pictures) == ["share", "late"]
    ax = pictures["share"].draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == kinds
    assert max(bar.get_height() for bar in ax.patches) == max(row["share"] for row in found.rows)


def test_on_a_trace_of_ones_own(tmp_path: Path):
    """Columns are followed in turn, from a second on that the seed decides."""
    TimeSeries.random("walk", clients=3, duration_s=40, mean_bps=(1e8, 1e9)).save(tmp_path / "mine.npz")
    changes: dict[str, Any] = {"trace": str(tmp_path / "mine.npz"), "requests": 8, "per_s": 1.0}
    found = run_study(STUDY, quick=True, seeds=2, tasks=[FILE], changes=changes, executor="serial", display=False)
    assert found.complete
    one, two = found.of(variant="slide")
    assert one["bound"] != two["bound"]
    _, arrival, rates = Setting(**changes).requested(FILE, 0)
    assert rates.names == ("0", "1", "2", "0", "1", "2", "0", "1")
    assert arrival.min() > 0.5
