"""The benchmark of client selection runs and its results agree; nothing here asserts a time."""

import json

import numpy as np
import pytest

from edgeopt.evaluation.benchmarks import client_selection


@pytest.mark.slow
def test_it_runs_and_everything_agrees(capsys: pytest.CaptureFixture[str]):
    """A quick run is valid: equal rewards, hmmlearn's parameters, SciPy's values."""
    assert client_selection.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["benchmark"] == "client_selection"
    assert report["valid"], report
    assert [row["setting"] for row in report["environment"]] == list(client_selection.SETTINGS)
    if client_selection.has_hmmlearn():
        assert max(report["fit"][way]["off"] for way in ("scaling", "log")) < 1e-8
    losses = report["forecast"]
    assert losses["oracle"] < losses["base rate"]
    assert losses["fitted"] < losses["base rate"]
    assert {goal["unit"] for goal in report["goals"]} <= {"/s", "x", "ms"}
    assert client_selection.main(["--quick"]) == 0
    assert "decisions per second" in capsys.readouterr().out


def test_the_rate_after_the_last_symbol_is_counted_in_training():
    """-1, 0 and 1 seen last: the share of ones among the next seen symbols, looked up for the test sequences."""
    train = np.array([[0, -1, 1, 1], [1, 0, 0, -1], [1, 1, 1, 1]])
    test = np.array([[-1, 0, -1, 1, 0]])
    chance = client_selection._after_the_last(train, test)
    np.testing.assert_allclose(chance, [[2 / 3, 2 / 3, 0.5, 0.5, 0.8]])
