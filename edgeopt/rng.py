"""Seeds: one integer per run, independent streams by name, no global state."""

import zlib

import numpy as np

from edgeopt.validate import seed_number


def stream(seed: int, *keys: int | str) -> np.random.Generator:
    """Return the independent stream named by `keys` of a run seeded with `seed`.

    Examples
    --------
    >>> stream(7, "fading", 3).random() == stream(7, "fading", 3).random()
    True
    """
    numbers = [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]
    return np.random.default_rng(np.random.SeedSequence(seed_number("seed", seed), spawn_key=tuple(numbers)))
