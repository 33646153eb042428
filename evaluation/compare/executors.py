"""Where the runs of a comparison take place: this process, worker processes, or a Dask cluster."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from edgeopt.errors import EdgeOptError, quoted
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

    def kill(self, call: Future[Any]) -> bool:
        """End an overdue call by killing its worker; False if that cannot be done, or not yet: ask again later."""
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

    def kill(self, call: Future[Any]) -> bool:
        """Return False: the executor is the caller's."""
        return False

    def close(self, *, now: bool) -> None:
        """Leave the executor as it is."""


@dataclass(slots=True)
class _Worker:
    """A worker process and the call it was given last."""

    pool: ProcessPoolExecutor
    call: Future[Any] | None = None


class SpawnPool:
    """Fresh worker processes with one thread each; one that dies or is killed is replaced, and the others go on."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise EdgeOptError(f"jobs = {quoted(jobs)}: expected an integer >= 1")
        self.window = jobs
        self._workers = [_Worker(_new_process()) for _ in range(jobs)]  # each starts with its first call
        self._checked = False

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call to a worker without one; there are at most `window`."""
        if not self._checked:
            self._check()
        worker = next(worker for worker in self._workers if worker.call is None or worker.call.done())
        try:
            packed = pickle.dumps((fn, args))
        except Exception as error:  # noqa: BLE001 - objects of the user's raise what they like
            future: Future[T] = Future()
            future.set_exception(EdgeOptError(f"cannot be sent to a worker: {error}"))
            return future
        try:
            worker.call = _start_call(worker.pool, _call, packed)
        except BrokenExecutor:  # it died after its last call, or with it
            worker.pool = _new_process()
            worker.call = _start_call(worker.pool, _call, packed)
        return worker.call

    def _check(self) -> None:
        """Start a process: one that cannot would look like runs that kill their workers."""
        try:
            _start_call(self._workers[0].pool, os.getpid).result()
        except (BrokenExecutor, RuntimeError):  # in the process that runs the script; in a worker that runs it again
            raise EdgeOptError(
                'worker processes do not start: expected `if __name__ == "__main__":` around what a script runs, or '
                "executor = 'serial'"
            ) from None
        self._checked = True

    def restart(self) -> bool:
        """Return False: `submit` replaces workers that died."""
        return False

    def kill(self, call: Future[Any]) -> bool:
        """Kill the worker of a call."""
        for worker in self._workers:
            if worker.call is call:
                for process in _processes(worker.pool):
                    process.kill()
                worker.pool.shutdown(wait=False, cancel_futures=True)
                worker.pool, worker.call = _new_process(), None
        return True

    def close(self, *, now: bool) -> None:
        """Let the workers finish, or end them at once."""
        processes = [process for worker in self._workers for process in _processes(worker.pool)] if now else []
        for worker in self._workers:
            worker.pool.shutdown(wait=not now, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)


def init_worker() -> None:
    """Begin a worker process: Ctrl-C is its parent's to handle, and it ends when its parent is gone, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="edgeopt-parent", daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _new_process() -> ProcessPoolExecutor:
    # spawn: forking a process in which numba or BLAS threads run can lock up
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=init_worker)


def _start_call(pool: ProcessPoolExecutor, fn: Callable[..., T], /, *args: Any) -> Future[T]:
    """Submit a call; processes start here, in an environment that says one thread."""
    with _environment(ONE_THREAD), _without_lost_script():
        return pool.submit(fn, *args)


def _processes(pool: ProcessPoolExecutor) -> list[Any]:
    return list((getattr(pool, "_processes", None) or {}).values())


def _call(packed: bytes) -> Any:
    """Unpack here, where what fails is an error of this call: in the executor's own hands it would end the worker."""
    try:
        fn, args = pickle.loads(packed)
    except Exception as error:  # noqa: BLE001 - modules of the user's raise what they like
        raise EdgeOptError(
            f"a worker cannot load this run: {error}: a solver of one's own must live in a module that workers can import"
        ) from None
    return fn(*args)


class DaskCluster:
    """The workers of a Dask scheduler at an address; start them with ``--nthreads 1`` for fair times."""

    def __init__(self, address: str) -> None:
        with needs("a Dask executor", "cluster"):
            from distributed import Client
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise EdgeOptError(f"executor = dask://{address}: no scheduler answers there: {error}") from None
        self._futures: dict[Future[Any], Any] = {}  # Dask's own
        self._seen: set[str] = set()  # keys of overdue calls that were being run

    @property
    def window(self) -> int:
        """Two calls per thread that the cluster has now."""
        return max(2, 2 * int(sum(self._client.nthreads().values())))

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Hand over one call."""
        theirs: Any = self._client.submit(fn, *args, pure=False)
        call: Future[T] = Future()
        self._futures[call] = theirs
        theirs.add_done_callback(partial(self._settle, call))
        return call

    def restart(self) -> bool:
        """Return whether the scheduler is still there; it replaces lost workers by those that are left."""
        return bool(self._client.status == "running")

    def kill(self, call: Future[Any]) -> bool:
        """Kill the worker that runs a call, if it did so at the last look already: until then it may have queued."""
        theirs = self._futures[call]
        ask = self._client.scheduler.call_stack
        try:
            stacks = self._client.sync(ask, keys=[theirs.key], callback_timeout=CONNECT_SECONDS)
        except (OSError, KeyError):  # no answer in time; on its way back
            return False
        if not stacks or theirs.key not in self._seen:
            self._seen |= {theirs.key} if stacks else set()
            return False
        theirs.cancel()
        self._client.run(_end_process, workers=list(stacks), wait=False)  # its nanny starts another
        return True

    def close(self, *, now: bool) -> None:
        """Cancel what is left and disconnect; the cluster stays up."""
        self._client.cancel([theirs for call, theirs in self._futures.items() if not call.done()])
        self._client.close()

    def _settle(self, call: Future[Any], theirs: Any) -> None:
        try:
            call.set_result(theirs.result())
        except BaseException as error:  # noqa: BLE001 - the future carries it
            call.set_exception(error)
        self._futures.pop(call, None)


async def _end_process() -> None:
    """End a Dask worker from its event loop, which runs beside the call; only of coroutines no answer is awaited."""
    os._exit(1)


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
            raise EdgeOptError(f"executor = {quoted(executor)}: expected 'serial', 'dask://HOST:PORT' or an Executor")
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


@contextmanager
def _without_lost_script() -> Iterator[None]:
    """Keep a worker from running the script of this process if it has no file: one that came from standard input.

    The worker would end before its first call. Without, it runs whatever does not need the script.
    """
    main: Any = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is None or getattr(main, "__spec__", None) is not None or os.path.isfile(script):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = script
