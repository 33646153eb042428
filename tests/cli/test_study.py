"""Studies on the command line: what is printed, left in the folder, said of failures and of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeopt import cli
from edgeopt.evaluation import studies
from edgeopt.evaluation.studies import STUDIES
from edgeopt.evaluation.studies.stored import stored_verdicts
from tests.evaluation.studies.toy import STUDY


def run(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name be that of the toy, run in this process."""
    own = studies.run_study
    monkeypatch.setattr(studies, "load_study", lambda name: STUDY)
    monkeypatch.setattr(studies, "run_study", lambda study, **options: own(study, **options, executor="serial"))


@pytest.mark.usefixtures("toy")
def test_tables_and_verdicts_are_printed(tmp_path: Path):
    """Without `--json` tables and verdicts are for people; the folder has everything, and the command that made it."""
    done = run("study", "toy", "--out", tmp_path, "--set", "level=3")
    assert done.exit_code == 0, done.stderr
    assert "| near | system | 0 | 6 |" in done.stdout
    assert "SHOWN: system is above other (paper)" in done.stdout
    assert "CONTRADICTED: less is above other (ours)" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rows", "kept", "verdicts.json", "values.csv", "values.png", "report.html"}
    assert json.loads((tmp_path / "verdicts.json").read_text())["command"] == "edgeopt study toy --set level=3"
    assert "report.html" in done.stderr


@pytest.mark.usefixtures("toy")
def test_json_is_one_document():
    """Standard output is JSON and nothing else: verdicts with figures, tables, failures."""
    done = run("study", "toy", "--quick", "--seeds", 3, "--tasks", "near,far", "--json")
    document = json.loads(done.stdout)
    assert (document["study"], document["seeds"], document["tasks"]) == ("toy", 3, ["near", "far"])
    assert [claim["verdict"] for claim in document["claims"]] == ["shown", "contradicted"]
    assert len(document["tables"]["values"]) == 18
    assert document["failures"] == []
    assert document["interrupted"] is False


@pytest.mark.usefixtures("toy")
def test_failures_and_interrupts_have_their_status(tmp_path: Path):
    """A run that failed gives status 1, Ctrl-C 130; what is done is printed and kept, and the next call goes on."""
    failed = run("study", "toy", "--set", "mode=raise", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["failures"][0]["message"] == "RuntimeError: a fault of two lines"
    stopped = run("study", "toy", "--set", "mode=interrupt", "--out", tmp_path, "--json")
    assert stopped.exit_code == 130
    assert f"interrupted after 4 runs, kept in {tmp_path}" in stopped.stderr
    document = json.loads(stopped.stdout)
    assert (document["interrupted"], document["complete"]) == (True, False)
    assert "14 of 18 runs are missing" in (tmp_path / "report.html").read_text()
    assert run("study", "toy", "--set", "mode=raise", "--quick", "--seeds", 1).exit_code == 0  # seed 1 is not run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gapls",), f"study = 'gapls': expected one of {', '.join(STUDIES)}"),
        (("split-training", "--set", "devices"), "--set = 'devices': expected KEY=VALUE"),
        (("split-training", "--set", "devices=many"), "split-training: devices = 'many': expected a whole number"),
        (("split-training", "--tasks", "digits,mnist"), "tasks[1] = 'mnist': expected one of digits, coloured-digits"),
        (("split-training", "--tasks", ","), "tasks: expected at least one of digits, coloured-digits"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], message: str):
    """The line names what was given and what was expected; the status is 2."""
    pytest.importorskip("torch")
    done = run("study", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_studies_are_listed():
    """Each has its system, what it is compared with, settings, and claims with the verdict of the stored run."""
    pytest.importorskip("torch")
    listed = json.loads(run("studies", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(STUDIES)
    for entry in listed:
        stored = stored_verdicts(entry["name"])
        verdicts = {claim["verdict"] for claim in entry["claims"]}
        assert verdicts <= ({"not run in full yet"} if stored is None else {"shown", "not shown", "contradicted"})
    plain = run("studies")
    assert plain.exit_code == 0
    assert all(f"{name}  " in plain.stdout for name in STUDIES)


def test_help_names_the_studies():
    """The help of the command is made from the registry."""
    words = " ".join(run("study", "--help").stdout.replace("│", " ").split())
    assert all(name in words for name in STUDIES)
