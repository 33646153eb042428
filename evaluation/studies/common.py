"""What the experiments share: options, tables, files."""

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt import storage
from edgeopt.errors import MissingDependencyError
from edgeopt.streams import prepare_streams, reserve_stdout

Row = dict[str, Any]


def parser(
    text: str | None, argv: Sequence[str] | None, *, options: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """Read the options of an experiment: its own, ``--out`` and ``--json``."""
    prepare_streams()
    lines = (text or "").split("\n\n")
    found = argparse.ArgumentParser(
        description=lines[0], epilog="\n\n".join(lines[2:]), formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options(found)
    found.add_argument("--out", type=Path, default=None, help="folder for tables (CSV) and pictures (PNG)")
    found.add_argument("--json", action="store_true", help="print the tables as JSON and nothing else")
    arguments = found.parse_args(argv)
    if arguments.json:
        reserve_stdout()
    return arguments


def quiet_threads(number: int = 1) -> None:
    """Let torch use so many threads: small models are slower on more."""
    import torch

    torch.set_num_threads(number)


def write(
    arguments: argparse.Namespace,
    tables: Mapping[str, Sequence[Row]],
    pictures: Mapping[str, Callable[[], Any]] | None = None,
) -> None:
    """Print the tables; with ``--out`` write them and the pictures there, each file whole or not at all."""
    if arguments.json:
        print(storage.dumps(dict(tables), indent=1))
    else:
        for name, rows in tables.items():
            print(f"\n{name}\n{markdown(rows)}")
    if arguments.out is None:
        return
    storage.open_folder(arguments.out)
    for name, rows in tables.items():
        data = to_csv(rows).encode()
        storage.write_atomic(arguments.out / f"{name}.csv", lambda file, data=data: file.write(data))  # type: ignore[misc]
    for name, draw in (pictures or {}).items():
        try:
            save_picture(draw(), arguments.out / f"{name}.png")
        except MissingDependencyError as error:  # the tables are there; pictures can be made later
            print(f"no picture {name}: {error}", file=sys.stderr)
    print(f"wrote {arguments.out}", file=sys.stderr)


def save_picture(axes: Any, path: Path) -> None:
    """Write the figure of some axes to a PNG file, atomically."""
    data = io.BytesIO()
    axes.figure.savefig(data, format="png", dpi=150)
    storage.write_atomic(path, lambda file: file.write(data.getvalue()))


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV text; the columns are those of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; numbers have four digits.

    Examples
    --------
    >>> print(markdown([{"solver": "slide", "seconds": 0.123456}]))
    | solver | seconds |
    |---|---:|
    | slide | 0.1235 |
    """
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    right = [isinstance(rows[0][name], int | float) and not isinstance(rows[0][name], bool) for name in names]
    lines = [names, ["---:" if number else "---" for number in right]]
    lines += [[_cell(row[name]) for name in names] for row in rows]
    head, rule, *body = lines
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(cells)} |" for cells in body)]
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
