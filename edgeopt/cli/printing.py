"""What commands print for people; with ``--json`` it is one document on standard output."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print one JSON document; what is not finite is null."""
    from edgeopt.storage import dumps

    print(dumps(value, indent=1))


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else value
        print(f"{name:<{width}}  {text}")


def number(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    """Return a number with so many digits; a dash for none."""
    return "-" if value is None else f"{factor * value:.{digits}g}"


def console() -> "Console":
    """Return where tables are printed: as wide as the terminal, or 200 columns where there is none."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = 200
    return made
