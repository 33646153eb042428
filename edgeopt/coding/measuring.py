"""The table that plans of a broadcast are made from: PSNR of a system by signal-to-noise ratio, symbols and iterations, measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeopt.coding.broadcast_plan import PsnrTable
from edgeopt.coding.channels import channel_of
from edgeopt.coding.ntrscc import Ntrscc
from edgeopt.coding.pictures import as_picture
from edgeopt.coding.quality import psnr_db
from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.validate import float_array, int_array, seed_number


def psnr_table(
    system: Ntrscc,
    pictures: Sequence[Any],
    *,
    snr_db: Sequence[float],
    symbols: Sequence[int],
    iterations: Sequence[int],
    seed: int = 0,
    channel: str = "awgn",
) -> PsnrTable:
    """Return the mean PSNR over pictures of one size.

    A receiver hears the stream once, at each ratio; what it has after fewer symbols is the beginning of it.

    Parameters
    ----------
    system : what is measured.
    pictures : anything that `as_picture` takes, all of one size.
    snr_db, symbols, iterations : what is measured at, ascending.
    seed : of codes and channels.
    channel : by its name.
    """
    seed = seed_number("seed", seed)
    ratios = float_array("snr_db", snr_db, (None,), unit="dB")
    counts = int_array("symbols", symbols, (None,), low=1, dtype=np.int64)
    rounds = int_array("iterations", iterations, (None,), low=0, dtype=np.int64).tolist()
    wholes = [as_picture(picture) for picture in pictures]
    if not wholes or len({whole.shape for whole in wholes}) > 1:
        raise InvalidProblemError("pictures: expected at least one, all of one size")
    found = np.zeros((len(ratios), len(counts), len(rounds)))
    nothing, header = 0.0, 0
    for i, whole in enumerate(wholes):
        own = int(stream(seed, "table", i).integers(1 << 62))
        sent = system.encode(whole, own)
        receiver = system.receiver(sent.header, own)
        nothing += psnr_db(whole, receiver.picture()) / len(wholes)
        header = max(header, sent.header_symbols(float(ratios[0])))
        bits = sent.symbols(int(counts[-1]))
        for s, ratio in enumerate(ratios):
            heard = channel_of(channel, float(ratio)).receive(bits, stream(seed, "table", i, s))
            for n, count in enumerate(counts):
                made = receiver.pictures(heard[:count], rounds)
                found[s, n] += np.array([psnr_db(whole, one) for one in made]) / len(wholes)
    return PsnrTable(
        snr_db=ratios, symbols=counts, iterations=np.array(rounds), psnr_db=found, nothing_db=nothing, header_symbols=header,
        flops_per_iteration=system.flops_per_iteration(), flops=system.flops(*wholes[0].shape[:2]),
    )  # fmt: skip
