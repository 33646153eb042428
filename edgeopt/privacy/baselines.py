"""What `Sider` is compared with: a perturbation of pixels within a ball, and another appearance without regard to identity."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgeopt.errors import InvalidProblemError
from edgeopt.privacy.face_models import FaceModels
from edgeopt.privacy.pictures import check_faces
from edgeopt.privacy.sider import Objective, Protected, Sider, other_appearances
from edgeopt.validate import integer, real


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelPgd:
    """Projected gradient descent on pixels: the losses of `Sider`, in a ball of the maximum norm around the original.

    Parameters
    ----------
    models : the networks.
    radius : of the ball; pictures are from 0 to 1.
    iterations : of a quarter of the radius each.
    balance : weight of the look beside the identity.

    References
    ----------
    A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """

    models: FaceModels = field(default_factory=FaceModels.pretrained)
    radius: float = 8 / 255
    iterations: int = 40
    balance: float = 0.5

    def __post_init__(self) -> None:
        integer("iterations", self.iterations, low=0)
        if not 0 < real("radius", self.radius) <= 1:
            raise InvalidProblemError(f"radius = {self.radius:g}: expected above 0 and at most 1")
        real("balance", self.balance, nonnegative=True)

    def protect(self, faces: Tensor, targets: Tensor | None = None, *, seed: int = 0) -> Protected:
        """Protect a batch of faces, see `Sider.protect`."""
        faces = check_faces(faces)
        objective = Objective.of(self.models, faces, targets, seed)
        made = faces.clone()
        for i in range(self.iterations):
            at = made.detach().requires_grad_()
            losses = objective.losses(at, i)
            (gradient,) = torch.autograd.grad((losses.identity + self.balance * losses.semantic).sum(), at)
            moved = made - self.radius / 4 * gradient.sign()
            made = torch.clamp(moved, faces - self.radius, faces + self.radius).clamp(0, 1)
        with torch.no_grad():
            missing = objective.losses(made, self.iterations).shortfall
        count = torch.full((len(faces),), self.iterations)
        return Protected(pictures=made, targets=objective.targets, iterations=count, reached=missing <= 0)


def appearance_swap(
    models: FaceModels, faces: Tensor, targets: Tensor | None = None, *, seed: int = 0, guidance: float = 2.0
) -> Protected:
    """Return what the diffusion makes of faces under another appearance: `Sider` before its first step."""
    faces = check_faces(faces)
    targets = other_appearances(models, faces, seed) if targets is None else targets
    return Sider(models=models, iterations=0, guidance=guidance).protect(faces, targets, seed=seed)
