"""What a study is, and how it runs: a row for each task, variant and seed, made and kept as those of a comparison."""

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from edgeopt import storage
from edgeopt.errors import EdgeOptError, UnsupportedProblemError, quoted
from edgeopt.evaluation.compare.cells import finished_rows
from edgeopt.evaluation.compare.rows import FORMAT, Row, RowStore, merged, row_key
from edgeopt.evaluation.compare.worker import machine
from edgeopt.evaluation.studies.claims import Claim, Evidence
from edgeopt.experiment.options import checked_options, hints_of
from edgeopt.fields import Fields
from edgeopt.installed import versions
from edgeopt.locks import try_lock
from edgeopt.validate import integer, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

S = TypeVar("S")

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a study: what it shows, and the function that draws it."""

    caption: str
    draw: "Callable[[], Axes]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Generic[S]):
    """One system beside its baselines and ablations, on named tasks and seeds, and what is claimed of it.

    Parameters
    ----------
    name : on the command line; the module of the study is called so, with underscores.
    title : one line that says what is studied.
    system, baselines, ablations : names of the variants.
    tasks : names of what they are tried on.
    seeds : how many by default: 0, 1, ...
    full, quick : settings, a frozen dataclass of plain values; `quick` ends within a minute or two and proves nothing.
    on_demand : tasks that run only where they are named, as they take long or need what is not everywhere.
    quick_tasks, quick_seeds : tasks (none: all of them) and seeds of a quick run.
    measure : makes the findings of one cell: numbers, texts and truth values by name, and lists or tables for pictures.
        It runs in a process of its own, so that it must be a function of a module.
    claims : what is decided from the rows.
    tables : what is printed and written, by name, from what was found.
    pictures : what is drawn, by name, from what was found.
    """

    name: str
    title: str
    system: str
    baselines: tuple[str, ...]
    ablations: tuple[str, ...] = ()
    tasks: tuple[str, ...]
    on_demand: tuple[str, ...] = ()
    seeds: int = 5
    full: S
    quick: S
    quick_tasks: tuple[str, ...] = ()
    quick_seeds: int = 1
    measure: "Callable[[StudyCell[S]], Row]"
    claims: tuple[Claim, ...]
    tables: "Callable[[Found[S]], dict[str, list[Row]]]"
    pictures: "Callable[[Found[S]], dict[str, Picture]]"

    @property
    def variants(self) -> tuple[str, ...]:
        """The system first, then baselines, then ablations."""
        return (self.system, *self.baselines, *self.ablations)

    def setting(self, *, quick: bool = False, changes: Mapping[str, Any] | None = None) -> S:
        """Return the settings with changes by name, each checked against the type of its field."""
        base: Any = self.quick if quick else self.full
        checked = checked_options(self.name, "", changes or {}, hints_of(type(base)))
        changed: S = dataclasses.replace(base, **checked)
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCell(Generic[S]):
    """One run of a study, a `edgeopt.evaluation.compare.cells.Cell`.

    Parameters
    ----------
    study : name of the study.
    setting : of the study.
    task, variant, seed : what is run.
    folder : where `keep` keeps files.
    measure : of the study.
    """

    study: str
    setting: S
    task: str
    variant: str
    seed: int
    folder: Path
    measure: "Callable[[StudyCell[S]], Row]"

    time_limit: ClassVar[float] = math.inf

    def __str__(self) -> str:
        return f"{self.variant} on {self.task}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Equal for equal runs of equal versions."""
        return row_key(self._prefix, self.task, self.variant, self.seed)

    @property
    def _prefix(self) -> str:
        return row_key(self.study, self.setting, versions()["edgeopt"])

    def keep(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a file that cells of equal settings share: the first that asks makes it, others wait until it is there.

        Parameters
        ----------
        name : of the file; it says of which task and seed the file is.
        make : is given the path; it writes the file whole or not at all.
        """
        path = storage.open_folder(self.folder / "kept") / f"{self._prefix}-{name}"
        with _alone(path):
            if not path.exists():
                make(path)
        return path

    def run(self) -> Row:
        """Measure; a variant that does not support the problem of these settings is skipped."""
        start = time.perf_counter()
        try:
            found = self.measure(self)
        except UnsupportedProblemError as error:
            return self.failed("skipped", str(error))
        return {"status": "done", "message": "", "seconds": time.perf_counter() - start, "found": found}

    def failed(self, status: str, message: str) -> Row:
        """Return what a run says that found nothing."""
        return {"status": status, "message": message, "seconds": None, "found": {}}

    def common(self) -> Row:
        """Return what every row says."""
        return {
            "key": self.key,
            "study": self.study,
            "task": self.task,
            "variant": self.variant,
            "seed": self.seed,
            "setting": settings(self.setting),
            "versions": versions(),
            "machine": machine(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[S]):
    """What a study has found so far.

    Parameters
    ----------
    study, setting, tasks, seeds : what was run.
    quick : whether it proves nothing.
    rows : of the runs that are done: ``task``, ``variant``, ``seed`` and what was measured; by task, seed, variant.
    failures : full rows of the runs that ended in an error or lacked a package.
    machine, versions : of the runs, by name; where they differ, all of them.
    interrupted : whether Ctrl-C came; runs are missing then.
    """

    study: Study[S]
    setting: S
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    quick: bool
    rows: list[Row]
    failures: list[Row]
    machine: dict[str, str]
    versions: dict[str, str]
    interrupted: bool

    @property
    def complete(self) -> bool:
        """Whether every run is done."""
        return len(self.rows) == len(self.tasks) * len(self.seeds) * len(self.study.variants)

    @property
    def evidence(self) -> Evidence:
        """What claims are decided by."""
        return Evidence(rows=self.rows, tasks=self.tasks, seeds=self.seeds)

    def of(self, *, variant: str | None = None, task: str | None = None, seed: int | None = None) -> list[Row]:
        """Return the rows of a variant, a task, a seed; None is any."""
        wanted = {
            name: value for name, value in (("variant", variant), ("task", task), ("seed", seed)) if value is not None
        }
        return [row for row in self.rows if wanted.items() <= row.items()]

    def variants(self, task: str | None = None) -> list[str]:
        """Return the variants of which there are rows, in the order of the study."""
        there = {row["variant"] for row in self.of(task=task)}
        return [variant for variant in self.study.variants if variant in there]


def run_study(
    study: Study[S],
    *,
    quick: bool = False,
    seeds: int | None = None,
    tasks: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    jobs: int = 1,
    display: bool = True,
) -> Found[S]:
    """Run every variant on every task with every seed; what is in `out` already is not run again.

    Parameters
    ----------
    study : what to run.
    quick : with the quick settings, tasks and seeds.
    seeds : number of seeds: 0, 1, ...
    tasks : names; default: those of the study.
    changes : of the settings, by name.
    out, executor, jobs, display : as in `edgeopt.evaluation.compare.compare`.

    Raises
    ------
    EdgeOptError
        If a task or a setting is unknown.
    """
    setting = study.setting(quick=quick, changes=changes)
    usual = (quick and study.quick_tasks) or study.tasks
    chosen = tuple(dict.fromkeys(usual if tasks is None else listed("tasks", tasks)))
    for i, task in enumerate(chosen):
        if task not in (known := (*study.tasks, *study.on_demand)):
            raise EdgeOptError(f"tasks[{i}] = {quoted(task)}: expected one of {', '.join(known)}")
    if not chosen:
        raise EdgeOptError(f"tasks: expected at least one of {', '.join(study.tasks)}")
    number = integer("seeds", (study.quick_seeds if quick else study.seeds) if seeds is None else seeds, low=1)
    with _folder(out) as folder:
        store = None if out is None else RowStore(folder / "rows", check_row)
        cells = [
            StudyCell(
                study=study.name, setting=setting, task=task, variant=variant, seed=seed, folder=folder,
                measure=study.measure,
            )
            for task in chosen for seed in range(number) for variant in study.variants
        ]  # fmt: skip
        rows, interrupted = finished_rows(((cell, None) for cell in cells), store, executor, jobs, display)
    done = [row for row in rows if row["status"] == "done"]
    return Found(
        study=study,
        setting=setting,
        tasks=chosen,
        seeds=tuple(range(number)),
        quick=quick,
        rows=[{name: row[name] for name in ("task", "variant", "seed")} | row["found"] for row in done],
        failures=[row for row in rows if row["status"] != "done"],
        machine=merged(rows, "machine"),
        versions=merged(rows, "versions"),
        interrupted=interrupted,
    )


def settings(setting: Any) -> Row:
    """Return settings by name."""
    return dataclasses.asdict(setting)


def check_row(document: Row) -> None:
    """Refuse what is no row of a study."""
    row = Fields(document, "not a row of a study: ")
    row.expect("format", FORMAT)
    for name in ("key", "study", "task", "variant", "message"):
        row.text(name)
    row.choice("status", ("done", "error", "skipped"))
    row.integer("seed")
    for name in ("found", "machine", "versions"):
        row.table(name)


class Interruptible(Protocol):
    """A history of training."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        ...


H = TypeVar("H", bound=Interruptible)


def finished(history: H) -> H:
    """Return a history of training that ran to its end; Ctrl-C, which training answers with what there is, is raised."""
    if history.interrupted:
        raise KeyboardInterrupt
    return history


@contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folder of a study, one for the time being where none is given."""
    if out is not None:
        yield storage.open_folder(out)
        return
    with tempfile.TemporaryDirectory(prefix="edgeopt-study-") as folder:
        yield Path(folder)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time into the block of a path."""
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "ab") as file:
        while try_lock(file) is False:
            time.sleep(POLL_S)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # on Windows it is open and stays, which does no harm
                lock.unlink()
