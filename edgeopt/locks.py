"""Locks on files, which the operating system takes away when the process that holds them ends, however it ends."""

import contextlib
import errno
import logging
import os
import platform
import sys
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgeopt.errors import EdgeOptError

LOCK_NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_BEYOND = 1 << 30  # the byte that is locked on Windows, where nobody else can read it: not one of the text

logger = logging.getLogger("edgeopt")


class FolderLock:
    """Keeps a folder for one writer until it is released, or its process ends.

    The lock is on a file `LOCK_NAME` that says who has it. It is advisory: only those who ask for it are kept out. On a
    file system without locks, as some network mounts are, a warning says so.

    Parameters
    ----------
    folder : must be there.

    Raises
    ------
    EdgeOptError
        If it is taken; the message names the process.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
    ...     FolderLock(folder)
    Traceback (most recent call last):
    ...
    edgeopt.errors.EdgeOptError: ...: in use by process ... on ... since ...: expected another folder, or to wait
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / LOCK_NAME
        self._file = self._open()
        try:
            while self._locked() and os.name != "nt" and not os.fstat(self._file.fileno()).st_nlink:
                self._file.close()  # its last holder has just removed it
                self._file = self._open()
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            with contextlib.suppress(OSError):  # a full disk: it cannot say who has it, but it is locked
                self._file.truncate(0)
                self._file.write(f"process {os.getpid()} on {platform.node()} since {since}\n".encode())
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> IO[bytes]:
        # neither emptied nor replaced: it may be another's
        return os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)

    def _locked(self) -> bool:
        locked = try_lock(self._file)
        if locked is False:
            holder = " ".join(self._file.read(300).decode(errors="replace").split()) or "another process"
            raise EdgeOptError(f"{self._path.parent}: in use by {holder}: expected another folder, or to wait")
        if locked is None:
            logger.warning("%s: no locks on this file system: keep other runs out of the folder", self._path.parent)
        return bool(locked)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the folder."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # on Windows it is open and stays, which does no harm
                self._path.unlink()
            self._file.close()


def try_lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed; False if another holds it, None where the file system has no locks."""
    try:
        _lock(file.fileno())
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _lock(handle: int) -> None:
    """Lock a file or raise OSError; two handles of one process are two holders."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
