"""Spoilt files give one line that names the file, or what the reader makes of them: never another exception."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from edgeopt.errors import EdgeOptError
from tests.fuzz.mutations import spoilt
from tests.fuzz.readers import READERS, Reader

INPUTS = int(os.environ.get("EDGEOPT_FUZZ_INPUTS", "20000"))
SEED = os.environ.get("EDGEOPT_FUZZ_SEED", "0")
LONGEST = 1500  # characters of a message: every quoted value is cut, paths and lists of names are not


def explore(reader: Reader, folder: Path, inputs: int, seed: int) -> None:
    """Read so many spoilt files; the same seed gives the same ones."""
    numbers = itertools.count()
    valid = folder / reader.name
    reader.write(valid)
    reader.read(valid)
    whole = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    before = whole[valid]

    @seeded(seed)
    @settings(
        max_examples=inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.data())
    def read(data: st.DataObject) -> None:
        next(numbers)
        valid.write_bytes(before)
        valid.write_bytes(spoilt(data.draw, valid))
        try:
            reader.read(valid)
        except (EdgeOptError, OSError) as error:
            message = str(error)
            assert isinstance(error, EdgeOptError) or error.filename is not None, repr(error)  # noqa: PT017
            assert "\n" not in message, message
            assert len(message) < LONGEST, message

    read()
    assert next(numbers) >= min(inputs, 2)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_spoilt_files(reader, tmp_path):
    """A few spoilt files for every reader."""
    explore(reader, tmp_path, 12, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_spoilt_files(reader, tmp_path):
    """Thousands of them: ``make fuzz`` runs this, ``make fuzz SEED=random`` with files that nobody has seen before."""
    seed = int.from_bytes(os.urandom(4), "big") if SEED == "random" else int(SEED)
    print(f"EDGEOPT_FUZZ_SEED={seed}")
    explore(reader, tmp_path, -(-INPUTS // len(READERS)), seed)


@pytest.mark.parametrize(
    ("name", "valid", "wanted"),
    [
        ("a.geojson", b'{"n": 7}', b'{"n": 0}'),
        ("a.jsonl", b'{"n": 7}\n{"n": 8}\n', b'{"n": 7}\n{"n": 0}'),
        ("a.csv", b"n;m\n7;8\n", b"n;m\n0;8\n"),
    ],
)
def test_zeros_are_tried(name, valid, wanted, tmp_path):
    """Sizes and counts are 0 in some of the spoilt files."""
    found, path = set(), tmp_path / name
    path.write_bytes(valid)

    @settings(max_examples=150, database=None, deadline=None, phases=(Phase.generate,))
    @given(st.data())
    def spoil(data: st.DataObject) -> None:
        found.add(spoilt(data.draw, path))

    spoil()
    assert wanted in found
