"""Watching a run: callbacks, and a progress line that shows only on a terminal."""

import math
from typing import TYPE_CHECKING, Self

from edgeopt.stop import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Callback:
    """Subclass and override what you need; returning False from `on_iteration` or `on_best` stops the run."""

    def on_start(self, solver: str, problem: str) -> None:
        """Be told that a run starts."""

    def on_iteration(self, progress: Progress) -> bool | None:
        """Be told after each iteration."""

    def on_best(self, progress: Progress) -> bool | None:
        """Be told of each better solution."""

    def on_end(self, progress: Progress) -> None:
        """Be told that the run has ended, also after an interrupt."""


class ProgressLine(Callback):
    """One line on standard error with time, objective, bound and gap; silent when that is not a terminal."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def on_start(self, solver: str, problem: str) -> None:
        """Open the line."""
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(solver, total=None)
        self._bar.start()

    def on_iteration(self, progress: Progress) -> None:
        """Refresh the line."""
        if self._bar is None or self._bar.disable or self._task is None:
            return
        text = f"iteration {progress.iteration}"
        if progress.objective is not None:
            text += f"  objective {progress.objective:.6g}"
        if math.isfinite(progress.bound):
            text += f"  bound {progress.bound:.6g}"
        if math.isfinite(progress.gap):
            text += f"  gap {100 * progress.gap:.3g} %"
        self._bar.update(self._task, description=text)

    def on_end(self, progress: Progress) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.stop()


class TrainingBar:
    """A bar over the rounds or iterations of a training, on standard error; silent when that is not a terminal."""

    def __init__(self, name: str, total: int, *, display: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not (display and console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=total, text="")

    def update(self, done: int, text: str) -> None:
        """Show how much is done, and a few numbers."""
        self._bar.update(self._task, completed=done, text=text)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
