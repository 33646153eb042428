"""How the networks of a set of faces are trained; nothing of a test is seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.privacy.diffusion import TIMES, noising
from edgeopt.privacy.face_models import FaceModels, untrained
from edgeopt.privacy.face_sets import FaceSet, Part
from edgeopt.privacy.faces import View, random_numbers
from edgeopt.privacy.recognisers import FEATURES, HELD_OUT, AppearanceReader, Recogniser, Threshold, threshold_at
from edgeopt.progress import TrainingBar
from edgeopt.rng import stream
from edgeopt.validate import seed_number

Row = dict[str, Any]
OnRow = Callable[[Row], object]

VIEWS = 30
"""Pictures of each person that recognisers are trained on."""
NOISE = 0.02
"""Standard deviation of the camera's noise."""
FAR = 0.01
"""Share of pairs of two persons that thresholds let pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long, on how many.

    Parameters
    ----------
    people : persons that recognisers are trained on; photographs are 60.
    checked : persons that set thresholds; photographs are 15.
    recogniser, reader, coder, sharpen, denoiser : mini-batches.
    batch : pictures in each.
    bank : pictures whose latents the denoiser is trained on.
    """

    people: int = 200
    checked: int = 150
    recogniser: int = 900
    reader: int = 400
    coder: int = 1000
    sharpen: int = 150
    denoiser: int = 900
    batch: int = 64
    bank: int = 6000


TRAININGS = {"synthetic": Training(), "lfw": Training(recogniser=400, reader=250, coder=600, denoiser=600)}
"""How the networks that come with the package were trained, by set of faces."""


def train_faces(
    name: str, training: Training | None = None, *, seed: int = 0, on_row: OnRow | None = None, display: bool = False
) -> FaceModels:
    """Train all networks of one of `FACE_SETS`, one after another.

    Parameters
    ----------
    name : of the set.
    training : default: as those that come with the package.
    seed : same seed, same networks.
    on_row : called every 100 mini-batches and at the end of each stage.
    display : show a progress bar, if standard error is a terminal.
    """
    training, seed = training or TRAININGS[name], seed_number("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "start").integers(1 << 62)))
        found = untrained(name)
    faces = found.faces
    loop = _Loop(seed, on_row or (lambda row: None), display)
    for shape, network in found.recognisers.items():
        part: Part = "other" if shape == HELD_OUT else "train"
        people = faces.people(part, people_of(faces, training.people), seed)
        train_recogniser(network, faces, people, training.recogniser, training.batch, loop)
        found.thresholds[shape] = calibrated(network, faces, seed, training.checked)
        loop.tell(
            {"stage": shape, **verified(network, faces, found.thresholds[shape], "calibrate", seed, training.checked)}
        )
    for stage, reader in (("reader", found.reader), ("judge", found.judge)):
        train_reader(reader, faces, seed, stage, training.reader, training.batch, loop)
    train_coder(found, seed, training, loop)
    train_denoiser(found, seed, training, loop)
    return found.frozen()


def people_of(faces: FaceSet, count: int) -> int:
    """Return how many persons of a part there are, at most as many as asked for."""
    return count if faces.name == "synthetic" else 60


def views(faces: FaceSet, people: Tensor, rng: np.random.Generator, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return pictures of persons in appearances drawn at random, and the appearances."""
    appearance = random_numbers(len(people), rng)
    return faces.show(people, appearance, View.random(len(people), rng), size, rng), appearance


def train_recogniser(
    network: Recogniser, faces: FaceSet, people: Tensor, steps: int, batch: int, loop: "_Loop"
) -> None:
    """Classify persons by cosines, with an additive margin; from the vectors, traits of persons are estimated as well.

    With few persons, it is the traits from which a network learns soon what to look at.

    References
    ----------
    F. Wang et al., "Additive margin softmax for face verification", IEEE Signal Process. Lett. 25, 2018.
    """
    centres = nn.Parameter(torch.randn(len(people), FEATURES, generator=torch.Generator().manual_seed(0)))
    traits = faces.traits(people)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        estimate = nn.Linear(FEATURES, traits.shape[1])
    rng = stream(loop.seed, "views", network.shape)
    album = torch.stack([views(faces, people, rng)[0] for _ in range(VIEWS)])  # (V, n, 3, 32, 32)

    def loss(rng: np.random.Generator) -> Tensor:
        who = torch.from_numpy(rng.integers(len(people), size=batch))
        pictures = album[torch.from_numpy(rng.integers(VIEWS, size=batch)), who]
        vectors = network.features(pictures)
        cosines = F.normalize(vectors, dim=1) @ F.normalize(centres, dim=1).T
        wrong = F.cross_entropy(16 * (cosines - 0.15 * F.one_hot(who, len(people))), who)
        found: Tensor = wrong + 5 * (estimate(vectors) - traits[who]).square().mean()
        return found

    network.train()
    loop.run(network.shape, [*network.parameters(), *estimate.parameters(), centres], steps, 3e-3, loss)
    network.eval()


def train_reader(
    network: AppearanceReader, faces: FaceSet, seed: int, stage: str, steps: int, batch: int, loop: "_Loop"
) -> None:
    """Read appearances, by the mean squared error."""
    people = faces.people("train", people_of(faces, 2000), seed)

    def loss(rng: np.random.Generator) -> Tensor:
        pictures, appearance = views(faces, people[rng.integers(len(people), size=batch)], rng)
        found: Tensor = (network(pictures) - appearance).square().mean()
        return found

    loop.run(stage, [*network.parameters()], steps, 3e-3, loss)


def train_coder(found: FaceModels, seed: int, training: Training, loop: "_Loop") -> None:
    """Code and decode; then draw the larger of smaller faces.

    What shall come out is the picture without the camera's noise, by absolute and squared errors of its values and of their
    differences to the right and down, and as the recognisers of the ensemble see it; latents are pulled weakly to normal ones.
    """
    faces, coder = found.faces, found.coder
    people = faces.people("train", people_of(faces, 2000), seed)
    half = training.batch // 2
    for network in found.ensemble.values():
        network.requires_grad_(False)

    def loss(rng: np.random.Generator) -> Tensor:
        who = people[rng.integers(len(people), size=half)]
        clean = faces.show(who, random_numbers(half, rng), View.random(half, rng), 32, None)
        grain = torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32))
        mean, log_variance = coder.moments((clean + NOISE * grain).clamp(0, 1))
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32))
        made = coder.decoder(mean + noise * (0.5 * log_variance).exp()) / 2 + 0.5
        pull = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        wrong = torch.stack([1 - (net(made) * net(clean)).sum(1) for net in found.ensemble.values()]).mean()
        return _errors(made, clean) + 0.05 * wrong + 2e-4 * pull

    loop.run("coder", [*coder.encoder.parameters(), *coder.decoder.parameters()], training.coder, 2e-3, loss)
    with torch.no_grad():
        coder.spread.copy_(coder.moments(_bank(faces, people, seed, 256)[0])[0].std())
    if 64 not in faces.sizes:
        return

    def sharper(rng: np.random.Generator) -> Tensor:
        who = people[rng.integers(len(people), size=half // 2)]
        clean = faces.show(who, random_numbers(len(who), rng), View.random(len(who), rng), 64, None)
        with torch.no_grad():
            small = coder.decode(coder.encode(clean))
        return _errors(coder.enlarged(small), clean)

    loop.run("sharpen", [*coder.sharpen.parameters()], training.sharpen, 2e-3, sharper)


def train_denoiser(found: FaceModels, seed: int, training: Training, loop: "_Loop") -> None:
    """Predict noise, one picture in seven without its appearance; what is kept is a running mean of the weights."""
    faces, network = found.faces, found.denoiser
    people = faces.people("train", people_of(faces, 2000), seed)
    pictures, appearance = _bank(faces, people, seed, training.bank)
    with torch.no_grad():
        latents = torch.cat([found.coder.encode(part) for part in torch.split(pictures, 500)])
    kept = noising()
    mean = [weight.detach().clone() for weight in network.parameters()]

    def loss(rng: np.random.Generator) -> Tensor:
        which = torch.from_numpy(rng.integers(len(latents), size=training.batch))
        times = torch.from_numpy(rng.integers(TIMES, size=training.batch))
        noise = torch.from_numpy(rng.standard_normal((training.batch, *latents.shape[1:]), dtype=np.float32))
        left = kept[times][:, None, None, None]
        known = torch.from_numpy((rng.random(training.batch) > 1 / 7).astype(np.float32))
        said = network(left.sqrt() * latents[which] + (1 - left).sqrt() * noise, times, appearance[which], known)
        found: Tensor = (said - noise).square().mean()
        return found

    def average(step: int) -> None:
        torch._foreach_lerp_(mean, [*network.parameters()], max(0.005, 1 / (step + 1)))

    loop.run("denoiser", [*network.parameters()], training.denoiser, 2e-3, loss, average)
    with torch.no_grad():
        for weight, value in zip(network.parameters(), mean, strict=True):
            weight.copy_(value)


def pairs(
    network: nn.Module, faces: FaceSet, part: Part, seed: int, count: int = 150, looks: int = 4
) -> tuple[Tensor, Tensor]:
    """Return the cosines of pairs of one person in two appearances, and of two persons.

    Parameters
    ----------
    network : maps pictures to unit vectors.
    faces, part, seed : who is shown.
    count, looks : persons (photographs: as many as there are), and pictures of each.
    """
    people = faces.people(part, count if faces.name == "synthetic" else min(count, 15), seed)
    rng = stream(seed, "pairs", part)
    with torch.no_grad():
        vectors = torch.stack([network(views(faces, people, rng)[0]) for _ in range(looks)])  # (L, n, F)
    cosines = torch.einsum("anf,bmf->abnm", vectors, vectors)
    one = ~torch.eye(looks, dtype=torch.bool)
    same = torch.eye(len(people), dtype=torch.bool)
    return cosines[one][:, same], cosines[one][:, ~same]


def calibrated(network: nn.Module, faces: FaceSet, seed: int, count: int = 150) -> Threshold:
    """Return the threshold at which one of a hundred pairs of two persons passes, persons that were not trained on."""
    return threshold_at(pairs(network, faces, "calibrate", seed, count)[1], FAR)


def verified(network: nn.Module, faces: FaceSet, threshold: Threshold, part: Part, seed: int, count: int = 150) -> Row:
    """Return which shares of pairs of one person, and of two, pass a threshold."""
    genuine, impostor = pairs(network, faces, part, seed, count)
    passes = {"genuine": genuine, "impostor": impostor}
    return {name: float((cosines > threshold.cosine).float().mean()) for name, cosines in passes.items()}


def _errors(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute and squared error of values, and that of their differences to the right and down."""
    total = (made - wanted).abs().mean() + 3 * (made - wanted).square().mean()
    for axis in (2, 3):
        total = total + (made.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
    return total


def _bank(faces: FaceSet, people: Tensor, seed: int, count: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed, "bank", count)
    sizes = [min(500, count - done) for done in range(0, count, 500)]
    parts = [views(faces, people[rng.integers(len(people), size=size)], rng) for size in sizes]
    pictures, appearance = (torch.cat(part) for part in zip(*parts, strict=True))
    return pictures, appearance


@dataclass(frozen=True, slots=True)
class _Loop:
    """Adam with a rate of learning that rises for a moment and falls along a cosine."""

    seed: int
    tell: OnRow
    display: bool

    def run(
        self, stage: str, weights: list[nn.Parameter], steps: int, lr: float, loss: Callable[[np.random.Generator], Tensor],
        after: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
        said: list[float] = []
        with TrainingBar(stage, steps, display=self.display) as bar:
            for step in range(steps):
                for group in optimizer.param_groups:
                    warm = min(1.0, (step + 1) / 50)
                    group["lr"] = lr * warm * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * step / steps))))
                value = loss(stream(self.seed, stage, step))
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                if after is not None:
                    after(step)
                said.append(float(value.detach()))
                if (step + 1) % 100 == 0 or step + 1 == steps:
                    bar.update(step + 1, f"loss {np.mean(said):.4g}")
                    self.tell({"stage": stage, "step": step + 1, "loss": float(np.mean(said))})
                    said = []
