"""Cells, which make one row each: run in workers, kept on disk the moment they are made, begun again where they stopped.

Comparisons and studies are both made of cells; what a cell computes is its own business.
"""

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from typing import Protocol

from edgeopt.errors import MissingDependencyError
from edgeopt.evaluation.compare.executors import Engine, is_lost, open_engine
from edgeopt.evaluation.compare.rows import Row, RowStore
from edgeopt.storage import plain

logger = logging.getLogger("edgeopt")

MAX_RESUBMISSIONS = 2
GRACE_S = 60.0
"""How long a run may take beyond its time limit, for starting its worker, compiling kernels and evaluating the solution."""


class Cell(Protocol):
    """One run: everything that a worker needs to know to make its row. ``str`` of it says which one it is."""

    @property
    def key(self) -> str:
        """Name of the row's file: equal for equal runs."""
        ...

    @property
    def time_limit(self) -> float:
        """Seconds after which the run should be back; maybe inf."""
        ...

    def run(self) -> Row:
        """Do the work, and return what it found; an exception makes the row one with status ``error``."""
        ...

    def failed(self, status: str, message: str) -> Row:
        """Return what takes the place of findings in the row of a run that has none."""
        ...

    def common(self) -> Row:
        """Return what every row of the cell says, whatever came of it; ``key`` is among it."""
        ...


def run_cell(cell: Cell) -> Row:
    """Make the row, in a worker; an exception becomes a row with status ``error``."""
    try:
        found = cell.run()
    except MissingDependencyError as error:  # nothing is wrong with the run: install it, and it is made up for
        found = cell.failed("skipped", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the row says what failed
        message = " ".join(f"{type(error).__name__}: {error}".split())
        found = cell.failed("error", message) | {"traceback": traceback.format_exc()}
    row: Row = plain(found | cell.common())
    return row


def failed_row(cell: Cell, status: str, message: str) -> Row:
    """Return the row of a run that has no result."""
    row: Row = plain(cell.failed(status, message) | cell.common())
    return row


def finished_rows(
    cells: Iterable[tuple[Cell, str | None]],
    store: RowStore | None,
    executor: Executor | str | None,
    jobs: int,
    display: bool,
) -> tuple[list[Row], bool]:
    """Make the rows that are not in the store, damaged or failed there; return all in order, and whether Ctrl-C came.

    Parameters
    ----------
    cells : each with None, or with the sentence that says why it is skipped. Of equal ones the first counts.
    store : where rows are kept; None for nowhere.
    executor, jobs, display : as in `edgeopt.evaluation.compare.compare`.
    """
    rows: dict[str, Row] = {}
    order: list[str] = []
    missing: list[Cell] = []

    def keep(row: Row) -> None:
        rows[row["key"]] = row
        if store is not None:
            store.put(row)

    for cell, reason in cells:
        if cell.key in order:
            continue
        order.append(cell.key)
        if reason is not None:
            keep(failed_row(cell, "skipped", reason))
        elif store is not None and (row := store.get(cell.key)) and row["status"] not in ("error", "skipped"):
            rows[cell.key] = row | plain(cell.common() | {"machine": row.get("machine")})
        else:
            missing.append(cell)
    interrupted = False
    if missing:
        engine = open_engine(executor, jobs)
        with _progress(len(missing), display) as advance:
            interrupted = run_all(missing, engine, keep, advance)
    return [rows[key] for key in order if key in rows], interrupted


def run_all(
    cells: Iterable[Cell], engine: Engine, keep: Callable[[Row], None], advance: Callable[[Cell, Row], None]
) -> bool:
    """Run the cells, hand each row to `keep` as it comes, and return whether Ctrl-C ended it.

    When a worker dies, every run in flight on an executor that does not say whose it was is suspect: each is repeated
    alone, so that the one which kills its worker takes no other down with it. A run that is `GRACE_S` behind its time
    limit loses its worker.
    """
    queue, suspects = deque(cells), deque[Cell]()
    attempts: dict[str, int] = {}
    running: dict[Future[Row], Cell] = {}
    due: dict[Future[Row], float] = {}
    finished = False

    def start(cell: Cell) -> None:
        future = _submit(engine, cell)
        running[future], due[future] = cell, time.monotonic() + cell.time_limit + GRACE_S

    def end(cell: Cell, row: Row) -> None:
        if row.get("traceback"):
            logger.error("%s:\n%s", cell, row["traceback"])
        keep(row)
        advance(cell, row)

    try:
        while queue or suspects or running:
            while queue and len(running) < engine.window:
                start(queue.popleft())
            if suspects and not queue and not running:
                start(suspects.popleft())
            for future in wait(running, _until(due.values()), FIRST_COMPLETED).done:
                cell = running.pop(future)
                del due[future]
                row = _outcome(future, cell)
                if row is None:
                    attempts[cell.key] = attempts.get(cell.key, 0) + 1
                    if attempts[cell.key] <= MAX_RESUBMISSIONS:
                        suspects.append(cell)
                        continue
                    message = f"its worker died {attempts[cell.key]} times: {future_error(future)}"
                    row = failed_row(cell, "error", message)
                elif row.get("limit") == "interrupt":  # not a result of the solver: it is run again next time
                    return True
                end(cell, row)
            for future in [late for late in running if due[late] <= time.monotonic() and not late.done()]:
                cell = running[future]
                if not engine.kill(future):
                    due[future] += cell.time_limit + GRACE_S
                    continue
                del running[future], due[future]
                message = f"did not return within {GRACE_S:g} s after its time limit of {cell.time_limit:g} s"
                end(cell, failed_row(cell, "error", f"{message}: its worker was killed"))
        finished = True
        return False
    except KeyboardInterrupt:
        return True
    finally:
        engine.close(now=not finished)


def future_error(future: Future[Row]) -> str:
    """Return in one line why a finished future has no result."""
    error = None if future.cancelled() else future.exception()
    return "cancelled" if error is None else " ".join(f"{type(error).__name__}: {error}".split())


def _until(due: Iterable[float]) -> float | None:
    """Return the seconds until the first of some times, None for ever."""
    seconds = min(due, default=math.inf) - time.monotonic()
    return max(0.0, seconds) if seconds < threading.TIMEOUT_MAX else None


def _submit(engine: Engine, cell: Cell) -> Future[Row]:
    try:
        return engine.submit(run_cell, cell)
    except (BrokenExecutor, RuntimeError) as error:  # broken by an earlier run
        if engine.restart():
            return engine.submit(run_cell, cell)
        future: Future[Row] = Future()
        future.set_exception(BrokenExecutor(str(error)))
        return future


def _outcome(future: Future[Row], cell: Cell) -> Row | None:
    """Return the row, or None if the worker was lost."""
    try:
        return future.result()
    except Exception as error:  # run_cell returns its own errors as rows: these come from the way there and back
        if is_lost(error):
            return None
        logger.error("%s", cell, exc_info=error)
        return failed_row(cell, "error", future_error(future))


@contextmanager
def _progress(total: int, display: bool) -> Iterator[Callable[[Cell, Row], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not (display and console.is_terminal)) as bar:
        line = bar.add_task("", total=total)
        yield lambda cell, row: bar.update(line, advance=1, description=f"{cell}: {row['status']}")
