"""Language models of transformers as they lie in a local folder, with their tokenisers. Nothing is downloaded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.models.gguf import unpack_gguf
from edgeopt.models.pretrained import pretrained

_TOKENISERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class LanguageModel(NamedTuple):
    """A model of transformers, the size of its vocabulary, and what makes token ids of text; None without a tokeniser."""

    model: nn.Module
    vocabulary: int
    encode: Callable[[str], list[int]] | None


def load_language_model(folder: str | os.PathLike[str]) -> LanguageModel:
    """Read a causal language model, so that many clients can run as one batch: see `from_transformers`.

    Parameters
    ----------
    folder : in transformers' format; or a GGUF file, which is unpacked once, see `unpack_gguf`.

    Raises
    ------
    InvalidProblemError
        If there is nothing.
    InvalidFileError
        If there is something else; the message starts with the path.
    MissingDependencyError
        Without transformers.
    """
    path = Path(folder)
    if path.is_file():
        path = unpack_gguf(path)
    if not path.is_dir():
        raise InvalidProblemError(
            f"folder = {quoted(os.fspath(folder))}: expected a folder of transformers, or a GGUF file"
        )
    with needs("a model of transformers", "llm"):
        import transformers  # noqa: F401
    there = any((path / name).exists() for name in _TOKENISERS)
    expected = "a causal language model of transformers"
    model, tokeniser = pretrained(path, expected, path, tokeniser=there, attn_implementation="eager")
    encode = None if tokeniser is None else lambda text: list(tokeniser(text).input_ids)
    return LanguageModel(model, model.config.vocab_size, encode)
