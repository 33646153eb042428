"""Opening files that others name: regular files only, so that nothing waits for a pipe or reads a device without end."""

import errno
import io
import os
import stat

from edgeopt.errors import InvalidFileError, quoted

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file to read its bytes.

    Raises
    ------
    InvalidFileError
        If it is a pipe, a device or a socket; it is not waited for.
    OSError
        If there is none, it is a folder, or may not be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_kind(path, os.stat(path).st_mode)  # before it is opened, which devices may notice
        handle = os.open(path, flags)
    except InvalidFileError:
        raise
    except ValueError as error:  # a null character or half a surrogate pair in a name
        raise InvalidFileError(f"{quoted(os.fspath(path))}: not the name of a file: {error}") from None
    file = io.FileIO(handle)
    try:
        _check_kind(path, os.fstat(handle).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the bytes of a regular file of at most `most`.

    Raises
    ------
    InvalidFileError
        If it is larger, or no regular file.
    """
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise InvalidFileError(f"{path}: {size} bytes, expected at most {most}")
        return file.read(size)


def _check_kind(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise InvalidFileError(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a regular file")
