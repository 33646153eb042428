"""Expert balancing on the command line: generate, solve and compare."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import ExpertBalancing, bundled_trace


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_generate(tmp_path: Path):
    """The options are the arguments of `ExpertBalancing.random`; with a trace, of `from_trace`."""
    words = (
        "--devices",
        4,
        "--experts",
        8,
        "--layers",
        2,
        "--slots",
        3,
        "--groups",
        2,
        "--skew",
        0.5,
        "--move-cost",
        9,
    )
    assert run("generate", "expert-balancing", *words, "--seed", 3, "-o", tmp_path / "a.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "a.npz") == ExpertBalancing.random(
        num_devices=4, num_experts=8, num_layers=2, slots=3, num_groups=2, skew=0.5, move_cost=9.0, seed=3
    )
    assert (
        run("generate", "expert-balancing", "--trace", "mixtral8", "--devices", 4, "-o", tmp_path / "b.json").exit_code
        == 0
    )
    assert edgeopt.load(tmp_path / "b.json") == ExpertBalancing.from_trace(bundled_trace("mixtral8"), num_devices=4)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--slots", 1, "slots: 8 in all, expected at least one for each of 64 experts"),
        ("--groups", 9, "num_groups = 9: expected at most num_devices = 8"),
        ("--trace", "mixtrall", "mixtrall"),
    ],
)
def test_bad_options_are_one_line(option: str, value: object, expected: str, tmp_path: Path):
    """Bad input is one line on standard error, status 2, and no file."""
    done = run("generate", "expert-balancing", option, value, "-o", tmp_path / "x.npz")
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not (tmp_path / "x.npz").exists()


def test_solve_and_compare(tmp_path: Path):
    """JSON output has the placement; all solvers run on an instance of the library, and none beats the bound."""
    done = run("solve", "balancing-eight", "--solver", "local-search", "--json")
    document = json.loads(done.stdout)
    assert (document["problem"], document["sense"]) == ("expert-balancing", "min")
    assert document["objective"] == pytest.approx(560 / 3 + 10)
    done = run("compare", "balancing-eight", "--solvers", "eplb,local-search", "--executor", "serial", "--json")
    rows = {row["solver"]: row for row in json.loads(done.stdout)}
    assert rows["eplb"]["objective"] == pytest.approx(232.0)
    assert all(row["bound"] <= row["objective"] for row in rows.values())
