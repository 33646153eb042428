"""`Built`: constructors whose fields another module works out."""

import inspect
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest

import edgeopt
from edgeopt.built import Built
from edgeopt.problems import PROBLEMS


def scaled_fields(width: int, *, by: int = 2) -> dict[str, Any]:
    """Return a box whose height is a multiple of its width."""
    return {"width": width, "height": by * width}


@dataclass(frozen=True, slots=True)
class Box:
    width: int
    height: int

    scaled = Built(scaled_fields)


class Crate(Box):
    pass


def test_constructs_the_class_that_it_is_called_on():
    """The class, an object of it, and a subclass each make what they are, from the fields of the function."""
    assert Box.scaled(3) == Box(3, 6)
    assert Box(1, 1).scaled(3, by=4) == Box(3, 12)
    assert type(Crate.scaled(3)) is Crate


def test_reads_as_a_method():
    """Name, documentation, arguments and their types are the function's; what is returned is the class."""
    method = Box.scaled
    assert (method.__name__, method.__qualname__, method.__doc__) == ("scaled", "Box.scaled", scaled_fields.__doc__)
    assert inspect.signature(method).parameters == inspect.signature(scaled_fields).parameters
    assert inspect.signature(method).return_annotation is Box
    assert get_type_hints(method)["return"] is Box
    with pytest.raises(TypeError, match="height"):
        Box.scaled(height=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", [edgeopt.EdgeNetwork, *PROBLEMS])
def test_builders_return_fields(cls: type):
    """What a function returns is what its class holds: the built object and one made of the fields are equal."""
    built = inspect.getattr_static(cls, "random")
    assert isinstance(built, Built)
    arguments = {"seed": 3}
    assert cls(**built.fields(**arguments)) == cls.random(**arguments)  # type: ignore[attr-defined]
