"""Options that several commands share, and checks of what they are given."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.errors import EdgeOptError, quoted

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

InstanceArgument = Annotated[str, typer.Argument(help="A .json or .npz file, or a name of the library.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
SeedOption = Annotated[int, typer.Option(help="Same seed, same result.", min=0)]
ConfigArgument = Annotated[Path | None, typer.Argument(help="A .toml file, or the experiment.json of a run.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any entry of the file, TABLE.KEY=VALUE; repeatable.")
]


def check_writable(path: Path) -> None:
    """Complain about the output before the work, not after it."""
    if path.is_dir():
        raise EdgeOptError(f"{path}: is a folder, expected a file to write")
    if not path.absolute().parent.is_dir():
        raise EdgeOptError(f"{path}: there is no folder {path.absolute().parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise EdgeOptError(f"{path}: no permission to write in {path.absolute().parent}")


def split_names(names: str | None) -> list[str] | None:
    """Return names that were given with commas between; None where there are none."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else None


def key_and_value(option: str, text: str, expected: str = "KEY=VALUE") -> tuple[str, object]:
    """Return the two sides of ``KEY=VALUE``: the value as JSON where it is JSON, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise EdgeOptError(f"{option} = {quoted(text)}: expected {expected}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
