"""`Vault`: a picture hidden in another one, which the right password brings back and nothing else does."""

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.coding.quality import psnr_db
from edgeopt.errors import AuthenticationError, InvalidProblemError, quoted
from edgeopt.privacy.picture_code import STEPS, Integers, Picture, PictureCode
from edgeopt.privacy.sealing import SALT_BYTES, TAG_BYTES, check_cost, derive, password_bytes, seal, unseal
from edgeopt.privacy.vault_files import read_picture, read_png, write_png
from edgeopt.validate import real

SIDES = (32, 256)
"""Pixels along a side at least and at most."""
MOST_PLANES = 5
"""Low bits of a value that may be replaced."""
_FINER = 12  # steps that are tried beyond what is good enough: a quarter of it, some 12 dB
_SALTED = 8 * SALT_BYTES  # values, the first ones, whose lowest bit is one of the salt's

Bits = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Vault:
    """Hides pictures in others of the same size, and restores them.

    A picture x is coded by an invertible network on its Haar sub-bands, rounded, to bytes r; r is enciphered and vouched for with a key
    of the password; the result replaces the lowest bits of the carrier. Restoring reads these bits as they are, and where they vouch
    for themselves deciphers r and goes the way back.

    The paper's are the parts: an invertible network inside, something outside it that hides its code in a carrier, and a password
    without which nothing comes back. Ours is all else. The outer part of the paper is a second invertible network, whose lost residual
    changes what is read; a code that is authenticated must be read exactly, and one that is enciphered looks like noise, of which no
    network can make less. So low bits are replaced here, which 8-bit files keep exactly.

    What secrecy there is rests on the cipher and the password alone: the network is public, and hides nothing. That something is hidden
    is not a secret either: low bits that are random can be told from those of a camera.

    Exact in this sense: from a container of which every bit is as `hide` returned it, the password restores a picture of at least
    `least_psnr_db` to the hidden one, as `hide` has tried; where a single bit of it is another, as after JPEG or resizing, or the password
    is, `AuthenticationError` is raised. That a changed container passes has a chance below 2^-86 for each that is tried [1]_.

    Parameters
    ----------
    password : text or bytes, not empty. Short ones can be tried out, at the cost of one scrypt each.
    least_psnr_db : of restored pictures, from 30 to 45. As few low bits of the carrier are replaced as do, and what they hold beyond it
        makes pictures better.
    cost : of scrypt, see `edgeopt.privacy.sealing.derive`: 2^(cost + 10) bytes, 32 MiB by default. It is no part of a container, as a file must not decide
        how much memory is taken: who restores has to have the same.
    code : of pictures. Default: the one that comes with the package. No container of one opens with another.

    Raises
    ------
    InvalidProblemError
        If a parameter is out of its range, the password empty, or more than one.

    References
    ----------
    .. [1] RFC 8439, ChaCha20 and Poly1305 for IETF protocols: a forged message of n bytes passes with a chance of at most
       8 ceil(n / 16) / 2^106; n is below 330 000, and five numbers of low bits are tried.
    """

    password: str | bytes = field(repr=False)
    least_psnr_db: float = 32.0
    cost: int = 15
    code: PictureCode = field(default_factory=PictureCode.pretrained)

    def __post_init__(self) -> None:
        object.__setattr__(self, "password", password_bytes(self.password))
        least = real("least_psnr_db", self.least_psnr_db, unit="dB")
        if not 30 <= least <= 45:
            raise InvalidProblemError(f"least_psnr_db = {least:g}: expected 30 to 45 dB")
        object.__setattr__(self, "least_psnr_db", least)
        object.__setattr__(self, "cost", check_cost(self.cost))

    def hide(self, carrier: Picture, secret: Picture) -> Picture:
        """Return the carrier with a secret in its low bits.

        Every call draws a salt, so that no two containers are alike.

        Parameters
        ----------
        carrier, secret : uint8 [S, S, 3], S even, from 32 to 256.

        Raises
        ------
        InvalidProblemError
            If a picture is none of that size, sizes differ, or the secret has too much detail for the carrier.
        MissingDependencyError
            Without cryptography: the extra ``faces``.
        """
        carrier, secret = _checked("carrier", carrier), _checked("secret", secret)
        if carrier.shape != secret.shape:
            raise InvalidProblemError(
                f"secret: {secret.shape[0]} pixels along a side: expected {carrier.shape[0]}, as the carrier has"
            )
        planes, message = self._message(secret)
        salt = secrets.token_bytes(SALT_BYTES)
        values = carrier.flatten()
        sealed = seal(self._lock(salt), message, self._beside(values, planes))
        values[:_SALTED] = values[:_SALTED] & 0xFE | np.unpackbits(np.frombuffer(salt, np.uint8))
        _put(values, planes, sealed)
        return values.reshape(carrier.shape)

    def restore(self, container: Picture) -> Picture:
        """Return the picture uint8 [S, S, 3] that is hidden in another one.

        Raises
        ------
        AuthenticationError
            If the password is wrong, nothing is hidden in it, or any bit of it is not as it was.
        InvalidProblemError
            If it is no picture of a size that `hide` takes.
        """
        container = _checked("container", container)
        values = container.flatten()
        lock = self._lock(np.packbits(values[:_SALTED] & 1).tobytes())
        for planes in range(1, MOST_PLANES + 1):
            try:
                message = unseal(lock, _taken(values, planes), self._beside(values, planes))
            except AuthenticationError:
                continue
            return self.code.picture(self.code.read(message[1:], len(container)), message[0])
        raise AuthenticationError(
            "container: refused: the password is wrong, or the picture is not, bit by bit, one that was hidden with it"
        )

    def hide_file(
        self, carrier: str | os.PathLike[str], secret: str | os.PathLike[str], container: str | os.PathLike[str]
    ) -> None:
        """Write a PNG file: the picture of a file with that of another one in it. Nothing else is written.

        Raises
        ------
        InvalidFileError
            If a file is no picture, or the name of the container does not end in .png.
        InvalidProblemError
            As `hide`.
        """
        write_png(container, self.hide(read_picture(carrier), read_picture(secret)))

    def restore_file(self, container: str | os.PathLike[str], picture: str | os.PathLike[str]) -> None:
        """Write what is hidden in a PNG file to another one. Where it is refused, nothing is written.

        Raises
        ------
        AuthenticationError
            As `restore`.
        InvalidFileError
            If the file is no whole PNG file of 8-bit RGB, such as one that was truncated, or a JPEG.
        """
        found = read_png(container)
        try:
            restored = self.restore(found)
        except AuthenticationError as error:
            raise AuthenticationError(f"{container}: {error}") from None
        write_png(picture, restored)

    def _lock(self, salt: bytes) -> tuple[bytes, bytes]:
        return derive(password_bytes(self.password), salt, self.cost)

    @cached_property
    def _fingerprint(self) -> bytes:
        """Of the code: bytes that another one has written would be read as another picture."""
        found = hashlib.sha256(self.code.chances.tobytes())
        for name, value in self.code.network.state_dict().items():
            found.update(name.encode() + value.numpy().tobytes())
        return found.digest()

    def _beside(self, values: Bits, planes: int) -> bytes:
        """Return what is vouched for with the message: every bit of the container but the salt's, which the key vouches for, and it."""
        kept = np.concatenate([values[:_SALTED] >> 1, values[_SALTED:] >> planes])
        unused = _low_bits(values, planes)[8 * _room(values.size, planes) :]
        return b"edgeopt vault 1" + self._fingerprint + bytes([planes]) + kept.tobytes() + unused.tobytes()

    def _message(self, secret: Picture) -> tuple[int, bytes]:
        """Return how many low bits a value gives, and what they are to hold, filled up with zeros."""
        coarse = self._coarsest(secret)
        numbers = self.code.numbers(secret, coarse)
        data = self.code.write(numbers)
        rooms = {planes: _room(secret.size, planes) - TAG_BYTES - 1 for planes in range(1, MOST_PLANES + 1)}
        fitting = [planes for planes, room in rooms.items() if len(data) <= room]
        if not fitting:
            raise InvalidProblemError(
                f"secret: takes {len(data)} bytes at {self.least_psnr_db:g} dB: expected at most {rooms[MOST_PLANES]}, what "
                f"{MOST_PLANES} low bits hold; a picture with less noise, or a lower least_psnr_db, would fit"
            )
        planes = fitting[0]
        step, fine = coarse, max(0, coarse - _FINER)
        while fine < step:  # the finest step that fits: a finer one takes more
            tried = (fine + step) // 2
            numbers = self.code.numbers(secret, tried)
            found = self.code.write(numbers)
            if len(found) <= rooms[planes] and self._psnr_db(secret, numbers, tried) >= self.least_psnr_db:
                step, data = tried, found
            else:
                fine = tried + 1
        return planes, bytes([step]) + data.ljust(rooms[planes], b"\0")

    def _coarsest(self, secret: Picture) -> int:
        """Return the coarsest step that is good enough."""
        low, high = 0, len(STEPS) - 1
        while low < high:
            tried = (low + high + 1) // 2
            if self._psnr_db(secret, self.code.numbers(secret, tried), tried) >= self.least_psnr_db:
                low = tried
            else:
                high = tried - 1
        return low

    def _psnr_db(self, secret: Picture, numbers: list[Integers], step: int) -> float:
        return psnr_db(self.code.picture(numbers, step), secret)


def _checked(name: str, picture: Any) -> Picture:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        found = f"an array of {picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InvalidProblemError(f"{name}: expected an array of uint8, got {found}")
    least, most = SIDES
    shape = picture.shape
    if len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1] or shape[0] % 2 or not least <= shape[0] <= most:
        raise InvalidProblemError(
            f"{name}: expected shape [S, S, 3], S even, from {least} to {most}, got {quoted(list(shape))}"
        )
    return picture


def _room(values: int, planes: int) -> int:
    """Return how many whole bytes the low bits of values hold beside the salt."""
    return planes * (values - _SALTED) // 8


def _low_bits(values: Bits, planes: int) -> Bits:
    return (values[_SALTED:, None] >> np.arange(planes, dtype=np.uint8) & np.uint8(1)).ravel()


def _put(values: Bits, planes: int, sealed: bytes) -> None:
    bits = _low_bits(values, planes)
    bits[: 8 * len(sealed)] = np.unpackbits(np.frombuffer(sealed, np.uint8))
    low = (bits.reshape(-1, planes) << np.arange(planes, dtype=np.uint8)).sum(1, dtype=np.uint8)
    values[_SALTED:] = values[_SALTED:] >> planes << planes | low


def _taken(values: Bits, planes: int) -> bytes:
    return np.packbits(_low_bits(values, planes)[: 8 * _room(values.size, planes)]).tobytes()
