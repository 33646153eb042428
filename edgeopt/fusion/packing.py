"""Windows as one tensor, which is what crosses a cut: standardised values of all modalities, and which of them are there."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.fusion.recordings import Modality, Windows

Fill = Literal["mark", "zero", "mean"]
"""What stands for a modality that is missing: a mark that it is, zero samples, or the mean of training."""

PRESENT = 0.5
"""Share of the samples of a step that must be there; a modality with fewer is missing at that step."""


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How windows become tensors [n, T, F + M]: the F standardised values of a step, then for each modality 1 or 0.

    A missing sample of a step that has enough others becomes the mean; a constant channel becomes zeros.

    Parameters
    ----------
    modalities : M of them.
    mean, spread : by modality float32 [channels], of training.
    fill : what stands for a modality that is missing.
    """

    modalities: tuple[Modality, ...]
    mean: dict[str, NDArray[np.float32]]
    spread: dict[str, NDArray[np.float32]]
    fill: Fill = "mark"

    __repr__ = one_line

    @classmethod
    def of(cls, windows: Windows, *, fill: Fill = "mark") -> "Packing":
        """Return the packing with means and spreads of some windows, those to train with.

        Raises
        ------
        InvalidProblemError
            If there are no windows, or a modality is never there.
        """
        if fill not in ("mark", "zero", "mean"):
            raise InvalidProblemError(f"fill = {quoted(fill)}: expected 'mark', 'zero' or 'mean'")
        if not len(windows):
            raise InvalidProblemError("windows: expected at least one")
        mean, spread = {}, {}
        for name, values in windows.signals.items():
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)  # (samples, C)
            known = np.isfinite(flat)
            if lost := np.flatnonzero(~known.any(axis=0)).tolist():
                raise InvalidProblemError(
                    f"signals[{name!r}]: channel {lost[0]} is never there in these windows: expected a sample that is not NaN"
                )
            mean[name] = np.nanmean(flat, axis=0).astype(np.float32)
            own = np.nanstd(flat, axis=0)
            spread[name] = np.where(own > 1e-6 * (1 + np.abs(mean[name])), own, 1.0).astype(np.float32)
        return cls(windows.modalities, mean, spread, fill)

    @property
    def values(self) -> int:
        """Values of a step, F."""
        return sum(modality.values for modality in self.modalities)

    def stand_in(self) -> torch.Tensor:
        """Return float32 [F], what stands for the values of a step of a modality that is missing."""
        parts = []
        for name, samples, _ in self.modalities:
            usual = -self.mean[name] / self.spread[name] if self.fill == "zero" else np.zeros_like(self.mean[name])
            parts.append(np.tile(usual, samples))
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    def pack(self, windows: Windows) -> torch.Tensor:
        """Return float32 [n, T, F + M].

        Raises
        ------
        InvalidProblemError
            If the windows have other modalities.
        """
        if windows.modalities != self.modalities:
            raise InvalidProblemError(
                f"windows: {_listed(windows.modalities)}: expected {_listed(self.modalities)}, as in training"
            )
        parts, there = [], []
        for name, samples, channels in self.modalities:
            values = windows.signals[name]
            known = np.isfinite(values)
            present = known.mean(axis=(2, 3)) >= PRESENT  # (n, T)
            usual = np.float32(0) if self.fill == "zero" else self.mean[name]
            values = np.where(known, values, self.mean[name])
            values = np.where(present[:, :, None, None], values, usual)
            values = (values - self.mean[name]) / self.spread[name]
            parts.append(values.reshape(*present.shape, samples * channels))
            there.append(present if self.fill == "mark" else np.ones_like(present))
        packed = np.concatenate([*parts, np.stack(there, axis=-1)], axis=-1)
        return torch.from_numpy(packed.astype(np.float32))


def _listed(modalities: tuple[Modality, ...]) -> str:
    return ", ".join(f"{m.name} {m.samples} x {m.channels}" for m in modalities)
