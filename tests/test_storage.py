import contextlib
import io
import json
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt import storage
from edgeopt.errors import InvalidFileError

ARRAYS = {
    "whole": np.array([[1, -2], [3, 1 << 40]]),
    "real": np.array([0.1, np.inf, -np.inf, 1e-300]),
    "flag": np.array([True, False]),
    "empty": np.zeros(0),
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(text: str, *, version: bytes = b"\x01\x00") -> bytes:
    header = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(header)) + header


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def assert_same(found: storage.Arrays, expected: storage.Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_round_trip(tmp_path, suffix):
    """Header and arrays come back equal, infinities, empty arrays and types included."""
    header = {"kind": "x", "nested": {"a": [1, None, "ü"]}}
    storage.save(tmp_path / f"file{suffix}", header, ARRAYS)
    found, arrays = storage.load(tmp_path / f"file{suffix}")
    assert found == header
    assert_same(arrays, ARRAYS)


def test_npz_keeps_narrow_types_order_and_shape(tmp_path):
    """NPZ keeps every number type, Fortran order, zero-sized and zero-dimensional arrays."""
    arrays = {
        "narrow": np.array([1, 2], np.int16),
        "big_endian": np.array([1, 2], ">i4"),
        "half": np.array([0.5], np.float16),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "scalar": np.array(7),
    }
    storage.save(tmp_path / "file.npz", {}, arrays)
    assert_same(storage.load(tmp_path / "file.npz")[1], arrays)


@given(st.sampled_from([np.float64, np.int64, np.bool_]).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes())))
def test_json_round_trip_of_any_array(tmp_path_factory, array):
    """JSON returns any non-empty array bit for bit: Python writes the shortest text that reads back equal."""
    path = tmp_path_factory.mktemp("json") / "file.json"
    storage.save(path, {}, {"a": array})
    assert_same(storage.load(path)[1], {"a": array})


def test_same_arrays_give_same_bytes(tmp_path):
    """A file's bytes depend on its contents only, so that files can be compared and cached."""
    for name in ("a.npz", "b.npz"):
        storage.save(tmp_path / name, {"kind": "x"}, ARRAYS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_what_we_write_and_we_read_what_numpy_writes(tmp_path):
    """The container is NumPy's: files move both ways."""
    storage.write_atomic(tmp_path / "ours.npz", lambda file: storage.write_arrays(file, ARRAYS))
    with np.load(tmp_path / "ours.npz") as found:
        assert_same(dict(found), ARRAYS)
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "theirs.npz", **ARRAYS)
        assert_same(storage.read_arrays(tmp_path / "theirs.npz"), ARRAYS)


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args"])
def test_array_names_are_not_options(tmp_path, name):
    """An array may have the name of an option of `numpy.savez`."""
    storage.save(tmp_path / "x.npz", {}, {name: np.arange(3)})
    assert_same(storage.load(tmp_path / "x.npz")[1], {name: np.arange(3)})


def test_failing_write_leaves_the_old_file_and_no_temporary(tmp_path):
    """When writing fails half-way, the file is as before and nothing else is left."""
    path = tmp_path / "file.txt"
    storage.write_text(path, "old")

    def fail(file):
        file.write(b"half of the new")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        storage.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_unwritable_contents_leave_the_old_file(tmp_path, suffix):
    """Objects and NaN headers cannot be saved, and trying does not touch the file."""
    path = tmp_path / f"file{suffix}"
    storage.save(path, {}, ARRAYS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.save(path, {"x": float("nan")}, ARRAYS)
    with pytest.raises((ValueError, TypeError)):
        storage.save(path, {}, {"a": np.array([object()])})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_write_over_a_directory_leaves_no_temporary(tmp_path):
    """A directory in the way is an OSError and leaves nothing behind."""
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError, match=r"file\.txt"):
        storage.write_text(tmp_path / "file.txt", "x")
    assert os.listdir(tmp_path) == ["file.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    """Others may read the file as far as the process's mask allows, unlike the private temporary file."""
    storage.write_text(tmp_path / "file.txt", "x")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("operation", [lambda path: storage.save(path, {}, {}), storage.load])
def test_unknown_suffix(tmp_path, operation):
    """Only .json and .npz are formats; the message says so."""
    with pytest.raises(InvalidFileError, match=r"file\.pkl: expected a name that ends in \.json or \.npz"):
        operation(tmp_path / "file.pkl")


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_missing_file_and_directory_are_os_errors(tmp_path, suffix):
    """What the operating system refuses to open stays an OSError that names the path."""
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.load(tmp_path / f"missing{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(OSError, match="folder"):
        storage.load(tmp_path / f"folder{suffix}")


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04", b"hello", pickle.dumps({"a": 1})])
def test_other_data_is_refused(tmp_path, suffix, data):
    """Empty files, noise and pickles are not files of ours, whatever their name."""
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"file\.(json|npz): not "):
        storage.load(path)


def test_single_array_file_is_refused(tmp_path):
    """A plain .npy file renamed to .npz is not an archive."""
    path = tmp_path / "file.npz"
    path.write_bytes(npy(np.arange(3)))
    with pytest.raises(InvalidFileError, match="not a zip file"):
        storage.read_arrays(path)


def test_npz_without_our_header(tmp_path):
    """An archive of somebody else's arrays is not a problem file."""
    np.savez(tmp_path / "file.npz", a=np.arange(3))
    with pytest.raises(InvalidFileError, match="no array 'header'"):
        storage.load(tmp_path / "file.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def test_objects_are_refused_and_never_unpickled(tmp_path):
    """An array of objects is refused from its header; its pickle, which would fail this test, never runs."""
    path = write_zip(tmp_path / "file.npz", {"a.npy": npy(np.array([Bomb()], object))})
    with pytest.raises(InvalidFileError, match="a: expected numbers, got dtype object"):
        storage.read_arrays(path)


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([1j]), np.array([(1, 2.0)], "i4,f8"), np.array(["2020"], "M8[D]")]
)
def test_other_types_are_refused(tmp_path, array):
    """Only booleans, integers and real numbers are data."""
    with pytest.raises(InvalidFileError, match="a: expected numbers, got dtype"):
        storage.read_arrays(write_zip(tmp_path / "file.npz", {"a.npy": npy(array)}))


def test_member_that_is_a_pickle(tmp_path):
    """A pickle inside an archive is not an array."""
    with pytest.raises(InvalidFileError, match="a: not a plain array"):
        storage.read_arrays(write_zip(tmp_path / "file.npz", {"a.npy": pickle.dumps(Bomb())}))


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000000000,)",
        "(4,)",
        "(2,)",
        "(-1,)",
        "(-1, 0)",
        "(-1, -3)",
        "(0, -1)",
        "(1 << 70,)",
        f"({10**30},)",
        "(3, True)",
        str((3, *[1] * 70)),
    ],
)
def test_shape_that_does_not_fit_is_refused_before_memory_is_taken(tmp_path, shape):
    """A header that declares more, less or negative data than the member's three numbers is refused."""
    data = npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}") + bytes(24)
    with pytest.raises(InvalidFileError, match=r"a: (shape .* does not fit|not a plain array)"):
        storage.read_arrays(write_zip(tmp_path / "file.npz", {"a.npy": data}))


def test_directory_that_declares_more_than_the_content_is_refused(tmp_path):
    """A zip directory that claims 40 MB for 24 bytes is refused after reading the 24 bytes."""
    data = npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (5000000,)}")
    path = write_zip(tmp_path / "file.npz", {"a.npy": data + bytes(24)})
    raw = path.read_bytes()
    true_size = struct.pack("<I", len(data) + 24)
    assert raw.count(true_size) >= 2
    path.write_bytes(raw.replace(true_size, struct.pack("<I", len(data) + 40_000_000)))
    with pytest.raises(InvalidFileError, match="a: 24 bytes of data, expected 40000000"):
        storage.read_arrays(path)


def test_oversized_files_are_refused(tmp_path, monkeypatch):
    """Contents above the limit are refused from the declared sizes, for both formats."""
    for suffix in (".json", ".npz"):
        storage.save(tmp_path / f"file{suffix}", {}, {"a": np.zeros(1000)})
    monkeypatch.setattr(storage, "MAX_BYTES", 4000)
    with pytest.raises(InvalidFileError, match=r"arrays of \d+ bytes, expected at most 4000"):
        storage.load(tmp_path / "file.npz")
    with pytest.raises(InvalidFileError, match=r"bytes of JSON, expected at most 500; use \.npz"):
        storage.load(tmp_path / "file.json")


@pytest.mark.parametrize(
    "header",
    [
        "(" * 5000,
        "[" * 9000 + "]" * 9000,
        "-" * 9000 + "1",
        "{'descr': " + "[" * 4000 + "]" * 4000 + ", 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3L,)}",
        "{1: 2, 'a': 3}",
        "{'descr': [('a', 0)], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': ('<f8', 10**9), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        "'''",
        "",
        "x" * 60000,
        "__import__('os').abort()",
    ],
)
def test_hostile_array_headers(tmp_path, header):
    """Nested, endless, malformed or executable header text is one clear error."""
    path = write_zip(tmp_path / "file.npz", {"a.npy": npy_header(header) + bytes(24)})
    with pytest.raises(InvalidFileError, match="a: not a plain array"):
        storage.read_arrays(path)


def test_header_of_unlimited_length_is_refused(tmp_path):
    """Later versions of the array format, whose headers may be gigabytes, are refused unread."""
    data = npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", version=b"\x02\x00") + bytes(24)
    with pytest.raises(InvalidFileError, match=r"a: not a plain array: version \(2, 0\), expected \(1, 0\)"):
        storage.read_arrays(write_zip(tmp_path / "file.npz", {"a.npy": data}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, compression):
    """Compressions that NumPy never writes, and that unpack without bounds, are refused."""
    path = write_zip(tmp_path / "file.npz", {"a.npy": npy(np.arange(3))}, compression)
    with pytest.raises(InvalidFileError, match="a: expected plain or deflated data"):
        storage.read_arrays(path)


def test_encrypted_member_is_refused(tmp_path):
    """An encrypted member is an error of the file, not a request for a password."""
    path = write_zip(tmp_path / "file.npz", {"a.npy": npy(np.arange(3))})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(signature) + offset] |= 1
    path.write_bytes(raw)
    with pytest.raises(InvalidFileError, match="a: expected plain or deflated data, not encrypted"):
        storage.read_arrays(path)


def test_repeated_member_is_refused(tmp_path):
    """Two arrays of one name would hide each other."""
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(np.arange(3)))
        archive.writestr("a", npy(np.arange(3)))
    with pytest.raises(InvalidFileError, match="a: the array is there twice"):
        storage.read_arrays(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "file.npz"
    storage.save(path, {"kind": "x"}, ARRAYS)
    return path.read_bytes()


@given(data=st.data())
def test_truncated_npz(tmp_path_factory, saved, data):
    """A file cut anywhere is an InvalidFileError, never another exception."""
    path = tmp_path_factory.mktemp("cut") / "file.npz"
    path.write_bytes(saved[: data.draw(st.integers(0, len(saved) - 1))])
    with pytest.raises(InvalidFileError):
        storage.load(path)


@given(data=st.data())
def test_damaged_npz(tmp_path_factory, saved, data):
    """Damage gives an InvalidFileError or, where the bytes do not matter, arrays: never another exception."""
    raw = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        start, length = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 4))
        raw[start : start + length] = data.draw(st.binary(min_size=0, max_size=4))
    path = tmp_path_factory.mktemp("damaged") / "file.npz"
    path.write_bytes(raw)
    try:
        storage.load(path)
    except InvalidFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - any other exception fails the test


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"arrays": {"a": ' + "[" * 900 + "]" * 900 + "}}"])
def test_deeply_nested_json(tmp_path, text):
    """Nesting that would overflow the stack, or exceed NumPy's dimensions, is one clear error."""
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InvalidFileError, match=r"file\.json: "):
        storage.load(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a JSON object, got list"),
        ({}, "arrays: expected an object of arrays, got NoneType"),
        ({"arrays": [1]}, "arrays: expected an object of arrays, got list"),
        ({"arrays": {"a": [[1, 2], [3]]}}, "a: not a rectangular array of numbers"),
        ({"arrays": {"a": [1, None]}}, "a: not a rectangular array of numbers: found NoneType, int"),
        ({"arrays": {"a": [{}]}}, "a: not a rectangular array of numbers: found dict"),
        ({"arrays": {"a": ["x"]}}, "a: not a rectangular array of numbers: could not convert string to float: 'x'"),
        ({"arrays": {"a": [True, "x"]}}, "a: not a rectangular array of numbers"),
        ({"arrays": {"a": [10**30]}}, "a: expected numbers, got object"),
        ({"arrays": {"a": [10**400, "inf"]}}, "a: not a rectangular array of numbers"),
    ],
)
def test_json_that_is_no_file_of_ours(tmp_path, document, message):
    """Each way in which a JSON document is not a file of ours has its own message."""
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidFileError, match=f"^{path}: {message}"):
        storage.load(path)


def test_long_string_among_numbers_takes_no_memory(tmp_path):
    """One long string does not widen a million others: 4 TB in an array of strings, one clear line here."""
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"arrays": {"a": ["1"] * 1_000_000 + ["x" * 1_000_000]}}))
    with pytest.raises(InvalidFileError, match="a: not a rectangular array") as info:
        storage.load(path)
    assert len(str(info.value)) < 500


@given(st.binary(max_size=200))
def test_any_bytes_as_json(data):
    """Parsing arbitrary bytes gives an object or an InvalidFileError."""
    with contextlib.suppress(InvalidFileError):
        assert isinstance(storage.parse_json_object("x", data), dict)


def test_pipes_are_written_through_and_kept(tmp_path: Path) -> None:
    """A name that is a pipe (or a device) receives the bytes; it is never replaced by a regular file."""
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        storage.write_text(pipe, "hello")
        assert os.read(reader, 100) == b"hello"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_links_stay_links(tmp_path: Path) -> None:
    """Writing to a symbolic link writes the file it points to."""
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    storage.write_text(tmp_path / "link.json", "hello")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "file.json").read_text() == "hello"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_full_disk_names_the_file() -> None:
    """Running out of space is an error that says for which file."""
    with pytest.raises(OSError, match="No space left") as caught:
        storage.write_text("/dev/full", "hello")
    assert caught.value.filename == "/dev/full"


DIE_WRITING = """
import os, signal, sys
from edgeopt import storage
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
storage.write_atomic(sys.argv[1], write)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_writer_that_is_killed_changes_nothing(tmp_path):
    """After kill -9 half-way the old file is whole, and what was half written goes when the folder is opened again."""
    path = tmp_path / "checkpoint"
    storage.write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", DIE_WRITING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    storage.open_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_opening_a_folder_leaves_living_writers_and_other_files_alone(tmp_path):
    """What is being written, in this process or another, is finished; files with names like ours are kept."""
    for name in (".part", ".notes.part", "download.12345678.part"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.12345678.part").mkdir()

    def write(file):
        file.write(b"first ")
        storage.open_folder(tmp_path)
        file.write(b"second")

    storage.write_atomic(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "first second"
    names = {".part", ".notes.part", "download.12345678.part", ".folder.12345678.part", "file"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_file_taken_for_a_leftover_is_begun_again(tmp_path, monkeypatch):
    """A partial file that is removed before its writer could lock it costs nothing."""
    removed = []

    def lose_the_first(file):
        if not removed:
            removed.extend(tmp_path.glob(".*.part"))
            removed[0].unlink()
        return True

    monkeypatch.setattr(storage, "try_lock", lose_the_first)
    storage.write_text(tmp_path / "file", "text")
    assert len(removed) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_that_is_no_utf8_is_escaped(tmp_path):
    """Bytes of a file name that are no text, as Python hands them over, do not keep a file from being written."""
    storage.write_text(tmp_path / "file", "a\udce9é")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "a\\udce9é"
