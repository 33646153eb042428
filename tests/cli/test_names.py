"""What the command line and its page say there is, is what the registries hold."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from edgeopt import cli
from edgeopt.cli.names import REGISTRIES, names_of
from edgeopt.experiment.config import KINDS
from edgeopt.experiment.planners import kind_of_solver
from edgeopt.problems import PROBLEMS
from edgeopt.problems.client_selection.problem import Mode
from edgeopt.problems.expert_caching.problem import Latency
from edgeopt.solvers import solvers_of
from edgeopt.training.algorithms import ALGORITHMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
needs_page = pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no documentation beside it")
TOP: Any = get_command(cli.app)


def help_of(*words: str) -> str:
    """Return the help of a command, its lines joined."""
    done = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.stderr
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())


def commands() -> list[tuple[str, ...]]:
    made = [(name,) for name in TOP.commands if name != "generate"]
    return made + [("generate", name) for name in TOP.commands["generate"].commands]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_lists_what_the_registries_hold(words: tuple[str, ...]):
    """Every ``$word`` of a command's help is a registry, and is shown as the names in it."""
    command = TOP
    for word in words:
        command = command.commands[word]
    asked = [word for option in command.params for word in re.findall(r"\$(\w+)", getattr(option, "help", "") or "")]
    shown = help_of(*words)
    assert "$" not in shown
    for word in asked:
        assert ", ".join(names_of(word)) in shown


def test_every_registry_is_asked_for():
    """No entry of the table is left over."""
    source = "".join(path.read_text() for path in Path(str(cli.__file__)).parent.glob("*.py"))
    assert set(re.findall(r"\$(\w+)", source)) - {"word"} == set(REGISTRIES)


def test_names_are_those_of_the_registries():
    """Classes are listed by their names, problems by their kinds."""
    assert names_of("algorithms") == [algorithm.name for algorithm in ALGORITHMS]
    assert names_of("kinds") == [problem.kind for problem in PROBLEMS]


def test_every_kind_of_problem_can_be_generated():
    """There is one command of `edgeopt generate` for each kind of problem, and it names all modes."""
    assert list(TOP.commands["generate"].commands) == [problem.kind for problem in PROBLEMS]
    assert all(mode in help_of("generate", "expert-caching").split("--latency")[1] for mode in get_args(Latency))
    assert all(mode in help_of("generate", "client-selection").split("--mode")[1] for mode in get_args(Mode))


@pytest.mark.parametrize(
    "word", ["algorithms", "codecs", "data_sets", "models", "partitions", "planners", "precisions", "runners"]
)
def test_the_page_names_them_all(word: str):
    """The page of the command line has every name that its options take."""
    missing = [name for name in names_of(word) if not re.search(rf"\b{re.escape(name)}\b", PAGE.read_text())]
    assert not missing, f"docs/command-line.md lacks {missing}"


@needs_page
def test_the_page_names_every_solver_that_plans():
    """The page has every solver whose plans can be trained under, with its kind where another planner has its name."""
    page = PAGE.read_text()
    for kind in KINDS:
        for solver in solvers_of(kind):
            name = solver.name if kind_of_solver(solver.name) == kind else f"{kind}/{solver.name}"
            assert f"`{name}`" in page, name


def test_help_without_an_extra():
    """Where torch is missing, help is shown all the same and says where to look."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['edgeopt', 'train', '--help']\n"
        "from edgeopt import cli; cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
    assert "dirichlet" in done.stdout


@pytest.mark.parametrize("module", ["torch", "pandas", "numba"])
def test_the_command_line_starts_light(module: str):
    """Importing the command line loads nothing heavy."""
    code = f"import sys, edgeopt.cli; print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
