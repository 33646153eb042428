"""The repository itself: nothing that tools leave behind."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_BY_TOOLS = (".orig", ".rej", ".bak", ".tmp", ".part", "~")

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def test_no_file_left_by_a_tool():
    """No backup, rejected patch or partial file is under version control."""
    assert [name for name in tracked() if name.endswith(LEFT_BY_TOOLS)] == []
