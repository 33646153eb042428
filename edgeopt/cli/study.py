"""The commands ``edgeopt study`` and ``edgeopt studies``. Heavy imports happen inside them."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeopt.errors import EdgeOptError, MissingDependencyError

INTERRUPTED = 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]


def study(
    name: Annotated[str, typer.Argument(help="Name of the study, see `edgeopt studies`.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version, a minute or two: does it run at all?")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds: 0, 1, ...", min=1, max=100_000)] = None,
    tasks: Annotated[str | None, typer.Option(help="Names with commas between; default: those of the study.")] = None,
    more: Annotated[list[str] | None, typer.Option("--set", help="Any setting, KEY=VALUE; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rows, tables, pictures, report; resumes from it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a system beside its baselines and decide what is claimed of it. Ctrl-C keeps what is done; --out goes on."""
    from edgeopt.evaluation.studies import load_study, run_study
    from edgeopt.evaluation.studies.publish import json_document, text, verdict_document, write
    from edgeopt.storage import dumps

    chosen = None if tasks is None else [task.strip() for task in tasks.split(",") if task.strip()]
    found = run_study(
        load_study(name), quick=quick, seeds=seeds, tasks=chosen, changes=_settings(more or []), out=out, jobs=jobs
    )
    verdicts = verdict_document(found, _command(name, quick, seeds, tasks, more or []))
    print(dumps(json_document(found, verdicts), indent=1) if as_json else text(found, verdicts))
    if out is not None:
        try:
            write(found, verdicts, out)
            print(f"wrote {out / 'report.html'}", file=sys.stderr)
        except MissingDependencyError as error:  # rows, verdicts and tables are there; the rest can be made later
            print(f"edgeopt: no report: {error}", file=sys.stderr)
    if found.interrupted:
        kept = f", kept in {out}" if out else ""
        print(f"edgeopt: interrupted after {len(found.rows)} runs{kept}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if any(row["status"] == "error" for row in found.failures):
        raise typer.Exit(1)


def studies(as_json: JsonOption = False) -> None:
    """List the studies: the system, what it is compared with, on what, and what is claimed."""
    from edgeopt.evaluation.studies.listing import describe_studies

    listed = describe_studies()
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for entry in listed:
        print(f"{entry['name']}  {entry['title']}")
        for line in ("system", "baselines", "ablations", "tasks", "seeds", "settings"):
            if value := entry.get(line):
                print(f"    {line}: {_said(value)}")
        for claim in entry.get("claims", ()):
            print(f"    claim ({claim['source']}): {claim['claim']}: {claim['verdict']}")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _settings(more: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for given in more:
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise EdgeOptError(f"--set = {given!r}: expected KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _command(name: str, quick: bool, seeds: int | None, tasks: str | None, more: list[str]) -> str:
    """Return the command line that leads to the same rows."""
    words = ["edgeopt", "study", name, *(["--quick"] if quick else [])]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    words += [] if tasks is None else ["--tasks", tasks]
    return shlex.join(words + [word for given in more for word in ("--set", given)])
