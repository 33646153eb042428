"""Verdicts that are stored, and the page that is written from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.evaluation.studies import STUDIES, load_study, run_study, stored
from edgeopt.evaluation.studies.publish import verdict_document
from edgeopt.evaluation.studies.stored import read_verdicts, store, stored_verdicts, systems_page
from edgeopt.evaluation.studies.study import settings
from edgeopt.storage import dumps
from tests.evaluation.studies.toy import STUDY

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where verdicts are stored in this test; every study is the toy."""
    folder = tmp_path / "verdicts"
    monkeypatch.setattr(stored, "FOLDER", folder)
    monkeypatch.setattr(stored, "load_study", lambda name: STUDY)
    monkeypatch.setattr(stored, "STUDIES", ("toy", "never-run"))
    return folder


def verdicts(path: Path, **options: Any) -> Path:
    """Run the toy and write its verdicts."""
    found = run_study(STUDY, executor="serial", display=False, **options)
    path.write_text(dumps(verdict_document(found, "edgeopt study toy")))
    return path


def test_the_page_is_what_the_stored_verdicts_give():
    """docs/systems.md is the text that the command writes."""
    if not DOCS.is_dir():
        pytest.skip("an installed package has no documentation beside it")
    assert (DOCS / "systems.md").read_text(encoding="utf-8") == systems_page(), (
        "python -m edgeopt.evaluation.studies --docs"
    )


@pytest.mark.parametrize("name", STUDIES)
def test_stored_verdicts_are_of_full_runs_of_the_claims(name: str):
    """What is stored is of a complete full run, with the claims that the study has now, in their order."""
    pytest.importorskip("torch")
    if (document := stored_verdicts(name)) is None:
        assert f"`edgeopt study {name} --out out/{name}` makes one" in systems_page()
        return
    study = load_study(name)
    assert (document["study"], document["title"], document["complete"], document["quick"]) == (
        name, study.title, True, False,
    )  # fmt: skip
    assert document["settings"] == json.loads(dumps(settings(study.full)))
    assert [(claim["claim"], claim["source"]) for claim in document["claims"]] == [
        (claim.text, claim.source) for claim in study.claims
    ]


def test_a_full_run_is_stored_and_told(place: Path, tmp_path: Path):
    """It goes into the package as it is; the page has its claims, verdicts, reasons, command and machine."""
    path = verdicts(tmp_path / "verdicts.json")
    assert store(path) == place / "toy.json"
    assert stored_verdicts("toy") == json.loads(path.read_text())
    page = systems_page()
    assert "| [toy](#toy) | `system` | 1 | 0 | 1 | 3 |" in page
    assert (
        "| system is above other | paper | **shown** | value, system less other: 1 (1 to 1), 3 seeds; it is above 0 |"
        in page
    )
    assert "`edgeopt study toy`, on: cpu " in page
    assert "| [never-run](#never-run) | | | | | not run in full yet |" in page


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quick": True, "seeds": 3}, "expected the verdicts of a complete run with the full settings"),
        ({"changes": {"level": 2.0}}, "expected the verdicts of a complete run with the full settings"),
        ({"changes": {"mode": "raise"}}, "expected the verdicts of a complete run with the full settings"),
        ({"seeds": 2}, "seeds = 2: expected at least 3"),
    ],
)
def test_other_runs_are_not_stored(options: dict[str, Any], message: str, tmp_path: Path):
    """Quick runs, other settings, failures and fewer seeds are refused."""
    with pytest.raises(EdgeOptError, match=message):
        store(verdicts(tmp_path / "verdicts.json", **options))


def test_files_that_lack_something_are_refused(tmp_path: Path):
    """The error names file, field, and what was expected."""
    path = verdicts(tmp_path / "verdicts.json", quick=True)
    document = json.loads(path.read_text())
    assert read_verdicts(path) == document
    wrong = {"format": 2, "study": None, "tasks": [1], "seeds": 0, "quick": 1, "machine": [], "claims": {}}
    for name, value in wrong.items():
        path.write_text(json.dumps(document | {name: value}))
        with pytest.raises(InvalidFileError, match=rf"verdicts.json: no verdicts of a study: {name}"):
            read_verdicts(path)
    path.write_text(json.dumps(document | {"claims": [document["claims"][0] | {"verdict": "proved"}]}))
    with pytest.raises(InvalidFileError, match=r"claims\[0\].verdict = 'proved': expected 'shown', 'not shown' or"):
        read_verdicts(path)
