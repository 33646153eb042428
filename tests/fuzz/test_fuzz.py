"""Spoilt files give one line that names the file, or what the reader makes of them: never another exception."""

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from tests.fuzz.mutations import spoilt
from tests.fuzz.readers import READERS, Reader

INPUTS = int(os.environ.get("EDGEOPT_FUZZ_INPUTS", "20000"))
SEED = os.environ.get("EDGEOPT_FUZZ_SEED", "0")
FEW = 12
LONGEST = 1500  # characters of a message: every quoted value is cut, paths and lists of names are not


def explore(reader: Reader, folder: Path, inputs: int, seed: int) -> None:
    """Read so many spoilt files. Each follows from the reader's name, the seed and its number alone."""
    path = folder / reader.name
    reader.write(path)
    valid = path.read_bytes()
    reader.read(path)
    for number in range(inputs):
        data = spoilt(Random(f"{reader.name} {seed} {number}"), reader.name, valid)
        path.unlink()  # a new file is fast; one that is cut to nothing first waits for the disk
        path.write_bytes(data)
        try:
            read(reader, path)
        except Exception as error:
            path.write_bytes(data)  # a checkpoint has been written over
            again = f"INPUTS={(number + 1) * len(READERS)} SEED={seed} ARGS=\"-k '[{reader.name}]'\""
            error.add_note(f"file {number} of seed {seed}, kept as {path}; once more: make fuzz {again}")
            raise


def read(reader: Reader, path: Path) -> None:
    """Read a spoilt file: there is one clear line, or nothing to say."""
    try:
        reader.read(path)
    except (EdgeOptError, OSError) as error:
        message = str(error)
        assert isinstance(error, EdgeOptError) or error.filename is not None, repr(error)  # noqa: PT017
        assert "\n" not in message, message
        assert len(message) < LONGEST, message


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_spoilt_files(reader, tmp_path):
    """A few spoilt files for every reader."""
    explore(reader, tmp_path, FEW, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_spoilt_files(reader, tmp_path):
    """Thousands of them: ``make fuzz`` runs this, ``make fuzz SEED=random`` with files that nobody has seen before."""
    seed = int.from_bytes(os.urandom(4), "big") if SEED == "random" else int(SEED)
    print(f"EDGEOPT_FUZZ_SEED={seed}")
    explore(reader, tmp_path, -(-INPUTS // len(READERS)), seed)


def test_a_file_follows_from_its_seed(tmp_path):
    """So that a failure can be repeated."""
    np.savez(tmp_path / "a.npz", n=np.arange(9))
    valid = (tmp_path / "a.npz").read_bytes()
    files = [spoilt(Random(f"{number}"), "a.npz", valid) for number in (*range(50), *range(50))]
    assert files[:50] == files[50:]
    assert len(set(files)) > 25


@pytest.mark.parametrize(
    ("name", "valid", "wanted"),
    [
        ("a.geojson", b'{"n": 7}', b'{"n": 0}'),
        ("a.jsonl", b'{"n": 7}\n{"n": 8}\n', b'{"n": 7}\n{"n": 0}'),
        ("a.csv", b"n;m\n7;8\n", b"n;m\n0;8\n"),
    ],
)
def test_zeros_are_tried(name, valid, wanted):
    """Sizes and counts are 0 in some of the spoilt files."""
    assert wanted in {spoilt(Random(number), name, valid) for number in range(1000)}
