"""What the experiments share."""

import io
import sys
from pathlib import Path

import pytest

from edgeopt.evaluation.studies.common import parser, write


def test_tables_are_printed_whatever_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal of ASCII, signs of other alphabets are escaped, and the files hold them as they are."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    arguments = parser("Text.", ["--out", str(tmp_path)], options=lambda _: None)
    write(arguments, {"table": [{"energy": "1 ± 2"}]})
    sys.stdout.flush()
    assert b"1 \\xb1 2" in output.getvalue()
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "energy\n1 ± 2\n"
