"""Profiles of devices: figures that follow from each other, shares to the last device, tables of others."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import EdgeNetwork
from edgeopt.device_profiles import (
    DEVICE_PROFILES,
    DeviceProfile,
    assign_devices,
    device_profile,
    read_device_profiles,
)
from edgeopt.errors import InvalidFileError, InvalidProblemError

NAMES = [profile.name for profile in DEVICE_PROFILES]
PAGE = (Path(__file__).parents[1] / "docs" / "device-profiles.md").read_text()
TABLE = "name;flops;memory_bytes;memory_bytes_per_s;joules_per_flop;who\nphone;1e11;6e9;3e10;2e-11;us\n\npad;2e11;8e9;5e10;1e-11;us\n"


def test_the_table():
    """Names once, a source for each; joules per FLOP and tokens per second follow from the other figures."""
    assert len(set(NAMES)) == len(NAMES)
    for profile in DEVICE_PROFILES:
        assert re.match("NVIDIA (data sheet|technical brief|Ada whitepaper), |NVIDIA data sheet; ", profile.source)
        assert f"`{profile.name}`" in PAGE
        assert f"| {profile.source} |" in PAGE
        assert profile.precision in ("fp16", "fp32")
        assert profile.joules_per_flop * profile.flops == pytest.approx(profile.power_w)
        assert 1e-13 < profile.joules_per_flop < 1e-10
        slow = profile.tokens_per_s(weight_bytes=2e9, flops_per_token=1e15)
        assert slow == pytest.approx(profile.flops / 1e15)
        assert profile.tokens_per_s(2e9, 1.0) == pytest.approx(profile.memory_bytes_per_s / 2e9)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.floats(0, 10) | st.just(0.0), min_size=1), st.integers(1, 40),
    st.integers(0, 99), st.floats(0.01, 1),
)  # fmt: skip
def test_shares(shares: dict[str, float], devices: int, seed: int, utilisation: float):
    """Every kind has its share, less or more than a device; rates, memory and energy are those of the kind."""
    network = EdgeNetwork.random(1, devices, seed=0)
    if not sum(shares.values()) > 0:
        with pytest.raises(InvalidProblemError, match="shares"):
            assign_devices(network, shares)
        return
    found = assign_devices(network, shares, utilisation=utilisation, seed=seed)
    count = np.bincount(found.kind, minlength=len(shares))
    exact = devices * np.array(list(shares.values())) / sum(shares.values())
    assert (np.abs(count - exact) < 1 + 1e-9).all()
    assert (count[exact == 0] == 0).all()
    for device, kind in enumerate(found.kind):
        profile = device_profile(list(shares)[kind])
        assert found.profiles[kind] == profile
        assert found.network.device_flops[device] == pytest.approx(utilisation * profile.flops)
        assert found.network.device_memory_bytes[device] == profile.memory_bytes
        assert found.joules_per_flop[device] == pytest.approx(profile.joules_per_flop / utilisation)
    assert (
        found.network.replace(device_flops=network.device_flops, device_memory_bytes=network.device_memory_bytes)
        == network
    )
    np.testing.assert_array_equal(assign_devices(network, shares, seed=seed).kind, found.kind)


def test_a_table_of_others(tmp_path: Path):
    """A table with joules per FLOP gives the same profiles as one with powers; profiles of it are assigned as any."""
    path = tmp_path / "phones.csv"
    path.write_text(TABLE)
    phone, pad = read_device_profiles(path)
    assert (phone.name, phone.power_w, phone.joules_per_flop) == ("phone", pytest.approx(2.0), pytest.approx(2e-11))
    path.write_text("name,flops,memory_bytes,memory_bytes_per_s,power_w,precision\npad,2e11,8e9,5e10,2,int8\n")
    (again,) = read_device_profiles(path)
    assert again == DeviceProfile(
        name="pad", flops=2e11, memory_bytes=8e9, memory_bytes_per_s=5e10, power_w=2.0, precision="int8"
    )
    assert pad.flops == again.flops
    found = assign_devices(EdgeNetwork.random(1, 3, seed=0), {phone: 1, pad: 2})
    assert sorted(found.network.device_flops.tolist()) == [1e11, 2e11, 2e11]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a table with a header"),
        ("name,flops\n", "expected one called memory_bytes"),
        (TABLE.replace("2e-11", "x"), "row 1: joules_per_flop = 'x': expected a number"),
        (TABLE.replace("2e-11", "0"), "row 1: joules_per_flop = '0': expected a number above 0"),
        (TABLE.replace("1e11", "nan"), "row 1: flops = 'nan': expected a number above 0"),
        (TABLE.replace("1e11", "1e999"), "row 1: flops = '1e999': expected a number above 0"),
        (TABLE.replace("1e11", "1_000"), "row 1: flops = '1_000': expected a number above 0"),
        (TABLE.replace("1e11", "-1"), "row 1: flops = '-1': expected a number above 0"),
        (TABLE.replace(";", ",").replace("1e11", "1,5e11"), "row 1: 7 cells: expected 6, as the header has"),
        (TABLE.replace(";2e-11;us", ""), "row 1: joules_per_flop = '': expected a number above 0"),
        (TABLE.replace("phone;", ";"), "row 1: name = '': expected one line of 1 to 200 characters"),
        (TABLE.replace("phone;", '"pho\nne";'), r"row 1: name = 'pho\nne': expected one line"),
        (TABLE.replace("phone;", "x" * 999 + ";"), "row 1: name = 'xxx"),
        (TABLE.replace("who", "power_w"), "expected either power_w or joules_per_flop"),
        (TABLE.replace("who", "name"), "expected one called name"),
        (TABLE.replace("who", "source;source"), "expected one called source"),
        (TABLE.replace("pad", "phone"), "name 'phone' is there 2 times"),
        (TABLE.partition("\n")[0], "no row under the header"),
        (TABLE.replace("phone;", '"phone;'), "expected a table with a header"),
    ],
)
def test_bad_tables(text: str, said: str, tmp_path: Path):
    """File, row, column, and what was expected."""
    path = tmp_path / "phones.csv"
    path.write_text(text)
    with pytest.raises(InvalidFileError) as error:
        read_device_profiles(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_bad_shares():
    """Unknown names, negative shares and utilisations beyond the peak are refused."""
    network = EdgeNetwork.random(1, 3, seed=0)
    with pytest.raises(InvalidProblemError, match="no device 'x': expected one of jetson-nano"):
        assign_devices(network, {"x": 1})
    with pytest.raises(InvalidProblemError, match="share of jetson-nano = -1"):
        assign_devices(network, {"jetson-nano": -1})
    with pytest.raises(InvalidProblemError, match="shares"):
        assign_devices(network, {})
    with pytest.raises(InvalidProblemError, match=r"utilisation = 1\.5"):
        assign_devices(network, {"jetson-nano": 1}, utilisation=1.5)
