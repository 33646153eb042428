"""`edgeopt import routing`, `edgeopt caching-limits` and the traces that `edgeopt generate` takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import edgeopt
from edgeopt import cli
from edgeopt.problems import ExpertCaching, RoutingTrace, keep_list, read_placement


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Return a file of ids of two users."""
    rng = np.random.default_rng(0)
    chosen = rng.permuted(np.tile(np.arange(6), (80, 3, 1)), axis=-1)[..., :2]
    np.savez(tmp_path / "ids.npz", ids=chosen, user=np.arange(80) % 2)
    return tmp_path / "ids.npz"


def test_from_a_file_to_a_problem(ids: Path, tmp_path: Path):
    """Import, limits, an instance: each command takes what the one before has written."""
    done = run("import", "routing", ids, "-o", tmp_path / "trace.npz", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["users"], facts["experts"], facts["top_k"], facts["counts_only"]) == (2, 6, 2, False)
    assert RoutingTrace.load(tmp_path / "trace.npz") == RoutingTrace.read(ids)
    limits = run(
        "caching-limits", tmp_path / "trace.npz", "--storage", "20%,0.5", "--picture", tmp_path / "limits.png", "--json"
    )
    assert limits.exit_code == 0, limits.stderr
    assert [limit["storage"] for limit in json.loads(limits.stdout)["limits"]] == [0.2, 0.5]
    assert (tmp_path / "limits.png").read_bytes().startswith(b"\x89PNG")
    shown = run("caching-limits", tmp_path / "trace.npz")
    assert "of its own" in shown.stdout
    made = run(
        "generate", "expert-caching", "--trace", tmp_path / "trace.npz", "--model", "mixtral-8x7b", "--devices", 4,
        "--servers", 2, "-o", tmp_path / "problem.npz",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    assert edgeopt.load(tmp_path / "problem.npz").num_experts == 18


def test_facts_for_people(ids: Path, tmp_path: Path):
    """Without --json, names and values."""
    done = run("import", "routing", ids, "-o", tmp_path / "trace.npz", "--name", "mine")
    assert done.exit_code == 0
    assert "mine" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "routing", "ids.npz", "-o", "trace.json"), "trace.json: expected a name that ends in .npz"),
        (("import", "routing", "ids.npz", "-o", "no/trace.npz"), "there is no folder"),
        (("import", "routing", "none.csv", "-o", "trace.npz"), "none.csv: No such file"),
        (("import", "routing", "ids.npz", "-o", "t.npz", "--format", "x"), "format = 'x': expected one of sglang"),
        (("caching-limits", "ids.npz", "--storage", "a lot"), "--storage = 'a lot': expected shares such as 5%,10%"),
        (("caching-limits", "switch32", "--picture", "p.txt"), "p.txt: expected a name that ends in .png or .svg"),
        (("caching-limits", "switch32", "--latency", "min"), "--latency = 'min': expected sum, max or mix:THETA"),
    ],
)
def test_bad_words(ids: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str):
    """One line that says what was given and what was expected; exit status 2."""
    monkeypatch.chdir(ids.parent)
    trace = RoutingTrace.read(ids)
    if words[0] == "caching-limits" and words[1] == "ids.npz":
        trace.save(ids)
    done = run(*words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_export_of_a_placement(tmp_path: Path):
    """What was solved is written as a document, as a keep-list and as tensors of a model's file."""
    caching = ExpertCaching.random(num_servers=2, num_users=3, num_layers=2, experts_per_layer=4, storage=0.3, seed=0)
    caching.save(tmp_path / "problem.npz")
    result = edgeopt.solve(caching, "greedy")
    result.save(tmp_path / "result.json")
    weights = {f"layers.{b}.experts.{e}.w": "part" for b in range(2) for e in range(4)}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weights}))
    common = ("export", "placement", tmp_path / "problem.npz", tmp_path / "result.json", "-o", tmp_path / "out.json")
    done = run(*common)
    assert done.exit_code == 0, done.stderr
    assert read_placement(caching, tmp_path / "out.json") == result.solution
    done = run(*common, "--as", "keep-list", "--server", 1)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == keep_list(caching, result.solution, server=1)
    done = run(*common, "--as", "tensors", "--model-file", tmp_path / "index.json")
    assert done.exit_code == 0, done.stderr
    assert all("pattern" in entry for entry in json.loads((tmp_path / "out.json").read_text()))
    for words, said in (
        (("--as", "tensors"), "--model-file is missing"),
        (("--as", "x"), "--as = 'x': expected placement, keep-list or tensors"),
        (("--as", "keep-list", "--server", 2), "server = 2"),
        (("--as", "keep-list", "--model", 1), "model = 1"),
    ):
        done = run(*common, *words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr
