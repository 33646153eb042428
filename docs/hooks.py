"""What the documentation needs beyond mkdocs: formulas as MathML, and docstrings written for people turned into Markdown."""

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
_MATH_BLOCK = re.compile(r"^( *)\.\. math:: *(.+(?:\n\1 +.+)*)", re.MULTILINE)
_MATH_ROLE = re.compile(r":math:`([^`]+)`")
_TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.+)\n\1=+(?: +=+)+\n((?:.+\n)+?)\1=+(?: +=+)+ *$", re.MULTILINE)
_PARAMETERS = re.compile(r"^((?:Parameters|Other Parameters)\n-+\n)(.*?)(?=\n\n[A-Z][A-Za-z ]+\n-+\n|\Z)", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"^(\w[\w, .]*?) : (.+)", re.MULTILINE)
_NOTES = re.compile(r"^(Notes|References)\n-+\n", re.MULTILINE)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas of a page into MathML, which browsers draw without a script."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return str(convert(html.unescape(found[3]).strip(), display=display))


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return a docstring with formulas, tables and parameters as mkdocstrings reads them."""
    text = _MATH_BLOCK.sub(lambda m: f"{m[1]}$$ {' '.join(m[2].split())} $$", text)
    text = _MATH_ROLE.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    text = _TABLE.sub(_to_table, text)
    text = _NOTES.sub(lambda m: f"**{m[1]}**\n\n", text)
    return _PARAMETERS.sub(lambda m: m[1] + _PARAMETER.sub(r"\1 :\n    \2", m[2]), text)


def _to_table(found: re.Match[str]) -> str:
    starts = [m.start() for m in re.finditer("=+", found[2])]
    indent, lines = found[1], [found[3], *found[4].splitlines()]
    rows = [[line.removeprefix(indent)[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    rows = [[cell.replace("``", "`") for cell in row] for row in rows]
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(starts), *rows[1:]])
