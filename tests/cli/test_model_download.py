"""Model download on the command line: generate, describe, solve, compare and report work as for caching."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import ModelDownload


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model-download") / "small.json"
    done = run("generate", "model-download", "--users", 8, "--bandwidth-mhz", 60, "--deadline", 1.5, "-o", path)
    assert done.exit_code == 0, done.stderr
    return path


def test_generate_is_random(instance: Path):
    """The options are the arguments of `ModelDownload.random`, in the units that their names say."""
    assert edgeopt.load(instance) == ModelDownload.random(num_users=8, bandwidth_hz=60e6, deadline_s=1.5)


def test_generate_defaults(tmp_path: Path):
    """Without options the instance is that of `ModelDownload.random` without arguments."""
    assert run("generate", "model-download", "-o", tmp_path / "default.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "default.npz") == ModelDownload.random()


def test_generate_all_options(tmp_path: Path):
    """Ranges, no energy limit, weights, rewards, fixed power, blocks and the seed arrive."""
    words = (
        "generate", "model-download", "--users", 5, "--models", 3, "--deadline", "1:2", "--snr-db", "5:10",
        "--energy", "none", "--weighted", "--rewarded", "--fixed-power", "--resource-block-khz", 180,
        "--frequency-levels", "0.5,1", "--seed", 4,
    )  # fmt: skip
    assert run(*words, "-o", tmp_path / "all.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "all.npz") == ModelDownload.random(
        num_users=5,
        num_models=3,
        deadline_s=(1.0, 2.0),
        snr_db=(5.0, 10.0),
        energy=None,
        weighted=True,
        rewarded=True,
        fixed_power=True,
        resource_block_hz=180e3,
        frequency_levels=[0.5, 1.0],
        seed=4,
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--deadline", "soon", "--deadline = 'soon': expected a number"),
        ("--deadline", "3:1", "deadline_s = (3.0, 1.0): expected low <= high"),
        ("--deadline", "-1", "deadline_s"),
        ("--energy", "a:b", "--energy = 'a:b': expected a number, or two as LOW:HIGH"),
        ("--snr-db", "1:", "--snr-db = '1:'"),
        ("--frequency-levels", "1;2", "--frequency-levels = '1;2': expected numbers"),
        ("--frequency-levels", "0.5,2", "frequency_levels[1] = 2.0"),
        ("--bandwidth-mhz", "-5", "bandwidth_hz = -5000000.0: expected a positive number (Hz)"),
        ("--users", "0", "--users"),
        ("--models", "99", "num_models = 99"),
        ("--resource-block-khz", "0", "resource_block_hz = 0.0"),
    ],
)
def test_bad_options(option: str, value: str, expected: str, tmp_path: Path):
    """A wrong value is one line that names it, exit status 2, and no file."""
    done = run("generate", "model-download", f"{option}={value}", "-o", tmp_path / "x.json")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_describe(instance: Path):
    """`describe --json` gives the sizes."""
    done = run("describe", instance, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]
    assert (facts["kind"], facts["users"], facts["bandwidth, Hz"]) == ("model-download", 8, 60e6)


def test_solve_and_start_from_the_result(instance: Path, tmp_path: Path):
    """`solve --json` proves the optimum; its result file can be read back as a solution to start from."""
    done = run("solve", instance, "--solver", "slide", "--json", "--output", tmp_path / "result.json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["problem"], document["status"], document["gap"]) == ("model-download", "optimal", 0.0)
    words = ("solve", instance, "--solver", "random", "--initial-solution", tmp_path / "result.json", "--json")
    assert json.loads(run(*words).stdout)["objective"] == document["objective"]


def test_compare_and_report(instance: Path, tmp_path: Path):
    """`compare --out` prints a table of both solvers and leaves rows, pictures and a report with both pictures of the plan."""
    out = tmp_path / "out"
    words = ("compare", instance, "--solvers", "slide,download-then-infer", "--executor", "serial", "--out", out)
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    assert "slide" in done.stdout
    assert "download-then-infer" in done.stdout
    report = (out / "report.html").read_text(encoding="utf-8")
    for caption in (
        "download-then-infer",
        "When the layers of each user arrive and run",
        "Bandwidth of the admitted users",
    ):
        assert caption in report


def test_who_cannot_be_served_is_said(tmp_path: Path):
    """Solving an instance that nobody can be served in says how many, why, and the first with its numbers."""
    path = tmp_path / "hopeless.json"
    assert run("generate", "model-download", "--users", 4, "--deadline", 0.01, "-o", path).exit_code == 0
    done = run("solve", path, "--solver", "slide")
    assert (
        "4 of 4 users cannot be served even alone (3 deadline, 1 bandwidth); user 0: deadline_s = 0.01" in done.output
    )
    done = run("describe", path, "--json")
    assert json.loads(done.stdout)["facts"]["users that cannot be served"] == "4 (3 deadline, 1 bandwidth)"
