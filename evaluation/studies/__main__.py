"""Keep the verdicts of full runs, and write the page about them: ``python -m edgeopt.evaluation.studies``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from edgeopt import storage
from edgeopt.evaluation.studies.stored import store, systems_page


def main(argv: Sequence[str] | None = None) -> None:
    """Store verdicts, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, nargs="*", default=[], help="verdicts.json of full runs, to be kept")
    parser.add_argument("--docs", type=Path, nargs="?", const=Path("docs"), default=None, help="folder of systems.md")
    arguments = parser.parse_args(argv)
    for path in arguments.store:
        print(f"wrote {store(path)}")
    if arguments.docs is not None:
        page = arguments.docs / "systems.md"
        storage.write_text(page, systems_page())
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
