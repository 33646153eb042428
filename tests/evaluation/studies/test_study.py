"""How a study runs: rows that are kept and resumed, failures, interrupts, what cells share, and what is left behind."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.evaluation.compare.rows import read_row
from edgeopt.evaluation.studies import STUDIES, load_study, run_study
from edgeopt.evaluation.studies.publish import json_document, text, verdict_document, write
from edgeopt.evaluation.studies.study import check_row
from edgeopt.evaluation.studies.tables import markdown, to_csv
from tests.evaluation.studies.toy import STUDY, Setting

SERIAL: dict[str, Any] = {"executor": "serial", "display": False}


def counts(folder: Path, pattern: str = "*") -> dict[str, int]:
    """Return how often each cell of the toy was run."""
    return {path.name: len(path.read_text()) for path in sorted(folder.glob(pattern)) if path.is_file()}


# --- rows -----------------------------------------------------------------------------------------------------------


def test_every_cell_has_a_row():
    """Rows come by task, seed and variant, the system first, with what was measured; the study is complete."""
    found = run_study(STUDY, seeds=2, **SERIAL)
    assert [(row["task"], row["seed"], row["variant"]) for row in found.rows] == [
        (task, seed, variant) for task in STUDY.tasks for seed in (0, 1) for variant in ("system", "other", "less")
    ]
    assert found.complete
    assert found.of(variant="less", task="far", seed=1) == [found.rows[-1]]
    assert found.rows[-1]["value"] == pytest.approx(0.51)
    assert found.variants() == ["system", "other", "less"]


def test_quick_has_settings_and_tasks_of_its_own():
    """A quick run takes the quick settings, tasks and seeds; changes come on top of either."""
    found = run_study(STUDY, quick=True, **SERIAL)
    assert (found.tasks, found.seeds, found.setting) == (("near",), (0,), Setting(level=0.1))
    changed = run_study(STUDY, quick=True, changes={"level": 3}, tasks=["far"], seeds=2, **SERIAL)
    assert (changed.tasks, changed.seeds, changed.setting) == (("far",), (0, 1), Setting(level=3.0))


def test_tasks_on_demand_run_where_they_are_named():
    """By default they are left out, also of what a complete run is; an unknown one is told of them."""
    study = dataclasses.replace(STUDY, tasks=("near",), on_demand=("far",))
    found = run_study(study, seeds=1, **SERIAL)
    assert (found.tasks, found.complete) == (("near",), True)
    assert run_study(study, seeds=1, tasks=["far"], **SERIAL).tasks == ("far",)
    with pytest.raises(EdgeOptError, match=r"expected one of near, far$"):
        run_study(study, seeds=1, tasks=["nowhere"], **SERIAL)


def test_what_is_kept_is_not_run_again(tmp_path: Path):
    """A second run makes no row anew and finds the same; damaged rows are made again; other settings are other rows."""
    calls = tmp_path / "calls"
    calls.mkdir()
    options = SERIAL | {"out": tmp_path / "out", "tasks": ["near"], "changes": {"calls": str(calls)}}
    first = run_study(STUDY, seeds=2, **options)
    again = run_study(STUDY, seeds=3, **options)
    assert again.rows[: len(first.rows)] == first.rows
    assert set(counts(calls).values()) == {1}
    damaged = min((tmp_path / "out" / "rows").iterdir())
    damaged.write_text(damaged.read_text()[:100])
    assert run_study(STUDY, seeds=3, **options).rows == again.rows
    assert sorted(counts(calls, "*-near-*").values()) == [1] * 8 + [2]
    other = run_study(STUDY, seeds=1, **options | {"changes": {"calls": str(calls), "level": 2.0}})
    assert other.rows[0]["value"] == 4.0


def test_cells_share_what_takes_long(tmp_path: Path):
    """What a seed's cells share is made once, in the folder of the study or in one for the time being."""
    for out in (None, tmp_path / "out"):
        calls = tmp_path / f"calls-{out is None}"
        calls.mkdir()
        found = run_study(STUDY, seeds=2, changes={"calls": str(calls)}, out=out, **SERIAL)
        assert counts(calls, "made-*") == {"made-0": 1, "made-1": 1}
        assert {row["shared"] for row in found.of(seed=1)} == {"made for seed 1"}
    kept = [path.name for path in (tmp_path / "out" / "kept").iterdir()]
    assert sorted(name.split("-", 1)[1] for name in kept) == ["shared-0", "shared-1"]  # and no locks


def test_workers_find_the_same(tmp_path: Path):
    """Two processes make the rows that one makes, and what they share is made once."""
    calls = tmp_path / "calls"
    calls.mkdir()
    found = run_study(STUDY, seeds=1, jobs=2, changes={"calls": str(calls)}, out=tmp_path / "out", display=False)
    assert [row["value"] for row in found.rows] == [row["value"] for row in run_study(STUDY, seeds=1, **SERIAL).rows]
    assert counts(calls, "made-*") == {"made-0": 1}


@pytest.mark.parametrize(("mode", "status"), [("raise", "error"), ("lack", "skipped"), ("unsupported", "skipped")])
def test_a_cell_that_fails_is_a_row(mode: str, status: str, tmp_path: Path):
    """It is reported and run again next time; claims that speak of it are not shown, others are decided."""
    found = run_study(STUDY, changes={"mode": mode}, out=tmp_path, **SERIAL)
    assert [(row["status"], row["task"], row["seed"]) for row in found.failures] == [
        (status, "near", 1),
        (status, "far", 1),
    ]
    assert not found.complete
    assert [claim.decide(found.evidence).verdict for claim in STUDY.claims] == ["not shown", "not shown"]
    if mode == "raise":
        assert found.failures[0]["message"] == "RuntimeError: a fault of two lines"
    rows = [read_row(path, check_row) for path in (tmp_path / "rows").iterdir()]
    assert sorted(row["status"] for row in rows) == ["done"] * 16 + [status] * 2


def test_an_interrupt_keeps_what_is_done(tmp_path: Path):
    """Ctrl-C ends the study with the rows so far; the same call goes on from there."""
    options = SERIAL | {"out": tmp_path, "tasks": ["near"]}
    found = run_study(STUDY, changes={"mode": "interrupt"}, **options)
    assert found.interrupted
    assert [(row["variant"], row["seed"]) for row in found.rows] == [
        ("system", 0), ("other", 0), ("less", 0), ("system", 1),
    ]  # fmt: skip
    assert "are missing or failed" in STUDY.claims[0].decide(found.evidence).reason
    assert len(list((tmp_path / "rows").iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["near", "nowhere"]}, r"tasks\[1\] = 'nowhere': expected one of near, far"),
        ({"tasks": []}, "tasks: expected at least one"),
        ({"seeds": 0}, "seeds = 0: expected an integer >= 1"),
        ({"changes": {"levels": 1}}, "toy: levels = 1: unknown; did you mean 'level'"),
        ({"changes": {"level": "high"}}, "toy: level = 'high': expected a number"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str):
    """Unknown tasks and settings, and numbers out of range, are named."""
    with pytest.raises(EdgeOptError, match=message):
        run_study(STUDY, **SERIAL, **options)


def test_rows_of_others_are_no_rows_of_a_study(tmp_path: Path):
    """A file that lacks something is refused in one line that names it."""
    run_study(STUDY, quick=True, out=tmp_path, **SERIAL)
    path = next((tmp_path / "rows").iterdir())
    document = json.loads(path.read_text())
    for name, value in (("status", "feasible"), ("seed", "one"), ("found", []), ("task", 3)):
        path.write_text(json.dumps(document | {name: value}))
        with pytest.raises(InvalidFileError, match=f"not a row of a study: {name} = "):
            read_row(path, check_row)


# --- what is left ---------------------------------------------------------------------------------------------------


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.found += [value for value in own if not value.startswith(("#", "data:"))]


def test_verdicts_tables_pictures_and_one_report_are_written(tmp_path: Path):
    """Each is a file; the report holds everything itself, says every verdict, and escapes what is no markup."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    found = run_study(STUDY, **SERIAL)
    verdicts = verdict_document(found, "edgeopt study toy")
    write(found, verdicts, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"verdicts.json", "values.csv", "values.png", "report.html"}
    assert json.loads((tmp_path / "verdicts.json").read_text()) == verdicts
    page = (tmp_path / "report.html").read_text()
    parser = Outside()
    parser.feed(page)
    assert parser.found == []
    assert "@import" not in page
    assert "url(http" not in page
    for words in ("A toy &amp; nothing else", "Values &lt;by&gt; variant", "system is above other", ">contradicted<"):
        assert words in page
    assert len((tmp_path / "values.csv").read_text().splitlines()) == 1 + len(found.rows)


def test_verdicts_say_how_to_come_to_them():
    """The document has claims with figures, settings, machine, versions and seeds, and nothing that changes with the day."""
    found = run_study(STUDY, **SERIAL)
    document = verdict_document(found, "edgeopt study toy --seeds 3")
    assert [claim["verdict"] for claim in document["claims"]] == ["shown", "contradicted"]
    assert document["claims"][0]["figures"][0]["name"] == "value, system less other"
    assert document["claims"][0]["figures"][0]["mean"] == pytest.approx(1.0)
    assert (document["seeds"], document["quick"], document["complete"]) == (3, False, True)
    assert document["settings"] == {"level": 1.0, "calls": "", "mode": "fine"}
    assert {"cpu", "cores"} <= document["machine"].keys()
    assert "python" in document["versions"]
    assert document == verdict_document(run_study(STUDY, **SERIAL), "edgeopt study toy --seeds 3")
    assert not re.search(r"20\d\d-\d\d", json.dumps(document))


def test_a_quick_run_says_that_it_shows_nothing():
    """One seed shows nothing; words and JSON say so, and name failures."""
    found = run_study(STUDY, quick=True, seeds=2, changes={"mode": "raise"}, **SERIAL)
    verdicts = verdict_document(found, "edgeopt study toy --quick")
    assert (verdicts["quick"], verdicts["complete"]) == (True, False)
    said = text(found, verdicts)
    assert "NOT SHOWN: system is above other (paper)\n    2 seeds: expected at least 3" in said
    assert "failed: other on near, seed 1: RuntimeError: a fault of two lines" in said
    document = json_document(found, verdicts)
    assert [row["variant"] for row in document["failures"]] == ["other"]
    assert len(document["tables"]["values"]) == 5


def test_tables_have_the_columns_of_all_rows():
    """CSV has a header and a line per row; Markdown shows what there is not as a dash; rows may differ in columns."""
    rows = [{"name": "a", "value": None, "ok": True}, {"name": "b", "value": 0.5, "more": 2}]
    assert to_csv(rows).splitlines() == ["name,value,ok,more", "a,,True,", "b,0.5,,2"]
    assert markdown(rows).splitlines() == [
        "| name | value | ok | more |", "|---|---:|---|---:|", "| a | - | yes | - |", "| b | 0.5 | - | 2 |",
    ]  # fmt: skip
    assert markdown([]) == "(no rows)"


# --- the registry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_what_they_say(name: str):
    """The name is that of the registry, variants and tasks are distinct, claims speak of them, and quick is smaller."""
    pytest.importorskip("torch")
    study = load_study(name)
    assert study.name == name
    assert len(set(study.variants)) == len(study.variants)
    assert set(study.quick_tasks) <= set(study.tasks)
    assert study.quick != study.full
    assert len({claim.text for claim in study.claims}) == len(study.claims)
    for claim in study.claims:
        test: Any = claim.test
        spoken = {getattr(test, part) for part in ("variant", "first", "second") if hasattr(test, part)}
        spoken |= set(getattr(test, "variants", ()))
        assert spoken, claim.text
        assert spoken <= set(study.variants), claim.text
        assert test.task is None or test.task in study.tasks, claim.text


def test_an_unknown_study_is_named():
    """The error lists those that there are."""
    with pytest.raises(EdgeOptError, match="study = 'gapls': expected one of client-selection, "):
        load_study("gapls")
