"""The documentation says what the code does: names, solvers, guarantees, examples, links, packages."""

import functools
import importlib
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt import (
    coding,
    convergence,
    data,
    evaluation,
    experiment,
    fusion,
    inference,
    models,
    privacy,
    problems,
    rl,
    schedule,
    solvers,
    training,
)
from edgeopt.evaluation import studies
from edgeopt.evaluation.listing import describe_solver, with_registered
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES
from edgeopt.extras import EXTRAS
from edgeopt.solvers import KINDS, solvers_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
HEAVY = ("torch", "cvxpy", "ortools", "highspy", "pandas", "matplotlib", "numba", "distributed")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="an installed package has no documentation beside it")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


# --- solvers and guarantees ---------------------------------------------------------------------------------------


def solver_rows(kind: str) -> list[list[str]]:
    """Return the cells of the table of the solvers of a kind, in the guide that has it."""
    marker = f"<!-- solvers: {kind};"
    (guide,) = [page for page in PAGES if marker in page.read_text(encoding="utf-8")]
    after = guide.read_text(encoding="utf-8").split(marker, 1)[1].split("\n\n", 2)[1].splitlines()
    table = [line for line in after if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.parametrize("kind", KINDS)
def test_solver_tables(kind: str):
    """The tables list exactly the registered solvers, in their order, with the guarantee that each one states."""
    stated = [(row[0].strip("`"), row[1]) for row in solver_rows(kind)]
    registered = [(solver.name, str(solver.guarantee)) for solver in solvers_of(kind)]
    assert stated == registered, f"{kind}: the table should have the rows {registered}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_says_how_long_it_takes(kind: str):
    """The guide has a time for every solver whose docstring states a complexity."""
    for name, _, does, time, supports in solver_rows(kind):
        solver = solvers.get_solver(kind, name.strip("`"))
        assert does
        assert supports
        assert ("O(" in time) == bool(describe_solver(kind, solver)["complexity"]), name


def test_extras_are_listed():
    """The quick start says of every extra that a user installs what it adds."""
    assert set(re.findall(r"^\| `([a-z]+)` \|", text("docs/quickstart.md"), re.MULTILINE)) == set(EXTRAS)


def test_pictures_of_solutions_are_of_kinds_that_there_are():
    """Pictures are looked up by kind of problem; a misspelt one would never be drawn."""
    assert set(SOLUTION_PICTURES) <= set(KINDS)


def test_the_table_of_studies():
    """The table lists exactly the registered studies, in their order."""
    table = text("docs/studies.md").split("| study | system |", 1)[1].split("\n\n", 1)[0]
    assert tuple(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == studies.STUDIES


def test_the_guide_has_a_row_for_every_codec():
    """In the order in which they are registered."""
    table = text("docs/codecs.md").split("## Codecs", 1)[1].split("## ", 1)[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == [codec.name for codec in training.CODECS]


# --- the reference ------------------------------------------------------------------------------------------------


@functools.cache
def reference() -> str:
    """Return the API page as the documentation shows it."""
    return with_registered(text("docs/api.md"))


def public_names(module: types.ModuleType) -> Iterator[str]:
    """Yield what a module re-exports (``import x as x``) or defines itself."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    exported = set(re.findall(r"import (\w+) as \1\b", source))
    for name in sorted(exported | set(vars(module))):
        value = getattr(module, name)
        own = inspect.isroutine(value) and value.__module__ == module.__name__
        constant = name.isupper() and name != "TYPE_CHECKING"
        if not name.startswith("_") and not inspect.ismodule(value) and (name in exported or own or constant):
            yield name


MODULES = [
    edgeopt, convergence, schedule, problems, solvers, evaluation, studies, data, models, training, inference, rl, coding, fusion, privacy, experiment,
    *(importlib.import_module("edgeopt.solvers." + kind.replace("-", "_")) for kind in KINDS),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_name(module: types.ModuleType):
    """Every public name is on the API page, under this module's name or that of the module that defines it."""
    directives = set(re.findall(r"^::: ([\w.]+)$", reference(), re.MULTILINE))
    names = [name for name in public_names(module) if (module, name) != (problems, "load")]  # it is edgeopt.load
    assert names
    missing = [name for name in names if not any(_covers(module, name, directive) for directive in directives)]
    assert not missing, f"docs/api.md lacks {missing} of {module.__name__}"


def _covers(module: types.ModuleType, name: str, directive: str) -> bool:
    """Whether a directive is this very name: here, where it is defined, or in the package that it comes from."""
    where, _, last = directive.rpartition(".")
    return last == name and getattr(importlib.import_module(where), name, None) is getattr(module, name)


def test_the_reference_has_nothing_else():
    """Every name on the API page exists."""
    for directive in re.findall(r"^::: ([\w.]+)$", reference(), re.MULTILINE):
        module, _, name = directive.rpartition(".")
        assert hasattr(importlib.import_module(module), name), directive


# --- examples -----------------------------------------------------------------------------------------------------

NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
EXAMPLES = ["README.md", *(f"docs/{page.name}" for page in sorted(DOCS.glob("*.md")) if page.name != "add-a-solver.md")]


def cells(notebook: Path, kind: str) -> list[Any]:
    """Return the cells of a notebook that are of a kind."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def examples() -> Iterator[Any]:
    """Yield by name the blocks of code of every page and notebook that has any."""
    for page in EXAMPLES:
        if blocks := code_blocks(text(page)):
            yield pytest.param(blocks, id=page)
    for notebook in NOTEBOOKS:
        yield pytest.param(["".join(cell["source"]) for cell in cells(notebook, "code")], id=f"docs/{notebook.name}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("blocks", [*examples()])
def test_examples_run(blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Python blocks of a page run one after another, with time limits as short as the machine lets them be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edgeopt, "solve", _hurried(edgeopt.solve))
    module = {"__name__": "example"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), module)  # noqa: S102 - our own pages


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebooks_are_kept_without_what_they_gave(notebook: Path):
    """Outputs are made when the pages are built: none is under version control, so that changes can be read."""
    assert cells(notebook, "code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook, "code"))


def _hurried(solve: Any) -> Any:
    def hurried(*arguments: Any, time_limit: float = 1.0, **options: Any) -> Any:
        limit = min(1.0, time_limit)
        while (result := solve(*arguments, time_limit=limit, **options)).solution is None and result.limit == "time":
            limit *= 4
        return result.raise_for_status()

    return hurried


def test_the_solver_of_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The solver of `add-a-solver` is a file of its own; it solves, keeps limits, repeats, and stays under fifty lines."""
    solver, use = code_blocks(text("docs/add-a-solver.md"))[:2]
    assert solver.count("\n") <= 50
    (tmp_path / "swap_search.py").write_text(solver)
    (tmp_path / "use.py").write_text(use)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        made = runpy.run_path(str(tmp_path / "use.py"))
        problem, result, mine = made["problem"], made["result"], made["SwapSearch"](proposals=200)
        assert result.status in ("feasible", "optimal")
        assert set(made["frame"]["status"]) <= {"feasible", "optimal"}
        assert edgeopt.solve(problem, mine, seed=7).solution == result.solution
        assert edgeopt.solve(problem, mine, time_limit=0).limit == "time"
        warm = edgeopt.solve(problem, mine, initial_solution=edgeopt.solve(problem, "greedy").solution)
        assert warm.objective >= edgeopt.solve(problem, "greedy").objective
    finally:
        sys.modules.pop("swap_search", None)


def test_the_algorithm_of_the_guide_works_inside_the_package(tmp_path: Path):
    """The file of `add-an-algorithm`, put among the algorithms and registered, is found by its name and trains."""
    package = tmp_path / "edgeopt"
    shutil.copytree(Path(str(edgeopt.__file__)).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    algorithms = package / "training" / "algorithms"
    (algorithms / "sign_vote.py").write_text(code_blocks(text("docs/add-an-algorithm.md"))[0])
    registry = (algorithms / "__init__.py").read_text()
    line = "from edgeopt.training.algorithms.sign_vote import SignVote as SignVote\n\nALGORITHMS"
    registry = registry.replace("\nALGORITHMS", line, 1).replace("] = (\n", "] = (\n    SignVote,\n", 1)
    (algorithms / "__init__.py").write_text(registry)
    code = (
        "from edgeopt.experiment import Experiment\n"
        "run = Experiment.from_dict({'rounds': 1, 'data': {'clients': 3}, 'algorithm': {'name': 'sign-vote', 'step': 0.02},"
        " 'model': {'name': 'mlp'}})\n"
        "print(len(run.run().rows), run.build().algorithm)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith("1 SignVote(step=0.02"), done.stderr[-2000:]


def test_shell_examples_name_what_exists():
    """Commands in the documentation use options that exist, and targets that the Makefile has."""
    from typer.main import get_command

    from edgeopt.cli import app

    top: Any = get_command(app)
    groups = {name: group.commands for name, group in top.commands.items() if hasattr(group, "commands")}
    commands = top.commands | {
        f"{name} {kind}": command for name, kinds in groups.items() for kind, command in kinds.items()
    }
    of_any_kind = {
        option for kinds in groups.values() for kind in kinds.values() for parameter in kind.params for option in parameter.opts
    }  # fmt: skip
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        shell = [line for block in code_blocks(content, "sh") for line in block.splitlines()]
        shell += re.findall(r"`((?:edgeopt|make) [^`]+)`", content)
        for line in shell:
            words = line.split("#")[0].split()
            if words[:1] == ["make"] and len(words) > 1 and words[1].isidentifier():
                assert words[1] in targets, f"{page.name}: {line}"
            if words[:1] == ["edgeopt"] and words[1:2] and words[1] in top.commands:
                name = " ".join(words[1:3]) if words[1] in groups else words[1]
                given = commands.get(name)  # none for `edgeopt generate KIND`
                known = {option for parameter in given.params for option in parameter.opts} if given else of_any_kind
                used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
                assert used <= known | {"--help", "--debug"}, f"{page.name}: {line}"


# --- links and layout ---------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """Return what a page says; of a notebook, its text without the code."""
    if page.suffix == ".ipynb":
        return "\n\n".join("".join(cell["source"]) for cell in cells(page, "markdown"))
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_internal_links(page: Path):
    """Every relative link leads to a file, and its anchor to a heading (or, on the API page, to a name)."""
    content = re.sub(r"^```.*?^```", "", prose(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        assert ROOT in (there, *there.parents), f"{page.name}: {target} leads out of the project"
        if anchor and there.name == "api.md":
            assert f"::: {anchor}\n" in reference(), f"{page.name}: {target}"
        elif anchor:
            assert anchor in _anchors(there), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_navigation_has_every_page():
    """Every page of docs/ is in the navigation, and nothing else."""
    listed = re.findall(r": ([\w-]+\.(?:md|ipynb))$", text("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in [*DOCS.glob("*.md"), *NOTEBOOKS])


def test_pages_load_nothing_from_elsewhere():
    """No page and no setting pulls fonts, scripts or pictures from another site."""
    for name in ("mkdocs.yml", *(f"docs/{page.name}" for page in DOCS.glob("*.md")), "docs/extra.css"):
        assert not re.search(r"<script|!\[[^\]]*\]\(http|@import|url\(|cdn", text(name)), name
    assert "font: false" in text("mkdocs.yml")


def test_packages_are_all_listed():
    """`packages` in pyproject.toml is the tree of packages: a missing one would be missing from every wheel."""
    setup = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]
    found = {"edgeopt"}
    for name in ("edgeopt", "problems", "solvers", "evaluation"):
        for file in (ROOT / name).rglob("__init__.py"):
            inner = file.parent.relative_to(ROOT).parts
            found.add(".".join(inner if name == "edgeopt" else ("edgeopt", *inner)))
    assert sorted(setup["packages"]) == sorted(found)
    assert set(setup["package-dir"].values()) == {"edgeopt", "problems", "solvers", "evaluation"}


def test_import_is_light():
    """`import edgeopt` loads no back end, no compiler, no data frames and no pictures."""
    code = f"import sys, edgeopt; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_changelog_headings():
    """The changelog has this version, and only the fixed headings."""
    headings = set(re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE))
    assert headings <= {"Added", "Changed", "Fixed", "Removed"}
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert f"## {version}" in text("CHANGELOG.md")
    assert f"\nversion: {version}\n" in text("CITATION.cff")
