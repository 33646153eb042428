"""Run a command that must not outlive the process that asked for it: ``python tether.py COMMAND ARGUMENT...``.

That process holds the other end of standard input. When it is gone, however it ended, the whole process group is killed:
start this one in a group of its own. Run by its path, it imports nothing of the package and stays small.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(command: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    # what is sent to the group ends the command; this process tells how. A handler, unlike SIG_IGN, is not inherited
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # the thread would hold up any other way out
