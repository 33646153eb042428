"""Image data sets from their original files, in a folder that the user names; nothing is downloaded or unpickled.

Sizes are checked before memory is taken. Pixels become float32 from 0 to 1.
"""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data.arrays import ArrayData, DataSplit
from edgeopt.errors import InvalidFileError

MAX_SAMPLES = 1_000_000
"""Samples that one file may have."""
_IDX_BYTES = 0x08  # type code of unsigned bytes
_FREE_BYTES = 64 << 20  # pixels may be unpacked to as many bytes, however small their file,
_MOST_TIMES = 32  # or to so many times its bytes
_RECORD = 1 + 3 * 32 * 32  # CIFAR-10: a label and an image

Folder = str | os.PathLike[str]


def mnist(folder: Folder) -> DataSplit:
    """Return MNIST from its four IDX files, ``train-images-idx3-ubyte`` and so on, plain or with ``.gz``.

    Images are float32 [n, 1, 28, 28] from 0 to 1.

    Parameters
    ----------
    folder : where the files are.

    Raises
    ------
    InvalidFileError
        Naming the file, what it has, and what was expected.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, Proc. IEEE, 1998.
    """
    return _idx_split(folder, "mnist")


def fashion_mnist(folder: Folder) -> DataSplit:
    """Return Fashion-MNIST: files and shapes as for `mnist`, so give the two folders of their own.

    Parameters
    ----------
    folder : where the files are.

    Raises
    ------
    InvalidFileError
        Naming the file, what it has, and what was expected.

    References
    ----------
    H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
    2017, https://arxiv.org/abs/1708.07747.
    """
    return _idx_split(folder, "fashion-mnist")


def cifar10(folder: Folder) -> DataSplit:
    """Return CIFAR-10 from its binary version: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.

    Images are float32 [n, 3, 32, 32] from 0 to 1. The Python version of the files holds pickles, which can run code:
    it is refused.

    Parameters
    ----------
    folder : where the files are.

    Raises
    ------
    InvalidFileError
        Naming the file, what it has, and what was expected.

    References
    ----------
    A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    folder = Path(folder)
    train = [_cifar_file(folder, f"data_batch_{number}") for number in range(1, 6)]
    return DataSplit(_images(np.concatenate(train), "cifar10"), _images(_cifar_file(folder, "test_batch"), "cifar10"))


# --- IDX ---------------------------------------------------------------------------------------------------------


def _idx_split(folder: Folder, name: str) -> DataSplit:
    train, test = (_idx_part(Path(folder), part, name) for part in ("train", "t10k"))
    return DataSplit(train, test)


def _idx_part(folder: Path, part: str, name: str) -> ArrayData:
    images_at, labels_at = (_idx_file(folder, f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
    images, labels = _read_idx(images_at, (28, 28)), _read_idx(labels_at, ())
    if len(images) != len(labels):
        raise InvalidFileError(f"{labels_at}: {len(labels)} labels, expected {len(images)} as in {images_at.name}")
    _check_labels(labels_at, labels)
    pixels = torch.from_numpy(images)[:, None]  # (n, 1, 28, 28)
    return ArrayData(pixels.float().div_(255), torch.from_numpy(labels).long(), 10, name)


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InvalidFileError(f"{folder}: expected a file {name} or {name}.gz")


def _read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the bytes [n, *shape] of an IDX file: zero, zero, type, dimensions, sizes (big-endian int32), data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _read_idx_from(path, file, shape)  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidFileError(f"{path}: not a whole gzip file: {error}") from None


def _read_idx_from(path: Path, file: IO[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    magic, expected = file.read(4), bytes([0, 0, _IDX_BYTES, 1 + len(shape)])
    if magic != expected:
        raise InvalidFileError(f"{path}: magic number 0x{magic.hex()}, expected 0x{expected.hex()}")
    header = file.read(4 * (1 + len(shape)))
    if len(header) < 4 * (1 + len(shape)):
        raise InvalidFileError(f"{path}: ends in its header after {4 + len(header)} bytes")
    count, *sizes = (int(number) for number in np.frombuffer(header, ">u4"))
    if not 1 <= count <= MAX_SAMPLES:
        raise InvalidFileError(f"{path}: {count} samples, expected 1 to {MAX_SAMPLES}")
    if tuple(sizes) != shape:
        raise InvalidFileError(
            f"{path}: images of {' x '.join(map(str, sizes))}, expected {' x '.join(map(str, shape))}"
        )
    size = count * math.prod(shape)
    most = max(_FREE_BYTES, _MOST_TIMES * path.stat().st_size) if path.suffix == ".gz" else size
    if path.suffix != ".gz" and (found := path.stat().st_size - file.tell()) != size:
        raise InvalidFileError(f"{path}: {found} bytes of data, expected {size} for {count} samples")
    data = file.read(min(size, most + 1))
    if len(data) > most:
        raise InvalidFileError(
            f"{path}: {count} samples in {path.stat().st_size} bytes, expected at most {most} unpacked"
        )
    if len(data) != size or file.read(1):
        found_bytes = f"{len(data)}" if len(data) != size else f"more than {size}"
        raise InvalidFileError(f"{path}: {found_bytes} bytes of data, expected {size} for {count} samples")
    return np.frombuffer(bytearray(data), np.uint8).reshape(count, *shape)


# --- CIFAR -------------------------------------------------------------------------------------------------------


def _cifar_file(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the records [n, 3073] of a file: a label, then red, green and blue, each row by row."""
    path = folder / f"{name}.bin"
    if not path.is_file():
        if (folder / name).exists() or (folder / "batches.meta").exists():
            raise InvalidFileError(
                f"{folder}: has the Python version of CIFAR-10, whose files are pickles and can run code: "
                f"expected {name}.bin and the others of the binary version (cifar-10-binary.tar.gz)"
            )
        raise InvalidFileError(f"{folder}: expected a file {name}.bin, of the binary version of CIFAR-10")
    size = path.stat().st_size
    if size % _RECORD or not 1 <= size // _RECORD <= MAX_SAMPLES:
        raise InvalidFileError(
            f"{path}: {size} bytes, expected a multiple of {_RECORD}, one to {MAX_SAMPLES} images (30730000 in the original)"
        )
    records = np.fromfile(path, np.uint8, size).reshape(-1, _RECORD)  # (n, 3073)
    _check_labels(path, records[:, 0])
    return records


def _images(records: NDArray[np.uint8], name: str) -> ArrayData:
    pixels = torch.from_numpy(records[:, 1:]).float().div_(255)  # (n, 3072)
    return ArrayData(pixels.reshape(-1, 3, 32, 32), torch.from_numpy(records[:, 0]).long(), 10, name)


def _check_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    if (labels > 9).any():
        index = int((labels > 9).argmax())
        raise InvalidFileError(f"{path}: label of sample {index} is {labels[index]}, expected 0 to 9")
