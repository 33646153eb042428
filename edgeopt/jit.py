"""The numba decorator of all kernels, with its cache kept outside the package."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numba
from numba.core import config, event

F = TypeVar("F", bound=Callable[..., Any])


def cache_dir() -> Path | None:
    """Return the folder of compiled kernels: ``EDGEOPT_CACHE_DIR`` or ``~/.cache/edgeopt/numba``, None without a home."""
    if given := os.environ.get("EDGEOPT_CACHE_DIR"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "edgeopt" / "numba"
    except RuntimeError:  # some containers; a folder that others can write to is no place for compiled code
        return None


def kernel(function: F) -> F:
    """Compile a kernel on first use and cache it on disk, outside the package."""
    return _compile(function, parallel=False)


def parallel_kernel(function: F) -> F:
    """Like `kernel`, with ``prange`` over independent writes run in parallel."""
    return _compile(function, parallel=True)


def _compile(function: F, *, parallel: bool) -> F:
    # A cache inside site-packages would outlive `pip uninstall` and shadow the next install, so numba is pointed
    # elsewhere, only while it sets up this function's cache: other packages' caches are untouched.
    before, folder = config.CACHE_DIR, cache_dir()
    if folder is not None:
        config.CACHE_DIR = str(folder)
    try:
        compiled: F = numba.njit(cache=folder is not None, nogil=True, parallel=parallel)(function)
    except (RuntimeError, OSError):  # nowhere to write: compile in every process instead
        compiled = numba.njit(cache=False, nogil=True, parallel=parallel)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


class CompileTimer:
    """Context manager that adds up the seconds numba spends compiling kernels or loading compiled ones."""

    def __init__(self) -> None:
        self._listener = event.TimingListener()

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return float(self._listener.duration) if self._listener.done else 0.0

    def __enter__(self) -> Self:
        event.register("numba:compiler_lock", self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        event.unregister("numba:compiler_lock", self._listener)
