"""What a training run leaves behind: a row per round, and the times of its phases."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt import storage
from edgeopt.display import html_rows, one_line
from edgeopt.extras import needs
from edgeopt.schedule import RoundPlan
from edgeopt.training.costs.ledger import DIRECTIONS
from edgeopt.training.costs.timing import PhaseTime
from edgeopt.training.messages import CATEGORIES, State, Tensors

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, float | int]
_SHOWN = ("round", "seconds", "energy_j", "bytes_up", "bytes_down", "train_loss", "test_loss", "accuracy")

PERSONAL = ("personal_accuracy", "personal_accuracy_worst_tenth")
"""Columns of the rows in which clients' own models were judged."""

SOMETIMES = (*PERSONAL, "carbon_g")
"""Columns that only some runs have; no algorithm may add one of these names."""

COLUMNS_OF_ROWS: frozenset[str] = frozenset(
    (
        "round", "seconds", "round_seconds", "energy_j", "bytes_up", "bytes_down", "train_loss", "test_loss", "accuracy",
        "planned", "completed", "conflicts", "straggler", "client_peak_bytes",
        *(f"{category}_{direction}" for category in CATEGORIES for direction in DIRECTIONS),
    )
)  # fmt: skip
"""What every row has; an algorithm may add columns of other names."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundRecord:
    """One round: who did what, and when.

    Parameters
    ----------
    number : of the round.
    plan : M entries.
    phases : in the order of time.
    completed : bool [M], whose update arrived.
    conflict : bool [M], see `edgeopt.schedule.Feedback`.
    row : the numbers of the round, see `History`.
    """

    number: int
    plan: RoundPlan
    phases: tuple[PhaseTime, ...]
    completed: NDArray[np.bool_]
    conflict: NDArray[np.bool_]
    row: Mapping[str, float | int]

    __repr__ = one_line

    @property
    def seconds(self) -> float:
        """Length of the round in virtual time."""
        return float(sum(phase.seconds for phase in self.phases))

    @property
    def client_seconds(self) -> NDArray[np.float64]:
        """float64 [M], from the start of the round to the last reply of each entry; nan for entries without messages."""
        return client_seconds(self.plan, self.phases)

    @property
    def straggler(self) -> int | None:
        """The client without whom the round would be shortest, see `straggler`."""
        return straggler(self.plan, self.phases)


def client_seconds(plan: RoundPlan, phases: Sequence[PhaseTime]) -> NDArray[np.float64]:
    """Return float64 [M], from the start of the round to the last reply of each entry; nan for those without messages."""
    found = np.full(len(plan), np.nan)
    for phase in phases:
        found[phase.entry] = phase.start_s + phase.client_s
    return found


def straggler(plan: RoundPlan, phases: Sequence[PhaseTime]) -> int | None:
    """Return the client without whom the round would be shortest, the server's work left aside; None if there was nobody."""
    spared: dict[int, float] = {}
    for phase in phases:
        if phase.entry.size:
            clients, seconds = plan.client[phase.entry], phase.client_s
            slowest = int(clients[seconds.argmax()])
            without = float(seconds[clients != slowest].max(initial=0.0))
            spared[slowest] = spared.get(slowest, 0.0) + float(seconds.max()) - without
    return max(spared, key=lambda client: spared[client]) if spared else None


@dataclass(slots=True, eq=False, repr=False)
class History:
    """The rows of a run, and what it ended with.

    Parameters
    ----------
    rows : one per round: ``round``; ``seconds``, ``energy_j``, ``bytes_up``, ``bytes_down`` so far; ``round_seconds``;
        ``train_loss``; ``test_loss`` and ``accuracy`` (nan in rounds without evaluation); ``personal_accuracy`` of the
        clients' own models, each on held-out samples with the labels of its own data, and that of the worst tenth of
        them, ``personal_accuracy_worst_tenth`` (where clients have any); ``planned``, ``completed``,
        ``conflicts``: entries of the round; ``straggler``: a client, -1 for none; ``client_peak_bytes``: memory of the
        client that needs most in this round, nan where none is charged; ``carbon_g``: grams of CO2 so far, where the timing has
        carbon intensities; the bytes so far of each category
        and direction, such as ``activations_up``; and what the algorithm has measured, see `edgeopt.training.Outcome`.
    last : the last round of this process.
    models : the weights whose mean score is ``accuracy``, see `edgeopt.training.Algorithm.models`.
    personal : the clients' own models by id, where they have any.
    server : the server's state.
    clients : the clients' states by id.
    ways : how the clients of this process have run, such as ``train: one after another``, see
        `edgeopt.training.LocalRunner`; empty where the runner does not say.
    interrupted : whether Ctrl-C ended the run.
    reason : why it ended.
    """

    rows: list[Row] = field(default_factory=list)
    last: RoundRecord | None = None
    models: list[Tensors] = field(default_factory=list)
    personal: dict[int, Tensors] = field(default_factory=dict)
    server: State = field(default_factory=dict)
    clients: dict[int, State] = field(default_factory=dict)
    ways: list[str] = field(default_factory=list)
    interrupted: bool = False
    reason: str = ""

    def __repr__(self) -> str:
        return f"History({self._headline()})"

    def _repr_html_(self) -> str:
        return html_rows(self._headline(), self.rows, [name for name in _SHOWN if self.rows and name in self.rows[0]])

    def _headline(self) -> str:
        words = [f"{len(self.rows)} rounds"]
        if evaluated := [row["accuracy"] for row in self.rows if not math.isnan(row["accuracy"])]:
            words.append(f"accuracy {evaluated[-1]:.4g}")
        if self.rows:
            words.append(f"{self.rows[-1]['seconds']:.4g} virtual s")
        return ", ".join(words) + (f"; {self.reason}" if self.reason else "")

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one number of every round, float64 [rounds]; nan in rounds in which it was not measured."""
        if name not in (*COLUMNS_OF_ROWS, *SOMETIMES) and not any(name in row for row in self.rows):
            raise KeyError(name)
        return np.array([row.get(name, np.nan) for row in self.rows], np.float64)

    def first_reach(self, accuracy: float) -> Row | None:
        """Return the row of the first round that was evaluated at or above an accuracy; None if there is none."""
        return next((row for row in self.rows if row["accuracy"] >= accuracy), None)

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas table."""
        with needs("a table", "report"):
            import pandas as pd
        return pd.DataFrame(self.rows)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to a file, atomically."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row)) or ["round"]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        storage.write_atomic(path, lambda file: file.write(text.getvalue().encode()))

    def to_json(self) -> dict[str, Any]:
        """Return rows and reason as plain values; what was not measured is None, infinity the text ``inf``."""
        rows = plain_rows(self.rows)
        return {"rounds": len(rows), "interrupted": self.interrupted, "reason": self.reason, "rows": rows}


def plain_rows(rows: Sequence[Row]) -> list[dict[str, float | int | str | None]]:
    """Return rows for JSON, which has no nan and no infinity: None and ``inf`` or ``-inf`` instead."""
    return [plain_row(row) for row in rows]


def plain_row(row: Mapping[str, float | int]) -> dict[str, float | int | str | None]:
    """Return numbers by name for JSON."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: float) -> float | int | str | None:
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value
