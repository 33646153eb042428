"""A vault gives back what was hidden, or says that it does not: never another picture."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("cryptography")
from edgeopt.coding.quality import psnr_db
from edgeopt.errors import (
    AuthenticationError,
    EdgeOptError,
    InvalidFileError,
    InvalidProblemError,
    MissingDependencyError,
)
from edgeopt.privacy import vault as module
from edgeopt.privacy.picture_code import PictureCode
from edgeopt.privacy.sealing import derive, seal, unseal
from edgeopt.privacy.vault import Vault
from tests.privacy.test_hiding import pictures

Image = pytest.importorskip("PIL.Image")

CHEAP = Vault("right", cost=10)
CARRIER, SECRET, OTHER = pictures(3, 32)
CONTAINER = CHEAP.hide(CARRIER, SECRET)


@pytest.mark.parametrize("size", [32, 64, 50])
def test_hide_and_restore(size: int):
    """What comes back is good enough, and the container looks like the carrier: one bit of each value at most is another."""
    carrier, secret, _ = pictures(3, size)
    container = CHEAP.hide(carrier, secret)
    assert psnr_db(CHEAP.restore(container), secret) >= 32
    assert (container >> 1 == carrier >> 1).all()
    assert psnr_db(container, carrier) > 48.1  # of a bit: 51.1 where half of them are another


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 255))
@settings(max_examples=4)
def test_any_picture_is_hidden(seed: int, noise: float, contrast: int):
    """From flat to nothing but noise, black and white, in a carrier at the ends of its range."""
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 256, 3)
    grain = contrast * (rng.random((32, 32, 3)) < noise) * rng.choice([-1, 1], (32, 32, 3))
    secret = np.clip(flat + grain, 0, 255).astype(np.uint8)
    carrier = rng.choice(np.array([0, 255], np.uint8), (32, 32, 3))
    vault = Vault("right", cost=10, least_psnr_db=30)
    assert psnr_db(vault.restore(vault.hide(carrier, secret)), secret) >= 30


def test_more_planes_for_more_detail():
    """Noise takes more low bits than smooth pictures, no more than it has to, and all but these are the carrier's."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    container = CHEAP.hide(CARRIER, noise)
    assert (container >> 1 != CARRIER >> 1).any()
    assert (container >> module.MOST_PLANES == CARRIER >> module.MOST_PLANES).all()
    assert psnr_db(CHEAP.restore(container), noise) >= 32
    with pytest.raises(InvalidProblemError, match=r"secret: takes \d+ bytes at 45 dB: expected at most \d+"):
        Vault("right", cost=10, least_psnr_db=45).hide(CARRIER, noise)


def test_no_two_containers_are_alike():
    """Each has a salt of its own, so no key enciphers twice; half of the low bits differ."""
    again = CHEAP.hide(CARRIER, SECRET)
    assert 0.4 < (again != CONTAINER).mean() < 0.6
    assert (CHEAP.restore(again) == CHEAP.restore(CONTAINER)).all()


@given(st.integers(0, CONTAINER.size - 1), st.integers(0, 7))
@settings(max_examples=25)
def test_one_flipped_bit(place: int, bit: int):
    """Any bit of any value: of the salt, of what is enciphered, of its tag, and of all that is only the carrier's."""
    wrong = CONTAINER.copy()
    wrong.reshape(-1)[place] ^= 1 << bit
    with pytest.raises(AuthenticationError, match="container: refused: the password is wrong, or the picture is not"):
        CHEAP.restore(wrong)


@pytest.mark.parametrize("place", [0, 127, 128, 129, 200, CONTAINER.size - 17, CONTAINER.size - 1])
def test_flipped_bits_at_borders(place: int):
    """The first and last of the salt, of the message and of the tag."""
    for bit in range(8):
        wrong = CONTAINER.copy()
        wrong.reshape(-1)[place] ^= 1 << bit
        with pytest.raises(AuthenticationError):
            CHEAP.restore(wrong)


def test_bits_that_hold_nothing_are_vouched_for():
    """Where low bits do not fill whole bytes, the last ones stay the carrier's, and may not be another's, either."""
    carrier, secret = (picture[:34, :34].copy() for picture in pictures(2, 64))
    container = CHEAP.hide(carrier, secret)
    unused = (container.size - 128) % 8
    assert unused == 4
    assert (container.reshape(-1)[-unused:] == carrier.reshape(-1)[-unused:]).all()
    for place in range(1, unused + 1):
        wrong = container.copy()
        wrong.reshape(-1)[-place] ^= 1
        with pytest.raises(AuthenticationError):
            CHEAP.restore(wrong)


@pytest.mark.parametrize("password", ["wrong", "right ", "Right", "sight", b"righu", "r"])
def test_wrong_password(password: str | bytes):
    """Another one is refused, one bit of it or all of it; the same one as bytes is none."""
    with pytest.raises(AuthenticationError):
        Vault(password, cost=10).restore(CONTAINER)
    assert (Vault(b"right", cost=10).restore(CONTAINER) == CHEAP.restore(CONTAINER)).all()


def test_other_pictures():
    """What was never hidden in is refused, as are two halves of containers, another cost, and another code."""
    for wrong in (
        CARRIER,
        SECRET,
        np.zeros_like(CARRIER),
        np.concatenate([CONTAINER[:16], CHEAP.hide(CARRIER, SECRET)[16:]]),
    ):
        with pytest.raises(AuthenticationError):
            CHEAP.restore(wrong)
    with pytest.raises(AuthenticationError):
        Vault("right", cost=11).restore(CONTAINER)
    chances = CHEAP.code.chances.copy()
    chances[0] += 1
    with pytest.raises(AuthenticationError):
        Vault("right", cost=10, code=PictureCode(CHEAP.code.network, chances)).restore(CONTAINER)


@pytest.mark.parametrize("change", ["jpeg 95", "jpeg 75", "webp", "resized", "brighter", "turned"])
def test_what_changes_pixels(change: str):
    """JPEG at any quality, resizing there and back, light, mirror: refused."""
    picture = Image.fromarray(CONTAINER)
    if change == "resized":
        picture = picture.resize((64, 64), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BOX)
    elif change in ("brighter", "turned"):
        turned = CONTAINER[:, ::-1] if change == "turned" else np.where(CONTAINER < 255, CONTAINER + 1, CONTAINER)
        picture = Image.fromarray(np.ascontiguousarray(turned))
    else:
        data = io.BytesIO()
        kind, _, quality = change.partition(" ")
        picture.save(data, kind, quality=int(quality or 90))
        picture = Image.open(data)
    changed = np.asarray(picture)
    assert changed.shape == CONTAINER.shape
    assert (changed != CONTAINER).any()
    with pytest.raises(AuthenticationError):
        CHEAP.restore(changed)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((32, 32, 3)), "carrier: expected an array of uint8, got an array of float64"),
        ([[1]], "carrier: expected an array of uint8, got list"),
        (np.zeros((32, 32), np.uint8), r"expected shape \[S, S, 3\], S even, from 32 to 256, got \[32, 32\]"),
        (np.zeros((32, 64, 3), np.uint8), r"got \[32, 64, 3\]"),
        (np.zeros((33, 33, 3), np.uint8), r"got \[33, 33, 3\]"),
        (np.zeros((30, 30, 3), np.uint8), r"got \[30, 30, 3\]"),
        (np.zeros((258, 258, 3), np.uint8), r"got \[258, 258, 3\]"),
    ],
)
def test_no_pictures(wrong: object, told: str):
    """What is no picture of a size that is taken, as carrier, secret and container."""
    with pytest.raises(InvalidProblemError, match=told):
        CHEAP.hide(wrong, SECRET)  # type: ignore[arg-type]
    with pytest.raises(InvalidProblemError, match=told.replace("carrier", "secret")):
        CHEAP.hide(CARRIER, wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidProblemError, match=told.replace("carrier", "container")):
        CHEAP.restore(wrong)  # type: ignore[arg-type]


def test_unequal_sizes():
    """Carrier and secret have as many pixels."""
    with pytest.raises(InvalidProblemError, match="secret: 64 pixels along a side: expected 32, as the carrier has"):
        CHEAP.hide(CARRIER, pictures(1, 64)[0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"password": ""}, "password: expected at least one character, got none"),
        ({"password": b""}, "password: expected at least one character, got none"),
        ({"password": ["one", "two"]}, "password: expected one, as text or bytes, got 2 of them"),
        ({"password": ("one", "two")}, "password: expected one"),
        ({"password": 1234}, "password: expected text or bytes, got int"),
        ({"password": "\ud800"}, "password: expected text, got a lone surrogate at 0"),
        ({"cost": 9}, "cost = 9: expected an integer from 10 to 20"),
        ({"cost": 31}, "cost = 31: expected an integer from 10 to 20"),
        ({"least_psnr_db": 29}, "least_psnr_db = 29: expected 30 to 45 dB"),
        ({"least_psnr_db": float("nan")}, "least_psnr_db"),
    ],
)
def test_parameters(arguments: dict, told: str):
    """Passwords that are none, or two; costs that are weak, or take gigabytes."""
    with pytest.raises(InvalidProblemError, match=told):
        Vault(**{"password": "right"} | arguments)


def test_no_password_is_shown():
    """Neither in the vault's words nor in those of a refusal."""
    assert "right" not in repr(CHEAP)
    with pytest.raises(AuthenticationError) as refused:
        Vault("sesame", cost=10).restore(CONTAINER)
    assert "sesame" not in str(refused.value)


def test_cipher_of_the_standard():
    """RFC 8439, 2.8.2: key, nonce, what stands beside, and 114 bytes of text; ciphertext and tag as printed there."""
    key, nonce = bytes(range(0x80, 0xA0)), bytes.fromhex("070000004041424344454647")
    beside = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    sealed = seal((key, nonce), text, beside)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert unseal((key, nonce), sealed, beside) == text
    with pytest.raises(AuthenticationError):
        unseal((key, nonce), sealed, beside + b"\0")


def test_key_of_the_standard():
    """RFC 7914, section 12: scrypt of "pleaseletmein", N = 16384; the first 44 of its 64 bytes, as shorter keys are prefixes."""
    key, nonce = derive(b"pleaseletmein", b"SodiumChloride", 14)
    assert key.hex() == "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    assert nonce.hex() == "d5432955613f0fcf62d49705"


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class TestFiles:
    """PNG files: whole ones alone, and nothing is left beside them."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Return a folder with a container, and the pictures it was made from."""
        for name, picture in (("carrier", CARRIER), ("secret", SECRET)):
            Image.fromarray(picture).save(tmp_path / f"{name}.png")
        CHEAP.hide_file(tmp_path / "carrier.png", tmp_path / "secret.png", tmp_path / "container.png")
        return tmp_path

    def test_there_and_back(self, folder: Path):
        """The file holds 8-bit RGB and the three chunks it needs; nothing but files that were named is there."""
        CHEAP.restore_file(folder / "container.png", folder / "restored.png")
        assert psnr_db(np.asarray(Image.open(folder / "restored.png")), SECRET) >= 32
        with Image.open(folder / "container.png") as found:
            assert (found.mode, found.size, found.info) == ("RGB", (32, 32), {})
        names = ["carrier.png", "container.png", "restored.png", "secret.png"]
        assert sorted(path.name for path in folder.iterdir()) == names

    def test_written_again(self, folder: Path):
        """Another program may write the same pixels anew: palettes aside, a PNG file keeps every bit."""
        Image.open(folder / "container.png").save(folder / "again.png", optimize=True)
        CHEAP.restore_file(folder / "again.png", folder / "restored.png")
        assert (np.asarray(Image.open(folder / "restored.png")) == CHEAP.restore(CONTAINER)).all()

    @given(data=st.data())
    @settings(max_examples=25)
    def test_damaged(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
        """Cut anywhere, or with any bit flipped, it is refused, and nothing is written."""
        folder = tmp_path_factory.mktemp("damaged")
        written = io.BytesIO()
        Image.fromarray(CONTAINER).save(written, "PNG")
        whole = written.getvalue()
        if data.draw(st.booleans()):
            wrong = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            at = data.draw(st.integers(0, len(whole) - 1))
            wrong = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
        (folder / "container.png").write_bytes(wrong)
        with pytest.raises(InvalidProblemError, match=r"container\.png"):
            CHEAP.restore_file(folder / "container.png", folder / "restored.png")
        assert [path.name for path in folder.iterdir()] == ["container.png"]

    def test_refused(self, folder: Path):
        """A wrong password names the file, and leaves nothing."""
        before = sorted(folder.iterdir())
        with pytest.raises(AuthenticationError, match=r"container\.png: container: refused"):
            Vault("wrong", cost=10).restore_file(folder / "container.png", folder / "restored.png")
        with pytest.raises(AuthenticationError):
            CHEAP.restore_file(folder / "carrier.png", folder / "restored.png")
        assert sorted(folder.iterdir()) == before

    @pytest.mark.parametrize(
        ("name", "arguments", "told"),
        [
            ("c.jpg", {"quality": 95}, "JPEG of RGB: expected a PNG file of 8-bit RGB"),
            ("c.webp", {"lossless": True}, "WEBP of RGB: expected a PNG file"),
        ],
    )
    def test_other_kinds(self, folder: Path, name: str, arguments: dict, told: str):
        """Another kind of file says so."""
        Image.fromarray(CONTAINER).save(folder / name, **arguments)
        with pytest.raises(InvalidFileError, match=told):
            CHEAP.restore_file(folder / name, folder / "restored.png")

    def test_large_files(self, folder: Path):
        """A header that promises gigapixels, and a file of too many bytes, are refused before anything is decoded."""
        path = folder / "large.png"
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))
        with pytest.raises(InvalidFileError, match=r"large\.png"):
            CHEAP.restore_file(path, folder / "restored.png")
        with path.open("wb") as file:
            file.truncate(5 << 20)
        with pytest.raises(InvalidFileError, match=r"5242880 bytes, expected at most"):
            CHEAP.restore_file(path, folder / "restored.png")

    def test_names(self, folder: Path):
        """Only names of PNG files are written to, and a secret of another size leaves no file."""
        with pytest.raises(InvalidFileError, match=r"expected a name that ends in \.png"):
            CHEAP.hide_file(folder / "carrier.png", folder / "secret.png", folder / "c.jpg")
        Image.fromarray(pictures(1, 64)[0]).save(folder / "large.png")
        with pytest.raises(InvalidProblemError, match="as the carrier has"):
            CHEAP.hide_file(folder / "carrier.png", folder / "large.png", folder / "c.png")
        assert not (folder / "c.png").exists()
        assert not (folder / "c.jpg").exists()

    def test_failed_writing_leaves_nothing(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """A full disk while the restored picture is written: its temporary file is gone, too."""

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        before = sorted(folder.iterdir())
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            CHEAP.restore_file(folder / "container.png", folder / "restored.png")
        assert sorted(folder.iterdir()) == before


def test_missing_package(monkeypatch: pytest.MonkeyPatch):
    """Without cryptography the error says which extra brings it."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(
        MissingDependencyError, match=r"a vault needs cryptography: pip install 'edgeopt\[faces\]'"
    ) as error:
        CHEAP.hide(CARRIER, SECRET)
    assert isinstance(error.value, EdgeOptError)
