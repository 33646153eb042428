"""`RunState`: all that a training run is between two rounds, and its checkpoint file."""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.convergence import ConvergenceEstimate, Estimate
from edgeopt.display import one_line
from edgeopt.errors import InvalidFileError, quoted
from edgeopt.fields import Fields, in_file
from edgeopt.schedule import COLUMNS, MEASURED, Feedback, Planner, RoundPlan, StatefulPlanner
from edgeopt.storage import Arrays, Layout
from edgeopt.tensors import Shapes, load_tensors, save_tensors
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.checkpoint import check_state, checkpoint_layout, client_number, read_row, read_rows
from edgeopt.training.constants import Estimator
from edgeopt.training.costs.ledger import Ledger
from edgeopt.training.history import Row, plain_row, plain_rows, straggler
from edgeopt.training.judging import Scores
from edgeopt.training.messages import State, kept
from edgeopt.training.round_result import RoundResult
from edgeopt.training.runners.local import Runner
from edgeopt.training.states import flatten, unflatten
from edgeopt.training.task import Task
from edgeopt.validate import float_array, int_array

_KIND = "training"
_SCHEMA_VERSION = 4  # version 3 lacked the energy of clients
_INCOMPLETE = "not a complete checkpoint: "
_MEASURED = ("completed", "conflict", *MEASURED)
_ESTIMATES = ("gradient_variance", "gradient_second_moment", "smoothness")
_INTERVAL = ("value", "low", "high")


@dataclass(slots=True, eq=False)
class RunState:
    """What the next round depends on, and the rows of those before.

    Parameters
    ----------
    identity : what must agree for a checkpoint to be continued.
    server : the state of the algorithm.
    round : the next round.
    seconds, energy_j : so far.
    ledger : bytes so far.
    feedback : of the last round.
    rows : of all rounds, see `edgeopt.training.history.History`.
    memory : states of planner and estimator at this point, by ``planner/`` and ``estimator/``.
    clients : states of the clients; only of a loaded run, later the runner has them.
    """

    identity: dict[str, Any]
    server: State
    ledger: Ledger
    round: int = 0
    seconds: float = 0.0
    energy_j: float = 0.0
    feedback: Feedback | None = None
    rows: list[Row] = field(default_factory=list)
    memory: Arrays = field(default_factory=dict)
    clients: dict[int, State] = field(default_factory=dict)

    __repr__ = one_line

    @classmethod
    def start(
        cls, task: Task, algorithm: Algorithm, planner: Planner | None = None, estimator: Estimator | None = None
    ) -> Self:
        """Return the state before the first round."""
        identity = _identity(task, algorithm, planner, estimator)
        return cls(identity, kept(algorithm.start(task)), Ledger(task.num_clients))

    def advance(self, result: RoundResult, feedback: Feedback, scores: Scores, runner: Runner) -> Row:
        """Let a round count, and return its row."""
        runner.commit()
        self.server, self.feedback, self.round = result.state, feedback, self.round + 1
        self.seconds += feedback.seconds
        self.energy_j += sum(float(phase.energy_j.sum()) for phase in result.phases)
        grams = [float(phase.carbon_g.sum()) for phase in result.phases if phase.carbon_g is not None]
        self.ledger.bytes += result.bytes
        slowest = straggler(feedback.plan, result.phases)
        row: Row = {
            "round": feedback.round,
            "seconds": self.seconds,
            "round_seconds": feedback.seconds,
            "energy_j": self.energy_j,
            "bytes_up": self.ledger.total("up"),
            "bytes_down": self.ledger.total("down"),
            "train_loss": float(np.mean(list(result.loss.values()))) if result.loss else float("nan"),
            "test_loss": scores.loss,
            "accuracy": scores.accuracy,
            **scores.personal(),
            "planned": len(feedback.plan),
            "completed": int(feedback.completed.sum()),
            "conflicts": int(feedback.conflict.sum()),
            "client_peak_bytes": float(np.fmax.reduce(feedback.client_peak_bytes, initial=np.nan)),
            "straggler": -1 if slowest is None else slowest,
            **self.ledger.by_category(),
            **({"carbon_g": self._carbon_g() + sum(grams)} if grams else {}),
            **result.measured,
        }
        self.rows.append(row)
        return row

    def _carbon_g(self) -> float:
        """Return the grams of CO2 so far."""
        return float(self.rows[-1].get("carbon_g", 0.0)) if self.rows else 0.0

    def remember(self, planner: Planner, estimator: Estimator | None) -> None:
        """Note what planner and estimator would need to go on from here."""
        memory: Arrays = {}
        if isinstance(planner, StatefulPlanner):
            memory |= {f"planner/{name}": np.array(value) for name, value in planner.state().items()}
        if estimator is not None:
            memory |= {f"estimator/{name}": np.array(value) for name, value in estimator.state().items()}
        self.memory = memory

    def hand_out(self, planner: Planner, estimator: Estimator | None) -> None:
        """Give planner and estimator back what they remembered."""
        if isinstance(planner, StatefulPlanner):
            planner.restore(_below(self.memory, "planner/"))
        if estimator is not None:
            estimator.restore(_below(self.memory, "estimator/"))

    # --- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], runner: Runner) -> None:
        """Write a checkpoint, atomically.

        Raises
        ------
        MissingDependencyError
            Without safetensors.
        """
        tree: State = {"server": self.server, "clients": {str(client): s for client, s in runner.states.items()}}
        arrays, names = flatten(tree)
        arrays |= {f"memory/{name}": value for name, value in self.memory.items()}
        arrays["ledger"] = self.ledger.bytes
        header: dict[str, Any] = {
            "kind": _KIND, "schema_version": _SCHEMA_VERSION, "identity": self.identity, "round": self.round,
            "seconds": self.seconds, "energy_j": self.energy_j, "state": names,
            "rows": plain_rows(self.rows),
            "feedback": None,
        }  # fmt: skip
        if self.feedback is not None:
            header["feedback"], measured = _feedback_to_data(self.feedback)
            arrays |= {f"feedback/{name}": value for name, value in measured.items()}
        save_tensors(path, header, arrays)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], task: Task, identity: dict[str, Any], start: State | None = None
    ) -> Self:
        """Read a checkpoint of a run with the same identity.

        Parameters
        ----------
        start : the server's state before the first round, whose names, shapes and types that of the file must have.

        Raises
        ------
        InvalidFileError
            If the file is no checkpoint, or of another run; the message says what differs.
        """

        def layout(header: dict[str, Any], shapes: Shapes) -> Layout:
            given = Fields(header, _INCOMPLETE)
            _check_identity(given, identity)
            return checkpoint_layout(given, shapes, task)

        header, arrays = load_tensors(path, _KIND, layout)
        with in_file(path):
            given = Fields(header, _INCOMPLETE)
            tree = unflatten(arrays, given.table("state"), task.device)
            check_state(tree, start)
            ledger = Ledger(task.num_clients)
            ledger.bytes = int_array("ledger", arrays["ledger"], ledger.bytes.shape, low=0, dtype=np.int64).copy()
            rows = read_rows(given)
            clients = {client_number(name, task): _branch(tree, "clients", name) for name in _branch(tree, "clients")}
            feedback = None
            if given.value("feedback") is not None:
                feedback = _feedback_from_data(
                    given.table("feedback"), _below(arrays, "feedback/"), given.number("seconds", low=0)
                )
            return cls(
                identity, _branch(tree, "server"), ledger, len(rows), given.number("seconds", low=0),
                given.number("energy_j", low=0), feedback, rows, _below(arrays, "memory/"), clients,
            )  # fmt: skip


def _check_identity(given: Fields, identity: dict[str, Any]) -> None:
    given.expect("schema_version", _SCHEMA_VERSION)
    stored = given.table("identity")
    for name, expected in identity.items():
        if (found := stored.value(name, quoted(expected))) != expected:
            raise InvalidFileError(f"{name} = {quoted(found)}: this run has {quoted(expected)}")


def _identity(task: Task, algorithm: Algorithm, planner: Planner | None, estimator: Estimator | None) -> dict[str, Any]:
    """Return plain values that two runs must share for the one to continue the other."""
    held, _ = flatten(dict(task.frozen))
    frozen = zlib.crc32(b"".join(name.encode() + array.tobytes() for name, array in held.items()))
    owners = zlib.crc32(b"".join(own.tobytes() + b"|" for own in task.partition.indices))
    return {
        "algorithm": repr(algorithm),
        "planner": type(planner).__name__,
        "estimator": type(estimator).__name__,
        "weights": {name: list(value.shape) for name, value in task.model.state_dict().items()},
        "frozen": f"{frozen:08x}",
        "data": task.train.name,
        "samples": len(task.train),
        "clients": task.num_clients,
        "partition": f"{owners:08x}",
        "seed": task.seed,
        "precision": task.precision,
    }


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _branch(state: State, *names: str) -> State:
    for name in names:
        found = state.get(name)
        if not isinstance(found, dict):
            raise InvalidFileError(
                f"state.{name}: expected a folder of tensors, got {'one' if name in state else 'none'}"
            )
        state = found
    return state


def _feedback_to_data(feedback: Feedback) -> tuple[dict[str, Any], Arrays]:
    arrays: Arrays = feedback.plan.columns()
    arrays |= {name: getattr(feedback, name) for name in _MEASURED}
    header: dict[str, Any] = {
        "round": feedback.round, "seconds": feedback.seconds, "aggregate": feedback.plan.aggregate, "confidence": None,
        "measured": plain_row(feedback.measured),
    }  # fmt: skip
    if (constants := feedback.constants) is not None:
        header["confidence"] = constants.confidence
        for name in _ESTIMATES:
            if (estimate := getattr(constants, name)) is not None:
                arrays |= {f"{name}.{end}": np.asarray(getattr(estimate, end)) for end in _INTERVAL}
    return header, arrays


def _feedback_from_data(given: Fields, arrays: Arrays, now_s: float) -> Feedback:
    columns = [column.name for column in COLUMNS]
    if missing := [name for name in (*columns, *_MEASURED) if name not in arrays]:
        raise InvalidFileError(f"feedback/{missing[0]}: array is missing")
    plan = RoundPlan(**{name: arrays[name] for name in columns}, aggregate=given.flag("aggregate"))
    constants = None
    if (confidence := given.optional_number("confidence", low=0)) is not None:
        found: dict[str, Any] = {name: _estimate(arrays, name) for name in _ESTIMATES}
        constants = ConvergenceEstimate(**found, confidence=confidence)
    measured: Any = {name: arrays[name] for name in _MEASURED}
    return Feedback(
        round=given.integer("round", low=0), plan=plan, seconds=given.number("seconds", low=0), constants=constants,
        now_s=now_s, measured=read_row(given.table("measured")), **measured,
    )  # fmt: skip


def _estimate(arrays: Arrays, name: str) -> Estimate | None:
    if f"{name}.value" not in arrays:
        return None
    if missing := [end for end in _INTERVAL if f"{name}.{end}" not in arrays]:
        raise InvalidFileError(f"feedback/{name}.{missing[0]}: array is missing")
    shape = arrays[f"{name}.value"].shape
    return Estimate(
        *(float_array(f"feedback/{name}.{end}", arrays[f"{name}.{end}"], shape, finite=False) for end in _INTERVAL)
    )
