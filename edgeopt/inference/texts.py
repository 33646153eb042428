"""Token ids by a tokenizer that somebody else has made."""

from collections.abc import Callable
from typing import Any

from edgeopt.errors import InvalidProblemError, quoted


def tokenized(where: str, text: str, tokenizer: Callable[..., Any] | None, **options: Any) -> Any:
    """Return the ``input_ids`` that a tokenizer makes of a text, whatever they are.

    Parameters
    ----------
    where : the text stands, for messages.
    options : of the tokenizer.

    Raises
    ------
    InvalidProblemError
        If there is no tokenizer, or it makes no ids.
    """
    if tokenizer is None:
        raise InvalidProblemError(f"{where}: a string: expected token ids, or a tokenizer with it")
    if not callable(tokenizer):
        raise InvalidProblemError(
            f"tokenizer = {quoted(tokenizer)}: expected one of transformers, or a function of a text"
        )
    made = tokenizer(text, **options)
    try:
        return made["input_ids"]
    except (KeyError, IndexError, TypeError):
        raise InvalidProblemError(f"{where}: its tokenizer returns {quoted(made)}: expected input_ids") from None
