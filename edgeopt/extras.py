"""Optional packages: which extra of edgeopt brings which, and the one sentence that says so where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgeopt.errors import MissingDependencyError

EXTRAS: dict[str, tuple[str, ...]] = {
    "report": ("pandas", "matplotlib", "jinja2"),
    "cluster": ("distributed",),
    "train": ("torch", "safetensors"),
    "llm": ("transformers", "peft", "gguf"),
    "tensorboard": ("tensorboard",),
    "flower": ("flwr",),
    "rl": ("pettingzoo", "gymnasium", "mpe2"),
    "images": ("scikit-image", "pillow"),
    "faces": ("diffusers", "scikit-image", "cryptography"),
    "health": ("neurokit2",),
}
"""Packages by extra, those of pyproject.toml that a user installs for a feature."""


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Import inside: a package that is missing is told with the extra that brings it.

    Parameters
    ----------
    what : what cannot be done without, the first words of the message.
    extra : one of `EXTRAS`.

    Raises
    ------
    MissingDependencyError
        If an import inside fails for want of another package.

    Examples
    --------
    >>> with needs("a picture", "report"):
    ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    Traceback (most recent call last):
    ...
    edgeopt.errors.MissingDependencyError: a picture needs matplotlib: pip install 'edgeopt[report]'
    """
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "edgeopt"):  # a fault of ours, or a package that is there and broken
            raise
        raise MissingDependencyError(f"{what} needs {package}: pip install 'edgeopt[{extra}]'") from None
