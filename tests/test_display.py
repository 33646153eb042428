"""What is printed is one readable line, what a notebook shows a small table; neither holds the values of arrays."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, Schedule, StaticPlanner
from edgeopt.data import digits, iid
from edgeopt.display import LONGEST, brief, headline, html_facts, html_rows, one_line
from edgeopt.evaluation.compare import comparison_rows
from edgeopt.models import mlp
from edgeopt.problems import PROBLEMS, ClientSelection, ExpertCaching, bundled_trace
from edgeopt.solvers import solvers_of
from edgeopt.solvers.client_selection.hmm import CategoricalHMM
from edgeopt.training import EdgeTiming, FedAvg, SelectionTiming, SplitFed, Task, train

BEYOND = LONGEST + 60
"""Characters that a line may take: the last field can be a little over."""
HOLDS_ARRAYS = re.compile(r"ndarray|NDArray|Tensor|torch\.nn|ArrayLike")
PACKAGES = (
    "edgeopt.coding",
    "edgeopt.data",
    "edgeopt.experiment",
    "edgeopt.fusion",
    "edgeopt.inference",
    "edgeopt.models",
    "edgeopt.privacy",
    "edgeopt.problems",
    "edgeopt.rl",
    "edgeopt.training",
)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Return one object of each class that users meet, of a size at which its values fill pages."""
    problems = {kind.__name__: kind.random(seed=0) for kind in PROBLEMS}
    baselines = {name: solvers_of(problem.kind)[-1] for name, problem in problems.items()}
    results = {name: edgeopt.solve(problem, baselines[name], seed=0) for name, problem in problems.items()}
    data, plan = digits(), RoundPlan(client=range(20), batch_size=8, cut_layer=1)
    model = mlp((1, 8, 8), hidden=(16, 16))
    task = Task(model=model, train=data.train, partition=iid(len(data.train), 20, 0), test=data.test)
    timing = EdgeTiming.from_network(EdgeNetwork.random(1, 20, seed=0))
    rounds: list[Any] = []
    history = train(task, SplitFed(), StaticPlanner(plan), timing, rounds=12, evaluate_every=2, on_round=rounds.append)
    caching = problems["ExpertCaching"]
    assert isinstance(caching, ExpertCaching)
    selection = problems["ClientSelection"]
    assert isinstance(selection, ClientSelection)
    found = problems | {f"result of {name}": result for name, result in results.items()}
    found |= {f"solution of {name}": result.solution for name, result in results.items()}
    found |= {
        "network": EdgeNetwork.random(3, 50, seed=0), "profile": edgeopt.model_profile("resnet50"),
        "plan": plan, "schedule": Schedule((plan,) * 30), "planner": StaticPlanner(plan), 
        "data": data, "partition": task.partition, "task": task, "timing": timing, "history": history,
        "record": history.last, "phase": history.last.phases[0], "selection timing": SelectionTiming(problem=selection),
        "trace": bundled_trace("switch32"), "routed": caching.models[0], "steps": results["ExpertCaching"].history,
        "cache report": caching.report(results["ExpertCaching"].solution),
        "hmm": CategoricalHMM.random(3, 40), "violation": edgeopt.Violation("storage", 0, 1.0, "too much"),
        "rows": comparison_rows(caching, ["greedy", "random"], range(6), executor="serial")[0],
        "algorithm": FedAvg(),
    }  # fmt: skip
    return found


def test_every_repr_is_one_readable_line(shown: dict[str, Any]):
    """Whatever is printed takes one line and starts with what it is."""
    for name, value in shown.items():
        text = repr(value)
        assert "\n" not in text, name
        assert len(text) <= BEYOND, f"{name}: {len(text)} characters: {text}"
        assert text.startswith(type(value).__name__), name
        assert not re.search(r"array\(|tensor\(", text), name


def test_notebooks_show_small_tables(shown: dict[str, Any]):
    """Problems, results, histories and rows are well-formed tables of a few lines in a notebook."""
    kinds = [kind.__name__ for kind in PROBLEMS]
    for name in [*kinds, *(f"result of {kind}" for kind in kinds), "history", "rows"]:
        table = Cells(shown[name]._repr_html_())
        assert table.open == [], name
        assert 2 <= table.rows <= 30, name
        assert len(shown[name]._repr_html_()) < 6000, name


def test_a_history_shows_its_first_and_last_rounds(shown: dict[str, Any]):
    """Of twelve rounds ten lines are shown, and one for those between; the numbers are those of the rows."""
    history = shown["history"]
    table = Cells(history._repr_html_())
    assert table.rows == 1 + 10 + 1
    rounds = [cell for cell in table.cells if cell in map(str, range(12))]
    assert rounds[:5] == ["0", "1", "2", "3", "4"]
    assert brief(history.rows[-1]["accuracy"]) in table.cells
    assert f"{history.rows[-1]['accuracy']:.4g}" in repr(history)


def test_a_result_shows_objective_and_gap(shown: dict[str, Any]):
    """Line and table have the objective, and the gap where there is a bound."""
    result = edgeopt.solve(shown["ExpertCaching"], "greedy")
    assert f"objective {result.objective:.6g}, gap {100 * result.gap:.4g} %" in repr(result)
    assert {brief(result.objective), brief(result.bound)} <= set(Cells(result._repr_html_()).cells)


def test_names_are_escaped():
    """A name that is markup stays text, as heading, as name and as value."""
    name = "<script>alert(1)</script>"
    assert "<script" not in html_facts(name, {name: name}) + html_rows(name, [{name: name}], [name])
    assert Cells(html_facts(name, {name: name})).cells.count(name) == 3


def test_missing_numbers_are_dashes():
    """What was not measured is a dash, what lies beyond all numbers is said."""
    cells = Cells(html_rows("", [{"a": None, "b": float("nan"), "c": float("inf")}], ["a", "b", "c", "d"])).cells
    assert cells[-4:] == ["–", "–", "inf", "–"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(2000), "int64[2000]"),
        (np.array([0.5, 1 / 3]), "[0.5, 0.333333]"),
        (np.array(7, np.int32), "7"),
        (np.zeros((2, 0)), "float64[2, 0]"),
        ({i: np.zeros(9) for i in range(1000)}, "{0: float64[9], 1: float64[9], ...}"),
        ("x" * 500, repr("x" * 17 + "..." + "x" * 18)),
        ([[[[1]]]], "[[[...]]]"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_brief(value: Any, expected: str):
    """A few words say what a value is, and the value itself where it is short."""
    assert brief(value) == expected


def test_one_line_leaves_out_what_is_private():
    """Private fields and those without a repr are left out; a long line is cut and says so."""

    @dataclasses.dataclass
    class Many:
        first: int = 1
        _private: int = 2
        quiet: int = dataclasses.field(default=3, repr=False)
        some: str = "s" * 50
        more: str = "m" * 50
        words: str = "w" * 50
        last: str = "z" * 50
        __repr__ = one_line

    text = repr(Many())
    assert text.startswith("Many(first=1, some='ssss")
    assert text.endswith(", ...)")
    assert "private" not in text
    assert "quiet" not in text
    assert len(text) <= BEYOND


def test_headline_cuts():
    """Facts beyond a line are left out, with a sign."""
    assert headline({f"things of kind {i}": i for i in range(50)}).endswith(", ...")


def modules() -> Iterator[Any]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not found.name.rpartition(".")[2].startswith("flower"):  # needs its extra
                yield importlib.import_module(found.name)
    for name in ("schedule", "convergence", "network", "profile", "result"):
        yield importlib.import_module(f"edgeopt.{name}")


def test_no_dataclass_prints_its_arrays():
    """Every public dataclass that holds arrays, tensors or layers has a repr of its own, see `edgeopt.display.one_line`."""
    kinds = {kind for module in modules() for kind in vars(module).values() if isinstance(kind, type)}
    made = {kind for kind in kinds if dataclasses.is_dataclass(kind) and not kind.__name__.startswith("_")}
    layers = {kind.__name__ for kind in kinds if any(base.__name__ == "Module" for base in kind.__mro__)}
    assert len(made) > 30
    assert "Denoiser" in layers
    holds_many = re.compile(rf"{HOLDS_ARRAYS.pattern}|\b({'|'.join(layers)})\b")
    printing = [
        f"{kind.__module__}.{kind.__name__}"
        for kind in made
        if any(
            field.repr and holds_many.search(str(field.type)) and "Callable" not in str(field.type)
            for field in dataclasses.fields(kind)
        )
        and getattr(kind.__repr__, "__qualname__", "").endswith(f"{kind.__name__}.__repr__")
        and hasattr(kind.__repr__, "__wrapped__")  # made by dataclasses
    ]
    assert printing == []


class Cells(HTMLParser):
    """The cells of a table, its number of rows, and the elements that were left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)
