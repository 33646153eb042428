"""What the documentation needs beyond mkdocs: formulas as drawings, and docstrings written for people turned into Markdown."""

import html
import re
from collections.abc import Iterator
from typing import Any

import griffe
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from edgeopt.evaluation.listing import with_registered

_SIZE = 200.0  # units of a drawing per em: coordinates are rounded to whole units
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
_MATH_BLOCK = re.compile(r"^( *)\.\. math:: *(.+(?:\n\1 +.+)*)", re.MULTILINE)
_MATH_ROLE = re.compile(r":math:`([^`]+)`")
_TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.+)\n\1=+(?: +=+)+\n((?:.+\n)+?)\1=+(?: +=+)+ *$", re.MULTILINE)
_PARAMETERS = re.compile(
    r"^((?:Parameters|Other Parameters)\n-+\n)(.*?)(?=\n\n[A-Z][A-Za-z ]+\n-+\n|\Z)", re.MULTILINE | re.DOTALL
)
_PARAMETER = re.compile(r"^(\w[\w, .]*?) : (.+)", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """List what is registered, so that the reference has it."""
    return with_registered(markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas of a page into drawings, which need neither a script nor a font."""
    return _FORMULA.sub(lambda found: draw(html.unescape(found[3]).strip(), display=found[2] == "["), content)


def draw(formula: str, *, display: bool) -> str:
    """Return a formula as an SVG element in the colour and size of the text around it."""
    known = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])", "", formula)  # mathtext has no sizes
    known = re.sub(r"\\(le|ge)\b", r"\\\1q", known)  # and one name for each relation
    text, font = f"${known}$", FontProperties(size=_SIZE, math_fontfamily="cm")
    width, height, depth, *_ = MathTextParser("path").parse(text, dpi=72, prop=font)
    path = "".join(
        _command(int(code), points)
        for points, code in TextPath((0, 0), text, size=_SIZE, prop=font).iter_segments(curves=True, simplify=False)
    )
    svg = (
        f'<svg class="formula" role="img" aria-label="{html.escape(formula)}" viewBox="0 {depth - height:g} {width:g} {height:g}"'
        f' style="width:{width / _SIZE:.3f}em;height:{height / _SIZE:.3f}em;vertical-align:{-depth / _SIZE:.3f}em">'
        f'<path d="{path}"/></svg>'
    )
    return f'<div class="formula">{svg}</div>' if display else svg


def _command(code: int, points: Any) -> str:
    if code == Path.CLOSEPOLY:
        return "Z"
    letter = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}[code]
    return letter + " ".join(f"{value:.0f}" for value in points * ([1, -1] * (len(points) // 2)))


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Turn every ``name = Built(function)`` of a class into the method that it is: arguments and words of the function."""
        for cls in [found for found in _inside(pkg) if isinstance(found, griffe.Class)]:
            for name, member in list(cls.members.items()):
                call = member.value if isinstance(member, griffe.Attribute) else None
                if isinstance(call, griffe.ExprCall) and str(call.function) == "Built":
                    source = pkg.modules_collection[cls.module.resolve(str(call.arguments[0]))]
                    method = griffe.Function(
                        name, parameters=source.parameters, returns=cls.name, docstring=source.docstring,
                        lineno=member.lineno, endlineno=member.endlineno,
                    )  # fmt: skip
                    method.labels.add("classmethod")
                    cls.set_member(name, method)


def _inside(place: griffe.Object) -> Iterator[griffe.Object]:
    for member in place.members.values():
        if isinstance(member, griffe.Module | griffe.Class):
            yield member
            yield from _inside(member)


def to_markdown(text: str) -> str:
    """Return a docstring with formulas, tables and parameters as mkdocstrings reads them."""
    text = _MATH_BLOCK.sub(lambda m: f"{m[1]}$$ {' '.join(m[2].split())} $$", text)
    text = _MATH_ROLE.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    text = _TABLE.sub(_to_table, text)
    return _PARAMETERS.sub(lambda m: m[1] + _PARAMETER.sub(r"\1 :\n    \2", m[2]), text)


def _to_table(found: re.Match[str]) -> str:
    starts = [m.start() for m in re.finditer("=+", found[2])]
    indent, lines = found[1], [found[3], *found[4].splitlines()]
    rows = [
        [line.removeprefix(indent)[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for line in lines
    ]
    rows = [[cell.replace("``", "`") for cell in row] for row in rows]
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(starts), *rows[1:]])
