"""Seeds: one integer per run, independent streams by name, no global state."""

import zlib

import numpy as np

from edgeopt.validate import seed_number

Seed = int | np.random.Generator | None


def as_generator(seed: Seed) -> np.random.Generator:
    """Return `seed` itself if it is a Generator, else a new Generator seeded with it."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


def stream(seed: int, *keys: int | str) -> np.random.Generator:
    """Return the independent stream named by `keys` of a run seeded with `seed`.

    Examples
    --------
    >>> stream(7, "fading", 3).random() == stream(7, "fading", 3).random()
    True
    """
    numbers = [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]
    return np.random.default_rng(np.random.SeedSequence(seed_number("seed", seed), spawn_key=tuple(numbers)))
