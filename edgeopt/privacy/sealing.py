"""The lock of a vault, and all of its secrecy: a key from a password by scrypt, and ChaCha20-Poly1305."""

import hashlib
import unicodedata

from edgeopt.errors import AuthenticationError, InvalidProblemError
from edgeopt.extras import needs
from edgeopt.validate import integer

SALT_BYTES = 16
TAG_BYTES = 16
LEAST_COST, MOST_COST = 10, 20
"""Of scrypt, as powers of two: 1 MiB and a few milliseconds, 1 GiB and several seconds."""
_BLOCK = 8  # of scrypt: N takes 128 x 8 x N bytes
_KEY_BYTES, _NONCE_BYTES = 32, 12

Sealed = tuple[bytes, bytes]


def password_bytes(password: object) -> bytes:
    r"""Return a password as bytes: text in its composed form, so that it does not matter on which keyboard it was typed.

    Raises
    ------
    InvalidProblemError
        If it is empty, more than one, or neither text nor bytes.

    Examples
    --------
    >>> password_bytes("e\N{COMBINING ACUTE ACCENT}") == password_bytes("\N{LATIN SMALL LETTER E WITH ACUTE}")
    True
    """
    if isinstance(password, list | tuple | set | frozenset | dict):
        raise InvalidProblemError(f"password: expected one, as text or bytes, got {len(password)} of them")
    if not isinstance(password, str | bytes):
        raise InvalidProblemError(f"password: expected text or bytes, got {type(password).__name__}")
    if not password:
        raise InvalidProblemError("password: expected at least one character, got none")
    if isinstance(password, bytes):
        return password
    try:
        return unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError as error:
        raise InvalidProblemError(f"password: expected text, got a lone surrogate at {error.start}") from None


def check_cost(cost: object) -> int:
    """Return the cost of scrypt, a power of two; refuse what would be weak, or would take gigabytes."""
    return integer("cost", cost, low=LEAST_COST, high=MOST_COST)


def derive(password: bytes, salt: bytes, cost: int) -> Sealed:
    """Return the key, 32 bytes, and the nonce, 12 bytes, of a password and a salt.

    A salt is drawn for every message, so that no key is used twice: the nonce need not be drawn, too.

    Parameters
    ----------
    cost : N = 2^cost of scrypt, with r = 8 and p = 1; it takes 2^(cost + 10) bytes of memory.

    References
    ----------
    RFC 7914.
    """
    found = hashlib.scrypt(
        password, salt=salt, n=1 << cost, r=_BLOCK, p=1, dklen=_KEY_BYTES + _NONCE_BYTES,
        maxmem=(128 * _BLOCK << cost) + (1 << 20),
    )  # fmt: skip
    return found[:_KEY_BYTES], found[_KEY_BYTES:]


def seal(lock: Sealed, message: bytes, beside: bytes) -> bytes:
    """Return a message enciphered, and 16 bytes that vouch for it and for what stands beside it in the clear.

    References
    ----------
    RFC 8439.
    """
    with needs("a vault", "faces"):
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    key, nonce = lock
    return ChaCha20Poly1305(key).encrypt(nonce, message, beside)


def unseal(lock: Sealed, sealed: bytes, beside: bytes) -> bytes:
    """Return the message that `seal` was given.

    Raises
    ------
    AuthenticationError
        If key, nonce, what was sealed or what stands beside it is another.
    """
    with needs("a vault", "faces"):
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    key, nonce = lock
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, beside)
    except InvalidTag:
        raise AuthenticationError(f"sealed: {len(sealed)} bytes that this key does not open") from None
