"""DUAL-Health: modalities are fused by how sure each is of itself, and those that are missing are recovered from the others.

Z. Fang et al., DUAL-Health: Dynamic Uncertainty-aware Multimodal Fusion for Outdoor Health Monitoring, arXiv:2508.09085.
Theirs are the modules: input noise and fluctuation noise, calibration, uncertainty-weighted fusion by a transformer,
alignment of distributions, recovery of missing modalities. The formulas are ours.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from edgeopt.errors import InvalidProblemError
from edgeopt.fusion.blocks import Doubts, Fuses, Recovers
from edgeopt.fusion.calibration import Calibration
from edgeopt.fusion.layers import BiasedAttention, Encode, Memory, PerModality
from edgeopt.fusion.recordings import Modality
from edgeopt.fusion.recovery import Common, Recovery, alignment_loss, recovery_loss
from edgeopt.fusion.uncertainty import Course, Doubt, Uncertainty, forecast_loss, log_uncertainty
from edgeopt.validate import integer, real, seed_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the parts of the loss count; 0 leaves a part out.

    Parameters
    ----------
    alone : cross entropy of what each modality says alone, those that are recovered among them.
    forecast : of the next step's mean under the variance.
    rank : the noisier of two copies of a window has the higher uncertainty.
    calibrate : uncertainties are shared out as those cross entropies are, over the batch and over modalities.
    align : distances in the common space, and InfoNCE.
    recover : of each modality from the others.
    """

    alone: float = 0.3
    forecast: float = 0.1
    rank: float = 0.3
    calibrate: float = 0.3
    align: float = 0.05
    recover: float = 0.3

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, real(name, getattr(self, name), nonnegative=True))


class Seen(NamedTuple):
    """What the model makes of windows.

    Parameters
    ----------
    scores : [B, T, K], of the classes, over their temperature.
    alone : [B, M, T, K], of what each modality says alone; of those that are missing, what was recovered.
    log_u : [B, M, T], log U, before the calibration.
    calibrated : [B, M, T], log U'.
    weights : [B, M, T], of the modalities; they sum to 1 at each step.
    present : [B, M, T], 1 or 0.
    doubt : what is believed of each modality.
    common : the same in the common space.
    recovered : mean and log variance [B, M, T, d] of each modality as the others have it.
    """

    scores: torch.Tensor
    alone: torch.Tensor
    log_u: torch.Tensor
    calibrated: torch.Tensor
    weights: torch.Tensor
    present: torch.Tensor
    doubt: Doubt
    common: Common
    recovered: tuple[torch.Tensor, torch.Tensor]

    @property
    def fused(self) -> torch.Tensor:
        """The weighted mean of log U' [B, T]."""
        return (self.weights * self.calibrated).sum(1)


class Stream(NamedTuple):
    """What inference keeps between steps of a recording.

    Parameters
    ----------
    course : of the forecasts.
    memories : of the layers of attention.
    """

    course: Course
    memories: tuple[Memory, ...]


class DualHealth(nn.Module):
    """The model: encode, doubt, recover, fuse, classify; every step is causal.

    1. Each modality's values of a step become a token f; two heads give mu and log v, see `Uncertainty`.
    2. U is the mean of v over its d numbers; log U' its calibrated logarithm, see `Calibration`.
    3. A missing modality gets mu and v from the others, see `Recovery`, and with them a U of its own.
    4. w = softmax over modalities of -kappa log U': with kappa = 1 weights are inverse variances.
    5. A transformer over M x T tokens, log w of the key added to every score; the read-out is sum_m w h.

    Parameters
    ----------
    modalities : what each brings in a step, `Packing.modalities`.
    num_classes : K.
    width : d, a multiple of `heads`.
    heads, depth : of the transformer.
    context : steps that it looks back, the present one included.
    common : d_c, of the common space.
    window : W, of the running standard deviation.
    kappa : how much weights follow uncertainties; 0 weighs all alike.
    noise, fluctuation : the two heads of the uncertainty.
    weights : of the parts of the loss.
    seed : of the first weights; the global random state stays as it is.

    Raises
    ------
    InvalidProblemError
        If a number is out of its range.

    Examples
    --------
    >>> model = DualHealth((Modality("ecg", 16, 1), Modality("car", 1, 6)), num_classes=3, width=8, heads=2)
    >>> seen, stream = model.run(torch.ones(5, 4, 16 + 6 + 2))
    >>> seen.scores.shape, seen.weights.sum(1).allclose(torch.ones(5, 4))
    (torch.Size([5, 4, 3]), True)
    """

    name = "dual-health"

    def __init__(
        self,
        modalities: tuple[Modality, ...],
        num_classes: int,
        *,
        width: int = 32,
        heads: int = 4,
        depth: int = 1,
        context: int = 16,
        common: int = 16,
        window: int = 5,
        kappa: float = 1.0,
        noise: bool = True,
        fluctuation: bool = True,
        weights: Weights | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.modalities = tuple(Modality(*modality) for modality in modalities)
        if not self.modalities:
            raise InvalidProblemError("modalities: expected at least one")
        self.num_classes = integer("num_classes", num_classes, low=1)
        self.kappa = real("kappa", kappa, nonnegative=True)
        self.parts = Weights() if weights is None else weights
        for label, value in (
            ("width", width),
            ("heads", heads),
            ("depth", depth),
            ("context", context),
            ("window", window),
        ):
            integer(label, value, low=1)
        if width % heads or width % 2:
            raise InvalidProblemError(f"width = {width}: expected an even multiple of heads = {heads}")
        if not (noise or fluctuation):
            raise InvalidProblemError(
                "noise = False, fluctuation = False: expected at least one head of the uncertainty"
            )
        m = len(self.modalities)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_number("seed", seed))
            self.encode = Encode(self.modalities, width)
            self.doubt = Uncertainty(m, width, window=window, noise=noise, fluctuation=fluctuation)
            self.recovery = Recovery(m, width, integer("common", common, low=1))
            self.alone = PerModality(m, 2 * width, self.num_classes)
            self.token = PerModality(m, width, width)
            self.layers = nn.ModuleList([BiasedAttention(width, heads, context) for _ in range(depth)])
            self.head = nn.Linear(width, self.num_classes)
        self.calibration = Calibration(m)

    def run(self, x: torch.Tensor, stream: Stream | None = None) -> tuple[Seen, Stream]:
        """Return what the model makes of some steps, and what it keeps for the next ones.

        Steps may come at once, one by one or in any pieces: up to rounding, what comes out is the same.

        Parameters
        ----------
        x : [B, T, F + M], packed.
        stream : after the steps before; None at the start of a recording.
        """
        encoded = self.encode(x)  # (B, M, T, d + 1)
        tokens, present = encoded[..., :-1], encoded[..., -1]  # (B, M, T, d), (B, M, T)
        doubt, course = self.doubt(tokens, present, None if stream is None else stream.course)
        common = self.recovery.common(doubt.mean, doubt.log_variance)
        recovered = self.recovery.from_others(common, present)
        there = present[..., None]  # (B, M, T, 1)
        # what is recovered learns from what was there alone, and not to please the classifier
        mean = there * doubt.mean + (1 - there) * recovered[0].detach()  # (B, M, T, d)
        log_variance = there * doubt.log_variance + (1 - there) * recovered[1]  # (B, M, T, d)
        log_u = log_uncertainty(log_variance)  # (B, M, T)
        calibrated = self.calibration(log_u)  # (B, M, T)
        log_w = (-self.kappa * calibrated).log_softmax(1)  # (B, M, T)
        fused, memories = self.fuse(mean, log_w, None if stream is None else stream.memories)  # (B, T, d)
        alone = self.alone(torch.cat([mean, doubt.hidden], -1))  # (B, M, T, K)
        seen = Seen(self.head(fused), alone, log_u, calibrated, log_w.exp(), present, doubt, common, recovered)
        return seen._replace(scores=self.calibration.tempered(seen.scores, seen.fused)), Stream(course, memories)

    def fuse(
        self, mean: torch.Tensor, log_w: torch.Tensor, memories: tuple[Memory, ...] | None = None
    ) -> tuple[torch.Tensor, tuple[Memory, ...]]:
        """Return the read-out [B, T, d] of means [B, M, T, d] under log weights [B, M, T], and what layers keep."""
        hidden, kept = self.token(mean), []  # (B, M, T, d)
        for index, layer in enumerate(self.layers):
            hidden, memory = layer(hidden, log_w, None if memories is None else memories[index])
            kept.append(memory)
        return (log_w.exp()[..., None] * hidden).sum(1), tuple(kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores [B, T, K] of packed windows [B, T, F + M]."""
        return self.run(x)[0].scores

    def loss(self, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the loss of pairs of copies of windows.

        Parameters
        ----------
        x : [2 B, T, F + M]: B windows, then noisier copies of them.
        labels : [2 B, T].
        noise : [2 B, M, T], standard deviation of the noise that was added.
        """
        seen, _ = self.run(x)
        part, there = self.parts, seen.present
        count = there.sum().clamp_min(1)
        total = nn.functional.cross_entropy(seen.scores.flatten(0, 1), labels.flatten())
        own = alone_loss(seen.alone, labels)  # (2 B, M, T)
        if part.alone:
            total = total + part.alone * own.mean()
        if part.forecast:
            total = total + part.forecast * forecast_loss(seen.doubt, there).sum() / count
        if part.rank:
            total = total + part.rank * rank_loss(seen.log_u, noise, there)
        if part.calibrate:
            total = total + part.calibrate * calibration_loss(seen.calibrated, own.detach())
        if part.align:
            # of the maps to the common space alone: what encoders say is not made alike
            common = self.recovery.common(seen.doubt.mean.detach(), seen.doubt.log_variance.detach())
            total = total + part.align * alignment_loss(common, seen.log_u, there, labels)
        if part.recover:
            total = total + part.recover * recovery_loss(seen.recovered, seen.doubt.mean, there).sum() / count
        return total

    def as_blocks(self) -> nn.Sequential:
        """Return the same layers, with the same weights, as blocks one after another that one tensor crosses between.

        The channel after the scores is what the blocks add to the loss: forecasts and recovery, see
        `edgeopt.fusion.fusion_loss`; outside of training it is left out. What needs labels or copies of windows is not
        among it, nor is the temperature.
        """
        return nn.Sequential(
            OrderedDict(
                encode=self.encode,
                doubt=Doubts(self.doubt, self.parts.forecast),
                recover=Recovers(self.recovery, self.calibration, self.kappa, self.parts.recover),
                fuse=Fuses(self.token, self.layers, self.head),
            )
        )


def alone_loss(alone: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy [B, M, T] of what each modality says alone, scores [B, M, T, K], of labels [B, T]."""
    everyone = labels[:, None].expand(-1, alone.shape[1], -1)
    return nn.functional.cross_entropy(alone.permute(0, 3, 1, 2), everyone, reduction="none")


def rank_loss(log_u: torch.Tensor, noise: torch.Tensor, present: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """Return the mean hinge of log U(less noise) - log U(more noise) + margin over pairs that differ.

    Parameters
    ----------
    log_u, noise, present : [2 B, M, T]; the second half are noisier copies of the first.
    margin : by which uncertainties of a pair have to differ, in logarithms.
    """
    (less, more), (low, high), (here, there) = (part.chunk(2) for part in (log_u, noise, present))
    asked = (here * there * (high > low)).to(log_u.dtype)
    return ((margin + less - more).relu() * asked).sum() / asked.sum().clamp_min(1)


def calibration_loss(log_u: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Return how far uncertainties are shared out otherwise than errors: over the windows of a batch, and over modalities.

    KL(softmax(error) | softmax(log U')), once over the batch for each modality and step, once over the modalities for
    each window and step; those that are recovered count as those that are there.

    Parameters
    ----------
    log_u, error : [B, M, T].
    """
    total = log_u.new_zeros(())
    for axis in (0, 1):
        target, found = error.log_softmax(axis), log_u.log_softmax(axis)
        total = total + (target.exp() * (target - found)).sum(axis).mean()
    return total
