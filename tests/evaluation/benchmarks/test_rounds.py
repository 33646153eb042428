"""The benchmark of rounds: the plain loop and ours end with the same weights, and the tables can be shown."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import __main__ as everything
from edgeopt.evaluation.benchmarks import rounds, rounds_choice, rounds_work
from tests.one_thread import one_thread

__all__ = ["one_thread"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", rounds.CASES)
def test_every_case_is_the_plain_loop(name: str, tmp_path: Path):
    """The same weights from the same mini-batches, whichever way clients run."""
    case = rounds.CASES[name]._replace(clients=3, cohort=2, rounds=2)
    np.savez(tmp_path / "case.npz", **rounds.make_data(case))
    data = rounds_work.load(str(tmp_path / "case.npz"))
    expected = rounds_work.plain(data, rounds_work.Clock()).state_dict()
    for options in ({"batched": False}, {"batched": True}):
        report, found = rounds.ours(data, 1, options)
        assert report["seconds"] > 0
        assert 0 <= report["accounting"] < 1
        for value, other in zip(found, expected.values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def test_the_rule_is_judged_by_what_is_measured(monkeypatch: pytest.MonkeyPatch):
    """A network has its seconds in batches of each size, and what is chosen is compared with the best."""
    monkeypatch.setattr(rounds_choice, "CLIENTS", 8)
    row = rounds_choice.network_row("digits, batch 4", 1)
    assert row["chosen"] == 8
    assert row["cpu_s"].keys() == {str(chunk) for chunk in rounds_choice.CHUNKS}
    assert row["regret"] >= 1
    rounds_choice.show({"rows": [row]}, Console(file=io.StringIO()))


def test_the_tables_are_shown():
    """With and without peers."""
    found = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_gib": 0.5}
    for rows in (
        {"plain": found},
        {"plain": found, "pfl": found, "chosen": found | {"ways": ["train: 2 at once"], "accounting": 0.01}},
    ):
        out = io.StringIO()
        row = {"case": "digits", "rows": rows, "apart": dict.fromkeys(rows, 0.0), "single": 1e-5}
        rounds.show({"rows": [row], "flower": None}, Console(file=out, width=200))
        assert "digits" in out.getvalue()
    assert {"rounds", "rounds_choice"} <= set(everything.LONG)
