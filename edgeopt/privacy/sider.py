"""`Sider`: a face that recognisers take for the same person and that looks like somebody else."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.display import one_line
from edgeopt.errors import InvalidProblemError
from edgeopt.privacy.diffusion import Diffusion
from edgeopt.privacy.face_models import FaceModels
from edgeopt.privacy.faces import random_numbers
from edgeopt.privacy.pictures import check_faces, ssim
from edgeopt.progress import TrainingBar
from edgeopt.rng import stream
from edgeopt.validate import integer, real, seed_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """Faces that were protected.

    Parameters
    ----------
    pictures : float32 [B, 3, S, S] from 0 to 1.
    targets : the appearances aimed at, [B, 6].
    iterations : int64 [B], steps that were taken until everything asked for was reached.
    reached : bool [B], whether it was.
    """

    pictures: Tensor
    targets: Tensor
    iterations: Tensor
    reached: Tensor

    __repr__ = one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What a protected face shall reach; where all is reached, it is left as it is.

    Parameters
    ----------
    margin : by how much cosines shall exceed the thresholds of the recognisers that are optimised with.
    unlike : least 1 - SSIM to the original.
    read : least cosine of the appearance that is read and the target.
    """

    margin: float = 0.2
    unlike: float = 0.6
    read: float = 0.8


class Losses(NamedTuple):
    """Losses [B] of pictures, and how much is missing to the goals [B]."""

    identity: Tensor
    semantic: Tensor
    shortfall: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What pictures are optimised for, in whatever way.

    Parameters
    ----------
    models : the networks.
    faces : the originals, [B, 3, S, S].
    targets : appearances, [B, 6].
    known : what recognisers see in the originals, [B, 64] by name; only these recognisers count.
    goals : what shall be reached.
    seed : of the movements under which pictures are recognised.
    """

    models: FaceModels
    faces: Tensor
    targets: Tensor
    known: dict[str, Tensor]
    goals: Goals
    seed: int

    __repr__ = one_line

    @staticmethod
    def of(
        models: FaceModels, faces: Tensor, targets: Tensor | None, seed: int, recognisers: tuple[str, ...] = (),
        goals: Goals = Goals(),
    ) -> "Objective":  # fmt: skip
        """Return that of originals; targets that are None are drawn, recognisers by default all but the one held out."""
        targets = other_appearances(models, faces, seed) if targets is None else check_targets(targets, len(faces))
        with torch.no_grad():
            known = {name: models.recognisers[name](faces) for name in recognisers or models.ensemble}
        return Objective(models=models, faces=faces, targets=targets, known=known, goals=goals, seed=seed)

    def losses(self, made: Tensor, turn: int, which: Tensor | None = None) -> Losses:
        """Return the losses of pictures.

        Parameters
        ----------
        made : pictures [B, 3, S, S].
        turn : the same movement for the same number.
        which : int64 [B], of which originals they are; default: all.
        """
        which = torch.arange(len(self.faces)) if which is None else which
        moved = shifted(made, stream(self.seed, "moved", turn))
        identity, missing = torch.zeros(len(made)), torch.zeros(len(made))
        for name, known in self.known.items():
            network = self.models.recognisers[name]
            identity = identity + 1 - (network(moved) * known[which]).sum(1)
            with torch.no_grad():
                cosine = (network(made) * known[which]).sum(1)
            missing += (self.models.thresholds[name].cosine + self.goals.margin - cosine).clamp_min(0)
        read = F.cosine_similarity(self.models.reader(made), self.targets[which], dim=1)
        too_alike = (ssim(made, self.faces[which]) - (1 - self.goals.unlike)).clamp_min(0)
        missing += (too_alike + (self.goals.read - read).clamp_min(0)).detach()
        return Losses(identity, 1 - read + too_alike, missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sider:
    """Semantic decoupling of identity: a latent is optimised so that recognisers still see the person, under another appearance.

    The latent z of a face is inverted by DDIM to some time of the diffusion, and denoised under another appearance c'. Then z
    moves along g <- momentum g + G(L_id) + balance G(L_sem), where G divides a gradient by the sum of its magnitudes, in steps
    of `step` times the length of the first z. No ball bounds it. L_id is the sum of 1 - cosine over the recognisers, of the picture
    slightly moved and scaled; L_sem = 1 - cosine of read and wanted appearance, + max(0, `goals.unlike` - (1 - SSIM)),
    + 0.001 times the mean squared distance of z from its start.

    Parameters
    ----------
    models : the networks; default: those for synthetic faces that come with the package.
    iterations : at most.
    balance : weight of the look beside the identity.
    momentum : 0 to below 1.
    step : share of the length of the first latent.
    share : of the times of the diffusion, up to which a face becomes noise.
    guidance : weight of the target in the diffusion.
    variety : share of noise in the first latent that follows from the seed.
    through : steps of DDIM that gradients flow through; earlier ones are passed straight.
    recognisers : names of those that are optimised with; default: all but the one held out.
    goals : when a face is done.
    stop : whether a face that has reached its goals is left; otherwise all iterations are made, and the last one counts.

    References
    ----------
    Z. Bao et al., *SIDeR: Semantic Identity Decoupling for Unrestricted Face Privacy*, arXiv:2602.04994, for the idea. The
    formulation is ours.
    """

    models: FaceModels = field(default_factory=FaceModels.pretrained)
    iterations: int = 40
    balance: float = 0.5
    momentum: float = 0.9
    step: float = 0.05
    share: float = 0.5
    guidance: float = 2.0
    variety: float = 0.1
    through: int = 2
    recognisers: tuple[str, ...] = ()
    goals: Goals = Goals()
    stop: bool = True

    def __post_init__(self) -> None:
        integer("iterations", self.iterations, low=0)
        integer("through", self.through, low=1)
        for name, most in (
            ("balance", np.inf),
            ("step", np.inf),
            ("guidance", np.inf),
            ("momentum", 1.0),
            ("variety", 1.0),
        ):
            if not 0 <= real(name, getattr(self, name)) < most:
                raise InvalidProblemError(f"{name} = {getattr(self, name):g}: expected at least 0 and below {most:g}")
        if not 0 < real("share", self.share) <= 1:
            raise InvalidProblemError(f"share = {self.share:g}: expected above 0 and at most 1")
        for name in self.recognisers:
            if name not in self.models.recognisers:
                raise InvalidProblemError(
                    f"recognisers: {name!r}: expected some of {', '.join(self.models.recognisers)}"
                )

    def protect(
        self, faces: Tensor, targets: Tensor | None = None, *, seed: int = 0, display: bool = False
    ) -> Protected:
        """Protect a batch of faces; what becomes of one does not depend on the others.

        Parameters
        ----------
        faces : float32 [B, 3, S, S] from 0 to 1, S 32 or 64.
        targets : appearances [B, 6] from -1 to 1; default: drawn from the seed, see `other_appearances`.
        seed : of targets and first latents; other seeds give other faces.
        display : show a progress bar, if standard error is a terminal.

        Raises
        ------
        InvalidProblemError
            If faces or targets have other shapes or values.
        """
        faces = check_faces(faces)
        objective = Objective.of(self.models, faces, targets, seed, self.recognisers, self.goals)
        diffusion = Diffusion(self.models.denoiser, self.share)
        first = self.first(diffusion, faces, seed)
        best, least = torch.zeros_like(faces), torch.full((len(faces),), torch.inf)
        iterations = torch.full((len(faces),), self.iterations)
        active = torch.arange(len(faces))
        z, velocity = first.clone(), torch.zeros_like(first)
        with TrainingBar("sider", self.iterations, display=display) as bar:
            for i in range(self.iterations + 1):
                at = z[active].requires_grad_(i < self.iterations)
                latents = diffusion.denoise(at, objective.targets[active], self.guidance, self.through)
                made = self.models.coder.decode(latents, faces.shape[-1]).clamp(0, 1)
                losses = objective.losses(made, i, active)
                better = losses.shortfall < least[active] if self.stop else torch.ones(len(active), dtype=torch.bool)
                best[active[better]] = made.detach()[better]
                least[active[better]] = losses.shortfall[better]
                done = losses.shortfall <= 0
                iterations[active[done]] = iterations[active[done]].clamp_max(i)
                bar.update(min(i + 1, self.iterations), f"{int((least <= 0).sum())} of {len(faces)} done")
                if i == self.iterations or (self.stop and done.all()):
                    break
                away = 1e-3 * (at - first[active]).square().mean((1, 2, 3))
                velocity[active] = self.momentum * velocity[active] + self.direction(losses, away, at)
                length = _length(first[active]) / _length(velocity[active]).clamp_min(1e-12)
                z[active] -= self.step * length * velocity[active]
                if self.stop:
                    active = active[~done]
        return Protected(pictures=best, targets=objective.targets, iterations=iterations, reached=least <= 0)

    def first(self, diffusion: Diffusion, faces: Tensor, seed: int) -> Tensor:
        """Return the noisy latents that optimisation starts from, [B, 8, 8, 8]."""
        with torch.no_grad():
            start = diffusion.invert(self.models.coder.encode(faces))
        shape = start.shape[1:]
        noise = [stream(seed, "first", i).standard_normal(shape, np.float32) for i in range(len(faces))]
        found: Tensor = (1 - self.variety**2) ** 0.5 * start + self.variety * torch.from_numpy(np.stack(noise))
        return found

    def direction(self, losses: Losses, away: Tensor, at: Tensor) -> Tensor:
        """Return the balanced sum of both gradients."""
        (identity,) = torch.autograd.grad(losses.identity.sum(), at, retain_graph=self.balance > 0)
        found = _evened(identity)
        if self.balance > 0:
            (semantic,) = torch.autograd.grad((losses.semantic + away).sum(), at)
            found = found + self.balance * _evened(semantic)
        return found


def other_appearances(models: FaceModels, faces: Tensor, seed: int, candidates: int = 8) -> Tensor:
    """Return appearances [B, 6] drawn at random: of each few the one that is farthest from what is read in the face."""
    seed_number("seed", seed)
    drawn = torch.stack([random_numbers(candidates, stream(seed, "target", i)) for i in range(len(faces))])  # (B, C, 6)
    with torch.no_grad():
        away = (drawn - models.reader(faces)[:, None]).square().sum(2)
    return drawn[torch.arange(len(faces)), away.argmax(1)]


def check_targets(targets: Tensor, count: int) -> Tensor:
    """Return appearances [count, 6] from -1 to 1; refuse others."""
    if not isinstance(targets, Tensor) or targets.shape != (count, 6):
        got = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise InvalidProblemError(f"targets: expected a tensor [{count}, 6], got {got}")
    if not (targets.abs() <= 1).all():
        raise InvalidProblemError("targets: expected numbers from -1 to 1")
    return targets.float()


def shifted(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pictures, all moved by up to 4 % and scaled by up to 5 % in the same way, their edges repeated."""
    scale, x, y = 1 + 0.05 * rng.uniform(-1, 1), *(0.08 * rng.uniform(-1, 1, 2))
    affine = torch.tensor([[scale, 0, x], [0, scale, y]], dtype=pictures.dtype).repeat(len(pictures), 1, 1)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    found: Tensor = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return found


def _length(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return found


def _evened(gradient: Tensor) -> Tensor:
    """Return a gradient divided by the sum of its magnitudes, for each picture."""
    return gradient / gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
