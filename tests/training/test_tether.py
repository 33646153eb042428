"""Commands that must not outlive the process that asked for them."""

import os
import signal
import subprocess
import sys

import pytest

from edgeopt.training import tether

pytestmark = pytest.mark.skipif(os.name == "nt", reason="process groups")


def tethered(code: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-I", tether.__file__, sys.executable, "-c", code]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


WAIT = "import threading; print('here', flush=True); threading.Event().wait()"


def test_a_command_ends_when_its_owner_is_gone():
    """When the other end of standard input is closed, as kill -9 closes it, the command ends, too."""
    with tethered(WAIT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.stdin.close()
        assert process.stdout.read() == ""  # the command has the other end: it has ended
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("status", [0, 3])
def test_its_exit_status_is_passed_on(status: int):
    """A command that ends by itself is heard of at once."""
    with tethered(f"raise SystemExit({status})") as process:
        assert process.wait() == status


def test_a_signal_for_the_group_ends_the_command():
    """What asks the group to end reaches the command, and its end is told as a shell does."""
    with tethered(WAIT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
