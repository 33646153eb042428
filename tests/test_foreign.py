"""Values of other packages: what comes out is what NumPy would say of the same numbers, or a refusal that names the entry."""

import functools
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.foreign import as_array
from edgeopt.validate import bool_array, float_array, int_array

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")
sparse = pytest.importorskip("scipy.sparse")

NUMBERS = [[1.0, -2.5], [0.0, 4.0]]  # exact in every floating-point type below


@pytest.mark.parametrize(
    "value",
    [
        np.array(NUMBERS, ">f8"),
        np.array(NUMBERS, "<f4"),
        np.array(NUMBERS, np.float16),
        np.array(NUMBERS, np.longdouble),
        np.array(NUMBERS)[::-1, ::-1][::-1, ::-1],
        np.ma.masked_array(NUMBERS),
        np.array(NUMBERS, object),
        pd.DataFrame(NUMBERS),
        pd.DataFrame(NUMBERS, dtype="Float64"),
        torch.tensor(NUMBERS, dtype=torch.bfloat16),
        torch.tensor(NUMBERS, dtype=torch.float64, requires_grad=True),
        torch.tensor(NUMBERS).T.contiguous().T,
        torch.tensor(NUMBERS).to_sparse(),
        [torch.tensor(row, requires_grad=True) for row in NUMBERS],
        [[torch.tensor(x, dtype=torch.bfloat16) for x in row] for row in NUMBERS],
        [np.array(row) for row in NUMBERS],
        [pd.Series(row) for row in NUMBERS],
        tuple(tuple(np.float32(x) for x in row) for row in NUMBERS),
        [[Decimal(x) for x in row] for row in NUMBERS],
        [[Fraction(x) for x in row] for row in NUMBERS],
    ],
)
def test_numbers_survive_every_wrapping(value):
    """The same numbers come out of every container and type, in the machine's byte order."""
    found = as_array("x", value)
    assert found.dtype.isnative
    assert found.tolist() == NUMBERS
    assert float_array("x", value, (2, 2)).tolist() == NUMBERS


@pytest.mark.parametrize(
    "value",
    [
        np.array([3, 0, 7], ">i4"),
        pd.Series([3, 0, 7], dtype="Int64"),
        pd.Series([3, 0, 7], index=[9, 8, 7]),
        pd.Index([3, 0, 7]),
        torch.tensor([3, 0, 7], dtype=torch.int16),
        [np.int64(3), torch.tensor(0), 7],
        (3, 0, 7),
        np.array([3, 0, 7], object),
    ],
)
def test_integers_stay_integers(value):
    """Counts and labels come out as integers; the index of a series does not reorder it."""
    found = as_array("x", value)
    assert found.dtype.kind == "i"
    assert found.tolist() == [3, 0, 7]
    assert int_array("x", value, (None,), low=0).tolist() == [3, 0, 7]


@pytest.mark.parametrize(
    "value", [pd.Series([True, False], dtype="boolean"), torch.tensor([True, False]), [np.True_, False]]
)
def test_truth_values(value):
    """Nullable columns and tensors of truth values are truth values."""
    assert bool_array("b", value, (2,)).tolist() == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], object),
        np.array(["b", "a", "b"], np.dtypes.StringDType()),
        pd.Series(["b", "a", "b"]),
        pd.Series(["b", "a", "b"], dtype="object"),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series(["b", "a", "b"], dtype="category"),
    ],
)
def test_strings(value):
    """Columns of strings come out as strings, whatever table they were in, and sort as strings do."""
    found = as_array("x", value)
    assert found.tolist() == ["b", "a", "b"]
    assert np.unique(found).tolist() == ["a", "b"]


def test_strings_take_the_memory_of_their_characters():
    """One long string among many short ones does not give all of them its width."""
    for value in (["a"] * 1000 + ["b" * 100_000], [["a"], ["b" * 100_000]]):
        assert as_array("x", value).nbytes < 100_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, None], "x[1] = None: expected a value"),
        ([1, pd.NA], "x[1] = <NA>: expected a value"),
        (pd.Series([True, None], dtype="boolean"), "x[1] = <NA>: expected a value"),
        (pd.Series(["a", None], dtype="string"), "x[1] = <NA>: expected a value"),
        (np.ma.masked_equal([[1, 2], [3, 0]], 0), "x[1, 1] is masked: expected a value"),
        ([1, np.ma.masked], "x[1] is masked: expected a value"),
        ([[1, 2], [3]], "x[1]: expected 2 entries as in x[0], got 1"),
        ([[1, 2], 3], "x[1]: expected shape [2] as in x[0], got []"),
        ([[[1], [2]], [[3], [4, 5]]], "x[1, 1]: expected 1 entries as in x[1, 0], got 2"),
        ([torch.ones(2), torch.ones(3)], "x[1]: expected 2 entries as in x[0], got 3"),
        (functools.reduce(lambda inner, _: [inner], range(70), 1), "x: expected an array of numbers: got lists inside each other, more than NumPy takes"),
        ([1, "b"], "x[1] = 'b': expected a number"),
        (["a", 2], "x[1] = 2: expected a string, as before"),
        ([1, b"b"], "x[1] = b'b': expected a number"),
        ([1, "b" * 500], f"x[1] = {quoted('b' * 500)}: expected a number"),
        ({"a": 1}, "x: expected an array of numbers: got a dict"),
        ((i for i in range(3)), "x: expected an array of numbers: got a generator"),
        ({1, 2}, "x: expected an array of numbers: got a set"),
        (object, "x: expected an array of numbers: got a type"),
        (sparse.eye_array(3, format="csr"), "x: expected an array of numbers: got a csr_array"),
        (torch.ones(2, device="meta"), "x: expected an array of numbers: got a tensor on the meta device, which has no values"),
        (torch.ones(2, dtype=torch.complex64), "x: expected an array of numbers: got complex64"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "x: expected an array of numbers: got datetime64[us]"),
        (np.zeros(2, [("a", int)]), "x: expected an array of numbers: got [('a', '<i8')]"),
    ],
)  # fmt: skip
def test_what_is_refused(value, message):
    """Nothing is guessed: the first entry that is no value is named, in one line."""
    with pytest.raises(InvalidProblemError, match=f"^{re.escape(message)}$"):
        as_array("x", value)


def test_missing_integers_are_not_zeros():
    """Where a table turns a missing number into nan, nan is refused as it always is."""
    with pytest.raises(InvalidProblemError, match=r"^x\[1\] = nan: expected an integer >= 0$"):
        int_array("x", pd.Series([1, None], dtype="Int64"), (2,), low=0)


def test_an_array_of_another_device():
    """What an array that refuses to be converted says is passed on in one line."""

    class Elsewhere:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("implicit conversion\nis not allowed")

    message = "x: expected an array of numbers: got a Elsewhere: implicit conversion is not allowed"
    with pytest.raises(InvalidProblemError, match=f"^{message}$"):
        as_array("x", Elsewhere())


def test_torch_is_not_loaded():
    """Checking arrays needs neither torch nor pandas."""
    code = "import sys; from edgeopt.validate import int_array; int_array('x', [1], (1,)); print({'torch', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
