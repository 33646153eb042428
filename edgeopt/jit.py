"""The numba decorator of all kernels, with its cache kept outside the package."""

import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import numba
from numba.core import caching, config, event

from edgeopt import storage
from edgeopt.errors import InvalidFileError
from edgeopt.installed import versions

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("edgeopt")

_complained: set[Path] = set()  # folders of which this process has said that they are of no use


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
    """Like `kernel`, with ``prange`` over independent writes run in parallel.

    With one thread (``NUMBA_NUM_THREADS=1``, as in workers of a comparison) as plain loops, which take a third less to compile.
    """
    return _compile(function, parallel=config.NUMBA_NUM_THREADS > 1)


def _compile(function: F, *, parallel: bool) -> F:
    compiled: Any = numba.njit(nogil=True, parallel=parallel)(function)
    if not config.DISABLE_JIT and cache_dir() is not None and os.path.exists(function.__code__.co_filename):
        compiled._cache = _Cache(function, parallel)  # where ``cache=True`` puts one of numba's own kind
    made: F = compiled
    return made


class _Locator(caching.UserProvidedCacheLocator):  # type: ignore[misc]
    """Finds the folder of a kernel: a cache inside site-packages would outlive `pip uninstall` and shadow the next install."""

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        self._py_file, self._lineno = source, function.__code__.co_firstlineno
        self.root = cache_dir()
        assert self.root is not None
        self._cache_path = str(self.root / self.get_suitable_cache_subpath(source))

    @classmethod
    def from_function(cls, function: Callable[..., Any], source: str) -> Self:
        """Return the locator, whether or not the folder can be written: kernels may be there to be read."""
        return cls(function, source)


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _Files(caching.IndexDataCacheFile):  # type: ignore[misc]
    """Index and data files of a kernel, each written whole and behind a checksum.

    What a power cut has left must be neither unpickled nor run.
    """

    def __init__(self, folder: str, name: str, stamp: object) -> None:
        super().__init__(
            folder, f"{name}.checked", stamp
        )  # numba's own files of an older installation are not looked at
        # a kernel may call those of other files, whose changes its own stamp does not show
        self._version = f"{numba.__version__} {versions()['edgeopt']}"

    def load(self, key: object) -> Any:
        """Return what is stored for a key, or None."""
        entry = super().load(key)
        # two processes that extend the index at once can give one name to two signatures
        return entry[1] if entry is not None and entry[0] == key else None

    def save(self, key: object, data: object) -> None:
        """Store under a key."""
        super().save(key, (key, data))

    def _load_index(self) -> Any:
        try:
            file = io.BytesIO(_read_checked(self._index_path))
        except FileNotFoundError:
            return {}
        if pickle.load(file) != self._version:  # what another version has pickled is left alone
            return {}
        stamp, entries = pickle.load(file)
        return entries if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        return pickle.loads(_read_checked(self._data_path(name)))

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[IO[bytes]]:
        buffer = io.BytesIO()
        yield buffer
        data = buffer.getvalue()
        storage.write_atomic(path, lambda file: file.write(hashlib.sha256(data).digest() + data))


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """The cache of one kernel. If it cannot be read or written, the kernel is compiled in this process."""

    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any], parallel: bool) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._root: Path = locator.root
        name = f"{self._impl.filename_base}{'.parallel' if parallel else ''}"
        self._cache_file = _Files(self._cache_path, name, locator.get_source_stamp())

    def load_overload(self, sig: object, target_context: object) -> Any:
        """Return what was compiled for a signature, or None."""
        try:
            return super().load_overload(sig, target_context)
        except (OSError, InvalidFileError) as error:
            self._complain(error)
            return None

    def save_overload(self, sig: object, data: object) -> None:
        """Keep what was compiled for a signature."""
        try:
            storage.open_folder(self._cache_path)
            try:
                super().save_overload(sig, data)
            except InvalidFileError:  # the index, which was complained of when it was read
                self.flush()
                super().save_overload(sig, data)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if self._root not in _complained:
            _complained.add(self._root)
            logger.warning("kernels are compiled again, which takes some seconds: %s", error)


def _read_checked(path: str) -> bytes:
    data = Path(path).read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise InvalidFileError(f"{path}: damaged")
    return data[32:]


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
