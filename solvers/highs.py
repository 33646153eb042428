"""Calling HiGHS: options checked, bounds and solutions reported while it runs, and how it ended checked and mapped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import SolverError
from edgeopt.solvers.back_ends import highs_class, highs_module
from edgeopt.solvers.background import Mailbox
from edgeopt.solvers.ending import End, Ending

if TYPE_CHECKING:
    import highspy

PIECE = 1 << 19  # nonzeros that HiGHS is given at a time: some ten milliseconds
AGREE, AGREE_RELATIVE = 1e-6, 1e-9  # objectives that differ by less, the latter of the sum of their terms, are the same


class Reporter(Protocol):
    """Told of what HiGHS finds, in the thread that HiGHS runs in."""

    def bound(self, value: float) -> None:
        """Be told of a dual bound."""
        ...

    def solution(self, values: Any) -> None:
        """Be told of a solution, one value per column."""
        ...


def new_highs(
    lp: "highspy.HighsLp | tuple[Any, ...]", options: dict[str, Any], check: Callable[[], object] = lambda: None
) -> "highspy.Highs":
    """Return HiGHS with a programme and options.

    Large programmes are given as the arguments of ``passModel``, row by row: HiGHS takes arrays as they are, while each array
    of an ``HighsLp`` is copied number by number. Nothing else runs in Python while it takes them, so it gets the rows in pieces;
    `check` is called before each, and may leave by raising.
    """
    highspy = highs_module()
    highs = highs_class()()
    for name, value in options.items():
        if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
            raise SolverError(f"HiGHS refused {name} = {value!r}")
    said = _in_pieces(highs, lp, check) if isinstance(lp, tuple) else iter((highs.passModel(lp),))
    if any(status == highspy.HighsStatus.kError for status in said):
        raise SolverError("HiGHS refused the model")
    return highs


def _in_pieces(highs: "highspy.Highs", lp: tuple[Any, ...], check: Callable[[], object]) -> Iterator[Any]:
    """Pass a programme, given by rows, without its rows and then these some at a time, and yield what HiGHS says to each."""
    num_columns, num_rows, nonzeros, *form, cost, low, high, row_low, row_high, start, index, value, whole = lp
    none, nowhere = np.zeros(0), np.zeros(0, np.int32)
    yield highs.passModel(
        num_columns, 0, 0, *form, cost, low, high, none, none, nowhere, nowhere, none, whole
    )  # fmt: skip
    ends = np.searchsorted(start[: num_rows + 1], np.arange(0, nonzeros, PIECE))
    ends = np.unique(np.append(ends, num_rows))
    for first, last in pairwise(ends.tolist()):
        check()
        entries = slice(start[first], start[last])
        yield highs.addRows(
            last - first, row_low[first:last], row_high[first:last], entries.stop - entries.start,
            start[first:last] - entries.start, index[entries], value[entries],
        )  # fmt: skip


@contextmanager
def own_scheduler() -> Iterator[None]:
    """Run HiGHS inside with any number of threads, whatever ran in this thread before, and leave nothing behind.

    HiGHS keeps one scheduler per thread of the process, as wide as the first run in that thread asked for. A later run,
    of anybody's, that asks for another width ends at once without a result.
    """
    reset = highs_module().Highs.resetGlobalScheduler  # that of the current thread, in spite of the name
    reset(True)
    try:
        yield
    finally:
        reset(True)


def end_of_run(highs: "highspy.Highs") -> Ending:
    """Run HiGHS in the current thread, inside `own_scheduler`, and return how it ended."""
    highspy = highs_module()
    outcome, status = highs.run(), highs.getModelStatus()
    text = f"HiGHS: {highs.modelStatusToString(status)}"
    if outcome == highspy.HighsStatus.kError:
        return Ending(End.FAILED, f"{text}, with an error")
    kinds = highspy.HighsModelStatus
    ends = {
        kinds.kOptimal: End.OPTIMAL,
        kinds.kModelEmpty: End.OPTIMAL,
        kinds.kInfeasible: End.INFEASIBLE,
        kinds.kTimeLimit: End.TIME,
        kinds.kInterrupt: End.STOPPED,
        kinds.kSolutionLimit: End.STOPPED,  # a limit of nodes, too
    }
    end = ends.get(status, End.FAILED)
    if end is not End.OPTIMAL:
        return Ending(end, text)
    claimed, audit = float(highs.getInfo().objective_function_value), _Audit(highs)
    audit.check(claimed, highs.getSolution().col_value)
    if audit.objection:
        return Ending(End.FAILED, f"{text}, but {audit.objection}")
    return Ending(End.OPTIMAL, text, claimed)


def run_highs(highs: "highspy.Highs", mailbox: Mailbox, reporter: Reporter) -> Ending:
    """Run HiGHS in the current thread and return how it ended. It hears of an interrupt between linear programmes.

    Presolve of HiGHS 1.16 can take a start for a better one than it is, and calls it optimal. A run that fails is
    therefore made again, without the start, and then without presolve. Bounds stay valid all the same: whatever the
    incumbent is taken for, only what is no better is cut off, and the bound is never better than the incumbent.
    """
    audit = _Audit(highs)

    def report(event: Any) -> None:
        reporter.bound(event.data_out.mip_dual_bound)
        event.data_in.user_interrupt = mailbox.stopping or bool(audit.objection)  # what is set stays for the next run

    def improve(event: Any) -> None:
        audit.check(event.data_out.objective_function_value, event.data_out.mip_solution)
        reporter.solution(event.data_out.mip_solution)

    highs.cbMipInterrupt.subscribe(report)
    highs.cbMipLogging.subscribe(report)
    highs.cbMipImprovingSolution.subscribe(improve)
    with own_scheduler():
        for presolve in ("choose", "choose", "off"):
            highs.setOptionValue("presolve", presolve)
            audit.objection = ""
            ending = end_of_run(highs)
            if audit.objection and not mailbox.stopping:
                ending = Ending(End.FAILED, f"HiGHS: {audit.objection}")
            reporter.bound(highs.getInfo().mip_dual_bound)
            reporter.solution(highs.getSolution().col_value)
            if mailbox.stopping or ending.end is not End.FAILED:
                break
            highs.clearSolver()  # forgets the start
    return ending


class _Audit:
    """What solutions of a programme are worth by its own costs; `objection` says where HiGHS disagrees, else empty."""

    def __init__(self, highs: "highspy.Highs") -> None:
        lp = highs.getLp()
        self._cost: NDArray[np.float64] = np.array(lp.col_cost_, np.float64)
        self._offset = float(lp.offset_)
        self.objection = ""

    def check(self, claimed: float, values: Any) -> None:
        """Compare what HiGHS takes a solution for with what it is worth."""
        if len(values) != self._cost.size:
            self.objection = f"it returns {len(values)} values for {self._cost.size} columns"
            return
        terms = self._cost * np.array(values, np.float64)
        worth = float(terms.sum()) + self._offset
        if not abs(claimed - worth) <= AGREE + AGREE_RELATIVE * float(np.abs(terms).sum()):
            self.objection = f"it takes a solution for {claimed!r} that is worth {worth!r}"
