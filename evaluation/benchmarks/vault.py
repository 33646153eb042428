"""Measure the vault: ``python -m edgeopt.evaluation.benchmarks.vault``.

Seconds of hiding and restoring with the defaults, one thread, how close what comes back is, and how close containers are to carriers. And
what the network inside is worth: the same room of one low bit of each value, filled by the plain Haar transform with chances learnt in the
same way, and by WebP less its header, at the best quality that fits. And what a network alone does in place of cipher and low bits. Faces are rendered, photographs those that were not trained on.
"""

import argparse
import io
import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from edgeopt.coding.pictures import photographs
from edgeopt.coding.quality import ms_ssim, psnr_db
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.extras import needs
from edgeopt.privacy.faces import SIZES, View, random_numbers, render
from edgeopt.privacy.hiding import HaarNetwork
from edgeopt.privacy.hiding_training import learn_chances, training_pictures, training_squares
from edgeopt.privacy.nested import NestedNetwork, train_nested
from edgeopt.privacy.picture_code import STEPS, PictureCode
from edgeopt.privacy.vault import Vault
from edgeopt.rng import stream

SECONDS = 1.0
LEAST_DB = 30.0
_WEBP_HEADER = 30  # bytes of a file that say no more than that it is one

Pictures = NDArray[np.uint8]


def faces(count: int, size: int) -> Pictures:
    """Return rendered faces uint8 [count, size, size, 3]."""
    rng = stream(1, "vault", size)
    made = render(random_numbers(count, rng), random_numbers(count, rng), View.random(count, rng), size=size, rng=rng)
    return (255 * made).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def squares(count: int, size: int) -> Pictures:
    """Return squares of photographs uint8 [count, size, size, 3]."""
    found = training_squares(list(photographs("test").values()), count, size, stream(1, "vault", "squares"))
    return found.byte().permute(0, 2, 3, 1).contiguous().numpy()


def hiding(size: int, count: int) -> Row:
    """Return seconds, of the machine and of the process, and decibels of pairs of faces."""
    both = faces(2 * count, size)
    vault = Vault("correct horse")
    rows = []
    for carrier, secret in zip(both[:count], both[count:], strict=True):
        marks = [(time.perf_counter(), time.process_time())]
        container = vault.hide(carrier, secret)
        marks.append((time.perf_counter(), time.process_time()))
        restored = vault.restore(container)
        marks.append((time.perf_counter(), time.process_time()))
        (hide, hide_cpu), (restore, restore_cpu) = (
            np.subtract(*pair) for pair in ((marks[1], marks[0]), (marks[2], marks[1]))
        )
        rows.append(
            (hide, hide_cpu, restore, restore_cpu, psnr_db(restored, secret), psnr_db(container, carrier), ms_ssim(container, carrier))
        )  # fmt: skip
    values = np.array(rows)
    middle = np.median(values, axis=0)
    names = ("hide_s", "hide_cpu_s", "restore_s", "restore_cpu_s", "restored_db", "container_db", "container_ms_ssim")
    return {"size": size, **dict(zip(names, middle.tolist(), strict=True)), "least_db": float(values[:, 4].min())}


def best_db(code: PictureCode, picture: Pictures, room: int) -> float:
    """Return how well a code restores a picture with the finest step that fits into so many bytes."""
    low, high = 0, len(STEPS) - 1
    while low < high:
        tried = (low + high) // 2
        if len(code.write(code.numbers(picture, tried))) <= room:
            high = tried
        else:
            low = tried + 1
    return psnr_db(code.picture(code.numbers(picture, low), low), picture)


def webp_db(picture: Pictures, room: int) -> float:
    """Return how well WebP does at the best quality that fits; nan where none does."""
    with needs("WebP", "images"):
        from PIL import Image
    best = float("nan")
    for quality in range(0, 101, 4):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "WEBP", quality=quality, method=6)
        if data.tell() - _WEBP_HEADER <= room:
            best = max(psnr_db(np.asarray(Image.open(data).convert("RGB")), picture), np.nan_to_num(best))
    return best


def without_a_key(known: list[Pictures], count: int, steps: int) -> list[Row]:
    """Return what a network alone does: with faces, which anybody then restores, and with bits by chance, as enciphered ones are."""
    both = faces(2 * count, SIZES[0])
    rng = stream(1, "vault", "bits")
    bits = 255 * rng.integers(0, 2, both[:count].shape, dtype=np.uint8)
    rows = []
    for hidden, network, secrets in (
        ("a face", NestedNetwork.pretrained(), both[count:]),
        ("random bits", train_nested(known, steps=steps, noise=True), bits),
    ):
        found = []
        for carrier, secret in zip(both[:count], secrets, strict=True):
            container = network.hide(carrier, secret)
            revealed = network.reveal(container)
            wrong = ((revealed > 127) != (secret > 127)).mean()
            found.append((psnr_db(container, carrier), psnr_db(revealed, secret), float(wrong)))
        container_db, revealed_db, wrong_bits = np.mean(found, axis=0).tolist()
        rows.append(
            {"hidden": hidden, "container_db": container_db, "revealed_db": revealed_db, "wrong_bits": wrong_bits}
        )
    return rows


def measure(options: argparse.Namespace) -> Row:
    """Measure everything on one thread."""
    if options.quick:
        options.pairs = options.pictures = 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for size in SIZES:
            common.say(f"{size} pixels")
            rows.append(hiding(size, options.pairs))
        network = HaarNetwork().requires_grad_(False)
        known = list(photographs("train").values()) if options.quick else training_pictures(0)
        learnt = learn_chances(network, known, 4 if options.quick else 400, stream(0, "vault", "plain"))
        codes = {"network": PictureCode.pretrained(), "plain": PictureCode(network, learnt)}
        worth = []
        for kind, made in (("faces", faces), ("photographs", squares)):
            for size in SIZES[:1] if options.quick else SIZES:
                common.say(f"{kind}, {size} pixels")
                room = (3 * size**2 - 256) // 8 - 1
                pictures = made(options.pictures, size)
                found = {
                    name: float(np.mean([best_db(code, x, room) for x in pictures])) for name, code in codes.items()
                }
                webp = [webp_db(x, room) for x in pictures]
                worth.append({"pictures": kind, "size": size, **found, "webp": float(np.nanmean(webp))})
        common.say("networks alone")
        alone = without_a_key(known, options.pairs, 1 if options.quick else 300)
    finally:
        torch.set_num_threads(before)
    goals = []
    for row in rows:
        for what in ("hide", "restore"):
            goals.append(common.goal(f"{what}, {row['size']} pixels", SECONDS, row[f"{what}_s"], "s"))
        goals.append(
            common.goal(f"restored, {row['size']} pixels, least", LEAST_DB, row["least_db"], "dB", at_least=True)
        )
    valid = all(row["least_db"] >= LEAST_DB for row in rows)
    return {"rows": rows, "worth": worth, "alone": alone, "valid": valid, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    common.show_table(
        console, "Hiding and restoring, one thread, medians",
        ("pixels", "hide s", "CPU s", "restore s", "CPU s", "restored dB", "least", "container dB", "MS-SSIM"),
        [
            [
                str(row["size"]), f"{row['hide_s']:.2f}", f"{row['hide_cpu_s']:.2f}", f"{row['restore_s']:.2f}",
                f"{row['restore_cpu_s']:.2f}", f"{row['restored_db']:.1f}", f"{row['least_db']:.1f}", f"{row['container_db']:.1f}",
                f"{row['container_ms_ssim']:.4f}",
            ]
            for row in report["rows"]
        ],
    )  # fmt: skip
    common.show_table(
        console, "Restored from one low bit of each value, dB", ("pictures", "pixels", "network", "plain Haar", "WebP"),
        [
            [row["pictures"], str(row["size"]), *(f"{row[name]:.1f}" for name in ("network", "plain", "webp"))]
            for row in report["worth"]
        ],
    )  # fmt: skip
    common.show_table(
        console, "A network alone, 32 pixels: nobody is asked for a password", ("hidden", "container dB", "revealed dB", "wrong bits"),
        [
            [row["hidden"], f"{row['container_db']:.1f}", f"{row['revealed_db']:.1f}", f"{row['wrong_bits']:.4f}"]
            for row in report["alone"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--pairs", type=int, default=10, help="of faces that are hidden in one another, of each size")
    parser.add_argument("--pictures", type=int, default=8, help="that codes are compared on, of each kind and size")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("vault", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
