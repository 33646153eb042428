"""What is left of a study: verdicts and tables, on the terminal and in a folder, with pictures and one report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt import storage
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.plots.style import save_picture
from edgeopt.evaluation.studies.claims import SOURCES
from edgeopt.evaluation.studies.study import Found, settings
from edgeopt.evaluation.studies.tables import cell, columns, is_number, markdown, to_csv
from edgeopt.storage import dumps, plain

FORMAT = 1
MARKS = {"shown": "best", "not shown": "", "contradicted": "bad"}


def verdict_document(found: Found[Any], command: str) -> Row:
    """Return the verdicts with all that it takes to come to them again; there is no date in it.

    Parameters
    ----------
    found : what a study has found.
    command : that found it.
    """
    study = found.study
    document: Row = plain(
        {
            "format": FORMAT,
            "study": study.name,
            "title": study.title,
            "system": study.system,
            "baselines": study.baselines,
            "ablations": study.ablations,
            "tasks": found.tasks,
            "seeds": len(found.seeds),
            "quick": found.quick,
            "complete": found.complete,
            "command": command,
            "settings": settings(found.setting),
            "machine": found.machine,
            "versions": found.versions,
            "claims": [_verdict(found, number) for number in range(len(study.claims))],
        }
    )
    return document


def _verdict(found: Found[Any], number: int) -> Row:
    claim = found.study.claims[number]
    decision = claim.decide(found.evidence)
    return {
        "claim": claim.text,
        "source": claim.source,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "figures": [figure.to_json() for figure in decision.figures],
    }


def json_document(found: Found[Any], verdicts: Row) -> Row:
    """Return what ``edgeopt study --json`` prints."""
    failures = [
        {name: row[name] for name in ("task", "variant", "seed", "status", "message")} for row in found.failures
    ]
    return verdicts | {"interrupted": found.interrupted, "failures": failures, "tables": found.study.tables(found)}


def text(found: Found[Any], verdicts: Row) -> str:
    """Return tables and verdicts for people."""
    parts = [f"{name}\n{markdown(rows)}" for name, rows in found.study.tables(found).items()]
    parts += [
        f"failed: {row['variant']} on {row['task']}, seed {row['seed']}: {row['message']}" for row in found.failures
    ]
    parts += [
        f"{claim['verdict'].upper()}: {claim['claim']} ({claim['source']})\n    {claim['reason']}"
        for claim in verdicts["claims"]
    ]
    return "\n\n".join(parts)


def write(found: Found[Any], verdicts: Row, folder: Path) -> None:
    """Write the verdicts and the tables, then the pictures and the report, each file whole or not at all.

    Raises
    ------
    MissingDependencyError
        Without what draws pictures or fills in the report; verdicts and tables are there by then.
    """
    storage.open_folder(folder)
    storage.write_text(folder / "verdicts.json", dumps(verdicts, indent=1) + "\n")
    for name, rows in found.study.tables(found).items():
        storage.write_text(folder / f"{name}.csv", to_csv(rows))
    for name, picture in found.study.pictures(found).items():
        save_picture(picture.draw(), folder / f"{name}.png", dpi=150)
    write_report(found, verdicts, folder / "report.html")


def write_report(found: Found[Any], verdicts: Row, path: Path) -> None:
    """Write one HTML file: verdicts, pictures, tables, failures, settings; it opens without a network."""
    from edgeopt.evaluation.report import check_packages, picture, rendered

    check_packages()
    study = found.study
    num_runs = len(found.tasks) * len(found.seeds) * len(study.variants)
    page = rendered(
        "study.html",
        title=study.title,
        system=study.system,
        others=study.variants[1:],
        tasks=found.tasks,
        num_seeds=len(found.seeds),
        num_runs=num_runs,
        num_failed=len(found.failures),
        num_missing=num_runs - len(found.rows) - len(found.failures),
        quick=found.quick,
        claims=verdicts["claims"],
        marks=MARKS,
        sources=SOURCES,
        pictures=[picture(one.caption, one.draw) for one in study.pictures(found).values()],
        tables=[_page_table(name, rows) for name, rows in study.tables(found).items()],
        failures=found.failures,
        settings=settings(found.setting),
        machine=found.machine,
        versions=found.versions,
    )
    storage.write_text(path, page)


def _page_table(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    names = columns(rows)
    return {
        "name": name,
        "columns": [{"name": column, "right": is_number(rows, column)} for column in names],
        "lines": [[cell(row.get(column)) for column in names] for row in rows],
    }
