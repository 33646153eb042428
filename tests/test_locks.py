"""A folder has one writer at a time, and none that is dead."""

import errno
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from edgeopt import locks
from edgeopt.errors import EdgeOptError
from edgeopt.locks import LOCK_NAME, FolderLock

HOLD = "import sys; from edgeopt.locks import FolderLock; held = FolderLock(sys.argv[1]); print(flush=True); input()"


@contextmanager
def holder(folder: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_in_use_names_who_uses_it(tmp_path: Path):
    """Another process is refused with id, machine and time of the first, in one line, and leaves its name alone."""
    with holder(tmp_path) as process:
        for _ in range(2):
            with pytest.raises(EdgeOptError) as refused:
                FolderLock(tmp_path)
            message = str(refused.value)
            assert f"{tmp_path}: in use by process {process.pid} on {platform.node()} since 2" in message
            assert "\n" not in message


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_holder_holds_nothing(tmp_path: Path):
    """After kill -9 the folder is free, whatever the text says: no process id is compared, so none can be mistaken."""
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = (tmp_path / LOCK_NAME).read_text()
        assert f"process {process.pid} " in text
        (tmp_path / LOCK_NAME).write_text(text.replace(str(process.pid), str(os.getpid())))  # an id that is alive again
        with FolderLock(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / LOCK_NAME).read_text()


def test_one_holder_within_a_process(tmp_path: Path):
    """Two runs of one process exclude each other, too; what is released can be had again."""
    with FolderLock(tmp_path), pytest.raises(EdgeOptError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path)
    FolderLock(tmp_path).release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever opens the file just before its last holder removes it locks the one that is there now."""
    first = FolderLock(tmp_path)
    try_lock, tries = locks.try_lock, []

    def release_the_first(file: IO[Any]) -> bool | None:
        first.release()
        tries.append(file)
        return try_lock(file)

    monkeypatch.setattr(locks, "try_lock", release_the_first)
    with FolderLock(tmp_path):
        assert len(tries) == 2
        with pytest.raises(EdgeOptError, match=f"in use by process {os.getpid()} "):
            FolderLock(tmp_path)


def test_without_locks_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A file system that has no locks does not keep anybody from working."""

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", refuse)
    with caplog.at_level(logging.WARNING, "edgeopt"), FolderLock(tmp_path), FolderLock(tmp_path):
        assert "no locks on" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of file sizes")
def test_a_full_disk_keeps_nobody_from_locking(tmp_path: Path):
    """Where there is no room to say who has the folder, it is locked all the same."""
    code = (
        "import resource, sys; from edgeopt.locks import FolderLock; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "held = FolderLock(sys.argv[1]); print(flush=True); input()"
    )
    with holder(tmp_path, code), pytest.raises(EdgeOptError, match="in use by another process: "):
        FolderLock(tmp_path)
