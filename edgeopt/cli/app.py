"""The command ``edgeopt``: its commands, the exit status, and errors as one line each.

Exit status: 0 done; 1 the solver failed or found nothing; 2 bad input; 130 interrupted (what was found is printed).
With ``--json`` standard output carries one JSON document and nothing else.
"""

import errno
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgeopt.cli.caching_limits import caching_limits
from edgeopt.cli.compare import compare
from edgeopt.cli.describe import describe, info, solvers
from edgeopt.cli.explain import explain
from edgeopt.cli.export import export_app
from edgeopt.cli.generate import generate_app
from edgeopt.cli.import_ import import_app
from edgeopt.cli.names import ListingCommand
from edgeopt.cli.options import INTERRUPTED
from edgeopt.cli.solve import solve
from edgeopt.cli.study import studies, study
from edgeopt.cli.trace import trace
from edgeopt.cli.train import train
from edgeopt.cli.what_if import whatif
from edgeopt.errors import EdgeOptError, MissingDependencyError, NoSolutionError, SolverError
from edgeopt.interrupts import is_interrupt
from edgeopt.streams import discard_output, one_line_messages, prepare_streams, reserve_stdout, say

_Misuse: Any = typer.BadParameter.__mro__[2]  # ClickException, of click itself or of what typer has of it


class _Group(TyperGroup):
    """The top command: turns every error into one line on standard error and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; ``--debug`` may stand anywhere on the line."""
        given = kwargs.pop("args", None) if not args else args[0]
        words = list(sys.argv[1:] if given is None else given)
        debug = os.environ.get("EDGEOPT_DEBUG", "") not in ("", "0")
        if "--debug" in words:
            words.remove("--debug")
            debug = True
        standalone = kwargs.pop("standalone_mode", True)
        prepare_streams()
        with one_line_messages():
            status = self._run(words, debug, kwargs)
        if standalone:
            _leave(status)
        return status

    def _run(self, words: list[str], debug: bool, kwargs: Any) -> int:
        try:
            status = super().main(args=words, standalone_mode=False, **kwargs)
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last stop before the user
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader has gone: `edgeopt ... | head`
                discard_output()
                return 1
            if debug:
                traceback.print_exc()
            message, status = _explain(error)
            discard_output()
            say(message)
            return status


def _leave(status: int) -> NoReturn:
    """Exit; past Python's own ending where a back end has been left behind, which would take that down when it returns."""
    background = sys.modules.get("edgeopt.solvers.background")
    if background is not None and background.left_behind():
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D
        error = error.__cause__
    if is_interrupt(error) or isinstance(error, typer.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, _Misuse):  # wrong use of the command line
        return f"{error.format_message()} (edgeopt --help tells more)", 2
    if isinstance(error, SolverError | NoSolutionError | MissingDependencyError):
        return str(error), 1
    if isinstance(error, EdgeOptError):
        return str(error), 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}", 2
    if isinstance(error, OSError) and error.errno is not None:  # what the system lacks: processes, room, a connection
        return str(error.strerror), 1
    if isinstance(error, MemoryError):
        return f"not enough memory: {error or 'the input is too large for this machine'}", 1
    return f"{type(error).__name__}: {error} (a bug: --debug shows where)", 1


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)
for _command in (
    solve,
    compare,
    solvers,
    describe,
    explain,
    whatif,
    info,
    train,
    trace,
    caching_limits,
    study,
    studies,
):  # a new one: its file, and here
    app.command(cls=ListingCommand)(_command)
app.add_typer(generate_app, name="generate")
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False
) -> None:
    """Optimisation and scheduling of AI at the wireless edge."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line of this process. What native code prints goes to standard error."""
    reserve_stdout()
    app()


if __name__ == "__main__":
    main()
