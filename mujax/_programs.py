"""Compiled programs that live as long as the functions they are made of.

Methods compile what they do with a caller's loss. ``jax.jit`` of a module's function
with the loss as a static argument would keep the loss, and all arrays in its closure,
for ever; a ``jax.jit`` made in each call would compile each time. Here the programs of
a function are found by its identity, go when it goes, and are made anew when what it
sees besides its arguments is another.
"""

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from mujax._captures import any_traced, captures, is_value, snapshot, unchanged
from mujax._trees import is_array


class Adapted:
    """``adapter(fun, …)`` as a function: equal to another of the same two.

    Args:
      adapter: a function of a module.
      fun: anyone's function, its first argument.
    """

    def __init__(self, adapter: Callable[..., Any], fun: Callable[..., Any]):
        self.adapter, self.fun = adapter, fun

    def __call__(self, *args: Any) -> Any:
        """Calls the adapter."""
        return self.adapter(self.fun, *args)

    def __eq__(self, other: Any) -> bool:
        """Whether both parts are the same."""
        return isinstance(other, Adapted) and self._parts == other._parts

    def __hash__(self) -> int:
        """By both parts."""
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[Any, int]:
        return self.adapter, id(self.fun)


def program(
    body: Callable[..., Any], fun: Callable[..., Any], *options: Hashable
) -> Callable[..., Any]:
    """``body(fun, *options, *args)`` as a compiled function of ``args``.

    Arrays that :class:`jax.tree_util.Partial` or :func:`functools.partial` bind to the
    function are arguments of the program, so that it does not know their values.

    Args:
      body: a function of a module.
      fun: anyone's function, such as a loss.
      *options: static values.

    Returns:
      The function of ``args``, any trees; what is no array in them is static. The same
      body, function, options and shapes compile once.
    """
    root, bound, rebuild, static = _take_apart(fun)
    programs = _programs_of(root)
    key = (body, static, options)
    seen = captures(root)
    kept = programs.get(key, (None, []))
    fresh = kept[0] is None or any_traced(seen) or not unchanged(kept[1], seen)
    compiled = _compile(body, _weak(root), rebuild, options) if fresh else kept[0]

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten((bound, args))
        arrays = [x if is_array(x) else None for x in leaves]
        fixed = tuple(None if is_array(x) else x for x in leaves)
        result = compiled(arrays, (structure, fixed))
        if fresh:
            # After tracing, for that may itself have changed what the function sees.
            now = captures(root)
            if not any_traced(now):
                programs[key] = (compiled, snapshot(now))
        return result

    return call


def _compile(body, function, rebuild, options):
    """The program; it holds the function weakly, or it would never go."""

    @functools.partial(jax.jit, static_argnums=1)
    def compiled(arrays, shape):
        structure, fixed = shape
        leaves = [f if a is None else a for a, f in zip(arrays, fixed, strict=True)]
        bound, args = structure.unflatten(leaves)
        return body(rebuild(function(), bound), *options, *args)

    return compiled


def _take_apart(fun: Callable[..., Any]):
    """A function as the one it is made of, arrays bound to it, and how to bind them."""
    if isinstance(fun, Adapted):
        root, bound, rebuild, static = _take_apart(fun.fun)
        adapter = fun.adapter
        return (
            root,
            bound,
            lambda root, bound: Adapted(adapter, rebuild(root, bound)),
            (adapter, static),
        )
    if isinstance(fun, functools.partial):
        # jax's Partial is a pytree, whose numbers are traced; another's are settings.
        traced = is_array if isinstance(fun, Partial) else _has_dtype
        leaves, structure = jax.tree.flatten((fun.args, fun.keywords))
        arrays = [x if traced(x) else None for x in leaves]
        fixed = tuple(None if traced(x) else x for x in leaves)
        if not all(map(is_value, fixed)):  # they may hold arrays, or change
            return fun, (), lambda root, bound: root, ()
        root, bound, rebuild, static = _take_apart(fun.func)

        def bind(root, bound):
            inner, arrays = bound
            pairs = zip(arrays, fixed, strict=True)
            leaves = [f if a is None else a for a, f in pairs]
            args, keywords = structure.unflatten(leaves)
            return functools.partial(rebuild(root, inner), *args, **keywords)

        return root, (bound, arrays), bind, (structure, fixed, static)
    return fun, (), lambda root, bound: root, ()


def _has_dtype(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


_PROGRAMS: dict[int, tuple[Any, dict[Hashable, Any]]] = {}
"""By identity of a function (or of a method's object): a weak reference, programs."""


def _programs_of(fun: Callable[..., Any]) -> dict[Hashable, Any]:
    """Programs that go with the function; nothing keeps those of one without them."""
    owner = getattr(fun, "__self__", fun)
    number = id(owner)
    if number not in _PROGRAMS:
        try:
            reference = weakref.ref(owner, lambda _: _PROGRAMS.pop(number, None))
        except TypeError:  # built-in functions live for ever, others compile anew
            return {}
        _PROGRAMS[number] = (reference, {})
    programs = _PROGRAMS[number][1]
    if owner is fun:
        return programs
    return programs.setdefault(getattr(fun, "__func__", fun), {})


def _weak(fun: Callable[..., Any]) -> Callable[[], Any]:
    """What gives the function back while it lives."""
    if hasattr(fun, "__self__") and hasattr(fun, "__func__"):
        return weakref.WeakMethod(fun)
    try:
        return weakref.ref(fun)
    except TypeError:
        return lambda: fun
