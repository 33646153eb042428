"""Text as windows of bytes: the next byte is the target, and held-out text is not trained on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.data.text import byte_text
from edgeopt.errors import InvalidFileError, InvalidProblemError


def write(folder: Path, *documents: bytes) -> list[Path]:
    files = [folder / f"{number}.txt" for number in range(len(documents))]
    for file, document in zip(files, documents, strict=True):
        file.write_bytes(document)
    return files


def test_windows_by_hand(tmp_path: Path):
    """Eleven bytes, windows of three: three whole ones, the last held out; two bytes of no use at the end."""
    data = byte_text(write(tmp_path, b"abcdefghijk"), context=3)
    assert [bytes(row.tolist()) for row in data.train.inputs] == [b"abc", b"def"]
    assert [bytes(row.tolist()) for row in data.train.targets] == [b"bcd", b"efg"]
    assert [bytes(row.tolist()) for row in data.test.inputs] == [b"ghi"]
    assert [bytes(row.tolist()) for row in data.test.targets] == [b"hij"]
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.int64
    assert data.train.num_classes == 256


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=30)
@given(
    documents=st.lists(st.binary(max_size=80), min_size=1, max_size=5),
    context=st.integers(1, 9),
    held_out=st.sampled_from(["position", "group"]),
    share=st.floats(0.05, 0.95),
)
def test_every_window_once(tmp_path: Path, documents: list[bytes], context: int, held_out: str, share: float):
    """Training and test windows together are the windows of the documents, each once, under the document's number."""
    windows = sorted(
        (number, document[start : start + context], document[start + 1 : start + context + 1])
        for number, document in enumerate(documents)
        for start in range(0, len(document) - context, context)
    )
    try:
        data = byte_text(write(tmp_path, *documents), context, held_out=held_out, test_share=share)
    except InvalidProblemError:
        counts = Counter(number for number, *_ in windows)  # nothing to hold out, or nothing left to train with
        assert max(counts.values(), default=0) < 2 if held_out == "position" else len(counts) < 2
        return
    found = [
        (int(group), bytes(one.tolist()), bytes(next_.tolist()))
        for part in (data.train, data.test)
        for group, one, next_ in zip(part.labels, part.inputs, part.targets, strict=True)
    ]
    assert sorted(found) == windows
    if held_out == "group":
        assert not set(data.train.labels) & set(data.test.labels)


def test_documents_are_held_out_whole(tmp_path: Path):
    """Documents of ten windows each, a share of 0.3: three of ten are held out, others for another seed."""
    files = write(tmp_path, *(bytes([number]) * 41 for number in range(10)))
    held = [byte_text(files, 4, held_out="group", test_share=0.3, seed=seed) for seed in (0, 1, 0)]
    groups = [sorted(set(data.test.labels)) for data in held]
    assert [len(group) for group in groups] == [3, 3, 3]
    assert groups[0] == groups[2] != groups[1]


def test_python_text():
    """Python's own text is English in some eighty topics, nine tenths of it for training, the same each time."""
    data = byte_text()
    assert data.train.inputs.shape[1] == 128
    assert len(data.train) > 2000
    assert 0.05 < len(data.test) / (len(data.train) + len(data.test)) < 0.15
    assert len(set(data.train.labels)) > 50
    assert b" the " in bytes(data.train.inputs[:50].flatten().tolist())
    assert torch.equal(data.test.inputs, byte_text().test.inputs)
    np.testing.assert_array_equal(data.train.group, data.train.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context = 0: expected an integer >= 1"),
        ({"context": 2.5}, "context = 2.5"),
        ({"test_share": 1.0}, "test_share = 1.0: expected a number between 0 and 1"),
        ({"held_out": "topic"}, "held_out = 'topic': expected 'position' or 'group'"),
        ({"files": []}, "files: expected at least one"),
        ({"context": 10**6}, "0 windows of 1000000 bytes in .* too little to hold positions out"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str):
    """Arguments out of range, and contexts longer than the text, are errors that say so."""
    with pytest.raises(InvalidProblemError, match=message):
        byte_text(**options)


def test_bad_files_are_refused(tmp_path: Path):
    """A missing file, a folder, and too much text are errors that name the file."""
    files = write(tmp_path, b"some text of no great length", b"more")
    with pytest.raises(InvalidFileError, match=r"no\.txt: expected a file of text"):
        byte_text([*files, tmp_path / "no.txt"])
    with pytest.raises(InvalidFileError, match="expected a file of text"):
        byte_text(tmp_path)  # a single path is one file
    with pytest.raises(InvalidFileError, match=r"0\.txt and others: 32 bytes of text, expected at most 31"):
        byte_text(files, max_bytes=31)
