"""The folder that a training run writes: enough to look at it, to go on with it, and to play its plans again."""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidFileError, quoted
from edgeopt.experiment import Experiment
from edgeopt.locks import LOCK_NAME, FolderLock
from edgeopt.schedule import RoundPlan, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.experiment.build import Setup
    from edgeopt.training.history import History, RoundRecord

MAY_CHANGE = ("rounds", "until_accuracy", "device")
"""What may differ when a run is resumed."""


@dataclass(slots=True)
class RunFolder:
    """Files of a run.

    ``experiment.json`` what was run; ``rows.csv``, ``history.json`` its rounds; ``checkpoint.safetensors`` all that it
    goes on with; ``schedule.npz`` the plans that were played; ``problem.npz`` what the planner solved; ``adapters`` a
    checkpoint of peft, of a model of transformers with adapters; pictures, if matplotlib is there. From `open` to `close`
    it is kept for this run: its lock names the process.

    Parameters
    ----------
    path : made if it is not there.
    save_every : rounds between two writes of the plans.
    """

    path: Path
    save_every: int = 10
    _plans: list[RoundPlan] = field(init=False, default_factory=list)
    _old: list[RoundPlan] = field(init=False, default_factory=list)
    _lock: FolderLock | None = field(init=False, default=None)

    @property
    def checkpoint(self) -> Path:
        """The state of the run."""
        return self.path / "checkpoint.safetensors"

    @property
    def flower(self) -> Path:
        """Where a run on Flower has its state."""
        return self.path / "flower"

    @property
    def experiment(self) -> Path:
        """What is run."""
        return self.path / "experiment.json"

    @property
    def schedule(self) -> Path:
        """The plans that were played."""
        return self.path / "schedule.npz"

    def check(self, experiment: Experiment, *, resume: bool) -> None:
        """Complain before the experiment is built, which may take minutes; nothing is written.

        Raises
        ------
        EdgeOptError
            If the folder cannot be written, is in use by another run, holds one already and it is not to go on, or is one
            of another experiment.
        """
        there = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not there.is_dir():
            raise EdgeOptError(f"{self.path}: {there} is a file, expected a folder")
        if not os.access(there, os.W_OK):
            raise EdgeOptError(f"{self.path}: no permission to write in {there}")
        if (self.path / LOCK_NAME).exists():
            FolderLock(self.path).release()
        self._check_contents(experiment, resume=resume)

    def _check_contents(self, experiment: Experiment, *, resume: bool) -> None:
        if not resume:
            if self.checkpoint.exists() or self.flower.exists():
                raise EdgeOptError(f"{self.path}: holds a run already: expected --resume, or another folder")
        elif self.experiment.exists():
            _check_same(Experiment.load(self.experiment), experiment, self.path)

    def open(self, experiment: Experiment, *, resume: bool) -> None:
        """Get ready for a run, and keep others out until `close`.

        Raises
        ------
        EdgeOptError
            As `check`.
        """
        self.check(experiment, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)
        try:
            self._check_contents(experiment, resume=resume)  # another run may have come and gone since
            storage.open_folder(self.path)
            self._old = list(Schedule.load(self.schedule).rounds) if resume and self.schedule.exists() else []
            experiment.save(self.experiment)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()

    def on_round(self, record: "RoundRecord") -> None:
        """Note the plan of a round."""
        if not self._plans:
            self._old = self._old[: record.number] if len(self._old) >= record.number else []
        self._plans.append(record.plan)
        if len(self._old) + len(self._plans) == record.number + 1 and (record.number + 1) % self.save_every == 0:
            Schedule([*self._old, *self._plans]).save(self.schedule)

    def write(self, setup: "Setup", history: "History") -> None:
        """Write what is there when the run has ended."""
        if history.rows:
            history.to_csv(self.path / "rows.csv")
        storage.write_text(self.path / "history.json", storage.dumps(history.to_json(), indent=1) + "\n")
        played = [*self._old, *self._plans]
        if self._plans and len(played) == len(history.rows):  # not if the plans of earlier rounds were lost
            Schedule(played).save(self.schedule)
        if setup.problem is not None:
            setup.problem.save(self.path / "problem.npz")
        if setup.original is not None and history.models:
            from edgeopt.models import to_transformers

            model = copy.deepcopy(setup.task.model)
            model.load_state_dict(setup.task.whole(history.models[0]))
            to_transformers(model, setup.original, self.path / "adapters")

    def draw(self, setup: "Setup", history: "History") -> list[str]:
        """Draw the pictures, and return their names.

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
        from edgeopt.evaluation.plots.training.curves import plot_training_curves
        from edgeopt.evaluation.plots.training.data_partition import plot_data_partition
        from edgeopt.evaluation.plots.training.round_timeline import plot_round_timeline

        drawn = []
        if not np.isnan(history.column("accuracy")).all():
            run = {setup.algorithm.name: [history]}
            drawn.append(self._save("accuracy-seconds", plot_training_curves(run, "seconds")))
            drawn.append(self._save("accuracy-bytes", plot_training_curves(run, "bytes")))
        if history.last is not None:
            drawn.append(self._save("last-round", plot_round_timeline(history.last)))
        train = setup.task.train
        if train.targets.ndim == 1 or train.group is not None:
            drawn.append(self._save("data", plot_data_partition(setup.task.partition, train.labels)))
        return drawn

    def _save(self, name: str, axes: "Axes") -> str:
        from edgeopt.evaluation.plots.style import save_picture

        save_picture(axes, self.path / f"{name}.png")
        return f"{name}.png"


def _check_same(stored: Experiment, given: Experiment, path: str | os.PathLike[str]) -> None:
    old, new = _leaves(stored.to_dict()), _leaves(given.to_dict())
    for key in sorted(old.keys() | new.keys()):
        if key not in MAY_CHANGE and old.get(key) != new.get(key):
            raise InvalidFileError(f"{path}: {key} = {quoted(old.get(key))}: this run has {quoted(new.get(key))}")


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
