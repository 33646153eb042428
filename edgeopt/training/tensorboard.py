"""Rounds of a training run, or rows of a learner's, on TensorBoard. Needs the extra ``tensorboard``."""

import math
import os
from typing import TYPE_CHECKING, Any, Self

from edgeopt.extras import needs

if TYPE_CHECKING:
    from edgeopt.rl.loop import StepRecord
    from edgeopt.training.history import RoundRecord


class TensorBoardWriter:
    """A callback for ``train(..., on_round=...)`` that writes every number of a round's row against its number.

    Use it in a ``with`` statement, or call `close`. Numbers that were not measured are left out. The time of an event is
    virtual, so that TensorBoard's relative axis shows virtual seconds. A resumed run takes the same folder. A callback for
    ``edgeopt.rl.learn(..., on_row=...)`` as well, against the number of steps; its time is the clock's.

    Parameters
    ----------
    folder : where TensorBoard looks for the run; made if it is not there.

    Raises
    ------
    MissingDependencyError
        Without the package tensorboard.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        with needs("TensorBoardWriter", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        make: Any = SummaryWriter
        self._writer = make(os.fspath(folder))

    def __call__(self, record: "RoundRecord | StepRecord") -> None:
        """Write a round, or a row."""
        seconds = record.row.get("seconds")
        for name, value in record.row.items():
            if name not in ("round", "step") and not math.isnan(value):
                self._writer.add_scalar(
                    name, value, record.number, walltime=None if seconds is None else float(seconds)
                )

    def close(self) -> None:
        """Write what is still held back, and close the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
