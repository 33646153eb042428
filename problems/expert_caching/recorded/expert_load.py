"""``expert-load.json``, the history that placers of experts such as EPLB and vLLM's read: counts and nothing else.

``load_history`` is a list of ``{"logical_expert_load": [layers][experts]}``; the counts of all of them are added up.
"""

from pathlib import Path

import numpy as np

from edgeopt.errors import InvalidFileError
from edgeopt.fields import Fields
from edgeopt.files import read_file
from edgeopt.foreign import as_array
from edgeopt.json_text import parse_json_object
from edgeopt.problems.expert_caching.recorded.content import (
    MAX_BYTES,
    Counts,
    Hints,
    RoutingFormat,
    used_layers,
    whole_numbers,
)


def read(path: Path, hints: Hints) -> Counts:
    """Return the sum of the history."""
    history = Fields(parse_json_object(path, read_file(path, MAX_BYTES)), f"{path}: ").tables("load_history")
    total: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None = None
    for i, entry in enumerate(history):
        name = f"load_history[{i}].logical_expert_load"
        counts = whole_numbers(path, name, as_array(f"{path}: {name}", entry.entries("logical_expert_load")))
        if counts.ndim != 2 or (total is not None and counts.shape != total.shape):
            expected = "[layers, experts]" if total is None else f"{list(total.shape)} as before"
            raise InvalidFileError(f"{path}: {name}: shape {list(counts.shape)}, expected {expected}")
        total = counts if total is None else total + counts
    if total is None:
        raise InvalidFileError(f"{path}: load_history: expected at least one entry")
    return Counts(used_layers(path, total)[None])


EXPERT_LOAD = RoutingFormat(
    name="expert-load",
    suffixes=(".json",),
    holds="`expert-load.json` of EPLB: counts of each expert",
    read=read,
    begins=b'"load_history"',
)
