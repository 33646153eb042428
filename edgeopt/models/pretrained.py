"""What transformers reads of a folder or a file: whole, of a size that is checked before memory is taken, and never its code."""

import os
from pathlib import Path
from typing import Any

from edgeopt.errors import InvalidFileError, quoted
from edgeopt.files import open_file

MOST_LAYERS = 1000
"""Of a model. A number in a file would otherwise have millions built, without a weight for any of them."""


def pretrained(
    path: str | os.PathLike[str],
    expected: str,
    folder: Path,
    *,
    tokeniser: bool,
    gguf: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Return a causal language model of transformers, all of whose weights were there, and its tokeniser, if it is asked for.

    Parameters
    ----------
    path : to name in messages.
    expected : what should be there, for messages.
    folder : to read from.
    gguf : name of a GGUF file in it.
    options : of the model.

    Raises
    ------
    InvalidFileError
        If it is none, or not all of it; the message starts with the path.
    OSError
        If a file cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    files = [file for file in folder.iterdir() if not file.is_dir()] if gguf is None else [folder / gguf]
    held = 0
    for file in files:
        open_file(file).close()  # what is a pipe or a device is refused
        held += file.stat().st_size
    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False} | (
        {} if gguf is None else {"gguf_file": gguf}
    )
    try:
        config: Any = AutoConfig.from_pretrained(folder, **given)
        if (layers := getattr(config.get_text_config(), "num_hidden_layers", 0)) > MOST_LAYERS:
            raise InvalidFileError(f"{path}: {quoted(layers)} layers: expected at most {MOST_LAYERS}")
        with torch.device("meta"):  # shapes alone
            built = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        weights = sum(weight.numel() for weight in built.parameters())
        if weights > 8 * held:  # not even a bit for each: they would be drawn by chance
            raise InvalidFileError(f"{path}: not {expected}: {weights:,} weights in {held:,} bytes")
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **given, **options)
        if found["missing_keys"]:
            raise InvalidFileError(f"{path}: not {expected}: {quoted(min(found['missing_keys']))} is missing")
        return model, AutoTokenizer.from_pretrained(folder, **given) if tokeniser else None
    except InvalidFileError:
        raise
    except Exception as error:  # whatever their readers meet
        if isinstance(error, OSError) and error.filename is not None:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidFileError(f"{path}: not {expected}: {quoted(said[:200])[1:-1]}") from error
