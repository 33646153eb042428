"""Split training on the command line: generate, describe, solve and compare work as for caching."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import SplitTraining


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split-training") / "small.json"
    done = run("generate", "split-training", "--devices", 4, "--layers", 5, "--max-batch", 16, "-o", path)
    assert done.exit_code == 0, done.stderr
    return path


def test_generate_is_random(instance: Path):
    """The options are the arguments of `SplitTraining.random`."""
    assert edgeopt.load(instance) == SplitTraining.random(num_devices=4, num_layers=5, max_batch=16)


def test_generate_defaults(tmp_path: Path):
    """Without options the instance is that of `SplitTraining.random` without arguments."""
    assert run("generate", "split-training", "-o", tmp_path / "default.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "default.npz") == SplitTraining.random()


def test_generate_all_options(tmp_path: Path):
    """Model, target, heterogeneity, a free interval and the seed arrive."""
    words = (
        "generate", "split-training", "--devices", 3, "--model", "vgg16", "--target-eps", 2.5, "--heterogeneity", 0.5,
        "--interval", "2:9", "--seed", 4,
    )  # fmt: skip
    assert run(*words, "-o", tmp_path / "all.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "all.npz") == SplitTraining.random(
        num_devices=3, model="vgg16", target=2.5, heterogeneity=0.5, interval=(2, 9), seed=4
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--interval", "often", "--interval = 'often': expected a whole number, or two as LOW:HIGH"),
        ("--interval", "9:2", "max_interval = 2: expected at least min_interval = 9"),
        ("--model", "resnet17", "'resnet17'"),
        ("--target-eps", -1, "target = -1.0: expected a positive"),
        ("--devices", 0, "--devices"),
    ],
)
def test_bad_options_are_one_line(option: str, value: object, expected: str, tmp_path: Path):
    """A wrong option ends with status 2 and one line that names it."""
    done = run("generate", "split-training", option, value, "-o", tmp_path / "x.npz")
    assert done.exit_code == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_describe(instance: Path):
    """Describe --json gives kind, sense and sizes."""
    document = json.loads(run("describe", instance, "--json").stdout)
    assert (document["problem"], document["sense"]) == ("split-training", "min")
    assert (document["facts"]["devices"], document["facts"]["layers"]) == (4, 5)


def test_solve_json(instance: Path):
    """Solve --json proves the optimum and prints the promised keys."""
    done = run("solve", instance, "--solver", "exact", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["sense"], document["status"], document["gap"]) == ("min", "optimal", 0.0)
    assert document["objective"] == document["bound"]


def test_solve_says_which_term_is_to_blame(tmp_path: Path):
    """An unreachable target is reported as infeasible, with what would make it feasible."""
    path = tmp_path / "hopeless.json"
    assert (
        run("generate", "split-training", "--devices", 3, "--layers", 4, "--target-eps", 1e-9, "-o", path).exit_code
        == 0
    )
    done = run("solve", path, "--solver", "exact", "--json")
    document = json.loads(done.stdout)
    assert (document["status"], document["objective"], document["bound"]) == ("infeasible", None, None)
    assert "is to blame" in document["message"]


def test_solve_from_a_result(instance: Path, tmp_path: Path):
    """A result file written by --output is a start for another solver."""
    file = tmp_path / "result.json"
    assert run("solve", instance, "--solver", "exact", "--output", file).exit_code == 0
    words = ("solve", instance, "--solver", "hasfl", "--initial-solution", file, "--json")
    assert json.loads(run(*words).stdout)["objective"] == json.loads(file.read_text())["objective"]


def test_compare_json(instance: Path):
    """Compare --json has one row per solver; no objective is below the proved bound."""
    done = run("compare", instance, "--solvers", "hasfl,exact", "--executor", "serial", "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["solver"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"hasfl", "exact"}
    assert rows["exact"]["status"] == "optimal"
    assert rows["exact"]["bound"] <= rows["hasfl"]["objective"] * (1 + 1e-9)


def test_solvers_lists_the_guarantees():
    """`edgeopt solvers split-training` names `exact` as exact and `hasfl` as a heuristic."""
    done = run("solvers", "split-training", "--json")
    guarantees = {entry["name"]: entry["guarantee"] for entry in json.loads(done.stdout)}
    assert (guarantees["exact"], guarantees["hasfl"]) == ("exact", "heuristic")
