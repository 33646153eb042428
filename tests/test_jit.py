"""Compiled kernels are kept on disk; whatever is wrong with what is kept costs time only."""

import errno
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from edgeopt import jit, storage

KERNEL = "from edgeopt.jit import kernel\n\n\n@kernel\ndef twice(value):\n    return value + value\n"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return a function that gives the kernel as a new process would have it: compiled or loaded at its first call."""
    (tmp_path / "doubling.py").write_text(KERNEL)
    monkeypatch.setenv("EDGEOPT_CACHE_DIR", str(tmp_path / "cache"))

    def load() -> Any:
        jit._complained.clear()
        spec = importlib.util.spec_from_file_location("doubling", tmp_path / "doubling.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.twice

    return load


def was_loaded(kernel: Any) -> bool:
    return sum(kernel.stats.cache_hits.values()) == 1


def the_file(folder: Path, suffix: str) -> Path:
    (found,) = (folder / "cache").rglob(f"*.{suffix}")
    return found


def test_kernels_are_kept(fresh: Callable[[], Any], caplog: pytest.LogCaptureFixture):
    """The second process loads what the first has compiled, and nobody complains."""
    first, second = fresh(), fresh()
    assert first(2) == second(2) == 4
    assert (was_loaded(first), was_loaded(second)) == (False, True)
    assert not caplog.records


def zero_a_block(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(16) + data[len(data) // 2 + 16 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "short": lambda data: data[:7],
    "garbage": lambda data: b"\xff\x00garbage" * 50,
    "zeros": lambda data: bytes(len(data)),
    "a block of zeros": zero_a_block,
    "numba's own": lambda data: pickle.dumps(numba.__version__),
    "another version's": lambda data: pickle.dumps("0.1") + b"whatever it had",
    "foreign code": lambda data: b"cno.such.module\nname\n.",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss(
    fresh: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, damage: str
):
    """The kernel is compiled again with one warning, and what it leaves is sound: the next process loads it."""
    fresh()(2)
    file = the_file(tmp_path, suffix)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    again, after = fresh(), fresh()
    assert again(2) == 4
    assert not was_loaded(again)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text
    assert after(2) == 4
    assert was_loaded(after)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_folder_in_place_of_a_file_costs_time_only(
    fresh: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
):
    """Every process compiles, and says so once; nothing of the folder is removed."""
    fresh()(2)
    file = the_file(tmp_path, suffix)
    file.unlink()
    file.mkdir()
    (file / "mine").touch()
    for number in (1, 2):
        kernel = fresh()
        assert kernel(2) == 4
        assert not was_loaded(kernel)
        assert len(caplog.records) == number
    assert (file / "mine").exists()


def test_a_full_disk_costs_time_only(
    fresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A kernel that cannot be kept still runs; one warning for all of them."""

    def full(path: str, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(storage, "write_atomic", full)
    kernel = fresh()
    assert (kernel(2), kernel(0.25)) == (4, 0.5)
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_what_can_only_be_read_is_used(
    fresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Kernels of a folder without permission to write, as that of a container's image, are loaded."""
    fresh()(2)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(storage, "open_folder", refuse)
    kernel = fresh()
    assert kernel(2) == 4
    assert was_loaded(kernel)
    assert not caplog.records
    assert kernel(0.25) == 0.5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_two_processes_that_extend_an_index_at_once(fresh: Callable[[], Any], tmp_path: Path):
    """If both name their file alike, the code of one type is never run for another."""
    fresh()(2)
    index = the_file(tmp_path, "nbi")
    with_whole_numbers = index.read_bytes()
    index.unlink()  # the second has not seen the first
    fresh()(0.25)
    assert len(list((tmp_path / "cache").rglob("*.nbc"))) == 1
    index.write_bytes(with_whole_numbers)  # and the first writes last
    kernel = fresh()
    assert (kernel(2), kernel(0.25)) == (4, 0.5)
    assert not was_loaded(kernel)


def test_another_release_compiles_anew(
    fresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Kernels call those of other files, so none of another release is used; that is nothing to warn of."""
    fresh()(2)
    monkeypatch.setattr(jit, "versions", lambda: {"edgeopt": "99"})
    kernel = fresh()
    assert kernel(2) == 4
    assert not was_loaded(kernel)
    assert not caplog.records


SUMS = """
from edgeopt.jit import parallel_kernel
from numba import prange
import numpy as np


@parallel_kernel
def sums(values):
    found = np.empty(values.shape[0])
    for row in prange(values.shape[0]):
        found[row] = values[row].sum()
    return found
"""


def test_one_thread_has_a_kernel_of_its_own(tmp_path: Path):
    """With one thread loops are plain, with two they are shared out; each loads what it compiled, and the numbers are the same to the bit."""
    (tmp_path / "adding.py").write_text(SUMS)
    code = (
        "import numpy as np; from adding import sums\n"
        "found = sums(np.random.default_rng(0).random((50, 7)))\n"
        "print(sums.targetoptions['parallel'], sum(sums.stats.cache_hits.values()), found.tobytes().hex())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
            env=os.environ | {"NUMBA_NUM_THREADS": threads, "EDGEOPT_CACHE_DIR": str(tmp_path / "cache")},
        ).stdout.split()
        for threads in ("1", "2", "1")
    ]  # fmt: skip
    assert [line[:2] for line in said] == [["False", "0"], ["True", "0"], ["False", "1"]]
    assert len({line[2] for line in said}) == 1


@pytest.mark.slow
def test_solvers_find_the_same_with_one_thread_and_with_two():
    """Solutions and bounds to the bit, of every kind: what is shared out are independent rows."""
    code = (
        "OTHERS = ('rl-', 'milp', 'cp-sat', 'generic')  # learn for minutes, or are no kernels of ours\n"
        "import edgeopt, json; from edgeopt.problems import PROBLEMS; from edgeopt.solvers import solvers_of\n"
        "for kind in PROBLEMS:\n"
        "    problem = kind.random(seed=0)\n"
        "    for solver in solvers_of(kind.kind):\n"
        "        if not solver.name.startswith(OTHERS) and solver.supports(problem) is None:\n"
        "            found = edgeopt.solve(problem, solver, seed=0, deterministic=True, stop=edgeopt.MaxIterations(20))\n"
        "            print(kind.kind, solver.name, json.dumps(found.solution.to_json()), found.bound)"
    )
    one, two = (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"NUMBA_NUM_THREADS": threads},
        ).stdout.splitlines()
        for threads in ("1", "2")
    )  # fmt: skip
    assert one == two
