"""Where the runs of a comparison take place: this process, worker processes, or a Dask cluster."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, Protocol, TypeVar

from edgeopt.errors import EdgeOptError
from edgeopt.extras import needs

P = ParamSpec("P")
T = TypeVar("T")

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ),
    "1",
)  # fmt: skip
"""Environment of a worker: runs beside each other must not fight for cores."""

CONNECT_SECONDS = 10.0


class SerialExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function and return its finished future; Ctrl-C passes through."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future carries it
            future.set_exception(error)
        return future


class Engine(Protocol):
    """What `run_all` needs: an executor that can be started again when its workers die."""

    @property
    def window(self) -> int:
        """How many calls to hand over at a time."""
        ...

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call."""
        ...

    def restart(self) -> bool:
        """Start again after the workers died; return whether that is possible."""
        ...

    def close(self, *, now: bool) -> None:
        """Let go of the workers, at once after an interrupt."""
        ...


class GivenExecutor:
    """An executor that belongs to the caller: never shut down, never restarted."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.window = 1 if isinstance(executor, SerialExecutor) else 2 * (os.cpu_count() or 1)

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call."""
        return self._executor.submit(fn, *args)

    def restart(self) -> bool:
        """Return False: the executor is the caller's."""
        return False

    def close(self, *, now: bool) -> None:
        """Leave the executor as it is."""


class SpawnPool:
    """Fresh worker processes with one thread each; a pool whose worker dies is replaced."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise EdgeOptError(f"jobs = {jobs!r}: expected an integer >= 1")
        self.window = jobs
        self._pool = self._start()

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call; workers start here, in an environment that says one thread."""
        with _environment(ONE_THREAD):
            return self._pool.submit(fn, *args)

    def restart(self) -> bool:
        """Replace the pool."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._start()
        return True

    def close(self, *, now: bool) -> None:
        """Let the workers finish, or end them at once."""
        workers = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=not now, cancel_futures=True)
        if now:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join(5)

    def _start(self) -> ProcessPoolExecutor:
        # spawn: forking a process in which numba or BLAS threads run can lock up
        return ProcessPoolExecutor(self.window, multiprocessing.get_context("spawn"), initializer=_ignore_interrupt)


class DaskCluster:
    """The workers of a Dask scheduler at an address; start them with ``--nthreads 1`` for fair times."""

    def __init__(self, address: str) -> None:
        with needs("a Dask executor", "cluster"):
            from distributed import Client
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise EdgeOptError(f"executor = dask://{address}: no scheduler answers there: {error}") from None
        self._executor: Executor = self._client.get_executor()

    @property
    def window(self) -> int:
        """Two calls per thread that the cluster has now."""
        return max(2, 2 * int(sum(self._client.nthreads().values())))

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call."""
        future: Future[T] = self._executor.submit(fn, *args)
        return future

    def restart(self) -> bool:
        """Return whether the scheduler is still there; it replaces lost workers by those that are left."""
        return bool(self._client.status == "running")

    def close(self, *, now: bool) -> None:
        """Cancel what is left and disconnect; the cluster stays up."""
        self._executor.shutdown(wait=False)
        self._client.close()


def open_engine(executor: Executor | str | None, jobs: int) -> Engine:
    """Return the engine for an ``executor`` argument.

    Parameters
    ----------
    executor : None for `jobs` spawned processes, ``"serial"`` for this process, ``"dask://HOST:PORT"`` for a Dask
        cluster, or any `concurrent.futures.Executor`.
    jobs : worker processes.

    Examples
    --------
    >>> open_engine("nonsense", 1)
    Traceback (most recent call last):
    ...
    edgeopt.errors.EdgeOptError: executor = 'nonsense': expected 'serial', 'dask://HOST:PORT' or an Executor
    """
    if executor is None:
        return SpawnPool(jobs)
    if executor == "serial":
        return GivenExecutor(SerialExecutor())
    if isinstance(executor, str):
        if not executor.startswith("dask://") or len(executor) == len("dask://"):
            raise EdgeOptError(f"executor = {executor!r}: expected 'serial', 'dask://HOST:PORT' or an Executor")
        return DaskCluster(executor.removeprefix("dask://"))
    return GivenExecutor(executor)


def is_lost(error: BaseException) -> bool:
    """Return whether this error means that a worker went away, not that the call itself failed.

    Examples
    --------
    >>> is_lost(CancelledError()), is_lost(ValueError())
    (True, False)
    """
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__module__.startswith("distributed")


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends the workers


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
