"""What a range coder writes is read back, in as many bits as the chances say."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.privacy.range_coder import START, WHOLE, Decoder, Encoder


@given(
    st.lists(st.integers(0, WHOLE), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=200),
    st.binary(max_size=3),
)
def test_read_what_was_written(chances: list[int], bits: list[tuple[int, bool]], zeros: bytes):
    """Whatever the chances; zeros at the end change nothing."""
    encoder = Encoder(chances)
    for context, bit in bits:
        assert encoder.bit(context, bit) is bit
    decoder = Decoder(chances, encoder.finish() + bytes(len(zeros)))
    assert [decoder.bit(context) for context, _ in bits] == [bit for _, bit in bits]


def test_carries():
    """Bits that were unlikely, one after another, take the low end over many borders of bytes."""
    bits = [k % 7 != 3 for k in range(3000)]
    chances = [WHOLE - 1]
    encoder = Encoder(chances)
    for bit in bits:
        encoder.bit(0, bit)
    decoder = Decoder(chances, encoder.finish())
    assert [decoder.bit(0) for _ in bits] == bits


def test_length():
    """Within 1 % and two bytes of the sum of -log2 of the chances, recomputed here with fractions of the same counts."""
    bits = np.random.default_rng(0).random(4000) < 0.1
    encoder, chance, seen, ideal = Encoder([WHOLE // 2]), 0.5, START, 0.0
    for bit in bits.tolist():
        encoder.bit(0, bit)
        ideal -= math.log2(1 - chance if bit else chance)
        chance += -chance / seen if bit else (1 - chance) / seen
        seen = min(seen + 1, 60)
    assert abs(8 * len(encoder.finish()) - ideal) < 0.01 * ideal + 16
