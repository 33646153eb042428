"""`FlowerExperiment`: an experiment as Flower's processes build it, each for itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.experiment import Experiment

if TYPE_CHECKING:
    from edgeopt.schedule import Planner
    from edgeopt.training.algorithms import Algorithm
    from edgeopt.training.costs.timing import Timing
    from edgeopt.training.task import Task


@dataclass(frozen=True, slots=True)
class FlowerExperiment:
    """What `edgeopt.training.runners.flower_loopback.run_on_flower` takes.

    Parameters
    ----------
    experiment : evaluated in every round, to its last one, without measured constants.

    Raises
    ------
    InvalidProblemError
        If the experiment asks for more than that.
    """

    experiment: Experiment

    def __post_init__(self) -> None:
        e = self.experiment
        if e.planner.name == "hasfl":
            raise e.wrong("planner", "name", "hasfl", "on Flower a planner that does not measure constants")
        for key, value in (("evaluate_every", 1), ("until_accuracy", None)):
            if getattr(e, key) != value:
                raise InvalidProblemError(f"{key} = {quoted(getattr(e, key))}: expected {value} on Flower")

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return self.experiment.rounds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self.experiment.to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the experiment again."""
        return cls(Experiment.from_dict(data))

    def build(self) -> "tuple[Task, Algorithm, Planner, Timing]":
        """Return what a server trains with; clients use the first two."""
        setup = self.experiment.build()
        return setup.task, setup.algorithm, setup.planner, setup.timing
