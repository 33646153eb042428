"""What is optional says which extra brings it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgeopt.errors import MissingDependencyError
from edgeopt.extras import EXTRAS, needs

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@pytest.mark.skipif(not PYPROJECT.exists(), reason="an installed package has no pyproject.toml beside it")
def test_table_is_that_of_the_project():
    """Every package of the table is what its extra in pyproject.toml installs, by the name it has there."""
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        required = {re.split(r"[<>=\[]", requirement)[0] for requirement in declared[extra]}
        required = {"distributed" if name == "dask" else name for name in required} - {"edgeopt"}
        assert required == set(packages), extra


def test_installed_names_are_known():
    """The names are those of distributions, as `edgeopt info` looks them up."""
    for package in (*EXTRAS["report"], *EXTRAS["train"], *EXTRAS["rl"], *EXTRAS["cluster"]):
        assert importlib.metadata.version(package)


@pytest.mark.parametrize("package", ["coding", "data", "fusion", "inference", "models", "privacy", "rl", "training"])
def test_packages_without_torch_name_the_extra(package: str):
    """Reached as an attribute of edgeopt or imported, a package that needs torch says so in one sentence."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgeopt\n"
        f"for load in (lambda: edgeopt.{package}, lambda: __import__('edgeopt.{package}')):\n"
        "    try:\n"
        "        load()\n"
        "    except edgeopt.MissingDependencyError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(
        line.startswith("edgeopt.") and line.endswith(" needs torch: pip install 'edgeopt[train]'") for line in lines
    )


def test_faults_inside_the_package_are_not_hidden():
    """An import that fails for a module of edgeopt itself, or a broken package without a name, stays what it is."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as found, needs("this", "train"):
        import edgeopt.no_such_module  # noqa: F401
    assert not isinstance(found.value, MissingDependencyError)
    with pytest.raises(ImportError, match="libfoo"), needs("this", "train"):
        raise ImportError("libfoo.so: cannot open shared object file")
