"""`FaceModels`: all networks of one set of faces, in one file of half-precision weights."""

import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeopt.display import one_line
from edgeopt.fields import Fields
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.privacy.diffusion import Denoiser, FaceCoder
from edgeopt.privacy.face_sets import FACE_SETS, FaceSet
from edgeopt.privacy.recognisers import HELD_OUT, RECOGNISERS, AppearanceReader, Recogniser, Threshold
from edgeopt.validate import by_name

_KIND, _SCHEMA_VERSION = "faces", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceModels:
    """Networks that were trained on one set of faces.

    Parameters
    ----------
    faces : the set.
    recognisers : by name, those of `RECOGNISERS`; `held_out` is one of them.
    thresholds : of cosines, by recogniser.
    reader : of appearances, that is optimised with.
    judge : another, that only judges.
    coder : latents of faces and back.
    denoiser : of the latents.
    """

    faces: FaceSet
    recognisers: dict[str, Recogniser]
    thresholds: dict[str, Threshold]
    reader: AppearanceReader
    judge: AppearanceReader
    coder: FaceCoder
    denoiser: Denoiser

    __repr__ = one_line

    @property
    def ensemble(self) -> dict[str, Recogniser]:
        """The recognisers that are optimised with."""
        return {name: net for name, net in self.recognisers.items() if name != HELD_OUT}

    @torch.no_grad()
    def similarity(self, one: Tensor, other: Tensor) -> dict[str, Tensor]:
        """Return for each recogniser the cosines [B] of pictures [B, 3, S, S] in pairs."""
        return {name: (net(one) * net(other)).sum(1) for name, net in self.recognisers.items()}

    # --- files ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def pretrained(name: str = "synthetic") -> "FaceModels":
        """Return those that come with the package, for one of `FACE_SETS`."""
        by_name("faces", name, FACE_SETS)
        return _pretrained(name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt to a ``.safetensors`` file, in half precision."""
        thresholds = {name: asdict(found) for name, found in self.thresholds.items()}
        header = {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "faces": self.faces.name, "thresholds": thresholds}
        save_weights(path, header, self._whole(), half=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "FaceModels":
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """

        def build(header: Fields) -> FaceModels:
            given = header.table("thresholds")
            found = untrained(header.choice("faces", tuple(FACE_SETS)))
            return replace(found, thresholds={name: _threshold(given.table(name)) for name in RECOGNISERS})

        return load_weights(path, _KIND, _SCHEMA_VERSION, build, FaceModels._whole)[0].frozen()

    def frozen(self) -> "FaceModels":
        """Return it, without any gradient of weights."""
        self._whole().requires_grad_(False).eval()
        return self

    def _whole(self) -> nn.ModuleDict:
        parts = {"reader": self.reader, "judge": self.judge, "coder": self.coder, "denoiser": self.denoiser}
        return nn.ModuleDict({**self.recognisers, **parts})


def untrained(name: str) -> FaceModels:
    """Return networks with weights as they are drawn; of few photographs the diffusion is smaller."""
    return FaceModels(
        faces=FACE_SETS[name], recognisers={shape: Recogniser(shape) for shape in RECOGNISERS}, thresholds={},
        reader=AppearanceReader(), judge=AppearanceReader(), coder=FaceCoder(), denoiser=Denoiser(40 if name == "synthetic" else 32),
    )  # fmt: skip


def _threshold(given: Fields) -> Threshold:
    return Threshold(given.number("cosine", low=-1), given.number("far", low=0))


@cache
def _pretrained(name: str) -> FaceModels:
    return FaceModels.load(Path(str(files("edgeopt.privacy") / "files" / f"{name}.safetensors")))
