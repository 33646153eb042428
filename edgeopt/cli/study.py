"""The commands ``edgeopt study`` and ``edgeopt studies``. Heavy imports happen inside them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeopt.cli.options import INTERRUPTED, JsonOption, key_and_value, split_names
from edgeopt.cli.printing import print_json
from edgeopt.errors import MissingDependencyError


def study(
    name: Annotated[str, typer.Argument(help="$studies; `edgeopt studies` tells more.")],
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

    chosen = split_names(tasks)
    found = run_study(
        load_study(name), quick=quick, seeds=seeds, tasks=chosen, changes=_settings(more or []), out=out, jobs=jobs
    )
    verdicts = verdict_document(found, _command(name, quick, seeds, tasks, more or []))
    if as_json:
        print_json(json_document(found, verdicts))
    else:
        print(text(found, verdicts))
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
        print_json(listed)
        return
    for entry in listed:
        print(f"{entry['name']}  {entry['title']}")
        for line in ("system", "baselines", "ablations", "tasks", "on_demand", "seeds", "settings"):
            if value := entry.get(line):
                print(f"    {line.replace('_', ' ')}: {_said(value)}")
        for claim in entry.get("claims", ()):
            print(f"    claim ({claim['source']}): {claim['claim']}: {claim['verdict']}")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _settings(more: list[str]) -> dict[str, Any]:
    return dict(key_and_value("--set", given) for given in more)


def _command(name: str, quick: bool, seeds: int | None, tasks: str | None, more: list[str]) -> str:
    """Return the command line that leads to the same rows."""
    words = ["edgeopt", "study", name, *(["--quick"] if quick else [])]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    words += [] if tasks is None else ["--tasks", tasks]
    return shlex.join(words + [word for given in more for word in ("--set", given)])
