"""Client selection on the command line: generate, describe, solve, compare and report work as for caching."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import ClientSelection


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client-selection") / "small.json"
    done = run(
        "generate", "client-selection", "--servers", 2, "--clients", 10, "--picks", 2, "--rounds", 12, "-o", path
    )
    assert done.exit_code == 0, done.stderr
    return path


def test_generate_is_random(instance: Path):
    """The options are the arguments of `ClientSelection.random`."""
    assert edgeopt.load(instance) == ClientSelection.random(num_servers=2, num_clients=10, picks=2, rounds=12)


def test_generate_defaults(tmp_path: Path):
    """Without options the instance is that of `ClientSelection.random` without arguments."""
    assert run("generate", "client-selection", "-o", tmp_path / "default.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "default.npz") == ClientSelection.random()


def test_generate_all_options(tmp_path: Path):
    """Mode, fading, weights and the seed arrive."""
    words = (
        "generate", "client-selection", "--servers", 3, "--clients", 9, "--picks", 2, "--mode", "share", "--rounds", 7,
        "--fading", 0.5, "--latency-weight", 0.2, "--conflict-weight", 0.4, "--fairness-weight", 0.6, "--seed", 4,
    )  # fmt: skip
    assert run(*words, "-o", tmp_path / "all.npz").exit_code == 0
    assert edgeopt.load(tmp_path / "all.npz") == ClientSelection.random(
        num_servers=3,
        num_clients=9,
        picks=2,
        mode="share",
        rounds=7,
        rate_sigma=0.5,
        latency_weight=0.2,
        conflict_weight=0.4,
        fairness_weight=0.6,
        seed=4,
    )


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--mode", "split", "mode = 'split': expected 'fail' or 'share'"),
        ("--picks", "99", "picks = 99"),
        ("--picks", "0", "--picks"),
        ("--rounds", "0", "--rounds"),
        ("--fading", "-1", "rate_sigma = -1.0: expected a non-negative number"),
        ("--fairness-weight", "-1", "fairness_weight = -1.0: expected a non-negative number"),
        ("--servers", "none", "--servers"),
    ],
)
def test_bad_options(option: str, value: str, expected: str, tmp_path: Path):
    """A wrong value is an error that names it, exit status 2, and no file."""
    done = run("generate", "client-selection", f"{option}={value}", "-o", tmp_path / "x.json")
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_describe(instance: Path):
    """`describe --json` gives sizes and mode."""
    done = run("describe", instance, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]
    assert (facts["kind"], facts["servers"], facts["clients"], facts["rounds"]) == ("client-selection", 2, 10, 12)
    assert (facts["picks"], facts["mode"]) == ("2, 2", "fail")


def test_solve_and_start_from_the_result(instance: Path, tmp_path: Path):
    """`solve --json` gives a feasible plan below its bound; the result file is a plan to start from."""
    done = run("solve", instance, "--solver", "matching", "--json", "--output", tmp_path / "result.json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["problem"], document["status"], document["feasible"]) == ("client-selection", "feasible", True)
    assert document["objective"] <= document["bound"]
    words = ("solve", instance, "--solver", "random", "--initial-solution", tmp_path / "result.json", "--json")
    assert json.loads(run(*words).stdout)["objective"] == document["objective"]


def test_solve_trains_and_plays_a_policy(instance: Path, tmp_path: Path):
    """A learner's parameters are `--param`s; it goes on from its checkpoint, and plays a policy from a file."""
    pytest.importorskip("torch")
    from edgeopt.solvers.client_selection import RlCrp

    checkpoint, policy = tmp_path / "checkpoint.safetensors", tmp_path / "policy.safetensors"
    words = (
        "solve",
        instance,
        "--solver",
        "rl-crp",
        "--json",
        "--param",
        "episodes=2",
        "--param",
        f"checkpoint={checkpoint}",
    )
    first = run(*words, "--param", "iterations=2")
    assert first.exit_code == 0, first.stderr
    assert checkpoint.exists()
    resumed = json.loads(run(*words, "--param", "iterations=3").stdout)
    trained = RlCrp(iterations=3, episodes=2).train(edgeopt.load(instance))
    trained.save(policy)
    played = json.loads(run("solve", instance, "--solver", "rl-crp", "--json", "--param", f"policy={policy}").stdout)
    assert played["objective"] == resumed["objective"]


def test_compare_and_report(instance: Path, tmp_path: Path):
    """`compare --out` prints a table of both solvers and leaves rows, pictures and a report with both pictures of the plan."""
    out = tmp_path / "out"
    words = ("compare", instance, "--solvers", "matching,round-robin", "--executor", "serial", "--out", out)
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    assert "matching" in done.stdout
    assert "round-robin" in done.stdout
    report = (out / "report.html").read_text(encoding="utf-8")
    for caption in ("round-robin", "Who is picked when, and by which server", "How often each client gets through"):
        assert caption in report
