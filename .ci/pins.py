"""Write the newest versions that pyproject.toml allows, for each supported Python, to constraints.txt; show what changed.

Run by `make pins`, with the pip of an environment of its own. Nothing is installed: pip only reports what it would install.
"""

import difflib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"
HEAD = """\
# The versions that are tested: all that `make run`, `test`, `lint`, `types` and `docs` install. Written by `make pins`.
"""
PYTHONS = ("3.11", "3.12", "3.13")
OF_TORCH = re.compile(r"nvidia-|cuda-|triton")  # builds of torch that bring them pin them themselves


def requirements(project: dict, names: list[str]) -> list[str]:
    """Return the requirements of some extras, with what they refer to."""
    found = []
    for name in names:
        for requirement in project["optional-dependencies"][name]:
            own = re.fullmatch(r"edgeopt\[(.*)\]", requirement)
            found += requirements(project, own[1].split(",")) if own else [requirement]
    return found


def resolve(python: str, wanted: list[str]) -> dict[str, str]:
    """Return the version of each package that pip would install, without build labels such as ``+cpu``."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-",
        "--only-binary=:all:", "--python-version", python, "--target", "unused", "-c", str(ROOT / "constraints-held.txt"),
    ]  # fmt: skip
    done = subprocess.run([*command, *wanted], stdout=subprocess.PIPE, text=True, check=True)
    packages = (entry["metadata"] for entry in json.loads(done.stdout)["install"])
    versions = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].partition("+")[0] for p in packages}
    return {name: version for name, version in versions.items() if not OF_TORCH.match(name)}


def lines(versions: dict[str, dict[str, str]]) -> list[str]:
    """Return one line for a package that all Pythons share, else one for each version, with a marker."""
    found = []
    for name in sorted(set().union(*versions.values())):
        pythons: dict[str | None, list[str]] = {}
        for python in PYTHONS:
            pythons.setdefault(versions[python].get(name), []).append(python)
        for version, some in pythons.items():
            marker = " or ".join(f'python_version == "{python}"' for python in some)
            if version is not None:
                found.append(f"{name}=={version}" + (f" ; {marker}" if len(some) < len(PYTHONS) else ""))
    return found


def main() -> None:
    """Write the file and print the difference."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = metadata["project"]
    wanted = ["pip"] + metadata["build-system"]["requires"] + project["dependencies"] + requirements(project, ["dev"])
    versions = {python: resolve(python, wanted) for python in PYTHONS}
    before, after = FILE.read_text(encoding="utf-8"), HEAD + "\n".join(lines(versions)) + "\n"
    FILE.write_text(after, encoding="utf-8")
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", FILE.name, lineterm="", n=0)
    print("\n".join(changed) or "nothing has changed")


if __name__ == "__main__":
    main()
