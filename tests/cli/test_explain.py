"""The command `edgeopt explain`."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import SplitTraining
from tests.solvers.model_download.instances import hand_made


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["explain", *map(str, words)])


@pytest.fixture
def download(tmp_path: Path) -> Path:
    hand_made(bandwidth_hz=6.0).save(tmp_path / "download.json")
    return tmp_path / "download.json"


def test_a_conflict(tmp_path: Path):
    """For people the limits are named, and --json prints the explanation and nothing else."""
    problem = SplitTraining.random(num_devices=3, num_layers=3, seed=1)
    problem = problem.replace(target=0.5 * problem.least_target)
    problem.save(tmp_path / "split.json")
    done = run(tmp_path / "split.json")
    assert done.exit_code == 0
    assert done.stdout == problem.explain().summary() + "\n"
    assert "without any one of them the others can" in done.stdout
    done = run(tmp_path / "split.json", "--json")
    assert (json.loads(done.stdout), done.stderr) == (problem.explain().to_json(), "")


def test_the_plan_of_slide_is_explained(download: Path):
    """Without a plan, the one of `slide`, which serves one of two."""
    (refused,) = json.loads(run(download, "--json").stdout)["refused"]
    assert refused["index"] == 1


def test_a_given_plan_is_explained(download: Path, tmp_path: Path):
    """With one that serves nobody, both, for whom nothing would have to change."""
    result = edgeopt.solve(edgeopt.load(download), "slide").to_json(with_solution=True)
    result["solution"] = {"model": [-1, -1], "bandwidth_hz": [0, 0], "frequency_hz": []}
    (tmp_path / "result.json").write_text(json.dumps(result))
    found = json.loads(run(download, "--solution", tmp_path / "result.json", "--json").stdout)["refused"]
    assert [(entry["index"], entry["ways"]) for entry in found] == [(0, [[]]), (1, [[]])]


def test_bad_input(download: Path, tmp_path: Path):
    """One line and status 2, also for a solution that no explanation takes."""
    for words, expected in (
        ([tmp_path / "none.json"], "No such file"),
        ([download, "--solution", download], "download.json: problem"),
        (["facility-tiny", "--solution", download], "--solution: expected none for a problem of expert-caching"),
    ):
        done = run(*words)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert expected in done.stderr
