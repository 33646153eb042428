"""A study that takes no time. Worker processes import it, so it lives in a module of its own."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.errors import MissingDependencyError, UnsupportedProblemError
from edgeopt.evaluation.studies import Claim, Difference, Found, Picture, Study, StudyCell


@dataclass(frozen=True, slots=True)
class Setting:
    """What a toy is like; ``calls`` is a folder that counts the calls, ``mode`` what happens under seed 1 of ``other``."""

    level: float = 1.0
    calls: str = ""
    mode: str = "fine"


def run(cell: StudyCell[Setting]) -> dict[str, Any]:
    """Return a level that the system has, and the others have less of."""
    calls = Path(cell.setting.calls) / f"{cell.variant}-{cell.task}-{cell.seed}"
    if cell.setting.calls:
        with calls.open("a") as file:
            file.write("x")
    if (cell.variant, cell.seed) == ("other", 1):
        if cell.setting.mode == "raise":
            raise RuntimeError("a fault\nof two lines")
        if cell.setting.mode == "lack":
            raise MissingDependencyError("a toy needs a package: pip install it")
        if cell.setting.mode == "unsupported":
            raise UnsupportedProblemError("toys are for children")
        if cell.setting.mode == "interrupt":
            raise KeyboardInterrupt
    shared = cell.keep(f"shared-{cell.seed}", partial(make, cell)).read_text()
    good = {"system": 2.0, "other": 1.0, "less": 0.5}[cell.variant]
    return {"value": cell.setting.level * good + 0.01 * cell.seed, "shared": shared, "curve": [1.0, 2.0]}


def make(cell: StudyCell[Setting], path: Path) -> None:
    """Write what the cells of a seed share, and who made it."""
    if cell.setting.calls:
        with (Path(cell.setting.calls) / f"made-{cell.seed}").open("a") as file:
            file.write("x")
    path.write_text(f"made for seed {cell.seed}")


def tables(found: Found[Setting]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows without what is drawn."""
    return {"values": [{key: value for key, value in row.items() if key != "curve"} for row in found.rows]}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return one picture."""
    return {"values": Picture("Values <by> variant", partial(draw, found))}


def draw(found: Found[Setting]) -> Any:
    """Draw the values."""
    from edgeopt.evaluation.plots.style import new_axes

    ax = new_axes()
    ax.plot([row["value"] for row in found.rows])
    return ax


STUDY = Study(
    name="toy",
    title="A toy & nothing else",
    system="system",
    baselines=("other",),
    ablations=("less",),
    tasks=("near", "far"),
    seeds=3,
    full=Setting(),
    quick=Setting(level=0.1),
    quick_tasks=("near",),
    measure=run,
    claims=(
        Claim(
            text="system is above other",
            source="paper",
            test=Difference(metric="value", first="system", second="other", above=0.0),
        ),
        Claim(
            text="less is above other",
            source="ours",
            test=Difference(metric="value", first="less", second="other", above=0.0),
        ),
    ),
    tables=tables,
    pictures=pictures,
)
