"""What spoils packed windows, with the truth about it: noise of known strength, bursts that no label explains, gaps."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.fusion.packing import Packing
from edgeopt.fusion.recordings import Modality
from edgeopt.validate import listed, real


class Spoilt(NamedTuple):
    """Packed windows and what has been done to them.

    Parameters
    ----------
    x : [n, T, F + M].
    noise : [n, M, T], standard deviation of the noise, in those of the channels.
    burst : bool [n, M, T], whether there is a burst.
    """

    x: torch.Tensor
    noise: torch.Tensor
    burst: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How windows are spoilt; everything is drawn for each window and modality by itself, whatever the label.

    Parameters
    ----------
    levels : standard deviations of white noise, in those of the channels, each as likely.
    share : chance that a modality has noise at all.
    drift : standard deviation of the step of a random walk of the logarithm of the noise, per step of time.
    bursts : chance of a burst: from a random step on, an offset that wanders (autoregressive, 0.7 per step) for two to
        four steps.
    burst_level : standard deviation of that offset.
    missing : chance that a modality is missing: throughout in half of the cases, else from some step to another.
    """

    levels: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    share: float = 1.0
    drift: float = 0.0
    bursts: float = 0.1
    burst_level: float = 2.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        if not (levels := listed("levels", self.levels, single=(int, float))):
            raise InvalidProblemError("levels: expected at least one")
        given = tuple(real(f"levels[{i}]", level, nonnegative=True) for i, level in enumerate(levels))
        object.__setattr__(self, "levels", given)
        for name in ("share", "drift", "bursts", "burst_level", "missing"):
            object.__setattr__(self, name, real(name, getattr(self, name), nonnegative=True))
        for name in ("share", "bursts", "missing"):
            if (value := getattr(self, name)) > 1:
                raise InvalidProblemError(f"{name} = {value:g}: expected a chance, 0 to 1")

    def strengths(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        """Return standard deviations [n, M, T] of the noise."""
        n, m, steps = shape
        level = torch.tensor(self.levels)[torch.randint(len(self.levels), (n, m, 1), generator=generator)]  # (n, M, 1)
        level = level * (torch.rand(n, m, 1, generator=generator) < self.share)
        walk = self.drift * torch.randn(n, m, steps, generator=generator).cumsum(-1)  # (n, M, T)
        return level * (walk - walk.mean(-1, keepdim=True)).exp()

    def apply(
        self,
        x: torch.Tensor,
        packing: Packing,
        generator: torch.Generator,
        strengths: torch.Tensor | None = None,
    ) -> Spoilt:
        """Spoil packed windows.

        Parameters
        ----------
        x : [n, T, F + M].
        packing : of the windows; it says what stands for what is missing.
        generator : of all chance.
        strengths : [n, M, T], of the noise. Default: drawn.
        """
        n, steps, _ = x.shape
        modalities = packing.modalities
        m = len(modalities)
        values, there = x[..., :-m], x[..., -m:]
        noise = self.strengths((n, m, steps), generator) if strengths is None else strengths
        burst = self._burst((n, m, steps), generator)
        sizes = [modality.values for modality in modalities]
        channels = torch.repeat_interleave(torch.arange(m), torch.tensor(sizes))  # (F,): modality of each value
        spoilt = values + noise[:, channels].transpose(1, 2) * torch.randn(values.shape, generator=generator)
        spoilt = spoilt + self._offsets(burst, modalities, generator)
        gone = self._missing((n, m, steps), generator)  # (n, M, T)
        gone = gone.transpose(1, 2) | (there == 0)  # (n, T, M)
        spoilt = torch.where(gone[..., channels], packing.stand_in(), spoilt)
        if packing.fill == "mark":
            there = there * ~gone
        return Spoilt(torch.cat([spoilt, there], -1), noise, burst)

    def _burst(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        n, m, steps = shape
        start = torch.randint(1, max(2, steps - 1), (n, m, 1), generator=generator)
        length = torch.randint(2, 5, (n, m, 1), generator=generator)
        at = torch.arange(steps)
        chosen = torch.rand(n, m, 1, generator=generator) < self.bursts
        return chosen & (at >= start) & (at < start + length)

    def _offsets(
        self, burst: torch.Tensor, modalities: tuple[Modality, ...], generator: torch.Generator
    ) -> torch.Tensor:
        """Return [n, T, F]: one offset for all samples of a channel in a step."""
        n, _, steps = burst.shape
        parts = []
        for index, (_, samples, channels) in enumerate(modalities):
            draws = torch.randn(n, steps, channels, generator=generator)
            offset = [draws[:, 0]]
            for t in range(1, steps):
                offset.append(0.7 * offset[-1] + 0.51**0.5 * draws[:, t])  # of variance 1 at every step
            wander = self.burst_level * torch.stack(offset, 1) * burst[:, index, :, None]  # (n, T, C)
            parts.append(wander[:, :, None].expand(-1, -1, samples, -1).flatten(2))  # (n, T, samples * C)
        return torch.cat(parts, -1)

    def _missing(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        n, m, steps = shape
        ends = torch.randint(0, steps + 1, (n, m, 2), generator=generator).sort(-1).values  # (n, M, 2)
        whole = torch.rand(n, m, 1, generator=generator) < 0.5
        at = torch.arange(steps)
        within = (at >= ends[..., :1]) & (at < ends[..., 1:])  # (n, M, T)
        return (torch.rand(n, m, 1, generator=generator) < self.missing) & (whole | within)
