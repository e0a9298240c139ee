"""What a function sees besides its arguments, and whether it is still the same.

A compiled program has in it what its function saw when it was traced: variables of the
enclosing functions and of its module, attributes of its object, default values. Where
one is rebound the program would go on with the old one and say nothing.
"""

import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from mujax._trees import is_traced

_VALUES = (bool, int, float, complex, str, bytes, np.generic, type(None))
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType)


def is_value(x: Any) -> bool:
    """Whether an object is as good as another that equals it."""
    return isinstance(x, (*_VALUES, type, np.dtype))


def captures(fun: Callable[..., Any]) -> list[Any]:
    """The numbers, texts and arrays that a function sees, in a fixed order.

    Containers, attributes and functions are looked into: those it closes over, and of
    globals those of its own module. What is changed in place in an array is not seen.
    """
    found: list[Any] = []
    visited: set[int] = set()
    waiting: list[Any] = [fun]
    home = getattr(getattr(fun, "__func__", fun), "__globals__", None)
    if home is None:
        # Not getattr, which finds that of the metaclass in every class.
        kinds: tuple[type, ...] = type(fun).__mro__  # pyright: ignore
        call = next(
            (k.__dict__["__call__"] for k in kinds if "__call__" in k.__dict__), None
        )
        home = getattr(call, "__globals__", None)
        waiting.append(call)
    while waiting:
        x = waiting.pop()
        if isinstance(x, (*_VALUES, jax.Array, np.ndarray)):
            found.append(x)
        elif id(x) not in visited and not isinstance(x, _OPAQUE):
            visited.add(id(x))
            waiting.extend(_parts(x, home))
    return found


def snapshot(found: Iterable[Any]) -> list[Callable[[Any], bool]]:
    """Tests of whether each is what it was; they keep nothing alive."""
    return [_test(x) for x in found]


def unchanged(tests: list[Callable[[Any], bool]], found: list[Any]) -> bool:
    """Whether all that is seen now is what was seen at the snapshot."""
    return len(tests) == len(found) and all(
        test(x) for test, x in zip(tests, found, strict=True)
    )


def any_traced(found: Iterable[Any]) -> bool:
    """Whether a function sees a value that ends with somebody's trace."""
    return any(map(is_traced, found))


def _test(x: Any) -> Callable[[Any], bool]:
    if isinstance(x, _VALUES):
        return lambda y: type(x) is type(y) and (x == y or x != x)
    try:
        reference = weakref.ref(x)
    except TypeError:
        number = id(x)
        return lambda y: id(y) == number
    return lambda y: reference() is y


def _parts(x: Any, home: dict | None) -> Iterable[Any]:
    """What an object is made of, as far as its function can see it."""
    if isinstance(x, types.FunctionType):
        for cell in x.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not bound yet
                yield None
        yield from x.__defaults__ or ()
        yield from (x.__kwdefaults__ or {}).values()
        if home is not None and x.__globals__ is home:
            yield from (home[name] for name in _names(x.__code__) if name in home)
    elif isinstance(x, types.MethodType):
        yield from (x.__self__, x.__func__)
    elif isinstance(x, functools.partial):
        yield from (x.func, *x.args, *x.keywords.values())
    elif isinstance(x, dict):
        yield from x.values()
    elif isinstance(x, (list, tuple)):
        yield from x
    elif type(x).__module__.partition(".")[0] in ("jax", "jaxlib"):
        yield getattr(x, "__wrapped__", None)
    else:
        yield from getattr(x, "__dict__", {}).values()
        for kind in type(x).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                yield getattr(x, name, None)


def _names(code: types.CodeType) -> Iterable[str]:
    """Names that a function and those inside it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
