"""DUAL-Health: modalities fused by how sure each is of itself, beside other ways of fusing, under noise, bursts and gaps.

``edgeopt study dual-health --jobs 2 --out out/dual-health``

Two tasks: ``health``, the state of simulated subjects at every step of two seconds (subjects of training, calibration and
tests are apart), and ``digits``, seen in four quadrants over eight frames under noise that drifts. All models have the same
encoders and layers of attention, and learn from the same windows, spoilt by the same draws. ``zero-fill`` and
``mean-fill`` are DUAL-Health with zero samples or the mean in the place of what is missing.

``accuracy`` is that of all steps of spoilt test windows, a third of the modalities missing; ``noise_s`` under white noise
of s standard deviations on half of the modalities, and ``missing_p`` with so many per cent of the modalities missing.
``ece`` and ``risk`` (the area under risk against coverage) are after the calibration, ``ece_before`` and ``risk_before``
without it, ``ece_fall`` and ``risk_fall`` the differences. ``noise_rank``: Spearman's correlation of log U with the true noise, over windows, mean over modalities.
``burst_area``: the chance that U is higher in a step of a burst than in one without; ``burst_ratio``: by what the mean of
U is multiplied there. ``error_rank``: Spearman's correlation of log U' with the cross entropy of what each modality says
alone. ``recovered``: the share of the variance of a modality's means that the others explain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Level
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.fusion import (
    FUSINGS,
    Baseline,
    DualHealth,
    Noise,
    Packing,
    Recordings,
    Seen,
    Weights,
    Windows,
    calibrate,
    calibration_error,
    fit,
    health_recordings,
    quadrant_digits,
    reliability,
    risk_area,
    risk_coverage,
    roc_area,
    spearman,
)
from edgeopt.fusion.dual_health import alone_loss
from edgeopt.rng import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYSTEM = "dual-health"
BASELINES = (*FUSINGS, "zero-fill", "mean-fill")
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-noise-head": {"noise": False},
    "no-fluctuation": {"fluctuation": False},
    "no-calibration": {"weights": Weights(calibrate=0)},
    "no-alignment": {"weights": Weights(align=0)},
    "even-weights": {"kappa": 0.0},
}
TASKS = ("health", "digits")
LEVELS = (0.0, 0.5, 1.0, 2.0, 3.0)
MISSING = (0.0, 0.1, 0.3, 0.5, 0.7)
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    train, held, test : subjects; pictures are as many times `pictures`.
    pictures : of the digits, for each subject of the health task.
    length, stride : of windows of the health task, in steps.
    width, epochs, digits_epochs : of the models and their training.
    """

    train: int = 24
    held: int = 6
    test: int = 10
    pictures: int = 20
    length: int = 12
    stride: int = 6
    width: int = 32
    epochs: int = 8
    digits_epochs: int = 6


def noise_of(task: str, **changes: Any) -> Noise:
    """Return how windows of a task are spoilt."""
    return Noise(**({"missing": 0.3, "drift": 0.2 if task == "digits" else 0.0} | changes))


def windows_of(task: str, setting: Setting, seed: int) -> tuple[Windows, Windows, Windows]:
    """Return windows to train with, to calibrate with and to test with, of different subjects or pictures."""
    counts = np.array([setting.train, setting.held, setting.test])
    if task == "health":
        recordings: Recordings = health_recordings()
        length, stride = setting.length, setting.stride
    else:
        recordings = quadrant_digits(seed)
        counts, length, stride = setting.pictures * counts, 8, 8
    order = stream(seed, "subjects").permutation(recordings.num_subjects)
    ends = np.cumsum(counts)
    train, held, test = (
        recordings.windows(length, stride=stride, subjects=order[end - count : end])
        for end, count in zip(ends, counts, strict=True)
    )
    return train, held, test


def model_of(variant: str, windows: Windows, setting: Setting, seed: int) -> nn.Module:
    """Return an untrained model."""
    shape: dict[str, Any] = {"width": setting.width, "context": windows.labels.shape[1], "seed": seed}
    if variant in FUSINGS:
        return Baseline(windows.modalities, windows.num_classes, variant, **shape)
    return DualHealth(windows.modalities, windows.num_classes, **shape, **ABLATIONS.get(variant, {}))


def run(cell: StudyCell[Setting]) -> Row:
    """Train, calibrate and judge one way of fusing."""
    setting, task, variant, seed = cell.setting, cell.task, cell.variant, cell.seed
    train, held, test = windows_of(task, setting, seed)
    packing = Packing.of(train, fill={"zero-fill": "zero", "mean-fill": "mean"}.get(variant, "mark"))  # type: ignore[arg-type]
    model = model_of(variant, train, setting, seed)
    epochs = setting.epochs if task == "health" else setting.digits_epochs
    fit(model, packing, train, noise=noise_of(task), epochs=epochs, seed=seed)
    before = confidences(model, packing, test, noise_of(task), seed)
    calibrate(model, packing, held, noise=noise_of(task), seed=seed)
    after = confidences(model, packing, test, noise_of(task), seed)
    found: Row = {
        "accuracy": float(after[1].mean()),
        "ece_before": calibration_error(*before),
        "ece": calibration_error(*after),
        "risk_before": risk_area(*before),
        "risk": risk_area(*after),
        "ece_fall": calibration_error(*before) - calibration_error(*after),
        "risk_fall": risk_area(*before) - risk_area(*after),
        "reliability": [reliability(*at).tolist() for at in (before, after)],
        "coverage": [risk_coverage(*at).tolist() for at in (before, after)],
    }
    for level in LEVELS:
        noise = noise_of(task, levels=(level,), share=0.5, bursts=0.0, missing=0.0)
        found[f"noise_{level:g}"] = float(confidences(model, packing, test, noise, seed)[1].mean())
    for share in MISSING:
        found[f"missing_{100 * share:g}"] = float(
            confidences(model, packing, hidden(test, share, seed), noise_of(task, missing=0.0), seed)[1].mean()
        )
    if isinstance(model, DualHealth):
        found |= doubts(model, packing, test, task, seed)
    return found


def hidden(windows: Windows, share: float, seed: int) -> Windows:
    """Return windows of which each modality is missing throughout with some chance."""
    rng = stream(seed, "hidden")
    signals = {}
    for name, values in windows.signals.items():
        gone = rng.random(len(windows)) < share
        signals[name] = np.where(gone[:, None, None, None], np.float32("nan"), values)
    return Windows(signals, windows.labels, windows.subject, windows.num_classes)


@torch.no_grad()
def confidences(
    model: nn.Module, packing: Packing, windows: Windows, noise: Noise, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the highest class probability of every step of spoilt windows, and whether that class is right."""
    spoilt = noise.apply(packing.pack(windows), packing, _generator(seed))
    scores = torch.cat([model(part) for part in torch.split(spoilt.x, _AT_ONCE)])
    chance, said = scores.softmax(-1).max(-1)
    return chance.numpy(), (said == torch.from_numpy(windows.labels)).numpy()


@torch.no_grad()
def doubts(model: DualHealth, packing: Packing, windows: Windows, task: str, seed: int) -> Row:
    """Return how uncertainties follow noise, bursts and errors, and how much of a modality the others recover."""
    x, labels = packing.pack(windows), torch.from_numpy(windows.labels)

    def seen_of(noise: Noise) -> tuple[Any, Seen]:
        spoilt = noise.apply(x, packing, _generator(seed))
        return spoilt, model.run(spoilt.x)[0]

    modalities = range(len(packing.modalities))
    spoilt, seen = seen_of(noise_of(task, bursts=0.0, missing=0.0))
    ranks = [spearman(seen.log_u[:, m].mean(-1), spoilt.noise[:, m].mean(-1)) for m in modalities]
    error = alone_loss(seen.alone, labels)  # (n, M, T)
    mean, guess = seen.doubt.mean, seen.recovered[0]  # (n, M, T, d)
    left = (mean - guess).square().sum((0, 2, 3)) / (mean - mean.mean((0, 2), keepdim=True)).square().sum((0, 2, 3))
    bursting, burst = seen_of(noise_of(task, levels=(0.0,), bursts=0.5, missing=0.0))
    areas = [roc_area(burst.log_u[:, m], bursting.burst[:, m]) for m in modalities]
    ratios = [
        float(burst.log_u[:, m][bursting.burst[:, m]].mean() - burst.log_u[:, m][~bursting.burst[:, m]].mean())
        for m in modalities
    ]
    return {
        "noise_rank": float(np.mean(ranks)),
        "noise_rank_least": float(np.min(ranks)),
        "error_rank": float(np.mean([spearman(seen.calibrated[:, m], error[:, m]) for m in modalities])),
        "burst_area": float(np.mean(areas)),
        "burst_ratio": float(np.exp(np.mean(ratios))),
        "recovered": float((1 - left).mean()),
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(stream(seed, "test noise").integers(2**62)))


# --- tables and pictures ---------------------------------------------------------------------------------------------

_SUMMARY = (
    "accuracy",
    "ece_before",
    "ece",
    "risk_before",
    "risk",
    "noise_rank",
    "burst_area",
    "error_rank",
    "recovered",
)
_SHOWN = (SYSTEM, *BASELINES)


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return means over seeds, accuracies against noise and gaps, and every run."""
    summary: list[Row] = []
    spoilt: list[Row] = []
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            named = {"task": task, "variant": variant}

            def means(names: Iterable[str], rows: Sequence[Row] = own) -> Row:
                return {name: plus_minus([row[name] for row in rows if row.get(name) is not None]) for name in names}

            summary.append(named | means(_SUMMARY))
            spoilt.append(
                named | means([*(f"noise_{x:g}" for x in LEVELS), *(f"missing_{100 * x:g}" for x in MISSING)])
            )
    runs = [
        {name: value for name, value in row.items() if name not in ("reliability", "coverage")} for row in found.rows
    ]
    return {"summary": summary, "spoilt": spoilt, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return for each task accuracies against noise and gaps, and how far confidences can be trusted."""
    drawn = {}
    for task in found.tasks:
        if not found.of(task=task, variant=SYSTEM):
            continue
        drawn[f"{task}-noise"] = Picture(
            f"Accuracy on {task} against the noise of half of the modalities",
            partial(draw_against, found, task, "noise"),
        )
        drawn[f"{task}-missing"] = Picture(
            f"Accuracy on {task} against the share of modalities that are missing",
            partial(draw_against, found, task, "missing"),
        )
        drawn[f"{task}-reliability"] = Picture(
            f"{task}: confidence of {SYSTEM} before and after the calibration, and of plain attention",
            partial(draw_reliability, found, task),
        )
        drawn[f"{task}-coverage"] = Picture(
            f"{task}: wrong answers among those that are surest", partial(draw_coverage, found, task)
        )
    return drawn


def draw_against(found: Found[Setting], task: str, what: str) -> "Axes":
    """Draw mean accuracies over seeds, a line for each way of fusing."""
    from edgeopt.evaluation.plots.style import by_height, legend_outside, line_styles, new_axes

    at = LEVELS if what == "noise" else [100 * share for share in MISSING]
    ax, drawn = new_axes(), {}
    for name, style in line_styles(_SHOWN).items():
        if not (own := found.of(task=task, variant=name)):
            continue
        heights = [float(np.mean([row[f"{what}_{x:g}"] for row in own])) for x in at]
        (line,) = ax.plot(at, heights, label=name, **style)
        drawn[name] = heights[-1], line
    ax.set_xlabel("standard deviations of noise" if what == "noise" else "missing modalities, %")
    ax.set_ylabel("accuracy")
    legend_outside(ax, by_height(drawn))
    return ax


def draw_reliability(found: Found[Setting], task: str) -> "Axes":
    """Draw reliability diagrams of all seeds together."""
    from edgeopt.evaluation.plots import plot_reliability

    curves = {}
    for label, variant, place in (
        ("before", SYSTEM, 0), ("after", SYSTEM, 1), ("attention, after", "attention", 1),
    ):  # fmt: skip
        stacks = [np.asarray(row["reliability"][place], np.float64) for row in found.of(task=task, variant=variant)]
        if stacks:
            curves[label] = pooled(np.stack(stacks))
    return plot_reliability(curves)


def pooled(stack: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the table [bins, 3] of the answers of several tables [seeds, bins, 3] of equally many answers."""
    share = stack[..., 2]
    total = share.sum(0)
    sums = (np.nan_to_num(stack[..., :2]) * share[..., None]).sum(0)
    means = np.divide(sums, total[:, None], out=np.full_like(sums, np.nan), where=total[:, None] > 0)
    return np.concatenate([means, total[:, None] / len(stack)], 1)


def draw_coverage(found: Found[Setting], task: str) -> "Axes":
    """Draw mean risk over seeds against coverage, before the calibration and after it, beside the baselines after it."""
    from edgeopt.evaluation.plots.style import by_height, legend_outside, line_styles, new_axes

    ax, drawn = new_axes(), {}
    lines = {f"{SYSTEM}, before": (SYSTEM, 0)} | {name: (name, 1) for name in (SYSTEM, *FUSINGS)}
    for label, style in line_styles(lines).items():
        variant, place = lines[label]
        if not (own := found.of(task=task, variant=variant)):
            continue
        curve = np.mean([np.asarray(row["coverage"][place], np.float64) for row in own], axis=0)
        (line,) = ax.plot(100 * curve[:, 0], curve[:, 1], label=label, **style)
        drawn[label] = float(curve[-1, 1]), line
    ax.set_xlabel("answered, %")
    ax.set_ylabel("wrong answers among them")
    ax.set_ylim(bottom=0)
    legend_outside(ax, by_height(drawn))
    return ax


# --- claims ----------------------------------------------------------------------------------------------------------

_WORDS = {
    "concat": "tokens side by side",
    "mean": "the mean of late scores",
    "attention": "plain attention",
    "energy": "scores weighted by their energy",
    "zero-fill": "zeros in the place of what is missing",
    "mean-fill": "the mean in the place of what is missing",
}


def _more(metric: str, second: str, first: str = SYSTEM) -> Difference:
    return Difference(metric=metric, first=first, second=second, above=0.0)


CLAIMS = (
    *(
        Claim(
            text=f"On {task}, uncertainty ranks windows by their true noise with a correlation above 0.7",
            source="ours",
            test=Level(metric="noise_rank", variant=SYSTEM, above=0.7, task=task),
        )
        for task in TASKS
    ),
    Claim(
        text="A step of a burst has a higher uncertainty than one without it in more than eight of ten pairs",
        source="ours",
        test=Level(metric="burst_area", variant=SYSTEM, above=0.8),
    ),
    Claim(
        text="The uncertainty of a step is at least a fifth higher in a burst",
        source="ours",
        test=Level(metric="burst_ratio", variant=SYSTEM, above=1.2),
    ),
    *(
        Claim(
            text=f"Under noise of two standard deviations on half of the modalities, more is right than with {_WORDS[name]}",
            source="reported",
            test=_more("noise_2", name),
        )
        for name in FUSINGS
    ),
    Claim(
        text="Under noise of three standard deviations, which training lacks, more is right than with plain attention",
        source="ours",
        test=_more("noise_3", "attention"),
    ),
    *(
        Claim(
            text=f"With {share} % of the modalities missing, more is right than with {_WORDS[name]}",
            source="reported",
            test=_more(f"missing_{share}", name),
        )
        for name, share in (
            ("concat", 50),
            ("mean", 50),
            ("attention", 50),
            ("energy", 50),
            ("zero-fill", 30),
            ("zero-fill", 70),
            ("mean-fill", 30),
            ("mean-fill", 70),
        )
    ),
    Claim(
        text="The calibration lowers the expected calibration error",
        source="reported",
        test=Level(metric="ece_fall", variant=SYSTEM, above=0.0),
    ),
    Claim(
        text="The calibration lowers the area under risk against coverage",
        source="ours",
        test=Level(metric="risk_fall", variant=SYSTEM, above=0.0),
    ),
    Claim(
        text="Among its surest answers fewer are wrong than with plain attention",
        source="ours",
        test=Difference(metric="risk", first=SYSTEM, second="attention", below=0.0),
    ),
    Claim(
        text="Without the head of input noise, uncertainty follows noise less",
        source="ours",
        test=_more("noise_rank", "no-noise-head"),
    ),
    Claim(
        text="Without the head of fluctuation, uncertainty follows bursts less",
        source="reported",
        test=_more("burst_area", "no-fluctuation"),
    ),
    Claim(
        text="Without the calibration in training, uncertainty follows the errors of the modalities less",
        source="reported",
        test=_more("error_rank", "no-calibration"),
    ),
    Claim(
        text="Without the alignment, less of a missing modality is recovered",
        source="reported",
        test=_more("recovered", "no-alignment"),
    ),
    Claim(
        text="The others explain some of a missing modality's means",
        source="ours",
        test=Level(metric="recovered", variant=SYSTEM, above=0.0),
    ),
    Claim(
        text="With even weights in the place of those by uncertainty, less is right under noise of two standard deviations",
        source="reported",
        test=_more("noise_2", "even-weights"),
    ),
)

STUDY = Study(
    name="dual-health",
    title="DUAL-Health: modalities fused by how sure each is of itself",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=tuple(ABLATIONS),
    tasks=TASKS,
    full=Setting(),
    quick=Setting(train=4, held=2, test=2, pictures=4, width=8, length=6, stride=6, epochs=1, digits_epochs=1),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
