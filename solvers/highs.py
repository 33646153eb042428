"""Calling HiGHS: options checked, bounds and solutions reported while it runs."""

from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.errors import SolverError
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.background import Mailbox

if TYPE_CHECKING:
    import highspy


class Reporter(Protocol):
    """Told of what HiGHS finds, in the thread that HiGHS runs in."""

    def bound(self, value: float) -> None:
        """Be told of a dual bound."""
        ...

    def solution(self, values: Any) -> None:
        """Be told of a solution, one value per column."""
        ...


def new_highs(lp: "highspy.HighsLp", options: dict[str, Any]) -> "highspy.Highs":
    """Return HiGHS with a programme and options."""
    highspy = highs_module()
    highs = highspy.Highs()
    for name, value in ({"output_flag": False} | options).items():
        if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
            raise SolverError(f"HiGHS refused {name} = {value!r}")
    if highs.passModel(lp) == highspy.HighsStatus.kError:
        raise SolverError("HiGHS refused the model")
    return highs


def run_highs(highs: "highspy.Highs", mailbox: Mailbox, reporter: Reporter) -> Any:
    """Run HiGHS in the current thread and return its status. It hears of an interrupt between linear programmes."""

    def report(event: Any) -> None:
        reporter.bound(event.data_out.mip_dual_bound)
        if mailbox.stopping:
            event.interrupt()

    highs.cbMipInterrupt.subscribe(report)
    highs.cbMipLogging.subscribe(report)
    highs.cbMipImprovingSolution.subscribe(lambda event: reporter.solution(event.data_out.mip_solution))
    highs.run()
    reporter.bound(highs.getInfo().mip_dual_bound)
    reporter.solution(highs.getSolution().col_value)
    highs_module().Highs.resetGlobalScheduler(True)  # the scheduler belongs to this thread, which ends here
    return highs.getModelStatus()
