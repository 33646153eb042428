"""`DeepJscc`: pictures as a fixed number of real symbols, by two networks and no code; what a rateless stream is compared with."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.coding.losses import SCALE, batch_of
from edgeopt.coding.ntrscc import Tiles
from edgeopt.coding.pictures import Picture, as_picture
from edgeopt.coding.training import OnRow, check_pictures
from edgeopt.coding.transforms import down, up
from edgeopt.fields import Fields
from edgeopt.models.weight_files import load_weights, save_weights
from edgeopt.progress import TrainingBar
from edgeopt.rng import stream
from edgeopt.validate import integer, real, seed_number

_KIND, _SCHEMA_VERSION = "deep-jscc", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepShape:
    """How large the networks are, and how many symbols they have.

    Parameters
    ----------
    width : channels between layers.
    symbols : real symbols per 8 x 8 pixels.
    """

    width: int = 48
    symbols: int = 48


class DeepJscc(nn.Module):
    """A picture as symbols of mean power 1, and back.

    Parameters
    ----------
    shape : of the networks.

    References
    ----------
    E. Bourtsoulatze, D. Kurka and D. Gündüz, IEEE Trans. Cogn. Commun. Netw. 5, 2019, for the idea; layers are those of
    `edgeopt.coding.transforms.Network`.
    """

    def __init__(self, shape: DeepShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or DeepShape()
        n, s = shape.width, shape.symbols
        self.encoder = nn.Sequential(down(3, n), nn.GELU(), down(n, n), nn.GELU(), down(n, s))
        self.decoder = nn.Sequential(up(s, n), nn.GELU(), up(n, n), nn.GELU(), up(n, 3))

    def symbols(self, pictures: Tensor) -> Tensor:
        """Return symbols [B, S, H / 8, W / 8] of pictures [B, 3, H, W] from 0 to 1."""
        found: Tensor = self.encoder(pictures - 0.5)
        return found / found.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-9).sqrt()

    def pictures(self, received: Tensor) -> Tensor:
        """Return pictures of what was received."""
        return self.decoder(received) + 0.5  # type: ignore[no-any-return]

    @torch.no_grad()
    def sent_and_received(self, picture: Any, snr_db: float, rng: np.random.Generator) -> tuple[Picture, int]:
        """Return the picture that arrives over white Gaussian noise, and how many symbols it took."""
        whole = as_picture(picture)
        tiles = Tiles(*whole.shape[:2])
        sent = self.symbols(tiles.cut(whole))
        deviation = 10 ** (-real("snr_db", snr_db, unit="dB") / 20)
        noise = torch.from_numpy(rng.standard_normal(sent.shape).astype(np.float32))
        return tiles.join(self.pictures(sent + deviation * noise)), sent.numel()

    # --- files ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def pretrained() -> "DeepJscc":
        """Return the one that comes with the package, trained for 0 dB."""
        return DeepJscc.load(Path(str(files("edgeopt.coding") / "files" / "deep-jscc.safetensors")))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt to a ``.safetensors`` file."""
        save_weights(path, {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "shape": asdict(self.shape)}, self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "DeepJscc":
        """Read what `save` wrote.

        Raises
        ------
        InvalidFileError
            If it is no such file, or damaged.
        """

        def build(header: Fields) -> DeepJscc:
            given = header.table("shape")
            return DeepJscc(DeepShape(**{name: given.integer(name, low=1, high=512) for name in ("width", "symbols")}))

        return load_weights(path, _KIND, _SCHEMA_VERSION, build)[0]


def train_deep_jscc(
    pictures: Sequence[NDArray[np.uint8]],
    *,
    steps: int = 4500,
    snr_db: float = 0.0,
    shape: DeepShape | None = None,
    batch: int = 8,
    crop: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    on_row: OnRow | None = None,
    display: bool = False,
) -> DeepJscc:
    """Train for one signal-to-noise ratio, by the mean squared error; the rate of learning falls along a cosine.

    Parameters
    ----------
    pictures : uint8 [H, W, 3] each.
    steps, batch, crop, lr : as in `Training`.
    snr_db : of white Gaussian noise.
    shape : of the networks.
    seed : same seed, same networks.
    on_row : called every 50 steps.
    display : show a progress bar, if standard error is a terminal.
    """
    steps, seed = integer("steps", steps, low=1), seed_number("seed", seed)
    check_pictures(pictures, crop)
    deviation = 10 ** (-real("snr_db", snr_db, unit="dB") / 20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "start").integers(1 << 62)))
        model = DeepJscc(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    said = []
    with TrainingBar("deep-jscc", steps, display=display) as bar:
        for step in range(steps):
            rng = stream(seed, "deep-jscc", step)
            wanted = batch_of(pictures, batch, crop, rng)
            sent = model.symbols(wanted)
            noise = torch.from_numpy(rng.standard_normal(sent.shape).astype(np.float32))
            loss = SCALE * (model.pictures(sent + deviation * noise) - wanted).square().mean()
            for group in optimizer.param_groups:
                group["lr"] = lr * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * step / steps))))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
            optimizer.step()
            said.append(float(loss.detach()))
            if (step + 1) % 50 == 0 or step + 1 == steps:
                mean = float(np.mean(said))
                bar.update(step + 1, f"loss {mean:.4g}")
                if on_row is not None:
                    on_row({"stage": "deep-jscc", "step": step + 1, "loss": mean})
                said = []
    return model.requires_grad_(False)
