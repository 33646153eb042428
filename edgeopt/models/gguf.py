"""Models in GGUF files, as llama.cpp has them, unpacked once into a folder that transformers reads at once."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from edgeopt.errors import InvalidFileError
from edgeopt.extras import needs
from edgeopt.files import open_file
from edgeopt.models.pretrained import pretrained
from edgeopt.storage import open_folder

_MAGIC = b"GGUF"


def unpack_gguf(path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None) -> Path:
    """Return a folder with model and tokeniser of a GGUF file, its weights in single precision; made once, read from then on.

    ``AutoModelForCausalLM.from_pretrained(folder)`` and ``AutoTokenizer.from_pretrained(folder)`` read it without gguf, in
    a second. Nothing is downloaded. A file with other content, under whatever name, has another folder.

    Parameters
    ----------
    path : of the file.
    cache : folder of all that was unpacked. Default: ``models`` in ``EDGEOPT_CACHE_DIR``, or in ``~/.cache/edgeopt``.

    Raises
    ------
    InvalidFileError
        If it is no such file, or not all of it; the message starts with the path.
    MissingDependencyError
        Without transformers or gguf.
    """
    path = Path(path)
    digest = hashlib.sha256()
    with open_file(path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InvalidFileError(f"{path}: not a GGUF file: expected it to start with {_MAGIC.decode()}")
        while block := file.read(1 << 20):
            digest.update(block)
    home = Path(os.environ.get("EDGEOPT_CACHE_DIR") or Path.home() / ".cache" / "edgeopt") / "models"
    root = open_folder(home if cache is None else cache)
    folder = root / f"{path.stem}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
        try:
            _unpack(path, unfinished)
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    with needs("a GGUF file", "llm"):
        import gguf  # noqa: F401 - without it transformers tells of something else
        import torch
        import transformers  # noqa: F401
        from safetensors.torch import save_file
    expected = "a complete GGUF file of a language model"
    model, tokenizer = pretrained(path, expected, path.parent, tokeniser=True, gguf=path.name, dtype=torch.float32)
    own = {id(value): name for name, value in reversed(model.state_dict(keep_vars=True).items())}  # tied ones once
    save_file(
        {name: model.get_parameter(name).detach() for name in own.values()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    model.config.__dict__.pop("quantization_config", None)  # it no longer is
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
