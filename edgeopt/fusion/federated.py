"""Fusion as a task of the training backend: subjects are clients, and each may lack modalities of its own."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from edgeopt.data.arrays import ArrayData
from edgeopt.data.partition import by_column
from edgeopt.errors import InvalidProblemError
from edgeopt.fusion.blocks import fusion_loss
from edgeopt.fusion.dual_health import DualHealth
from edgeopt.fusion.packing import Packing
from edgeopt.fusion.recordings import Recordings, Windows
from edgeopt.training.task import Task
from edgeopt.validate import integer, real


def fusion_task(
    recordings: Recordings,
    model: DualHealth,
    *,
    length: int,
    stride: int | None = None,
    missing: Mapping[int, Sequence[str]] | None = None,
    held_out: float = 0.25,
    seed: int = 0,
) -> Task:
    """Return a task whose clients are the subjects: each trains on the start of its recording and is tested on the end.

    Targets are the classes of all steps. Means and spreads by which values are standardised are those of all clients'
    training windows, as if each had sent sums; a client without a modality has no part in those of it.

    Parameters
    ----------
    recordings : of the clients.
    model : whose weights training starts from.
    length, stride : of windows, as in `Recordings.windows`.
    missing : by subject the modalities that it does not have, in training and in tests.
    held_out : share of a recording, its end, that is tested on.
    seed : of the mini-batches.

    Raises
    ------
    InvalidProblemError
        If a subject or a modality is unknown, no window fits, or nobody has a modality.
    """
    share = real("held_out", held_out, positive=True)
    if share >= 1:
        raise InvalidProblemError(f"held_out = {share:g}: expected a share below 1")
    if model.modalities != recordings.modalities:
        raise InvalidProblemError("model: its modalities are not those of the recordings")
    parts = [
        _hidden(recordings.windows(length, stride=stride, span=span), recordings, missing or {})
        for span in ((0.0, 1 - share), (1 - share, 1.0))
    ]
    packing = Packing.of(parts[0])
    train, test = (
        ArrayData(packing.pack(part), torch.from_numpy(part.labels), part.num_classes, "fusion", part.subject)
        for part in parts
    )
    return Task(
        model=model.as_blocks(),
        train=train,
        partition=by_column(parts[0].subject),
        test=test,
        loss=partial(fusion_loss, num_classes=model.num_classes),
        seed=seed,
    )


def _hidden(windows: Windows, recordings: Recordings, missing: Mapping[int, Sequence[str]]) -> Windows:
    signals = {name: values.copy() for name, values in windows.signals.items()}
    for subject, names in missing.items():
        number = integer("missing", subject, low=0, high=recordings.num_subjects - 1)
        for name in names:
            if name not in signals:
                raise InvalidProblemError(
                    f"missing[{number}]: no modality {name!r}: expected one of {', '.join(signals)}"
                )
            signals[name][windows.subject == number] = np.nan
    return Windows(signals, windows.labels, windows.subject, windows.num_classes)
