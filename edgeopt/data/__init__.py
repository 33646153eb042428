"""Data to train with: sets of samples, their registry by name, and partitions over clients.

Needs the extra ``train``.
"""

import os
from collections.abc import Callable
from pathlib import Path

from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.extras import needs

with needs("edgeopt.data", "train"):
    from edgeopt.data.arrays import ArrayData, DataSplit, from_dataset
    from edgeopt.data.handwritten import coloured_digits, digits
    from edgeopt.data.image_files import cifar10, fashion_mnist, mnist
    from edgeopt.data.mnist1d import mnist_1d
    from edgeopt.data.partition import Partition, by_column, dirichlet, iid, shards
    from edgeopt.data.text import byte_text, token_text

__all__ = [
    "ArrayData", "DataSplit", "from_dataset",
    "digits", "coloured_digits", "mnist_1d", "mnist", "fashion_mnist", "cifar10", "byte_text", "token_text",
    "Partition", "iid", "dirichlet", "shards", "by_column",
    "DATA_SETS", "load_data",
]  # fmt: skip

_MADE: dict[str, Callable[[int], DataSplit]] = {
    "digits": digits,
    "coloured-digits": coloured_digits,
    "mnist-1d": mnist_1d,
}
_READ: dict[str, Callable[[str | os.PathLike[str]], DataSplit]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}

DATA_SETS: tuple[str, ...] = (*_MADE, *_READ, "text")
"""Names that `load_data` knows."""


def load_data(name: str, folder: str | os.PathLike[str] | None = None, seed: int = 0) -> DataSplit:
    """Return a data set by its name.

    Parameters
    ----------
    name : one of `DATA_SETS`.
    folder : where the files of ``mnist``, ``fashion-mnist`` and ``cifar10`` are; for ``text``, every ``*.txt`` in it is a
        document, and without a folder the text is Python's own. ``digits``, ``coloured-digits`` and ``mnist-1d`` need none.
    seed : of the split of ``digits``, and of the samples of ``coloured-digits`` and ``mnist-1d``. The others come split.

    Raises
    ------
    InvalidProblemError
        If there is no data set of this name, or a folder is missing or not wanted.
    InvalidFileError
        If a file is missing or damaged.

    Examples
    --------
    >>> load_data("digits").train.num_classes
    10
    """
    if name not in DATA_SETS:
        raise InvalidProblemError(f"no data set {quoted(name)}: expected one of {', '.join(DATA_SETS)}")
    if name in _MADE:
        if folder is not None:
            raise InvalidProblemError(
                f"{name}: comes with the package, expected no folder, got {quoted(os.fspath(folder))}"
            )
        return _MADE[name](seed)
    if name in _READ:
        if folder is None:
            raise InvalidProblemError(f"{name}: expected the folder of its original files; nothing is downloaded")
        return _READ[name](folder)
    if folder is None:
        return byte_text(seed=seed)
    if not (files := sorted(Path(folder).glob("*.txt"))):
        raise InvalidFileError(f"{folder}: expected files *.txt")
    return byte_text(files, seed=seed)
