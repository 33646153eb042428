"""The study of NTRSCC, at a small size, and the ideal codes beside it."""

import io
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")
Image = pytest.importorskip("PIL.Image")
from edgeopt.coding import Ntrscc, crops, photographs, psnr_db
from edgeopt.evaluation.studies import ntrscc as study
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.ntrscc_ideal import hyperprior, image_codec
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


@pytest.fixture(scope="module")
def square() -> np.ndarray:
    return crops(photographs("test"), 1, 64, 0)[0]


def test_quick_run():
    """Every variant has a row with what the claims ask for; tables and pictures are made from the rows."""
    found = run_study(study.STUDY, quick=True, executor="serial", display=False)
    assert found.complete
    for row in found.of(task="awgn"):
        assert len(row["points"]) == len(study.RATES) * len(study.ROUNDS) * len(study.RATIOS_DB)
        assert row["psnr"] == pytest.approx(np.mean([point["psnr"] for point in row["points"]]))
        assert row["few"] == pytest.approx(
            np.mean([p["psnr"] for p in row["points"] if p["rate"] in study.FEW and p["rounds"] == study.ROUNDS[-1]])
        )
    for row in found.of(task="receivers"):
        assert row["rate"] <= study.MEAN_RATE + 1e-9
        assert row["worst"] == min(row[f"psnr at {ratio:g} dB"] for ratio, _ in study.RECEIVERS)
    tables = study.STUDY.tables(found)
    assert [(row["task"], row["variant"]) for row in tables["summary"]] == [
        *itertools.product(("awgn", "receivers"), study.STUDY.variants)
    ]
    made = study.STUDY.pictures(found)
    assert set(made) == {"awgn-symbols", "awgn-iterations", "squares"}
    for claim in study.STUDY.claims:
        assert claim.decide(found.evidence).verdict == "not shown"


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_the_largest_file_that_fits(kind: str, square: np.ndarray):
    """The largest of all files that pillow writes within the bits; none fits into 10: the mean colour; more bits are better."""
    code = image_codec(kind, square)
    nothing = code(10.0)
    assert (nothing == nothing[0, 0]).all()
    quality = [psnr_db(square, code(bits)) for bits in (10, 4000, 8000, 16000, 64000)]
    assert quality == sorted(quality)
    sizes = {}
    for level in range(0 if kind == "webp" else 1, 101 if kind == "webp" else 96, 3):
        file = io.BytesIO()
        options = {"method": 4} if kind == "webp" else {"optimize": True}
        Image.fromarray(square).save(file, format=kind, quality=level, **options)
        sizes[len(file.getvalue())] = np.asarray(Image.open(file).convert("RGB"))
    for bits in (4000, 8000, 16000):
        within = [size for size in sizes if 8 * size <= bits]
        if within:
            assert (code(bits) == sizes[max(within)]).all()


def test_the_cliff(square: np.ndarray):
    """The header alone up to the entropy of the numbers, then all of them."""
    system = Ntrscc.pretrained()
    code, sent = hyperprior(system, square), system.encode(square, 0)
    least = sent.source_bits + sent.header_bits
    receiver = system.receiver(sent.header, 0)
    assert (code(least - 1) == receiver.picture()).all()
    assert (code(least + 1) == receiver.picture(50 * (1.0 - 2.0 * sent.bits))).all()
    assert psnr_db(square, code(least + 1)) > psnr_db(square, code(least - 1)) + 1


def test_variants_are_what_they_are_called():
    """Each changes of the system what its name says, and all take what they need of one stream."""
    assert set(study.CHANGES) == {study.SYSTEM, "uniform-lt", *study.ABLATIONS}
    assert study.CHANGES["no-priors"] == {"priors": False}
    assert {name for name, changes in study.CHANGES.items() if changes.get("weights") == "equal"} == {
        "uniform-lt",
        "equal",
    }


def test_a_network_for_white_noise_is_not_tried_on_fading():
    """Its row is there and empty; tables and pictures do without it."""
    small = study.STUDY.setting(quick=True)
    cells = [
        study.StudyCell(
            study="ntrscc", setting=small, task="rayleigh", variant=variant, seed=0, folder=None, measure=study.run
        )
        for variant in ("deep-jscc", "jpeg")
    ]  # fmt: skip
    rows = [{"task": "rayleigh", "variant": cell.variant, "seed": 0, **study.run(cell)} for cell in cells]
    assert rows[0]["psnr"] is None
    found = study.Found(
        study=study.STUDY, setting=small, tasks=("rayleigh",), seeds=(0,), quick=True, rows=rows, failures=[], machine={},
        versions={}, interrupted=False,
    )  # fmt: skip
    assert "psnr" not in study.tables(found)["summary"][0]
    assert study.drawable(found, "rayleigh") == ["jpeg"]
    assert len(study.pictures(found)["rayleigh-symbols"].draw().lines) == 1


def test_choices_stay_within_the_mean():
    """The best three of the table with at most 0.75 on average, none is left out."""
    cell = study.StudyCell(
        study="ntrscc", setting=study.Setting(squares=1, tuning=1, size=64), task="receivers", variant=study.SYSTEM, seed=0,
        folder=None, measure=study.run,
    )  # fmt: skip
    rates = study.chosen_rates(cell)
    assert np.mean(rates) <= study.MEAN_RATE + 1e-9
    assert set(rates) <= set(study.CHOICES)
