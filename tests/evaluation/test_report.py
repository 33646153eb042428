"""The report: one file, complete, safe to open anywhere."""

import html.parser
import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import compare, comparison_rows, write_report
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.plots.comparison import performance_profile
from tests.evaluation.fake_solvers import Fake, tiny_problem
from tests.evaluation.plots import drawings

EVIL = "<script>alert('x')</script>&"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    problems = {"plain": tiny_problem(), EVIL: tiny_problem(2.0)}
    solvers = ["random", Fake(), Fake("raise"), Fake("skip")]
    rows, _ = comparison_rows(problems, solvers, seeds=(0, 1), executor="serial")
    for row in rows:
        if row["status"] == "error":
            row["message"] = EVIL
    write_report(rows, path, problems)
    return path.read_text()


def test_nothing_is_fetched(text: str):
    """No tag refers to anything outside the file; namespaces of SVG are names, not addresses to fetch."""
    assert not re.findall(r"<(?:script|link|iframe|object|embed|base)\b", text)
    addresses = re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_names_and_messages_are_escaped(text: str):
    """What comes from files and exceptions is text, never markup."""
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_tags_are_closed(text: str):
    """Every opened tag is closed in order."""
    stack: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Checker().feed(text)
    assert not stack


def test_it_says_everything(text: str):
    """Instances, solvers, failures with reasons, versions and machine are all there."""
    for expected in (
        "plain", "random", "fake(mode=raise)", "expected three users and good will", "skipped", "Runs without a result",
        "numpy", "cores", "Objective and certified bound", "Share of runs within a gap", "caches where",
    ):  # fmt: skip
        assert expected in text
    assert "8 of the runs gave no result" in text
    assert text.count("<svg") >= 2 + 2 * 3


def test_kinds_have_profiles_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Solvers of different kinds are never in one profile; a kind whose solvers ran once each has none."""
    drawn: list[tuple[str, set[str]]] = []

    def record(rows: list[Row], **options: str) -> Axes:
        drawn.append((options.get("metric", "gap"), {row["solver"] for row in rows}))
        return Figure().add_subplot()

    monkeypatch.setattr(performance_profile, "plot_performance_profile", record)
    rows = [
        row
        for kind, solver, instances in (("kind a", "one", 2), ("kind b", "two", 3), ("kind c", "three", 1))
        for row in (r | {"problem": kind} for r in drawings.comparison([solver], instances=instances, seeds=1))
    ]
    write_report([row | {"instance": f"{row['instance']} of {row['problem']}"} for row in rows], tmp_path / "a.html")
    assert drawn == [("gap", {"one"}), ("time", {"one"}), ("gap", {"two"}), ("time", {"two"})]
    text = (tmp_path / "a.html").read_text()
    headings = re.findall(r"<h([23])[^>]*>([^<]*)</h", text)
    assert [(level, words) for level, words in headings if words.startswith("kind")] == [
        ("2", f"kind {k}") for k in "abc"
    ]
    assert [words for level, words in headings if level == "3"] == [
        f"instance {i} of kind {kind}" for kind, count in (("a", 2), ("b", 3), ("c", 1)) for i in range(count)
    ]
    assert len(set(re.findall(r'id="(s[^"]*)"', text))) == 6
    assert set(re.findall(r'href="#(s[^"]*)"', text)) == set(re.findall(r'id="(s\d[^"]*)"', text))


def test_same_rows_same_report(tmp_path: Path):
    """Nothing in the file depends on when it is written."""
    rows, _ = comparison_rows(tiny_problem(), [Fake()], executor="serial")
    for name in ("one.html", "two.html"):
        write_report(rows, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_report_from_frame_and_from_folder(tmp_path: Path):
    """A data frame and the folder of a comparison are enough."""
    frame = compare(tiny_problem(), [Fake(), Fake("raise")], executor="serial", out=tmp_path)
    write_report(frame, tmp_path / "frame.html")
    write_report(tmp_path, tmp_path / "folder.html")
    assert "fake(mode=raise)" in (tmp_path / "frame.html").read_text()
    assert "against time" in (tmp_path / "folder.html").read_text()


def test_no_rows_is_an_error(tmp_path: Path):
    """An empty report would say nothing."""
    with pytest.raises(EdgeOptError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
