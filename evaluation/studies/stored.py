"""Verdicts that are stored with the package, and the page of the documentation that is written from them."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeopt import storage
from edgeopt.errors import InvalidFileError
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies import STUDIES, load_study
from edgeopt.evaluation.studies.claims import SOURCES, VERDICTS
from edgeopt.evaluation.studies.publish import FORMAT
from edgeopt.evaluation.studies.study import settings
from edgeopt.fields import Fields, in_file
from edgeopt.storage import dumps

FOLDER = Path(str(files("edgeopt.evaluation.studies") / "verdicts"))


def stored_verdicts(name: str) -> Row | None:
    """Return what the full run of a study that was stored last has decided, None if there was none."""
    path = FOLDER / f"{name}.json"
    return read_verdicts(path) if path.exists() else None


def read_verdicts(path: Path) -> Row:
    """Read the ``verdicts.json`` that a study has left in its folder.

    Raises
    ------
    InvalidFileError
        If the file is truncated or lacks something.
    """
    document = storage.read_json(path)
    with in_file(path):
        given = Fields(document, "no verdicts of a study: ")
        given.expect("format", FORMAT)
        for name in ("study", "title", "system", "command"):
            given.text(name)
        for name in ("baselines", "ablations", "tasks"):
            given.texts(name)
        for name in ("settings", "machine", "versions"):
            given.table(name)
        given.integer("seeds", low=1)
        for name in ("quick", "complete"):
            given.flag(name)
        for claim in given.tables("claims"):
            for name in ("claim", "reason"):
                claim.text(name)
            claim.choice("source", tuple(SOURCES))
            claim.choice("verdict", VERDICTS)
            for figure in claim.tables("figures"):
                figure.text("name")
                figure.integer("seeds", low=1)
                for name in ("mean", "low", "high"):
                    figure.optional_number(name)
    return document


def store(path: Path) -> Path:
    """Put the verdicts of a full run into the package; return the file that holds them.

    Raises
    ------
    InvalidFileError
        If the run was quick or cut short, or had other settings or fewer seeds than the study has.
    """
    document = read_verdicts(path)
    study: Any = load_study(document["study"])
    expected = dumps(settings(study.full))
    if document["quick"] or not document["complete"] or dumps(document["settings"]) != expected:
        raise InvalidFileError(f"{path}: expected the verdicts of a complete run with the full settings, {expected}")
    if document["seeds"] < study.seeds:
        raise InvalidFileError(f"{path}: seeds = {document['seeds']}: expected at least {study.seeds}")
    target = storage.open_folder(FOLDER) / f"{study.name}.json"
    storage.write_text(target, dumps(document, indent=1) + "\n")
    return target


def systems_page() -> str:
    """Return the text of ``docs/systems.md``, all of it from the stored verdicts."""
    about = (
        "One part per [study](studies.md): a system beside its baselines and ablations, what is claimed of it, and what "
        "the rows of a full run say. This page is written by `python -m edgeopt.evaluation.studies --docs` from the "
        "verdicts in evaluation/studies/verdicts; nothing is left out because it came out badly."
    )
    head = "| study | system | shown | not shown | contradicted | seeds |\n|---|---|---:|---:|---:|---:|"
    parts = ["# What each system is worth", about, "\n".join([head, *map(_line, STUDIES)])]
    return "\n\n".join([*parts, *map(_part, STUDIES)]) + "\n"


def _line(name: str) -> str:
    if (document := stored_verdicts(name)) is None:
        return f"| [{name}](#{name}) | | | | | not run in full yet |"
    verdicts = [claim["verdict"] for claim in document["claims"]]
    counts = " | ".join(str(verdicts.count(verdict)) for verdict in VERDICTS)
    return f"| [{name}](#{name}) | `{document['system']}` | {counts} | {document['seeds']} |"


def _part(name: str) -> str:
    if (document := stored_verdicts(name)) is None:
        return f"## {name}\n\nNo full run is stored: `edgeopt study {name} --out out/{name}` makes one."
    baselines, ablations = (
        ", ".join(f"`{variant}`" for variant in document[key]) for key in ("baselines", "ablations")
    )
    beside = f"Beside {baselines}" + (f"; ablations {ablations}" if ablations else "")
    claims = "\n".join(
        f"| {claim['claim']} | {claim['source']} | **{claim['verdict']}** | {claim['reason']} |"
        for claim in document["claims"]
    )
    said = [", ".join(f"{key} {value}" for key, value in document[part].items()) for part in ("machine", "versions")]
    return "\n\n".join(
        [
            f"## {name}",
            f"{document['title']}. {beside}. Tasks: {', '.join(document['tasks'])}; {document['seeds']} seeds.",
            f"| claim | source | verdict | why |\n|---|---|---|---|\n{claims}",
            f"`{document['command']}`, on: {said[0]}; {said[1]}.",
        ]
    )
