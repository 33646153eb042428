import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.validate import bool_array, by_name, flag, float_array, int_array, integer, probabilities, real


def refused(message: str):
    return pytest.raises(InvalidProblemError, match=f"^{re.escape(message)}$")


# --- what comes out


def test_arrays_are_read_only_contiguous_copies():
    """Neither the caller's later writes nor the owner's reach a validated array, and kernels get C order."""
    given_array = np.asfortranarray(np.ones((2, 3)))
    checked = float_array("x", given_array, (2, 3))
    given_array[0, 0] = 7
    assert checked[0, 0] == 1
    assert checked.flags.c_contiguous
    for array in (checked, int_array("i", [1, 2], (2,)), bool_array("b", [True], (1,))):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_dtypes():
    """The output type does not depend on the input type."""
    assert float_array("x", [1, 2], (2,)).dtype == np.float64
    assert float_array("x", np.float32([1, 2]), (2,)).dtype == np.float64
    assert int_array("i", [1.0, 2.0], (2,)).dtype == np.int32
    assert int_array("i", np.uint64([1, 2]), (2,), dtype=np.int64).dtype == np.int64
    assert int_array("i", [True, False], (2,)).tolist() == [1, 0]


def test_scalars_broadcast_where_the_shape_is_known():
    """One number fills a known shape, is kept as it is for the shape (), and is refused for an open one."""
    assert float_array("x", 2, (2, 2)).tolist() == [[2, 2], [2, 2]]
    assert float_array("x", 2, ()).shape == ()
    assert int_array("i", 2, ()).item() == 2
    assert bool_array("b", True, (2,)).tolist() == [True, True]
    with refused("x: expected shape [any], got []"):
        float_array("x", 2, (None,))


def test_empty_arrays():
    """No entries have no wrong entries, whatever type numpy gives an empty list."""
    assert float_array("x", [], (0,), positive=True).size == 0
    assert int_array("i", [], (None,), low=0, high=-1).dtype == np.int32
    assert bool_array("b", [], (None,)).dtype == np.bool_


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3), elements=st.floats(-1e9, 1e9)))
def test_finite_numbers_pass_unchanged(values):
    """Validation changes no value and no shape."""
    assert np.array_equal(float_array("x", values, values.shape), values)


@given(hnp.arrays(np.int64, 5, elements=st.integers(-20, 20)), st.integers(-20, 20), st.integers(-20, 20))
def test_bounds_hold_for_what_passes(values, low, high):
    """An integer array passes exactly if every entry is within both bounds, which are included."""
    if ((values >= low) & (values <= high)).all():
        assert int_array("i", values, (5,), low=low, high=high).tolist() == values.tolist()
    else:
        with pytest.raises(InvalidProblemError, match="expected an integer from"):
            int_array("i", values, (5,), low=low, high=high)


# --- what is refused, and how


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ([1, -1, -2], {"positive": True}, "x[1] = -1.0: expected a positive number"),
        ([1, 0, 3], {"positive": True, "unit": "W"}, "x[1] = 0.0: expected a positive number (W)"),
        ([1, 2, -3], {"nonnegative": True, "unit": "s"}, "x[2] = -3.0: expected a non-negative number (s)"),
        ([1, np.inf, 3], {}, "x[1] = inf: expected a finite number"),
        ([np.nan, 1, 1], {}, "x[0] = nan: expected a finite number"),
        ([np.nan, 1, 1], {"finite": False}, "x[0] = nan: expected a number or inf"),
        ([np.inf, -1, 1], {"finite": False, "positive": True, "unit": "s"}, "x[1] = -1.0: expected a positive number (s) or inf"),
        ([1, 2], {}, "x: expected shape [3], got [2]"),
        ([[1, 2, 3]], {}, "x: expected shape [3], got [1, 3]"),
        (None, {}, "x: expected an array of numbers: got nothing"),
        (["1", "2", "3"], {}, "x[0] = '1': expected a finite number"),
        ([1j, 0, 0], {}, "x: expected an array of numbers: got complex128"),
        ([1, None, 2], {}, "x[1] = None: expected a value"),
        (True, {}, "x = True: expected a finite number"),
    ],
)  # fmt: skip
def test_bad_floats(value, options, message):
    """The message names the field, the first wrong entry, its value and what was expected, with the unit."""
    with refused(message):
        float_array("x", value, (3,), **options)


def test_index_of_a_wrong_entry_in_a_matrix():
    """In more dimensions the index is the one to type after the field's name; a scalar has none."""
    with refused("x[1, 0] = -1.0: expected a positive number"):
        float_array("x", [[1, 1], [-1, -1]], (2, 2), positive=True)
    with refused("x = -1.0: expected a positive number"):
        float_array("x", -1, (), positive=True)


def test_infinity_is_allowed_on_request():
    """`finite=False` lets infinities through, those of the required sign only."""
    assert float_array("x", [np.inf, 1], (2,), positive=True, finite=False).tolist() == [np.inf, 1]
    with refused("x[0] = -inf: expected a non-negative number or inf"):
        float_array("x", [-np.inf], (1,), nonnegative=True, finite=False)


def test_ragged_lists():
    """Rows of different lengths are no array."""
    with refused("x[1]: expected 2 entries as in x[0], got 1"):
        float_array("x", [[1, 2], [3]], (2, 2))


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ([0, 2], {"low": 0, "high": 1}, "i[1] = 2: expected an integer from 0 to 1"),
        ([0, -1], {"low": 0}, "i[1] = -1: expected an integer >= 0"),
        ([0, 9], {"high": 5}, "i[1] = 9: expected an integer <= 5"),
        ([0, 1.5], {}, "i[1] = 1.5: expected an integer"),
        ([0, 1.5], {"low": 0, "high": 3}, "i[1] = 1.5: expected an integer from 0 to 3"),
        ([0, np.nan], {}, "i[1] = nan: expected an integer"),
        (np.array([0, np.inf]), {"dtype": np.int64}, "i[1] = inf: expected an integer"),
        (np.array([0, 1e300]), {"dtype": np.int64}, "i[1] = 1e+300: expected an integer"),
        (np.uint64([0, 2**64 - 1]), {"dtype": np.int64}, f"i[1] = {2**64 - 1}: expected an integer"),
        ([0, 2**40], {}, f"i[1] = {2**40}: expected an integer from -2147483648 to 2147483647"),
        ([0, 2**31], {"low": 1}, "i[1] = 2147483648: expected an integer from 1 to 2147483647"),
        ([0, 2**80], {}, f"i[1] = {2.0**80}: expected an integer"),
        (["a", "b"], {}, "i[0] = 'a': expected an integer"),
        ([0], {}, "i: expected shape [2], got [1]"),
    ],
)
def test_bad_integers(value, options, message):
    """Nothing is rounded or wrapped around to become an integer in range."""
    with refused(message):
        int_array("i", value, (2,), **options)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ([1.0, 1e-51], {}, "f[1] = 1e-51: expected 0 or a magnitude from 1e-50 to 1e+50"),
        ([1.0, -2e50], {"unit": "m"}, "f[1] = -2e+50: expected 0 or a magnitude from 1e-50 to 1e+50 (m)"),
        ([5e-324, 1.0], {"positive": True}, "f[0] = 5e-324: expected a magnitude from 1e-50 to 1e+50"),
        ([1e308, np.inf], {"finite": False}, "f[0] = 1e+308: expected 0 or a magnitude from 1e-50 to 1e+50 or inf"),
    ],
)
def test_out_of_range(value, options, message):
    """Numbers whose products could under- or overflow are refused where that matters; 0 and the ends are in range."""
    with refused(message):
        float_array("f", value, (2,), ranged=True, **options)
    assert float_array("f", value, (2,), **options).tolist() == value
    ends = [0.0, 1e-50, -1e50, np.inf]
    assert float_array("f", ends, (4,), ranged=True, finite=False).tolist() == ends


def test_bad_booleans():
    """Numbers are not truth values: a matrix of gains given as coverage is a mistake."""
    with refused("b: expected booleans, got int64"):
        bool_array("b", [0, 1], (2,))
    with refused("b: expected shape [2], got [1]"):
        bool_array("b", [True], (2,))


# --- scalars


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), np.array(5), 5.0, np.float32(5)])
def test_whole_numbers_of_any_type(value):
    """A count may come as any type of integer, as a whole float, or as an array without axes; a plain int comes out."""
    assert integer("n", value, low=1, high=5) == 5
    assert type(integer("n", value)) is int
    assert type(real("x", value)) is float


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (True, "n = True"),
        (np.True_, "n = True"),
        ("5", "n = '5'"),
        (None, "n = None"),
        (0, "n = 0"),
        (1.5, "n = 1.5"),
        ({"a": 1}, "n = {'a': 1}"),
        ("x" * 999, f"n = {quoted('x' * 999)}"),
    ],
)
def test_what_is_no_count(value, got):
    """Truth values, text, nothing and fractions are refused in one line that quotes no more than fits it."""
    with refused(f"{got}: expected an integer >= 1"):
        integer("n", value, low=1)


def test_one_number_is_no_list_of_one():
    """An array with an axis is no scalar, even if it has one entry."""
    with refused("n: expected shape [], got [1]"):
        integer("n", [3])


def test_flags():
    """Truth values of Python and NumPy pass; a number, which `if` would take for one, does not."""
    assert flag("aggregate", np.False_) is False
    with refused("aggregate = 1: expected True or False"):
        flag("aggregate", 1)


# --- probabilities


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(0.01, 1)))
def test_probabilities_computed_in_float32(weights):
    """What a division in float32 leaves, in any wrapping, is accepted, and sums to 1 as exactly as float64 can."""
    narrow = weights.astype(np.float32)
    shares = narrow / narrow.sum(axis=1, keepdims=True)
    for given_as in (shares, shares.tolist(), shares.astype(np.float64)):
        found = probabilities("p", given_as, shares.shape, tolerance=1e-9)
        assert np.abs(found.sum(axis=1) - 1).max() <= 1e-9
        np.testing.assert_allclose(found, shares, rtol=1e-4)


def test_exact_probabilities_keep_their_bits():
    """Sums within the tolerance are left alone, so that a distribution read back equals the one that was written."""
    shares = np.array([[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    assert probabilities("p", shares, (2, 3), tolerance=1e-9).tobytes() == shares.tobytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.50000001]], "p[1] sums to 1.00000001: expected probabilities that sum to 1"),
        ([[0.5, 0.5], [0.5, 0.5000000002]], "p[1] sums to 1.0000000002: expected probabilities that sum to 1"),
        (np.float32([[0.5, 0.5], [0.5, 0.25]]), "p[1] sums to 0.75: expected probabilities that sum to 1"),
        ([[0.5, 0.5], [1e300, 0.5]], "p[1] sums to 1e+300: expected probabilities that sum to 1"),
        ([[0.5, 0.5], [1.7e308, 1.7e308]], "p[1] sums to inf: expected probabilities that sum to 1"),
        ([[0.5, 0.5], [1.5, -0.5]], "p[1, 1] = -0.5: expected a non-negative number"),
    ],
)  # fmt: skip
def test_bad_probabilities(value, message):
    """The digits by which a sum is wrong are in the message; float32 excuses its rounding only."""
    with refused(message):
        probabilities("p", value, (2, 2), tolerance=1e-10)


@pytest.mark.parametrize("name", ["gren", "", None, 3, ["green"], {}])
def test_names_that_are_in_no_table(name: object):
    """Whatever a name is, the message lists what there is."""
    table = {"green": 1, "red": 2}
    assert by_name("colour", "green", table) == 1
    with refused(f"no colour {quoted(name)}: expected one of green, red"):
        by_name("colour", name, table)
