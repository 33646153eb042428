"""What is installed: the versions that results depend on."""

import functools
import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Return the versions of Python, edgeopt and the packages results depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("edgeopt", "numpy", "scipy", "numba", "highspy", "ortools"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
