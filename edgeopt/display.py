"""How objects show themselves: one readable line in a terminal, a small table in a notebook. Values stay out of both."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.errors import ShortRepr

LONGEST = 160
"""Characters of a line, about."""
_MOST_ROWS = 10


def one_line(self: Any) -> str:
    """Return the ``repr`` of a dataclass with arrays: names of fields, and of each what fits into a line.

    Fields that are private or have ``repr=False`` are left out; of arrays type and shape are said, of collections the
    size. Use it as ``__repr__ = one_line`` in the class.

    Examples
    --------
    >>> import numpy as np
    >>> @dataclasses.dataclass(frozen=True)
    ... class Path:
    ...     gain: np.ndarray
    ...     name: str = "line of sight"
    ...     __repr__ = one_line
    >>> Path(np.zeros((3, 20)))
    Path(gain=float64[3, 20], name='line of sight')
    """
    shown: list[str] = []
    length = 0
    for field in dataclasses.fields(self):
        if field.repr and not field.name.startswith("_"):
            text = f"{field.name}={brief(getattr(self, field.name))}"
            if (length := length + len(text) + 2) > LONGEST:
                shown.append("...")
                break
            shown.append(text)
    return f"{type(self).__name__}({', '.join(shown)})"


def brief(value: Any) -> str:
    """Return a few words for a value, never more than a part of a line.

    Examples
    --------
    >>> import numpy as np
    >>> brief(np.arange(3)), brief(np.arange(30)), brief([1] * 30), brief(0.123456789)
    ('[0, 1, 2]', 'int64[30]', '[1, 1, 1, 1, ...]', '0.123457')
    """
    text = " ".join(_BRIEF.repr(value).split())
    return text if len(text) <= LONGEST // 2 else f"{type(value).__name__}(...)"


class _Brief(ShortRepr):
    """Says of an array what it is, and rounds numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxstring = 2, 4, 4, 2, 40

    def repr_float(self, value: float, level: int) -> str:
        """Six digits are enough to read."""
        return f"{value:.6g}"

    def repr_ndarray(self, value: Any, level: int) -> str:
        """Show a few numbers, or type and shape."""
        if len(value.shape) <= 1 and sum(value.shape) <= self.maxlist:
            return self.repr1(value.tolist(), level)
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"

    repr_Tensor = repr_Parameter = repr_ndarray


_BRIEF = _Brief()


def headline(facts: Mapping[str, str | int | float]) -> str:
    """Return the counts among some facts, and the texts of one word: what a thing is in a line.

    Examples
    --------
    >>> headline({"kind": "expert-caching", "servers": 5, "experts": 128, "mean, s": 0.5, "latency": "sum"})
    '5 servers, 128 experts, latency sum'
    """
    words, length = [], 0
    for name, value in facts.items():
        if name == "kind" or isinstance(value, float) or (isinstance(value, str) and (" " in value or not value)):
            continue
        words.append(f"{name} {value}" if isinstance(value, str) else f"{value} {name}")
        if (length := length + len(words[-1]) + 2) > LONGEST:
            return ", ".join([*words[:-1], "..."])
    return ", ".join(words)


def html_facts(title: str, facts: Mapping[str, Any]) -> str:
    """Return a heading and names with values, as HTML for a notebook; all text is escaped.

    Examples
    --------
    >>> html_facts("a < b", {"gap": 0.5})
    '<table><caption>a &lt; b</caption><tr><th>gap</th><td>0.5</td></tr></table>'
    """
    rows = "".join(f"<tr><th>{_cell(name)}</th><td>{_cell(value)}</td></tr>" for name, value in facts.items())
    return f"<table><caption>{_cell(title)}</caption>{rows}</table>"


def html_rows(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as an HTML table for a notebook, the first and the last where there are many; all text is escaped.

    Examples
    --------
    >>> html_rows("runs", [{"round": 0, "loss": 2.5}], ["round", "loss"])
    '<table><caption>runs</caption><tr><th>round</th><th>loss</th></tr><tr><td>0</td><td>2.5</td></tr></table>'
    """
    shown: list[Mapping[str, Any] | None] = list(rows)
    if len(shown) > _MOST_ROWS:
        shown[_MOST_ROWS // 2 : -_MOST_ROWS // 2] = [None]
    lines = ["".join(f"<th>{_cell(name)}</th>" for name in columns)]
    lines += ["".join(f"<td>{'…' if row is None else _cell(row.get(name))}</td>" for name in columns) for row in shown]
    return f"<table><caption>{_cell(title)}</caption>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return html.escape(value if len(value) <= LONGEST else value[: LONGEST - 1] + "…")
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "–" if missing else html.escape(brief(value))
