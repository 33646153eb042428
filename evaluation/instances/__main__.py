"""The instance library as a command: list it, or solve its instances again and write down what got better."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.instances.library import library_entry, library_names
from edgeopt.evaluation.instances.refresh import refresh


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.evaluation.instances", description="The instance library.")
    parser.add_argument("--refresh", action="store_true", help="solve again and write down better values")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds per solver and instance")
    parser.add_argument("--solvers", default=None, help="comma-separated solver names (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="instances (default: all)")
    options = parser.parse_args(arguments)
    try:
        if not options.refresh:
            for name in options.names or library_names():
                entry = library_entry(name)
                print(f"{name}: {entry.description} Best {entry.best_known.objective}, bound {entry.best_known.bound}.")
            return 0
        words = sys.argv[1:] if arguments is None else list(arguments)
        refresh(
            options.names,
            options.solvers.split(",") if options.solvers else None,
            time_limit=options.time_limit,
            seed=options.seed,
            command=shlex.join(["python", "-m", "edgeopt.evaluation.instances", *words]),
            tell=lambda line: print(line, flush=True),
        )
    except (EdgeOptError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
