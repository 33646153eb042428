"""Compare with packages that live in an environment of their own: ``python -m edgeopt.evaluation.benchmarks.peers``.

Needs submodlib-py beside edgeopt, for example in ``.venv-peers``.
"""

import argparse
import sys

from rich.console import Console

from edgeopt.errors import MissingDependencyError
from edgeopt.evaluation.benchmarks import common, greedy
from edgeopt.evaluation.benchmarks.common import Row

INSTANCES = ("facility-small", "facility-mid")  # a dense matrix of facility-full would take 19 GB


def measure(options: argparse.Namespace) -> Row:
    """Compare the greedy of one budget with submodlib's."""
    if not greedy.has_submodlib():
        raise MissingDependencyError(
            "submodlib is not installed: run this in an environment that has edgeopt and submodlib-py"
        )
    repeats = 2 if options.quick else options.repeats
    names = INSTANCES[:1] if options.quick else INSTANCES
    rows = [greedy.one_budget_row(name, repeats, submodlib=True) for name in names]
    return {
        "one_budget": rows,
        "valid": all(row["equal"] and row["submodlib_equal"] for row in rows),
        "goals": greedy.submodlib_goals(rows),
    }


def show(report: Row, console: Console) -> None:
    """Print the table."""
    greedy.show_one_budget(report["one_budget"], console)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("peers", __doc__, measure, show, greedy.add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
