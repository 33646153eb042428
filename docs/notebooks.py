"""Notebooks are pages: each is run when the documentation is built, and a cell that fails ends the build."""

from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

SECONDS = 300  # for one cell, on a machine that does other work, too
_LOCAL = Config({"AsyncKernelManager": {"transport": "ipc"}})  # no ports, and no warning about them


def on_files(files: Files, config: Any, **_: Any) -> None:
    """Turn every notebook of the documentation into a page."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = _Page.generated(config, file.src_uri, content=to_markdown(run(Path(file.abs_src_path))))
        files.append(page)


class _Page(File):
    """A page whose source does not end in ``.md``: links to the notebook lead here."""

    def is_documentation_page(self) -> bool:
        """Say that this is text, not a picture."""
        return True


def run(path: Path) -> NotebookNode:
    """Return the notebook with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails; the message shows the cell.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", config=_LOCAL).execute()
    return notebook


def to_markdown(notebook: NotebookNode) -> str:
    """Return a page: text as it is, each cell of code with what it gave below."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts += [f"```python\n{cell.source}\n```", *map(_output, cell.outputs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.data
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data:
        lines = [line.strip() for line in data["text/html"].splitlines()]
        return f'<div class="output">{"".join(line for line in lines if line)}</div>'
    return f"```text\n{data['text/plain']}\n```"
