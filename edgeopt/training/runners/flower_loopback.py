"""One SuperLink and some SuperNodes on this machine, as processes of their own, and runs on them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeopt.errors import EdgeOptError, InvalidFileError, MissingDependencyError
from edgeopt.training import tether
from edgeopt.training.history import History
from edgeopt.training.judging import judged, models_of, personal
from edgeopt.training.run_state import RunState
from edgeopt.training.runners.flower import CHECKPOINT, OUTCOME, Buildable, describe, require_flower

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "GRPC_VERBOSITY": "error",
}
"""Environment of Flower's processes: nothing is sent home, looked up or installed, and new work is seen at once."""

_STOP_S = 5.0  # seconds to end by themselves


def run_on_flower(
    experiment: Buildable,
    nodes: int = 2,
    *,
    timeout_s: float = 600.0,
    threads: int = 1,
    batched: bool = True,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> History:
    """Train on one SuperLink and some SuperNodes that are started on this machine for it, and stopped afterwards.

    Parameters
    ----------
    experiment : what to train; every process builds it anew.
    nodes : SuperNodes; client i lives on node i modulo `nodes`.
    timeout_s : seconds of real time that a phase waits for replies before their clients have failed.
    threads : of torch, in each process.
    batched : whether a node runs clients whose shapes agree as one batch.
    output : folder for checkpoint and outcome. Default: a temporary one.
    resume : go on from the checkpoint in `output` if it is there.

    Returns
    -------
    History
        Also after Ctrl-C, with all complete rounds. Its `last` is None: that stayed with the ServerApp.

    Raises
    ------
    EdgeOptError
        If the run failed, with the end of Flower's log.
    """
    with Loopback(nodes) as loopback:
        return loopback.run(
            experiment, timeout_s=timeout_s, threads=threads, batched=batched, output=output, resume=resume
        )


@dataclass(slots=True, eq=False)
class Loopback:
    """A context in which one SuperLink and some SuperNodes run on 127.0.0.1, without TLS.

    All of Flower's files are in a temporary folder that goes away with them. POSIX only.

    Parameters
    ----------
    nodes : number of SuperNodes, at least 1.
    """

    nodes: int = 2
    superlink: subprocess.Popen[bytes] = field(init=False, repr=False)
    supernodes: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list, repr=False)
    _folder: Path = field(init=False, repr=False)
    _port: int = field(init=False, repr=False)
    _started: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        require_flower()
        if self.nodes < 1:
            raise EdgeOptError(f"nodes = {self.nodes}: expected at least 1")

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="edgeopt-flower-"))
        try:
            self._port, *ports = free_ports(1 + self.nodes)
            self.superlink = self._start(
                "superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
                "--host", "127.0.0.1", "--port", str(self._port),
            )  # fmt: skip
            self._wait_for_port()
            for part, port in enumerate(ports):
                node = self._start(
                    f"supernode-{part}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._port}",
                    "--node-config", f"partition-id={part} num-partitions={self.nodes}",
                    "--host", "127.0.0.1", "--port", str(port),
                )  # fmt: skip
                self.supernodes.append(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self,
        experiment: Buildable,
        *,
        timeout_s: float = 600.0,
        threads: int = 1,
        batched: bool = True,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> History:
        """Train on these processes; see `run_on_flower`."""
        folder = self._folder / "output" if output is None else Path(output).absolute()
        for name in (OUTCOME,) if resume else (OUTCOME, CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        app = self._folder / "app"
        shutil.rmtree(app, ignore_errors=True)
        write_app(
            app, experiment, nodes=self.nodes, output=folder, timeout_s=timeout_s, threads=threads, batched=batched,
            resume=resume,
        )  # fmt: skip
        home = self._home("client")
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        client = self._start("client", "flwr", "run", str(app), "here", "--stream")
        interrupted = False
        try:
            while not (folder / OUTCOME).exists():
                if self.superlink.poll() is not None or client.poll() is not None:
                    time.sleep(0.5)  # the outcome may be on its way
                    break
                time.sleep(0.1)
        except KeyboardInterrupt:
            if not (folder / CHECKPOINT).exists():
                raise
            interrupted = True
        finally:
            _stop([client])
        return self._history(experiment, folder, interrupted)

    def _history(self, experiment: Buildable, folder: Path, interrupted: bool) -> History:
        outcome: dict[str, Any] = {"error": "it ended without an outcome", "reason": ""}
        with contextlib.suppress(FileNotFoundError):
            outcome = json.loads((folder / OUTCOME).read_text())
        if not interrupted and outcome["error"] is not None:
            raise EdgeOptError(f"the run on Flower failed: {outcome['error']}\n{self.log_tail()}")
        task, algorithm, planner, _ = experiment.build()
        start = RunState.start(task, algorithm, planner)
        run = RunState.load(folder / CHECKPOINT, task, start.identity, start.server)
        history = History(rows=run.rows, server=run.server, clients=run.clients, interrupted=interrupted)
        history.reason = "interrupted" if interrupted else outcome["reason"]
        models = models_of(algorithm, task, run.server, run.clients)
        history.models = [task.whole(weights) for weights in judged(models)]
        history.personal = {client: task.whole(weights) for client, weights in personal(models).items()}
        return history

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines that each process wrote."""
        parts = []
        for path in sorted(self._folder.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.stem}", *tail]))
        return "\n".join(parts)

    def stop(self) -> None:
        """End all processes that were started, and remove their files."""
        _stop(self._started)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _home(self, name: str) -> Path:
        home = self._folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        return home

    def _start(self, name: str, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process whose files and messages stay in the temporary folder, and which does not outlive this one."""
        own = os.path.dirname(sys.executable)  # Flower's processes find each other by PATH
        path = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
        if (program := shutil.which(command, path=path)) is None:
            raise MissingDependencyError(f"{command} is not installed: pip install 'edgeopt[flower]'")
        importable = os.pathsep.join(map(os.path.abspath, sys.path))  # the experiment's class is found as it is here
        environment = os.environ | SWITCHES
        environment |= {"FLWR_HOME": str(self._home(name)), "PATH": path, "PYTHONPATH": importable}
        with open(self._folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", tether.__file__, program, *arguments], env=environment, cwd=self._folder,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def _wait_for_port(self, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while self.superlink.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
                return
            time.sleep(0.1)
        raise EdgeOptError(f"Flower's SuperLink did not start\n{self.log_tail()}")


def write_app(
    folder: str | os.PathLike[str],
    experiment: Buildable,
    *,
    nodes: int,
    output: str | os.PathLike[str],
    timeout_s: float = 600.0,
    threads: int = 1,
    batched: bool = True,
    resume: bool = False,
) -> None:
    """Write a Flower app that trains an experiment: ``flwr run FOLDER`` sends it to a SuperLink of your own.

    Parameters
    ----------
    folder : for the app; it must not be there yet.
    nodes : SuperNodes that have to be connected.
    output : folder on the SuperLink's machine, for checkpoint and outcome.
    timeout_s, threads, batched, resume : as in `run_on_flower`.

    Raises
    ------
    InvalidFileError
        If the folder is there already.
    """
    package = Path(folder) / "edgeopt_app"
    if os.path.exists(folder):
        raise InvalidFileError(f"{os.fspath(folder)}: is there already, expected a new folder")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for side in ("client_app", "server_app"):
        (package / f"{side}.py").write_text(f"from edgeopt.training.runners.flower import {side}\n\napp = {side}\n")
    config = {
        "experiment": describe(experiment), "nodes": nodes, "output": os.fspath(output), "timeout-s": float(timeout_s),
        "threads": threads, "batched": batched, "resume": resume,
    }  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]  # JSON's scalars are TOML's, too
    (Path(folder) / "pyproject.toml").write_text(_PYPROJECT.format(config="\n".join(lines)))


_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "edgeopt-app"
version = "1.0.0"
description = "A training run of edgeopt"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "edgeopt"

[tool.flwr.app.components]
serverapp = "edgeopt_app.server_app:app"
clientapp = "edgeopt_app.client_app:app"

[tool.flwr.app.config]
{config}
"""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens to."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and what they have started: kindly first."""
    with _no_interrupt():
        running = [process for process in processes if process.returncode is None]
        started = _descendants([process.pid for process in running])  # the SuperLink's leave its group
        for process in running:
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end and not all(_has_ended(process) for process in running):
            time.sleep(0.05)
        for process in running:
            _signal(process, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + _STOP_S
        for pid, group in started.items():
            while _is_in(pid, group) and time.monotonic() < end:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()


def _descendants(pids: Sequence[int]) -> dict[int, int]:
    """Return what some processes have started, directly or not: process groups by process id."""
    try:
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no ps here: they end by themselves when their parent is gone
        return {}
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found: dict[int, int] = {}
    above = set(pids)
    while new := {pid: group for pid, parent, group in rows if parent in above and pid not in found}:
        found |= new
        above = set(new)
    return found


def _is_in(pid: int, group: int) -> bool:
    """Whether a process runs and is still the one that was in this process group."""
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the group that a process leads, so that its children get it, too."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Look without taking note, so that the id stays with the process until its group has been killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let a second Ctrl-C wait until everything is stopped."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
