"""`FaceModels`: all networks of one set of faces, in one file of half-precision weights."""

import os
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.coding.weight_files import layout_of
from edgeopt.fields import Fields, in_file
from edgeopt.privacy.diffusion import Denoiser, FaceCoder
from edgeopt.privacy.face_sets import FACE_SETS, FaceSet
from edgeopt.privacy.recognisers import HELD_OUT, RECOGNISERS, AppearanceReader, Recogniser, Threshold
from edgeopt.storage import Layout
from edgeopt.tensors import Shapes, load_tensors, save_tensors
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
        save_tensors(
            path, header, {name: value.numpy().astype(np.float16) for name, value in self._whole().state_dict().items()}
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "FaceModels":
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """

        def empty(header: dict[str, Any]) -> FaceModels:
            return untrained(Fields(header).choice("faces", tuple(FACE_SETS)))

        def layout(header: dict[str, Any], shapes: Shapes) -> Layout:
            return layout_of(empty(header)._whole().state_dict(), shapes)

        header, arrays = load_tensors(path, _KIND, layout)
        with in_file(path):
            fields = Fields(header)
            fields.expect("schema_version", _SCHEMA_VERSION)
            found = empty(header)
            given = fields.table("thresholds")
            thresholds = {name: _threshold(given.table(name)) for name in RECOGNISERS}
        weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
        found._whole().load_state_dict(weights)
        return FaceModels(
            faces=found.faces, recognisers=found.recognisers, thresholds=thresholds, reader=found.reader, judge=found.judge,
            coder=found.coder, denoiser=found.denoiser,
        ).frozen()  # fmt: skip

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
