"""NTRSCC: one rateless stream of a picture for receivers of unequal channels and speeds, beside other ways to send it.

``edgeopt study ntrscc --jobs 2 --out out/ntrscc``

Squares of three photographs that nothing was trained on are sent, one real symbol after another. Tasks ``awgn`` and ``rayleigh`` try
every number of symbols per pixel at every ratio of signal to noise and every number of iterations; ``receivers`` serves three receivers
(0 dB and 20 iterations, 5 dB and 10, 10 dB and 2) with 0.75 symbols per pixel on average.

- ``ntrscc`` is the network that comes with the package. ``no-priors`` decodes its stream without what the hyperprior says of bits;
  ``equal`` draws all bits equally often, with a degree distribution that was learnt for that; ``robust-soliton`` has Luby's distribution
  beside the learnt weights.
- ``uniform-lt`` is the same transforms with a plain LT code: equal weights, robust soliton; priors are used.
- ``deep-jscc`` sends 0.75 real symbols per pixel, trained for the worst receiver with as many mini-batches.
- ``ideal`` sends the same numbers by an ideal code: all of them get through as soon as capacity allows, or nothing. ``jpeg`` and ``webp``
  send the largest file that an ideal code gets through.

Symbols count the header, sent by an ideal code for the worst receiver. Seeds differ in squares, graphs and noise; networks are the same.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.coding import (
    DeepJscc,
    Ntrscc,
    channel_of,
    crops,
    ms_ssim,
    photographs,
    psnr_db,
)
from edgeopt.coding.pictures import Picture
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Difference, Level
from edgeopt.evaluation.studies.ntrscc_ideal import Codes, hyperprior, image_codec
from edgeopt.evaluation.studies.study import Found, Study, StudyCell
from edgeopt.evaluation.studies.study import Picture as StudyPicture
from edgeopt.evaluation.studies.tables import plus_minus
from edgeopt.rng import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SYSTEM = "ntrscc"
BASELINES = ("uniform-lt", "deep-jscc", "ideal", "webp", "jpeg")
ABLATIONS = ("no-priors", "equal", "robust-soliton")
CHANGES: dict[str, dict[str, Any]] = {
    SYSTEM: {},
    "uniform-lt": {"weights": "equal", "distribution": "robust soliton"},
    "no-priors": {"priors": False},
    "equal": {"weights": "equal", "distribution": "learnt for equal"},
    "robust-soliton": {"distribution": "robust soliton"},
}
"""What each variant that is a fountain code changes of the system."""
RATES = (0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.4, 2.0)
"""Symbols per pixel, those of the header among them."""
ROUNDS = (2, 5, 10, 20)
RATIOS_DB = (0.0, 5.0, 10.0)
RECEIVERS = ((0.0, 20), (5.0, 10), (10.0, 2))
"""Signal-to-noise ratio in dB and iterations of the three."""
MEAN_RATE = 0.75
CHOICES = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
"""Symbols per pixel that a receiver may take."""
FEW, MANY = (0.4, 0.5, 0.6), (2.0,)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    squares : pictures that are sent.
    tuning : squares of the photographs to train on, by which receivers choose how many symbols they take.
    size : pixels along a side.
    """

    squares: int = 6
    tuning: int = 5
    size: int = 128


def run(cell: StudyCell[Setting]) -> Row:
    """Send every square."""
    setting = cell.setting
    squares = list(crops(photographs("test"), setting.squares, setting.size, cell.seed))
    if cell.task == "receivers":
        return three_receivers(cell, squares)
    if cell.variant == "deep-jscc" and cell.task != "awgn":  # it was trained for white noise
        return {"psnr": None, "points": []}
    points = np.zeros((len(RATIOS_DB), len(RATES), len(ROUNDS)))
    alike = np.zeros(len(RATES))
    for i, square in enumerate(squares):
        seed = int(stream(cell.seed, "square", i).integers(1 << 62))
        for s, ratio in enumerate(RATIOS_DB):
            made = arrived(cell.variant, cell.task, square, ratio, RATES, ROUNDS, seed)
            points[s] += np.array([[psnr_db(square, one) for one in row] for row in made]) / len(squares)
            if ratio == RECEIVERS[1][0]:
                alike += np.array([ms_ssim(square, row[-1]) for row in made]) / len(squares)
    few, many = ([RATES.index(rate) for rate in some] for some in (FEW, MANY))
    steps_n, steps_t = np.diff(points, axis=1)[:, :, -1], np.diff(points, axis=2)
    return {
        "psnr": float(points.mean()),
        "few": float(points[:, few, -1].mean()),
        "many": float(points[:, many, -1].mean()),
        "hasty": float(points[:, :, :2].mean()),
        "ms_ssim": float(alike.mean()),
        "least_step_n": float(steps_n.min()),
        "least_step_t": float(steps_t.min()),
        "points": [
            {"snr_db": ratio, "rate": rate, "rounds": rounds, "psnr": float(points[s, n, t])}
            for (s, ratio), (n, rate), (t, rounds) in itertools.product(
                enumerate(RATIOS_DB), enumerate(RATES), enumerate(ROUNDS)
            )
        ],
    }


def arrived(
    variant: str, channel: str, square: Picture, snr_db: float, rates: Sequence[float], rounds: Sequence[int], seed: int
) -> list[list[Picture]]:
    """Return the picture that arrives, for every number of symbols per pixel and every number of iterations."""
    pixels = square.shape[0] * square.shape[1]
    noise = stream(seed, "noise", round(snr_db))
    if variant in CHANGES:
        system = Ntrscc.pretrained().replace(**CHANGES[variant])
        sent = system.encode(square, seed)
        receiver = system.receiver(sent.header, seed)
        counts = [max(1, round(rate * pixels) - sent.header_symbols(RATIOS_DB[0])) for rate in rates]
        heard = channel_of(channel, snr_db).receive(sent.symbols(max(counts)), noise)
        return [receiver.pictures(heard[:count], rounds) for count in counts]
    if variant == "deep-jscc":
        made, _ = DeepJscc.pretrained().sent_and_received(square, snr_db, noise)
        return [[made] * len(rounds)] * len(rates)
    code, capacity = ideal_code(variant, square), channel_of(channel, snr_db).capacity
    return [[code(rate * pixels * capacity)] * len(rounds) for rate in rates]


def ideal_code(variant: str, square: Picture) -> Codes:
    """Return what an ideal channel code sends."""
    return hyperprior(Ntrscc.pretrained(), square) if variant == "ideal" else image_codec(variant, square)


def three_receivers(cell: StudyCell[Setting], squares: list[Picture]) -> Row:
    """Serve the three with one stream, or with one block that the worst can decode."""
    rates = [MEAN_RATE] * len(RECEIVERS)
    if cell.variant in CHANGES:
        rates = chosen_rates(cell)
    quality, alike = np.zeros(len(RECEIVERS)), np.zeros(len(RECEIVERS))
    for i, square in enumerate(squares):
        seed = int(stream(cell.seed, "square", i).integers(1 << 62))
        pixels = square.shape[0] * square.shape[1]
        for u, (ratio, rounds) in enumerate(RECEIVERS):
            if cell.variant in (*CHANGES, "deep-jscc"):
                made = arrived(cell.variant, "awgn", square, ratio, [rates[u]], [rounds], seed)[0][0]
            else:
                made = ideal_code(cell.variant, square)(MEAN_RATE * pixels * channel_of("awgn", RATIOS_DB[0]).capacity)
            quality[u] += psnr_db(square, made) / len(squares)
            alike[u] += ms_ssim(square, made) / len(squares)
    names = [f"{ratio:g} dB" for ratio, _ in RECEIVERS]
    return {
        "psnr": float(quality.mean()),
        "worst": float(quality.min()),
        "ms_ssim": float(alike.mean()),
        "rate": float(np.mean(rates)),
        **{f"psnr at {name}": float(value) for name, value in zip(names, quality, strict=True)},
        **{f"rate at {name}": float(value) for name, value in zip(names, rates, strict=True)},
    }


def chosen_rates(cell: StudyCell[Setting]) -> list[float]:
    """Return the symbols per pixel of each receiver, of all choices with at most `MEAN_RATE` on average the best on squares to train on."""
    setting = cell.setting
    squares = crops(photographs("train"), setting.tuning, setting.size, cell.seed)
    table = np.zeros((len(RECEIVERS), len(CHOICES)))
    for i, square in enumerate(squares):
        seed = int(stream(cell.seed, "tuning", i).integers(1 << 62))
        for u, (ratio, rounds) in enumerate(RECEIVERS):
            made = arrived(cell.variant, "awgn", square, ratio, CHOICES, [rounds], seed)
            table[u] += [psnr_db(square, row[0]) for row in made]
    within = [
        which
        for which in itertools.product(range(len(CHOICES)), repeat=len(RECEIVERS))
        if sum(CHOICES[n] for n in which) <= MEAN_RATE * len(RECEIVERS) + 1e-9
    ]
    best = max(within, key=lambda which: sum(table[u, n] for u, n in enumerate(which)))
    return [CHOICES[n] for n in best]


# --- tables and pictures ---------------------------------------------------------------------------------------------


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return a row per task and variant, means over seeds with half of their 95 % intervals; and every run."""
    rows: list[Row] = []
    names = (
        "psnr",
        "few",
        "many",
        "hasty",
        "ms_ssim",
        "worst",
        "rate",
        *(f"psnr at {ratio:g} dB" for ratio, _ in RECEIVERS),
    )
    for task in found.tasks:
        for variant in found.variants(task):
            own = found.of(task=task, variant=variant)
            row: Row = {"task": task, "variant": variant}
            row |= {name: plus_minus([run[name] for run in own]) for name in names if own[0].get(name) is not None}
            rows.append(row)
    runs = [{name: value for name, value in row.items() if name != "points"} for row in found.rows]
    return {"summary": rows, "runs": runs}


def pictures(found: Found[Setting]) -> dict[str, StudyPicture]:
    """Return what there are rows for: quality against symbols, by iterations and by variant; and one square at several of both."""
    made = {}
    for task in found.tasks:
        if task != "receivers" and found.of(task=task):
            made[f"{task}-symbols"] = StudyPicture(
                f"PSNR at 5 dB, {task}, 20 iterations", partial(draw_variants, found, task)
            )
            if found.of(task=task, variant=SYSTEM):
                made[f"{task}-iterations"] = StudyPicture(
                    f"PSNR of {SYSTEM} by iterations and ratio, {task}", partial(draw_iterations, found, task)
                )
    if found.of(task="awgn", variant=SYSTEM):
        made["squares"] = StudyPicture("One square at 5 dB", partial(draw_squares, found.setting))
    return made


def drawable(found: Found[Setting], task: str) -> list[str]:
    """Return the variants that have something to draw."""
    return [name for name in found.variants(task) if found.of(task=task, variant=name)[0]["points"]]


def curve(found: Found[Setting], task: str, variant: str, snr_db: float, rounds: int) -> list[float]:
    """Return means over seeds at every number of symbols per pixel."""
    runs = [
        [point["psnr"] for point in row["points"] if point["snr_db"] == snr_db and point["rounds"] == rounds]
        for row in found.of(task=task, variant=variant)
    ]
    return [float(value) for value in np.mean(runs, axis=0)]


def draw_variants(found: Found[Setting], task: str) -> "Axes":
    """Draw a line for each variant; that of a fixed number of symbols is a point."""
    from edgeopt.evaluation.plots.style import by_height, legend_outside, line_styles, new_axes

    ax, drawn = new_axes(), {}
    for name, style in line_styles(drawable(found, task)).items():
        heights = curve(found, task, name, 5.0, ROUNDS[-1])
        fixed = name == "deep-jscc"
        at = [RATES.index(MEAN_RATE)] if fixed else range(len(RATES))
        (line,) = ax.plot([RATES[n] for n in at], [heights[n] for n in at], label=name, **style)
        drawn[name] = heights[-1], line
    ax.set_xlabel("symbols per pixel")
    ax.set_ylabel("PSNR, dB")
    legend_outside(ax, by_height(drawn))
    return ax


def draw_iterations(found: Found[Setting], task: str) -> "Axes":
    """Draw a line for each number of iterations and ratio."""
    from edgeopt.evaluation.plots.style import by_height, legend_outside, line_styles, new_axes

    ax, drawn = new_axes(), {}
    names = {f"{ratio:g} dB, T = {rounds}": (ratio, rounds) for ratio in RATIOS_DB for rounds in ROUNDS}
    for name, style in line_styles(names).items():
        heights = curve(found, task, SYSTEM, *names[name])
        (line,) = ax.plot(RATES, heights, label=name, **style)
        drawn[name] = heights[-1], line
    ax.set_xlabel("symbols per pixel")
    ax.set_ylabel("PSNR, dB")
    legend_outside(ax, by_height(drawn))
    return ax


def draw_squares(setting: Setting) -> "Axes":
    """Draw one square as it arrives at 5 dB: a row for each number of iterations, a column for each number of symbols."""
    from matplotlib.figure import Figure

    rates, rounds = (0.3, 0.4, 0.5, 0.6, 1.0), (2, 5, 20)
    square = crops(photographs("test"), 1, setting.size, 0)[0]
    made = arrived(SYSTEM, "awgn", square, 5.0, rates, rounds, seed=0)
    figure = Figure(figsize=(1.75 * (len(rates) + 1), 1.95 * len(rounds)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rounds), len(rates) + 1)
    for row, count in enumerate(rounds):
        axes[row, 0].imshow(square)
        axes[row, 0].set_ylabel(f"T = {count}")
        axes[row, 0].set_title("as sent", fontsize=9)
        for column, rate in enumerate(rates):
            picture = made[column][row]
            axes[row, column + 1].imshow(picture)
            axes[row, column + 1].set_title(f"{rate:g} / pixel: {psnr_db(square, picture):.1f} dB", fontsize=9)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    first: Axes = axes[0, 0]
    return first


# --- claims ----------------------------------------------------------------------------------------------------------


def _above(
    text: str, other: str, metric: str = "psnr", *, task: str | None = None, above: float = 0.0, first: str = SYSTEM
) -> Claim:
    return Claim(
        text=text, source="ours", test=Difference(metric=metric, first=first, second=other, above=above, task=task)
    )


def _least(text: str, metric: str, task: str) -> Claim:
    return Claim(text=text, source="ours", test=Level(metric=metric, variant=SYSTEM, above=-0.1, task=task))


CLAIMS = (
    *(_least(f"More symbols never cost more than 0.1 dB at 20 iterations, {task}", "least_step_n", task) for task in ("awgn", "rayleigh")),
    *(_least(f"More iterations never cost more than 0.1 dB at any number of symbols, {task}", "least_step_t", task) for task in ("awgn", "rayleigh")),
    *(_above(f"Priors add to the mean PSNR over all points, {task}", "no-priors", task=task) for task in ("awgn", "rayleigh")),
    *(_above(f"Unequal protection adds at 0.4 to 0.6 symbols per pixel, {task}", "equal", "few", task=task) for task in ("awgn", "rayleigh")),
    Claim(
        text="With 2 symbols per pixel, unequal protection makes less than 0.2 dB of difference, awgn", source="ours",
        test=Difference(metric="many", first=SYSTEM, second="equal", above=-0.2, below=0.2, task="awgn"),
    ),
    *(_above(f"With 2 and 5 iterations, the learnt degree distribution is above robust soliton, {task}", "robust-soliton", "hasty", task=task) for task in ("awgn", "rayleigh")),
    _above("Three receivers on one stream have a higher mean PSNR than with the network of a fixed number of symbols", "deep-jscc", task="receivers"),
    _above("Three receivers on one stream have a higher mean PSNR than with a plain LT code", "uniform-lt", task="receivers"),
    _above("Three receivers on one stream have a higher mean PSNR than with the same numbers by an ideal code for the worst", "ideal", task="receivers"),
    _above("Three receivers on one stream have a higher mean PSNR than with WebP by an ideal code for the worst", "webp", task="receivers"),
    _above("Three receivers on one stream have a higher mean PSNR than with JPEG by an ideal code for the worst", "jpeg", task="receivers"),
    _above("The worst of three receivers is at most 1 dB below the network of a fixed number of symbols", "deep-jscc", "worst", task="receivers", above=-1.0),
    _above("Three receivers on one stream have a higher mean MS-SSIM than with the network of a fixed number of symbols", "deep-jscc", "ms_ssim", task="receivers"),
)  # fmt: skip

STUDY = Study(
    name="ntrscc",
    title="One rateless stream of a picture for unequal receivers",
    system=SYSTEM,
    baselines=BASELINES,
    ablations=ABLATIONS,
    tasks=("awgn", "rayleigh", "receivers"),
    seeds=5,
    full=Setting(),
    quick=Setting(squares=1, tuning=1, size=64),
    quick_tasks=("awgn", "receivers"),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
