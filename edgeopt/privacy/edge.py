"""Protecting a face as split work: the encoder on the device, everything else on the server. What crosses is a latent."""

import math
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.data.arrays import ArrayData
from edgeopt.data.partition import iid
from edgeopt.privacy.diffusion import LATENT, FaceCoder
from edgeopt.privacy.face_models import FaceModels
from edgeopt.privacy.training import views
from edgeopt.rng import stream
from edgeopt.training.task import Task
from edgeopt.validate import integer

Floats = NDArray[np.float64]


class EdgeFaces(NamedTuple):
    """A task whose first layer is the encoder, and what is known of its samples.

    Parameters
    ----------
    task : cut after its first layer; classes are persons.
    attributes : ``identity`` and ``appearance``, [n, m] of samples to train probes with and of held-out ones, for `edgeopt.training.leakage`.
    """

    task: Task
    attributes: dict[str, tuple[Floats, Floats]]


def edge_faces(models: FaceModels, *, people: int = 20, looks: int = 50, seed: int = 0) -> EdgeFaces:
    """Return pictures of persons that no network was trained on, as a task of split learning.

    Parameters
    ----------
    models : whose encoder is on the device.
    people : how many; photographs are 25.
    looks : pictures of each to train probes with, and as many held-out ones, in appearances drawn at random.
    seed : of persons and pictures.
    """
    people, looks = integer("people", people, low=2), integer("looks", looks, low=1)
    shown = models.faces.people("test", people, seed)
    parts, known = [], []
    for part in ("train", "test"):
        rng = stream(seed, "edge", part)
        who = np.tile(np.arange(people), looks)
        pictures, appearance = views(models.faces, shown[who], rng)
        parts.append(ArrayData(pictures, torch.from_numpy(who), people, f"{models.faces.name} faces"))
        known.append({"identity": _numbers(models.faces.traits(shown[who])), "appearance": _numbers(appearance)})
    layers = OrderedDict(
        encode=_Encode(models.coder), flatten=nn.Flatten(), classify=nn.Linear(math.prod(LATENT), people)
    )
    task = Task(
        model=nn.Sequential(layers),
        train=parts[0],
        partition=iid(len(parts[0]), 2, seed=seed),
        test=parts[1],
        seed=seed,
    )
    return EdgeFaces(task, {name: (known[0][name], known[1][name]) for name in known[0]})


class _Encode(nn.Module):
    """The way from a picture to its latent alone."""

    def __init__(self, coder: FaceCoder) -> None:
        super().__init__()
        self.encoder = coder.encoder
        self.register_buffer("spread", coder.spread)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.encoder(2 * pictures - 1).chunk(2, 1)[0] / self.spread
        return found


def _numbers(values: Tensor) -> Floats:
    return values.numpy().astype(np.float64)
