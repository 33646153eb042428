"""Text as bytes, or as tokens: each sample is a window of a document, the target of each token is the next one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data.arrays import ArrayData, DataSplit
from edgeopt.errors import InvalidFileError, InvalidProblemError, quoted
from edgeopt.rng import stream
from edgeopt.validate import integer, listed, real

MAX_TEXT_BYTES = 64 << 20
"""Bytes of text that are read at most; samples take sixteen times as much memory."""

HeldOut = Literal["position", "group"]


def byte_text(
    files: Sequence[str | os.PathLike[str]] | None = None,
    context: int = 128,
    *,
    test_share: float = 0.1,
    held_out: HeldOut = "position",
    max_bytes: int = MAX_TEXT_BYTES,
    seed: int = 0,
) -> DataSplit:
    """Return windows of text: inputs int64 [n, T] of bytes, targets [n, T] the bytes that follow, 256 classes.

    Each document is cut into windows of T bytes that do not overlap; what is left at its end is not used, and a document of
    at most T bytes gives no sample. `ArrayData.group` is the number of the document, so that clients can hold different
    documents: `ArrayData.labels` is that column.

    Parameters
    ----------
    files : one document each, any encoding. Default: the English text that comes with Python, ``pydoc_data.topics``: about
        80 topics sorted by name, 450 kB, which differs a little from one version of Python to the next.
    context : bytes T of a window.
    test_share : share of the windows that is held out, above 0 and below 1.
    held_out : ``position``: the last windows of each document, at least one of those that have two. ``group``: whole
        documents, drawn at random until their windows are the share; at least one, and never all.
    max_bytes : more text is refused.
    seed : of the draw of documents that are held out.

    Raises
    ------
    InvalidProblemError
        If an argument is out of its range, or the text too short to leave samples in both parts.
    InvalidFileError
        If a file is missing, or all are larger than `max_bytes`.

    Examples
    --------
    >>> data = byte_text(context=64).train
    >>> bool((data.inputs[0, 1:] == data.targets[0, :-1]).all())
    True
    """
    documents = [np.frombuffer(document, np.uint8) for document in _documents(files, max_bytes)]
    return _split(documents, 256, "text", context, test_share, held_out, seed)


def token_text(
    encode: Callable[[str], Sequence[int]],
    vocabulary: int,
    files: Sequence[str | os.PathLike[str]] | None = None,
    context: int = 128,
    *,
    test_share: float = 0.1,
    held_out: HeldOut = "position",
    max_bytes: int = MAX_TEXT_BYTES,
    seed: int = 0,
) -> DataSplit:
    """Return windows of tokens of text, as `byte_text` does of bytes.

    Parameters
    ----------
    encode : makes token ids of a document: the tokeniser of a language model.
    vocabulary : number of classes, above every token id.
    files, context, test_share, held_out, max_bytes, seed : as in `byte_text`; files in UTF-8, other bytes become ``\ufffd``.

    Examples
    --------
    >>> data = token_text(lambda text: [len(word) for word in text.split()], 100, context=16).train
    >>> data.inputs.shape[1], data.num_classes
    (16, 100)
    """
    vocabulary = integer("vocabulary", vocabulary, low=1)
    documents = []
    for number, document in enumerate(_documents(files, max_bytes)):
        tokens = np.array(encode(document.decode(errors="replace")), np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise InvalidProblemError(
                f"encode: tokens {tokens.min()} to {tokens.max()} of document {number}: expected 0 to {vocabulary - 1}"
            )
        documents.append(tokens)
    return _split(documents, vocabulary, "tokens", context, test_share, held_out, seed)


def _split(
    documents: Sequence[NDArray[Any]],
    vocabulary: int,
    name: str,
    context: int,
    test_share: float,
    held_out: HeldOut,
    seed: int,
) -> DataSplit:
    """Return the windows of documents, for training and held out."""
    context = integer("context", context, low=1)
    if not 0 < (test_share := real("test_share", test_share)) < 1:
        raise InvalidProblemError(f"test_share = {quoted(test_share)}: expected a number between 0 and 1")
    if held_out not in ("position", "group"):
        raise InvalidProblemError(f"held_out = {quoted(held_out)}: expected 'position' or 'group'")
    windows = [_windows(document, context) for document in documents]
    counts = np.array([len(part) for part in windows])  # (G,)
    group = np.repeat(np.arange(len(counts)), counts)  # (n,)
    if held_out == "position":
        tests = np.where(counts > 1, np.maximum(1, np.floor(test_share * counts)), 0)  # (G,)
        position = np.arange(group.size) - np.repeat(np.cumsum(counts) - counts, counts)  # (n,), within the document
        test = position >= (counts - tests)[group]
    else:
        test = np.isin(group, _held_out_groups(counts, test_share, seed))
    if not test.any() or test.all():
        of = "bytes" if name == "text" else name
        raise InvalidProblemError(
            f"text: {group.size} windows of {context} {of} in {len(counts)} documents: too little to hold {held_out}s out; "
            "expected more text or a smaller context"
        )
    data = torch.from_numpy(np.concatenate(windows)).long()  # (n, T + 1)
    inputs, targets = data[:, :-1].contiguous(), data[:, 1:].contiguous()  # (n, T)
    whole = ArrayData(inputs, targets, vocabulary, name, group)
    return DataSplit(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _windows(document: NDArray[Any], context: int) -> NDArray[Any]:
    """Return windows (n, T + 1): the last token of each is the first of the next, since it is only a target before."""
    if document.size <= context:
        return np.empty((0, context + 1), document.dtype)
    return np.lib.stride_tricks.sliding_window_view(document, context + 1)[::context]


def _held_out_groups(counts: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return documents in random order until their windows are the share; never the last one that has windows."""
    order = stream(seed, "text").permutation(np.flatnonzero(counts))
    before = np.cumsum(counts[order]) - counts[order]
    held: NDArray[np.int64] = order[:-1][before[:-1] < share * counts.sum()]
    return held


def _documents(files: Sequence[str | os.PathLike[str]] | None, max_bytes: int) -> list[bytes]:
    return _python_topics() if files is None else _read(files, max_bytes)


def _python_topics() -> list[bytes]:
    from pydoc_data.topics import topics

    return [topics[name].encode() for name in sorted(topics)]


def _read(files: Sequence[str | os.PathLike[str]], max_bytes: int) -> list[bytes]:
    paths = [Path(file) for file in listed("files", files, single=(str, os.PathLike))]
    if not paths:
        raise InvalidProblemError("files: expected at least one")
    for path in paths:
        if not path.is_file():  # a pipe would have no end, a device no size
            raise InvalidFileError(f"{path}: expected a file of text")
    if (total := sum(path.stat().st_size for path in paths)) > max_bytes:
        raise InvalidFileError(f"{paths[0]} and others: {total} bytes of text, expected at most {max_bytes}")
    return [path.read_bytes() for path in paths]
