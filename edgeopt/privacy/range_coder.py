"""A range coder of bits with adaptive chances, in integers alone: what is written on one machine is read on every other.

After G. N. N. Martin, "Range encoding", 1979, with the carry kept back as in LZMA. Chances adapt by counts: the more bits a context has
seen, the less the next one changes it.
"""

from collections.abc import Sequence

WHOLE = 1 << 16
"""What chances are parts of."""
START = 12
"""Bits that a context counts as seen when it starts: how much what was learnt is trusted."""
_MOST_SEEN = 60  # so that chances keep adapting
_LEAST = 64  # of a chance at the start, so that no bit is impossible
_TOP = 1 << 24


class _Chances:
    """Chances of a zero, by context, and how many bits each context has seen."""

    def __init__(self, chances: Sequence[int]) -> None:
        self.zero = [min(max(int(chance), _LEAST), WHOLE - _LEAST) for chance in chances]
        self.seen = [START] * len(self.zero)

    def update(self, context: int, bit: bool) -> None:
        seen, zero = self.seen[context], self.zero[context]
        if seen < _MOST_SEEN:
            self.seen[context] = seen + 1
        # rounded down: neither 0 nor WHOLE is ever reached
        self.zero[context] = zero - zero // seen if bit else zero + (WHOLE - zero) // seen


class Encoder(_Chances):
    """Writes bits.

    Parameters
    ----------
    chances : of a zero in each context, at the start, parts of `WHOLE`.
    """

    def __init__(self, chances: Sequence[int]) -> None:
        super().__init__(chances)
        self._low, self._range, self._bytes = 0, (1 << 32) - 1, bytearray()

    def bit(self, context: int, bit: bool) -> bool:
        """Write a bit and return it."""
        bound = (self._range >> 16) * self.zero[context]
        if bit:
            self._low += bound
            self._range -= bound
        else:
            self._range = bound
        self.update(context, bit)
        while self._range < _TOP:
            self._range <<= 8
            self._shift()
        return bit

    def _shift(self) -> None:
        """Move the highest byte of the low end out; a carry is added to the bytes before it."""
        if self._low >> 32:
            at = len(self._bytes) - 1
            while self._bytes[at] == 0xFF:
                self._bytes[at] = 0
                at -= 1
            self._bytes[at] += 1
        self._bytes.append(self._low >> 24 & 0xFF)
        self._low = (self._low & 0xFFFFFF) << 8

    def finish(self) -> bytes:
        """Return what was written; zeros at its end are left out, as the decoder reads them there."""
        for free in range(31, -1, -1):  # the number in the range that has the most zeros at its end
            value = (self._low + (1 << free) - 1) >> free << free
            if value < self._low + self._range:
                self._low = value
                break
        for _ in range(5):
            self._shift()
        return bytes(self._bytes).rstrip(b"\0")


class Decoder(_Chances):
    """Reads the bits that an `Encoder` of the same chances has written.

    Parameters
    ----------
    chances : as the encoder had them.
    data : what it wrote; zeros are read beyond the end.
    """

    def __init__(self, chances: Sequence[int], data: bytes) -> None:
        super().__init__(chances)
        self._data, self._at, self._range = data, 4, (1 << 32) - 1
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, context: int, bit: bool = False) -> bool:
        """Read a bit; what is given is ignored, so that one function both writes and reads."""
        bound = (self._range >> 16) * self.zero[context]
        found = self._code >= bound
        if found:
            self._code -= bound
            self._range -= bound
        else:
            self._range = bound
        self.update(context, found)
        while self._range < _TOP:
            self._range <<= 8
            more = self._data[self._at] if self._at < len(self._data) else 0
            self._code = (self._code << 8 | more) & 0xFFFFFFFF
            self._at += 1
        return found
