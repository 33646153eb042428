"""Pipes, devices and bombs: refused in one line, from what their first bytes say, before time or memory is spent."""

import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeopt
from edgeopt import json_text, npz, storage
from edgeopt.coding import as_picture
from edgeopt.errors import MAX_SHOWN, EdgeOptError, InvalidFileError, quoted
from edgeopt.evaluation.compare.rows import read_row, read_rows
from edgeopt.evaluation.compare.solutions import read_solution
from edgeopt.experiment import Experiment
from edgeopt.fields import Fields
from edgeopt.problems import ClientSelection, RoutingTrace, SplitTraining
from edgeopt.profile import ModelProfile
from edgeopt.schedule import Schedule
from edgeopt.tensors import load_tensors

PROBLEM = SplitTraining.random(num_devices=3, num_layers=3, seed=1)
READERS: dict[str, Callable[[Path], object]] = {
    "problem.json": edgeopt.load,
    "problem.npz": edgeopt.load,
    "solution.json": lambda path: read_solution(PROBLEM, path),
    "row.json": read_row,
    "profile.json": ModelProfile.load,
    "schedule.npz": Schedule.load,
    "trace.npz": RoutingTrace.load,
    "run.toml": Experiment.load,
    "run.json": Experiment.load,
    "policy.safetensors": lambda path: load_tensors(path, "selection-policy"),
    "picture.png": as_picture,
}


def most_memory(read: Callable[[], object], message: str) -> int:
    """Return the most bytes that Python held while a file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFileError, match=message):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_npz(path: Path, arrays: storage.Arrays, name: str, count: int, dtype: str = "<f8") -> None:
    """Write an archive in which one array is `count` zeros: a thousandth of their size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, array in arrays.items():
            with archive.open(f"{other}.npy", "w") as member:
                np.lib.format.write_array(member, array)
        with archive.open(f"{name}.npy", "w") as member:
            header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(0, count, 1 << 20):
                member.write(bytes(np.dtype(dtype).itemsize << 20))


@pytest.fixture
def arrays(tmp_path) -> storage.Arrays:
    PROBLEM.save(tmp_path / "good.npz")
    return storage.read_arrays(tmp_path / "good.npz")


# --- what is no file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused(tmp_path, name):
    """Nobody writes into the pipe and the device has no end: a reader that opened or read them would not come back."""
    pipe, device = tmp_path / name, tmp_path / f"zero-{name}"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path, what in ((pipe, "a pipe"), (device, "a device")):
        with pytest.raises(InvalidFileError, match=rf"^{path}: {what}, expected a regular file$"):
            READERS[name](path)


def test_rows_beside_a_pipe_are_read(tmp_path):
    """What is no file among the rows of a comparison is left out, like a damaged one."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "empty.json").write_text("{}")
    assert read_rows(tmp_path) == []


@pytest.mark.parametrize("name", ["a\x00b.json", "\ud800.json"])
def test_names_that_no_file_can_have(name):
    """A null character, or half a surrogate pair, in a name is one clear error."""
    with pytest.raises(InvalidFileError, match="not the name of a file"):
        edgeopt.load(name)


def test_command_line_refuses_a_pipe(tmp_path):
    """The command ends with status 2 and one line."""
    os.mkfifo(tmp_path / "pipe.npz")
    command = [sys.executable, "-m", "edgeopt", "describe", str(tmp_path / "pipe.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"edgeopt: {tmp_path / 'pipe.npz'}: a pipe, expected a regular file\n"


# --- bombs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("device_flops", "<f8", r"numbers in a file of \d+ bytes, expected at most"),
        ("header", "|u1", r"numbers in a file of \d+ bytes, expected at most"),
        ("more", "<f8", "'more': unknown array, expected forward_flops"),
        ("device_flops", "?", "device_flops: expected numbers, got bool"),
    ],
)
def test_archives_that_unpack_to_much(tmp_path, arrays, name, dtype, message):
    """8 million zeros are refused from the headers of the arrays: none of them is unpacked."""
    arrays.pop(name, None)
    write_npz(tmp_path / "bomb.npz", arrays, name, 8 << 20, dtype)
    assert most_memory(lambda: edgeopt.load(tmp_path / "bomb.npz"), message) < 4 << 20


def test_directory_of_a_million_members(tmp_path):
    """The directory of an archive is not read beyond a megabyte."""
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(24_000):
            archive.writestr(f"{i}.npy", b"")
    assert most_memory(lambda: edgeopt.load(tmp_path / "many.npz"), "a directory of more than") < 4 << 20


def test_what_compresses_well_can_be_loaded_again(tmp_path, monkeypatch):
    """Zeros are stored plain where packed ones would look like a bomb: whatever is saved, is loaded."""
    monkeypatch.setattr(npz, "FREE_NUMBERS", 1000)
    for count in (1000, 1001, 100_000):
        saved = {"a": np.zeros(count), "b": np.zeros(count, bool)}
        storage.save(tmp_path / "x.npz", {"kind": "x"}, saved)
        _, found = storage.load(tmp_path / "x.npz")
        assert all(np.array_equal(found[name], saved[name]) for name in saved)
    noise = {"a": np.random.default_rng(0).integers(0, 5, 100_000)}
    storage.save(tmp_path / "noise.npz", {}, noise)
    assert (tmp_path / "noise.npz").stat().st_size < 100_000  # still packed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [' + "[]," * 2_000_000 + "[]]}", "bytes of memory, expected at most"),
        ('{"a": [' + "{}," * 2_000_000 + "{}]}", "bytes of memory, expected at most"),
        ('{"a": [' + "0," * 4_000_000 + "0]}", "bytes of memory, expected at most"),
        ("[" * 2_000_000, "bytes of memory, expected at most"),
        ('{"a":' * 200 + "1" + "}" * 200, "at most 100 objects and lists inside each other"),
        ('{"a": NaN}', "expected JSON values, NaN is none"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ('{"a": "\\ud800"}', "not valid JSON: not all of it is UTF-8"),
    ],
    ids=["lists", "objects", "numbers", "open", "deep", "nan", "digits", "surrogate"],
)
def test_json_that_takes_many_times_its_text(tmp_path, text, message):
    """Counting punctuation refuses it before it is parsed: the memory is that of the text."""
    (tmp_path / "x.json").write_text(text)
    assert most_memory(lambda: storage.read_json(tmp_path / "x.json"), message) < 3 * len(text) + (1 << 20)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=8),
        max_leaves=40,
    )
)  # fmt: skip
def test_estimate_of_memory_is_no_less_than_half_of_what_is_taken(value):
    """The estimate from punctuation is of the size of what `sys.getsizeof` adds up to, container by container."""

    def size(part: Any) -> int:
        below = [*part.keys(), *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []
        own = 0 if part is None or isinstance(part, bool | int) else sys.getsizeof(part)
        return own + sum(map(size, below))

    data = json.dumps({"a": value}).encode()
    assert json_text.memory_of(data) + 4 * len(data) > size({"a": value}) / 2


def test_json_that_could_not_be_read_is_not_written(tmp_path):
    """A problem too large for JSON is refused when it is saved, not when somebody needs it."""
    with pytest.raises(
        InvalidFileError, match=r"x\.json: too many numbers for JSON: expected a name that ends in \.npz"
    ):
        storage.save(tmp_path / "x.json", {}, {"a": np.zeros(4_000_000, np.int8)})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a." * 60_000 + "a = 1", "expected no name of more than 64 parts"),
        ("a = " + "[" * 50_000, "not valid TOML"),
        ("x = '" + "x" * (1 << 18) + "'", "bytes, expected at most 262144"),
        ("rounds = " + "1" * 5000, "not valid TOML: Exceeds the limit"),
        ("rounds = " + "1" * 400, "rounds = an integer of 400 digits: expected a finite number"),
        ("until_accuracy = " + "1" * 400, "until_accuracy = an integer of 400 digits: expected a finite number"),
        ("[algorithm]\nname = []", r"\[algorithm\] name = \[\]: expected a text"),
        ("precision = []", r"precision = \[\]: expected 'fp32' or 'bf16'"),
    ],
    ids=["parts", "deep", "large", "digits", "whole", "real", "name", "choice"],
)
def test_toml_that_takes_long(tmp_path, text, message):
    """Names of many parts, depth, length and numbers beyond all sizes are one line."""
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(EdgeOptError, match=message) as caught:
        Experiment.load(tmp_path / "x.toml")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_small_files_with_large_tables(tmp_path):
    """Two long sides are small files; what a problem computes from them would not be small."""
    document, values = PROBLEM.to_data()
    long = {name: np.full(30_000, array.max()) for name, array in values.items()}
    storage.save(tmp_path / "x.npz", {"kind": PROBLEM.kind, "schema_version": 1, **document}, long)
    with pytest.raises(InvalidFileError, match="30000 x 30000 devices x layers: expected at most"):
        edgeopt.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --set model.width=1000000000000", "width = 1000000000000: expected at most 32768 channels"),
        ("train --set model.width=1e12", "width = 1000000000000.0: expected a whole number"),
        (
            "train --set model.width=30000 --model small-resnet --data coloured-digits",
            "weights, expected at most 268435456",
        ),
        ("train --set network.servers=100000000", "20 x 100000000 devices x servers: expected at most"),
        ("train --set network.rate_sigma=1e300", "rate_sigma = 1e+300: expected at most 10.0"),
        ("train --set algorithm.optimizer.name=[]", "name = []: expected one of sgd, adam"),
        ("train --set rounds=1e400", "rounds = inf: expected a finite number"),
        (
            "solve facility-tiny --solver max-convolution --param surrogates=1,1,2",
            "surrogates = '1,1,2': expected a list",
        ),
        (
            "generate client-selection -o x.npz --servers 1000000 --clients 1000000",
            "devices x servers: expected at most",
        ),
        ("generate expert-caching -o x.npz --experts 100000 --layers 100000 --top-k 1", "experts: expected at most"),
    ],
)
def test_absurd_numbers_on_the_command_line(words, message, tmp_path, monkeypatch, capsys):
    """Numbers that would take terabytes or minutes are one line and status 2, before anything is made."""
    from edgeopt.cli import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app(words.split())
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1), error
    assert message in error


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: 10**5000, lambda: "x" * 10**6, lambda: [[[[[1]]]]] * 10**5, lambda: np.zeros((100, 100)), lambda: "a\nb"],
)
def test_quoted_values_are_short(make):
    """Whatever is quoted, it is one line of readable length; integers too long for Python's `repr` as well."""
    assert len(quoted(make())) <= MAX_SHOWN
    assert "\n" not in quoted(make())


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda given: given.text("n"), "x: n = 1: expected a string"),
        (lambda given: given.integer("f"), "x: f = 1.5: expected an integer"),
        (lambda given: given.integer("b"), "x: b = True: expected an integer"),
        (lambda given: given.integer("huge"), "x: huge = an integer of 401 digits: expected an integer"),
        (lambda given: given.integer("n", low=2), "x: n = 1: expected an integer >= 2"),
        (lambda given: given.integer("n", low=2, high=3), "x: n = 1: expected an integer from 2 to 3"),
        (lambda given: given.number("huge"), "x: huge = an integer of 401 digits: expected a number"),
        (lambda given: given.number("nan"), "x: nan = nan: expected a number"),
        (lambda given: given.number("n", low=2), "x: n = 1: expected a number >= 2"),
        (lambda given: given.flag("n"), "x: n = 1: expected true or false"),
        (lambda given: given.choice("list", ("a", "b")), "x: list = [1, []]: expected 'a' or 'b'"),
        (lambda given: given.numbers("list"), "x: list.1 = []: expected a number"),
        (lambda given: given.texts("list"), "x: list[0] = 1: expected a string"),
        (lambda given: given.tables("list"), "x: list[0]: expected an object, got 1"),
        (lambda given: given.table("table").text("y"), "x: table.y: value is missing: expected a string"),
        (lambda given: given.expect("n", 2), "x: n = 1: expected 2"),
        (lambda given: given.expect("b", 1), "x: b = True: expected 1"),
    ],
)
def test_fields_say_what_is_wrong(take, message):
    """Every kind of value has its message: where it stands, what it is, what was expected."""
    values = {"n": 1, "f": 1.5, "b": True, "huge": 10**400, "nan": float("nan"), "list": [1, []], "table": {}}
    with pytest.raises(InvalidFileError) as caught:
        take(Fields(values, "x: "))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("format"), "format: value is missing: expected 1"),
        (lambda row: row.update(format=2), "format = 2: expected 1"),
        (lambda row: row.update(objective=10**400), "objective = an integer of 401 digits: expected a number"),
        (lambda row: row.update(history=[[1, 2]]), r"history\[0\] = \[1, 2\]: expected seconds, iteration"),
        (lambda row: row.update(seconds=[]), r"seconds = \[\]: expected an object"),
        (lambda row: row.clear(), "format: value is missing"),
    ],
)
def test_rows_of_other_forms(tmp_path, change, message):
    """A row that is not one is left out of a comparison with a line that says why, and the rest is read."""
    from edgeopt.evaluation.compare import comparison_rows

    comparison_rows({"tiny": PROBLEM}, ["fixed"], (0,), 5.0, out=tmp_path, executor="serial")
    (path,) = (tmp_path / "rows").glob("*.json")
    row = json.loads(path.read_text())
    change(row)
    (tmp_path / "rows" / "spoilt.json").write_text(json.dumps(row))
    with pytest.raises(InvalidFileError, match=message):
        read_row(tmp_path / "rows" / "spoilt.json")
    assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": []}, r"kind = \[\]: expected one of expert-caching"),
        ({"rounds": 10**400}, "rounds = an integer of 401 digits: expected an integer"),
        ({"rate_sigma": 1e300}, r"rate_sigma = 1e\+300: expected 0 or a magnitude"),
        ({"payload_bits": "4"}, "payload_bits = '4': expected a number"),
        ({"mode": ["fail"]}, r"mode = \['fail'\]: expected 'fail' or 'share'"),
    ],
)
def test_problems_with_values_of_other_types(tmp_path, change, message):
    """Plain values are taken by their type, before the problem sees them."""
    path = tmp_path / "x.json"
    ClientSelection.random(num_servers=2, num_clients=4, picks=1, rounds=3, seed=1).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidFileError, match=rf"^{path}: {message}"):
        edgeopt.load(path)
