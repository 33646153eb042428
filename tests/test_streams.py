"""What native code prints does not reach standard output: neither a command's document nor a caller's terminal."""

import json
import subprocess
import sys
from pathlib import Path

from tests.evaluation.fake_solvers import tiny_problem

# A back end that prints from native code, at once and into a buffer that is written at the exit, and from a child.
NOISY = """
import ctypes, os, sys
from edgeopt.problems import ExpertCaching
def noise(objective):
    def noisy(self, *args):
        libc = ctypes.CDLL(None)
        os.write(1, b"written\\n")
        libc.puts(b"buffered")
        os.system("echo from a child")
        return objective(self, *args)
    return noisy
ExpertCaching.objective = noise(ExpertCaching.objective)
"""


def output(code: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=folder)


def test_native_output_of_a_command_goes_to_standard_error(tmp_path: Path):
    """Standard output of ``solve --json`` is one document, however native code and its children print beside it."""
    tiny_problem().save(tmp_path / "tiny.json")
    code = NOISY + "from edgeopt.cli import main\nmain()\n"
    done = output(code, "solve", str(tmp_path / "tiny.json"), "--solver", "greedy", "--json")
    assert json.loads(done.stdout)["solver"] == "greedy"
    assert {"written", "buffered", "from a child"} <= set(done.stderr.splitlines())


def test_native_output_of_workers_goes_to_standard_error(tmp_path: Path):
    """The same in the worker processes of ``compare --jobs 2 --json``, which import what prints."""
    tiny_problem().save(tmp_path / "tiny.json")
    code = NOISY + "if __name__ == '__main__':\n    from edgeopt.cli import main\n    main()\n"
    (tmp_path / "command.py").write_text(code)
    words = ["compare", "tiny.json", "--solvers", "greedy,random", "--jobs", "2", "--json"]
    command = [sys.executable, "command.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path)
    assert [row["solver"] for row in json.loads(done.stdout)] == ["greedy", "random"]
    assert "written" in done.stderr


def test_printing_goes_on_when_standard_error_is_closed():
    """Without a standard error native output is dropped, not mixed in, and Python's own still arrives."""
    code = (
        "import os\nfrom edgeopt.streams import reserve_stdout\n"
        "os.close(2)\nreserve_stdout()\nreserve_stdout()\nos.write(1, b'noise')\nprint('ours')\n"
    )
    assert output(code).stdout == "ours\n"


def test_captured_output_is_left_alone():
    """Where `sys.stdout` is not the process's own, as in a notebook, nothing changes."""
    code = "import io, os, sys\nfrom edgeopt.streams import reserve_stdout\n{}\nreserve_stdout()\nos.write(1, b'x')\n"
    for replaced in ("sys.stdout = io.StringIO()", "sys.stdout = None", "sys.stdout = io.BytesIO()"):
        assert output(code.format(replaced)).stdout == "x"


def test_back_ends_are_silent_in_a_library_call():
    """`edgeopt.solve` prints nothing at all, to neither stream, where back ends are loaded for the first time."""
    code = (
        "import edgeopt\n"
        "from edgeopt.evaluation.instances.library import load_instance\n"
        "for solver in ('milp', 'lagrangian', 'cp-sat'):\n"
        "    assert edgeopt.solve(load_instance('facility-tiny'), solver).status == 'optimal'\n"
    )
    done = output(code)
    assert (done.stdout, done.stderr) == ("", "")
