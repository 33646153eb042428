"""The repository itself: nothing that tools leave behind."""

import ast
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


# --- imports -----------------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Return the files of the package by the names that they are imported under."""
    names = [Path(name) for name in tracked() if name.endswith(".py")]
    roots = {"edgeopt": (), "problems": ("edgeopt",), "solvers": ("edgeopt",), "evaluation": ("edgeopt",)}
    return {
        ".".join((*roots[name.parts[0]], *name.with_suffix("").parts)).removesuffix(".__init__"): ROOT / name
        for name in names
        if name.parts[0] in roots
    }


def imports() -> dict[str, set[str]]:
    """Return which files each file takes names from, wherever in it the import stands.

    A name that a package only hands on is taken from the file that defines it.
    """
    files = modules()
    lines = {
        name: [
            (node.module, alias.name)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        ]
        for name, path in files.items()
    }

    def home(package: str, name: str) -> str:
        if f"{package}.{name}" in files:
            return f"{package}.{name}"
        if package in files and files[package].name == "__init__.py":
            handed_on = [origin for origin, imported in lines[package] if imported == name and origin != package]
            return home(handed_on[0], name) if handed_on else package
        return package

    return {name: {home(*line) for line in lines[name]} & files.keys() - {name} for name in files}


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of files that can each be reached from each other."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            fresh = arrows[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        return seen

    reach = {name: reached(name) for name in arrows}
    found = [{other for other in reach[name] if name in reach[other]} for name in arrows if name in reach[name]]
    return [circle for i, circle in enumerate(found) if circle not in found[:i]]


def test_circles_are_found():
    """Two files that import each other are a circle; one that imports them, and is not imported, is none of it."""
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": set(), "d": {"a"}}) == [{"a", "b"}]


def test_no_file_imports_one_that_imports_it():
    """No circle of imports, not for types and not inside functions either; packages that load on first use are left out."""
    arrows = imports()
    faces = {name for name, path in modules().items() if path.name == "__init__.py"}
    between = {name: targets - faces for name, targets in arrows.items() if name not in faces}
    assert circles(between) == []
    assert "edgeopt.problems.model_download.build" in between["edgeopt.problems.model_download.problem"]
