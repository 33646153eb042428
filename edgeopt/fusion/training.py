"""The loop that trains a fusing model on windows, and what is fitted afterwards on held-out ones."""

from typing import Any, Protocol

import torch
from torch import nn

from edgeopt.errors import InvalidProblemError
from edgeopt.fusion.calibration import Calibration, Method
from edgeopt.fusion.dual_health import DualHealth, Seen, alone_loss
from edgeopt.fusion.noise import Noise
from edgeopt.fusion.packing import Packing
from edgeopt.fusion.recordings import Modality, Windows
from edgeopt.progress import TrainingBar
from edgeopt.rng import stream
from edgeopt.validate import integer, real, seed_number

AT_ONCE = 256
"""Windows of a pass without gradients."""


class Model(Protocol):
    """A model that `fit` trains: `DualHealth`, `Baseline`, or one of your own."""

    modalities: tuple[Modality, ...]
    num_classes: int
    calibration: Calibration

    def run(self, x: torch.Tensor) -> tuple[Any, Any]:
        """Return what it makes of packed windows, with ``scores`` [B, T, K], and a state."""
        ...

    def loss(self, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the loss of pairs, see `DualHealth.loss`."""
        ...


def fit(
    model: nn.Module,
    packing: Packing,
    windows: Windows,
    *,
    noise: Noise | None = None,
    epochs: int = 30,
    batch_size: int = 16,
    learning_rate: float = 4e-3,
    seed: int = 0,
    display: bool = False,
) -> list[float]:
    """Train a model; return the mean loss of each epoch.

    Every batch is of pairs: windows spoilt anew, and copies of them whose noise is another draw; the noisier of the two
    comes second, modality by modality. The same seed gives the same weights.

    Parameters
    ----------
    model : a `Model`; it is changed in place.
    packing : of the windows.
    windows : to train with.
    noise : how windows are spoilt. Default: with bursts, and a third of the modalities missing.
    epochs, batch_size : passes over the windows, and windows of a batch, each of them twice in it.
    learning_rate : of AdamW at the start; it falls to nothing as half a cosine.
    seed : of order and noise.
    display : show a progress bar, if standard error is a terminal.

    Raises
    ------
    InvalidProblemError
        If the windows are not those that model and packing are made for.
    """
    check(model, packing, windows)
    noise = Noise(missing=0.3) if noise is None else noise
    epochs, batch_size = integer("epochs", epochs, low=1), integer("batch_size", batch_size, low=1)
    x, labels = packing.pack(windows), torch.from_numpy(windows.labels)
    order = stream(seed_number("seed", seed), "fusion order")
    generator = torch.Generator().manual_seed(int(stream(seed, "fusion noise").integers(2**62)))
    optimizer = torch.optim.AdamW(model.parameters(), real("learning_rate", learning_rate, positive=True))
    batches = -(-len(windows) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    losses = []
    model.train()
    with TrainingBar(getattr(model, "name", "baseline"), epochs, display=display) as bar:
        for epoch in range(epochs):
            total = 0.0
            for rows in torch.split(torch.from_numpy(order.permutation(len(windows))), batch_size):
                pairs, strengths = noisy_pairs(x[rows], packing, noise, generator)
                optimizer.zero_grad()
                loss = model.loss(pairs, labels[rows].repeat(2, 1), strengths)  # type: ignore[operator]
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += len(rows) * float(loss.detach())
            losses.append(total / len(windows))
            bar.update(epoch + 1, f"loss {losses[-1]:.3f}")
    model.eval()
    return losses


def noisy_pairs(
    x: torch.Tensor, packing: Packing, noise: Noise, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows [2 n, T, F + M], first with the weaker and then with the stronger of two draws, and their noise.

    Parameters
    ----------
    x : [n, T, F + M].
    packing : of the windows.
    noise : how they are spoilt.
    generator : of all chance.
    """
    shape = (len(x), len(packing.modalities), x.shape[1])
    one, other = (noise.strengths(shape, generator) for _ in range(2))  # (n, M, T)
    swap = one.mean(-1, keepdim=True) > other.mean(-1, keepdim=True)  # (n, M, 1)
    strengths = torch.cat([torch.where(swap, other, one), torch.where(swap, one, other)])  # (2 n, M, T)
    return noise.apply(x.repeat(2, 1, 1), packing, generator, strengths).x, strengths


@torch.no_grad()
def calibrate(
    model: nn.Module,
    packing: Packing,
    windows: Windows,
    *,
    noise: Noise | None = None,
    method: Method = "affine",
    seed: int = 0,
) -> None:
    """Fit the maps of uncertainties to held-out windows, then the temperature of the classes.

    What log U' is to predict is the cross entropy of what a modality says alone, as in training: then its weight is in
    proportion to the chance that it gives to the truth. A baseline has a temperature only. Weights of the model stay as
    they are.

    Parameters
    ----------
    model : trained; its calibration is changed in place.
    packing : of the windows.
    windows : none of them trained with.
    noise : how they are spoilt. Default: as in `fit`.
    method : ``affine`` or ``isotonic``.
    seed : of the noise.

    Raises
    ------
    InvalidProblemError
        As in `fit`, or if the method is unknown.
    """
    check(model, packing, windows)
    noise = Noise(missing=0.3) if noise is None else noise
    generator = torch.Generator().manual_seed(int(stream(seed, "calibration noise").integers(2**62)))
    x = noise.apply(packing.pack(windows), packing, generator).x
    labels = torch.from_numpy(windows.labels)
    calibration: Calibration = model.calibration  # type: ignore[assignment]
    calibration.temperature.zero_()
    if isinstance(model, DualHealth):
        seen = [model.run(part)[0] for part in torch.split(x, AT_ONCE)]
        error = alone_loss(torch.cat([part.alone for part in seen]), labels)  # (n, M, T)
        calibration.fit_maps(torch.cat([part.log_u for part in seen]), error, method)
    outputs = [model.run(part)[0] for part in torch.split(x, AT_ONCE)]  # type: ignore[operator]
    scores = torch.cat([part.scores for part in outputs])
    fused = [part.fused if isinstance(part, Seen) else part.scores.new_zeros(part.scores.shape[:2]) for part in outputs]
    calibration.fit_temperature(scores, torch.cat(fused), labels)


def check(model: nn.Module, packing: Packing, windows: Windows) -> None:
    """Refuse windows that are not those of a model and a packing."""
    if not len(windows):
        raise InvalidProblemError("windows: expected at least one")
    if packing.modalities != model.modalities:
        raise InvalidProblemError("packing: its modalities are not those of the model")
    classes = int(model.num_classes)  # type: ignore[arg-type]
    if windows.num_classes > classes:
        raise InvalidProblemError(f"windows: {windows.num_classes} classes, the model has {classes}")
