"""Solving the named instances again, and writing down what got better: ``python -m edgeopt.evaluation.instances --refresh``."""

import dataclasses
from collections.abc import Callable, Sequence

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.run import comparison_rows
from edgeopt.evaluation.instances.library import BestKnown, library_entry, library_names, write_entry
from edgeopt.problem import Sense


def refresh(
    names: Sequence[str] | None = None,
    solvers: Sequence[str] | None = None,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    command: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Solve instances again and write down better objectives and bounds; return the names of those that improved.

    Parameters
    ----------
    names : instances, default all.
    solvers : solver names, default all.
    time_limit : seconds per solver and instance.
    seed : seed of every run.
    command : what to record as the origin.
    tell : called with a line of text for every instance.
    """
    improved = []
    for name in names or library_names():
        entry = library_entry(name)
        rows, interrupted = comparison_rows(name, solvers, (seed,), time_limit)
        if interrupted:
            raise KeyboardInterrupt
        better = entry.best_known
        for row in rows:
            if row["feasible"] and row["status"] in ("optimal", "feasible"):
                source = f"{command}: {row['solver']}, seed {seed}"
                better = improve(better, row["sense"], row["objective"], row["bound"], source)
        _check(name, rows[0]["sense"], better)
        if better != entry.best_known:
            write_entry(dataclasses.replace(entry, best_known=better))
            improved.append(name)
        tell(
            f"{name}: objective {better.objective}, bound {better.bound}{'' if better == entry.best_known else ' (new)'}"
        )
    return improved


def improve(known: BestKnown, sense: Sense, objective: float, bound: float | None, command: str) -> BestKnown:
    """Return what is known after another feasible solution and a bound.

    A value that is only known rounded gives way to an exact one that agrees with it.

    Examples
    --------
    >>> improve(BestKnown(objective=4.0, bound=9.0), "max", 5.0, 8.0, "greedy").objective
    5.0
    """
    sign, slack = (1.0 if sense == "max" else -1.0), known.rounded_to
    best = known.objective is None or sign * (objective - known.objective) > -slack
    tight = bound is not None and (known.bound is None or sign * (known.bound - bound) > -slack)
    if not (best or tight):
        return known
    return BestKnown(
        objective=objective if best else known.objective,
        bound=bound if tight else known.bound,
        rounded_to=0.0 if best and tight else slack,
        command=command,
    )


def _check(name: str, sense: Sense, known: BestKnown) -> None:
    """Refuse to write down an objective that beats a bound: one of the two would be wrong."""
    if known.objective is None or known.bound is None:
        return
    excess = (known.objective - known.bound) * (1.0 if sense == "max" else -1.0)
    if excess > known.rounded_to + 1e-6 * max(1.0, abs(known.bound)):
        raise EdgeOptError(f"{name}: objective {known.objective} beats the bound {known.bound}: one of them is wrong")
