"""`Built`: how a class gets constructors whose work is done in a module of its own, without a circle of imports."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Built(Generic[P]):
    """A constructor made of a function that returns the fields of the class.

    Arguments and documentation are those of the function; what is called constructs the class it is called on.

    Parameters
    ----------
    fields : returns the keyword arguments of the class.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> def square_fields(side: float) -> dict[str, float]:
    ...     return {"width": side, "height": side}
    >>> @dataclass
    ... class Rectangle:
    ...     width: float
    ...     height: float
    ...     square = Built(square_fields)
    >>> Rectangle.square(2.0)
    Rectangle(width=2.0, height=2.0)
    """

    def __init__(self, fields: Callable[P, dict[str, Any]]) -> None:
        self.fields = fields
        self.__doc__ = fields.__doc__
        self._name = fields.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type[T]) -> Callable[P, T]:
        @functools.wraps(self.fields)
        def construct(*args: P.args, **kwargs: P.kwargs) -> T:
            return owner(**self.fields(*args, **kwargs))

        construct.__name__, construct.__qualname__ = self._name, f"{owner.__qualname__}.{self._name}"
        signature = inspect.signature(self.fields).replace(return_annotation=owner)
        construct.__signature__ = signature  # type: ignore[attr-defined]
        construct.__annotations__ = {**self.fields.__annotations__, "return": owner}
        return construct
