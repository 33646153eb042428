"""SIDeR: faces that recognisers take for the same person and that look like somebody else, beside other ways, and the way back.

``edgeopt study sider --jobs 2 --out out/sider``

Two tasks: ``synthetic``, rendered faces of persons that no network was trained on, and ``lfw``, photographs of scikit-image's
wheel, each a person of its own. Everything is of 32 pixels and rounded to 8 bits before it is judged. ``balance-b`` makes all
iterations with the balance b; the other variants stop where goals are reached.

``accepted``: share of protected faces that the recogniser which was held out takes for the original, at the threshold that one of
a hundred pairs of two persons pass; ``accepted_train`` of those that were optimised with, all three; ``enrolled``: against another
picture of the person, in an appearance of its own; ``genuine``: that share for the original itself; ``far``: that of two persons.
``ssim``: to the original. ``reads``: share of faces in which a reader that was held out finds an appearance that is nearer
to the target than to the original's; ``read_error``: root of the mean squared error to the target. ``reached``, ``iterations``: of
`edgeopt.privacy.Protected`. ``alike``: mean SSIM of two faces made of one original with other seeds and targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.coding.quality import psnr_db
from edgeopt.errors import AuthenticationError
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Always, Claim, Difference, Level
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.privacy import (
    HELD_OUT,
    FaceModels,
    PixelPgd,
    Protected,
    Sider,
    Vault,
    View,
    appearance_swap,
    random_numbers,
    ssim,
)
from edgeopt.privacy.pictures import to_array, to_tensor
from edgeopt.privacy.sider import other_appearances
from edgeopt.rng import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYSTEM = "sider"
BASELINES = ("pixel-pgd", "swap")
BALANCES = (0.0, 0.5, 3.0)
SWEEP = tuple(f"balance-{balance:g}" for balance in BALANCES)
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-momentum": {"momentum": 0.0},
    "one-recogniser": {"recognisers": ("plain",)},
    **{f"balance-{balance:g}": {"balance": balance, "stop": False} for balance in BALANCES},
}
"""What each variant changes of the system."""
SEEDS_FROM = 1000
"""Added to seeds of persons: those of 0 are what settings were tried on."""
LOOKS = 3
"""Faces that the system makes of each original."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    faces : originals.
    iterations : at most.
    """

    faces: int = 8
    iterations: int = 40


@dataclass(frozen=True, slots=True)
class Originals:
    """Persons of a test: float32 [B, 3, 32, 32] as they are protected, other pictures of them, and how each looks, [B, 6]."""

    faces: Tensor
    others: Tensor
    appearance: Tensor


def originals(models: FaceModels, count: int, seed: int) -> Originals:
    """Return persons that nothing was trained on, as 8-bit pictures."""
    people = models.faces.people("test", count, SEEDS_FROM + seed)
    rng = stream(SEEDS_FROM + seed, "originals")
    shown = []
    for _ in range(2):
        appearance = random_numbers(count, rng)
        pictures = models.faces.show(people, appearance, View.random(count, rng), 32, rng)
        shown.append((rounded(pictures), appearance))
    return Originals(shown[0][0], shown[1][0], shown[0][1])


def rounded(pictures: Tensor) -> Tensor:
    """Return what is left of pictures in 8-bit files."""
    return to_tensor(to_array(pictures))


def protect(cell: StudyCell[Setting], models: FaceModels, faces: Tensor, look: int = 0) -> Protected:
    """Return protected faces, made in the way of the variant; another look has other targets and seeds."""
    seed = LOOKS * cell.seed + look
    targets = other_appearances(models, faces, seed)
    if cell.variant == "pixel-pgd":
        return PixelPgd(models=models, iterations=cell.setting.iterations).protect(faces, targets, seed=seed)
    if cell.variant == "swap":
        return appearance_swap(models, faces, targets, seed=seed)
    changes = ABLATIONS.get(cell.variant, {})
    return Sider(models=models, iterations=cell.setting.iterations, **changes).protect(faces, targets, seed=seed)


def run(cell: StudyCell[Setting]) -> Row:
    """Protect and judge."""
    models = FaceModels.pretrained(cell.task)
    there = originals(models, cell.setting.faces, cell.seed)
    made = protect(cell, models, there.faces)
    found = judged(models, there, made)
    if cell.variant == SYSTEM:
        looks = [rounded(made.pictures)]
        looks += [rounded(protect(cell, models, there.faces, look).pictures) for look in range(1, LOOKS)]
        found["alike"] = mean_alike(looks)
        found |= restored(models, there.faces, made.pictures)
    return found


def restored(models: FaceModels, faces: Tensor, protected: Tensor) -> Row:
    """Hide originals in protected faces, and say what comes back with the password, and without."""
    vault, stranger = Vault("correct horse"), Vault("correct hose")
    containers, quality, refusals = [], [], []
    for carrier, secret in zip(to_array(protected), to_array(faces), strict=True):
        container = vault.hide(carrier, secret)
        quality.append(psnr_db(secret, vault.restore(container)))
        flipped = container.copy()
        flipped[len(flipped) // 2, 0, 0] ^= 1
        refusals += [refuses(stranger, container), refuses(vault, flipped)]
        containers.append(container)
    stack = np.stack(containers)
    cosines = models.similarity(to_tensor(stack), faces)[HELD_OUT]
    kept = [psnr_db(*pair) for pair in zip(to_array(protected), containers, strict=True)]
    return {
        "restored_db": float(np.min(quality)),
        "refused": float(np.mean(refusals)),
        "container_accepted": share(cosines > models.thresholds[HELD_OUT].cosine),
        "container_db": float(np.mean(kept)),
    }


def refuses(vault: Vault, container: NDArray[np.uint8]) -> bool:
    """Return whether a container is refused."""
    try:
        vault.restore(container)
    except AuthenticationError:
        return True
    return False


def mean_alike(looks: Sequence[Tensor]) -> float:
    """Return the mean SSIM of all pairs of looks, over faces."""
    pairs = [ssim(looks[i], looks[j]) for i in range(len(looks)) for j in range(i)]
    return float(torch.stack(pairs).mean())


@torch.no_grad()
def judged(models: FaceModels, there: Originals, made: Protected) -> Row:
    """Return what recognisers, readers and the similarity say of protected faces."""
    pictures = rounded(made.pictures)
    threshold = models.thresholds[HELD_OUT].cosine
    cosines = models.similarity(pictures, there.faces)
    passed = torch.stack([cosines[name] > models.thresholds[name].cosine for name in models.ensemble])
    network = models.recognisers[HELD_OUT]
    original, other, protected = network(there.faces), network(there.others), network(pictures)
    strangers = ~torch.eye(len(other), dtype=torch.bool)
    said = models.judge(pictures)
    nearer = (said - made.targets).square().sum(1) < (said - there.appearance).square().sum(1)
    return {
        "accepted": share(cosines[HELD_OUT] > threshold),
        "accepted_train": share(passed.all(0)),
        "cosine": float(cosines[HELD_OUT].mean()),
        "enrolled": share((protected * other).sum(1) > threshold),
        "genuine": share((original * other).sum(1) > threshold),
        "far": share((original @ other.T)[strangers] > threshold),
        "ssim": float(ssim(pictures, there.faces).mean()),
        "reads": share(nearer),
        "read_error": float((said - made.targets).square().mean().sqrt()),
        "reached": share(made.reached),
        "iterations": float(made.iterations.float().mean()),
    }


def share(held: Tensor) -> float:
    """Return of how many something is true."""
    return float(held.float().mean())


# --- tables and pictures ---------------------------------------------------------------------------------------------

_SUMMARY = (
    "accepted",
    "accepted_train",
    "enrolled",
    "genuine",
    "far",
    "ssim",
    "reads",
    "read_error",
    "reached",
    "iterations",
    "alike",
    "restored_db",
    "refused",
    "container_accepted",
    "container_db",
)


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds with half of their 95 % intervals, and every run."""
    summary: list[Row] = []
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            row: Row = {"task": task, "variant": variant}
            summary.append(row | {name: plus_minus([run[name] for run in own]) for name in _SUMMARY if name in own[0]})
    return {"summary": summary, "runs": list(found.rows)}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return for each task what recognisers accept against how alike pictures look, and a sheet of faces."""
    drawn = {}
    for task in found.tasks:
        if found.of(task=task, variant=SYSTEM):
            drawn[f"{task}-frontier"] = Picture(
                f"{task}: what the recogniser that was held out accepts against the similarity to the original",
                partial(draw_frontier, found, task),
            )
            drawn[f"{task}-faces"] = Picture(
                f"{task}: original, protected for three targets, restored, and what a wrong password brings",
                partial(draw_sheet, found.setting, task),
            )
    return drawn


def draw_frontier(found: Found[Setting], task: str) -> "Axes":
    """Draw means over seeds: the sweep of the balance as a line, every other variant as a point."""
    from edgeopt.evaluation.plots.style import legend_outside, line_styles, new_axes

    ax, drawn = new_axes(), {}

    def means(variant: str) -> tuple[float, float]:
        own = found.of(task=task, variant=variant)
        return float(np.mean([row["ssim"] for row in own])), 100 * float(np.mean([row["accepted"] for row in own]))

    there = found.variants(task)
    single = [name for name in there if name not in SWEEP]
    styles = line_styles(["balance, all iterations", *single])
    if swept := [name for name in SWEEP if name in there]:
        points = [means(name) for name in swept]
        label = "balance, all iterations"
        (drawn[label],) = ax.plot(*zip(*points, strict=True), label=label, **styles[label])
        for name, point in zip(swept, points, strict=True):
            ax.annotate(name.removeprefix("balance-"), point, textcoords="offset points", xytext=(5, 5), fontsize=8)
    for name in single:
        x, y = means(name)
        (drawn[name],) = ax.plot([x], [y], label=name, **(styles[name] | {"linestyle": ""}))
    ax.axvline(0.4, color="0.8", linewidth=1, zorder=0)
    ax.axhline(80, color="0.8", linewidth=1, zorder=0)
    ax.set_xlabel("SSIM to the original")
    ax.set_ylabel("accepted, %")
    ax.set_ylim(-3, 103)
    legend_outside(ax, drawn)
    return ax


def draw_sheet(setting: Setting, task: str) -> "Axes":
    """Draw a row for each of a few faces of the first seed."""
    from matplotlib.figure import Figure

    models = FaceModels.pretrained(task)
    there = originals(models, setting.faces, 0)
    count = min(4, setting.faces)
    cell = StudyCell(study="sider", setting=setting, task=task, variant=SYSTEM, seed=0, folder=Path(), measure=run)
    looks = [protect(cell, models, there.faces[:count], look).pictures for look in range(LOOKS)]
    vault, stranger = Vault("correct horse"), Vault("correct hose")
    figure = Figure(figsize=(1.5 * (LOOKS + 3), 1.6 * count), dpi=100, layout="constrained")
    axes = figure.subplots(count, LOOKS + 3, squeeze=False)
    for row, original in enumerate(to_array(there.faces[:count])):
        made = [to_array(look)[row] for look in looks]
        container = vault.hide(made[0], original)
        shown = [original, *made, vault.restore(container)]
        for ax, picture in zip(axes[row], shown, strict=False):
            ax.imshow(picture)
        if refuses(stranger, container):
            axes[row, -1].text(0.5, 0.5, "refused", ha="center", va="center", transform=axes[row, -1].transAxes)
    titles = ["original", *(f"target {look + 1}" for look in range(LOOKS)), "restored", "wrong password"]
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    first: Axes = axes[0, 0]
    return first


# --- claims ----------------------------------------------------------------------------------------------------------


def _level(text: str, metric: str, task: str | None = None, *, variant: str = SYSTEM, **bounds: float) -> Claim:
    return Claim(text=text, source="ours", test=Level(metric=metric, variant=variant, task=task, **bounds))


def _above(text: str, metric: str, other: str, task: str, *, first: str = SYSTEM, above: float = 0.0) -> Claim:
    return Claim(
        text=text, source="ours", test=Difference(metric=metric, first=first, second=other, above=above, task=task)
    )


CLAIMS = (
    *(claim
    for task in ("synthetic", "lfw")
    for claim in (
        _level(f"More than 80 % of protected faces are recognised by the recogniser that was held out, {task}", "accepted", task, above=0.8),
        _level(f"Protected faces look like others: SSIM to the original below 0.4, {task}", "ssim", task, below=0.4),
        _level(f"In more than 90 % of protected faces the target's appearance is read rather than the original's, {task}", "reads", task, above=0.9),
        _level(f"Faces made of one original with other seeds and targets differ: mean SSIM below 0.6, {task}", "alike", task, below=0.6),
        _above(f"More are recognised than when another appearance is put on without regard to identity, {task}", "accepted", "swap", task),
        _above(f"More are recognised with momentum than without, {task}", "accepted", "no-momentum", task),
        _above(f"More are recognised with three recognisers than with one, {task}", "accepted", "one-recogniser", task),
        _level(f"Pixels in a ball do not hide a face: SSIM stays above 0.8, {task}", "ssim", task, variant="pixel-pgd", above=0.8),
        _above(f"The balance trades one for the other: identity alone is recognised more often than the look with weight 3, {task}", "accepted", "balance-3", task, first="balance-0"),
        _above(f"The balance trades one for the other: identity alone looks more like the original than with weight 3, {task}", "ssim", "balance-3", task, first="balance-0"),
        _level(f"Containers are recognised as well: more than 80 %, {task}", "container_accepted", task, above=0.8),
    )),
    Claim(text="What the password brings back has a PSNR of at least 30 dB, every face", source="ours", test=Always(metric="restored_db", variants=(SYSTEM,), above=30.0)),
    Claim(text="A wrong password and a flipped bit are always refused", source="ours", test=Always(metric="refused", variants=(SYSTEM,), above=0.9999)),
)  # fmt: skip

STUDY = Study(
    name="sider",
    title="Faces that recognisers know and people do not",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=tuple(ABLATIONS),
    tasks=("synthetic", "lfw"),
    seeds=5,
    full=Setting(),
    quick=Setting(faces=2, iterations=1),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
