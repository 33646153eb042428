"""Named instances with the best values known: load them anywhere, compare against them, improve them.

``python -m edgeopt.evaluation.instances --refresh --time-limit 60`` solves them again and writes down what got better.
"""

import difflib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.problem import Problem

FOLDER = Path(__file__).resolve().parent / "files"
"""One JSON file per instance, and the data files that they name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestKnown:
    """What is known about an instance.

    Parameters
    ----------
    objective : best objective of a feasible solution, None if none is known.
    bound : best valid bound on the optimum, None if none is known.
    rounded_to : both are known to within this much; zero if they are exact.
    command : what produced them.
    """

    objective: float | None
    bound: float | None
    rounded_to: float = 0.0
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One instance of the library.

    Parameters
    ----------
    name, kind, description : what it is.
    recipe : how it is made; ``recipe["type"]`` is a key of `RECIPES`.
    best_known : what is known about it.
    """

    name: str
    kind: str
    description: str
    recipe: dict[str, Any]
    best_known: BestKnown

    def load(self) -> Problem:
        """Make the instance."""
        arguments = dict(self.recipe)
        make = RECIPES.get(str(arguments.pop("type", None)))
        if make is None:
            raise InvalidFileError(
                f"{self.name}: recipe: type = {quoted(self.recipe.get('type'))}: expected {_listed(RECIPES)}"
            )
        try:
            return make(self.kind, arguments)
        except (KeyError, TypeError) as error:
            raise InvalidFileError(f"{self.name}: recipe: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return what `library_entry` reads."""
        known = self.best_known
        values: dict[str, Any] = {"objective": known.objective, "bound": known.bound}
        if known.rounded_to:
            values["rounded_to"] = known.rounded_to
        return {
            "name": self.name,
            "kind": self.kind,
            "description": self.description,
            "recipe": self.recipe,
            "best_known": values | {"command": known.command},
        }


def library_names() -> tuple[str, ...]:
    """Return the names of all instances, sorted.

    Examples
    --------
    >>> "facility-full" in library_names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def library_entry(name: str) -> Entry:
    """Return an instance's entry.

    Raises
    ------
    EdgeOptError
        If there is none of this name; the message suggests a close one.
    """
    if name not in library_names():
        close = difflib.get_close_matches(name, library_names(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise EdgeOptError(
            f"instance = {name!r}: {hint}expected a .json or .npz file, or one of {', '.join(library_names())}"
        )
    return read_entry(FOLDER / f"{name}.json")


def read_entry(path: str | os.PathLike[str]) -> Entry:
    """Return the entry that a file of the library holds.

    Raises
    ------
    InvalidFileError
        If it holds none; the message says what is wrong.
    """
    document = storage.read_json(path)
    with in_file(path):
        given = Fields(document)
        known = given.table("best_known")
        return Entry(
            name=given.text("name"),
            kind=given.text("kind"),
            description=given.text("description"),
            recipe=dict(given.table("recipe")),
            best_known=BestKnown(
                objective=known.optional_number("objective"),
                bound=known.optional_number("bound"),
                rounded_to=known.number("rounded_to", low=0) if "rounded_to" in known else 0.0,
                command=known.text("command"),
            ),
        )


def write_entry(entry: Entry) -> None:
    """Write an entry to its file in the library."""
    storage.write_text(FOLDER / f"{entry.name}.json", storage.dumps(entry.to_json(), indent=1) + "\n")


def load_instance(name: str | os.PathLike[str]) -> Problem:
    """Return an instance of the library, or read it from a ``.json`` or ``.npz`` file.

    Raises
    ------
    EdgeOptError
        If it is neither.
    InvalidFileError
        If the file is not a valid instance.
    OSError
        If the file cannot be opened.

    Examples
    --------
    >>> load_instance("facility-tiny").describe()["experts"]
    32
    """
    from edgeopt.problems import load

    text = os.fspath(name)
    if Path(text).suffix in (".json", ".npz") or os.sep in text:
        return load(text)
    return library_entry(text).load()


def best_known(name: str) -> BestKnown:
    """Return the best known objective and bound of a library instance.

    Examples
    --------
    >>> best_known("facility-mid").objective <= best_known("facility-mid").bound
    True
    """
    return library_entry(name).best_known


# --- recipes ---------------------------------------------------------------------------------------------------


@functools.cache
def _packaged_arrays(file: str) -> storage.Arrays:
    return storage.read_arrays(FOLDER / file)


def _from_facility(kind: str, arguments: dict[str, Any]) -> Problem:
    """Expert caching from arrays ``PREFIX_gain``, ``_weight``, ``_size``, ``_capacity`` of a packaged file."""
    from edgeopt.problems import ExpertCaching

    arrays, prefix = _packaged_arrays(arguments["file"]), arguments["prefix"]
    return ExpertCaching.from_facility(**{n: arrays[f"{prefix}_{n}"] for n in ("gain", "weight", "size", "capacity")})


def _from_traces(kind: str, arguments: dict[str, Any]) -> Problem:
    """Expert caching from bundled routing traces and a random network."""
    from edgeopt.network import EdgeNetwork
    from edgeopt.problems import ExpertCaching
    from edgeopt.problems.expert_caching.routing_trace import bundled_trace

    arguments = dict(arguments)
    traces = [bundled_trace(name) for name in arguments.pop("traces")]
    network = EdgeNetwork.random(**arguments.pop("network"))
    return ExpertCaching.from_traces(traces, network, **arguments)


def _from_random(kind: str, arguments: dict[str, Any]) -> Problem:
    """Any kind of problem from its own ``random`` with the recipe's arguments."""
    from edgeopt.problems import PROBLEMS

    random: Any = next(problem for problem in PROBLEMS if problem.kind == kind)
    made: Problem = random.random(**arguments)
    return made


def _from_file(kind: str, arguments: dict[str, Any]) -> Problem:
    """Any kind of problem from a packaged file."""
    from edgeopt.problems import load

    return load(FOLDER / arguments["file"])


RECIPES: dict[str, Callable[[str, dict[str, Any]], Problem]] = {
    "facility": _from_facility,
    "traces": _from_traces,
    "random": _from_random,
    "file": _from_file,
}
"""Ways to make an instance; the keys are the ``type`` of a recipe."""


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))
