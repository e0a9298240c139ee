"""One compiled program for what is the same.

The numbers of a recipe (rates, decays, thresholds, lengths) are values that a program
reads, not constants that it is built with: a method is made of them anew while its
program is traced. Programs that come out equal, word for word, are compiled once, for
all seeds, trials and methods that share a step.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mujax import methods


class Traced(NamedTuple):
    """A method as a function of its numbers.

    Attributes:
      make: makes the method of the numbers, which may be traced.
      numbers: floats by name.
    """

    make: Callable[[Mapping[str, Any]], methods.Method]
    numbers: Mapping[str, Any]


def split(recipe: Any) -> tuple[dict[str, Any], Any]:
    """A recipe as its numbers by field, and the rest, equal for equal programs.

    Numbers are the fields that hold floats, and those whose metadata say so by
    ``"value": True`` since no shape depends on them, such as a number of epochs.
    """
    numbers = {
        field.name: float(getattr(recipe, field.name))
        for field in dataclasses.fields(recipe)
        if isinstance(getattr(recipe, field.name), float)
        or field.metadata.get("value", False)
    }
    return numbers, dataclasses.replace(recipe, **dict.fromkeys(numbers, 0.0))


def cosine_rate(rate: Any, steps: Any, falls: Any) -> optax.Schedule:
    """A rate that falls to zero along a cosine, or stays; all three may be traced."""

    def schedule(count):
        share = jnp.minimum(count / jnp.maximum(steps, 1), 1)
        return rate * jnp.where(falls, (1 + jnp.cos(jnp.pi * share)) / 2, 1)

    return schedule


def compiled(function: Callable[..., Any], donate: int) -> Callable[..., Any]:
    """``jax.jit`` whose program is looked up among all that were compiled.

    Args:
      function: any function of trees of arrays.
      donate: number of the argument that is donated.
    """
    jitted = jax.jit(function, donate_argnums=donate)
    known: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = (structure, tuple(map(_kind, leaves)))
        if key not in known:
            lowered = jitted.lower(*args)
            # What is passed and comes back belongs to a program as well as its text.
            words = f"{structure}{lowered.out_info}{lowered.as_text()}"
            digest = hashlib.sha256(words.encode()).hexdigest()
            if digest not in _PROGRAMS:
                _PROGRAMS[digest] = lowered.compile()
            known[key] = _PROGRAMS[digest]
        return known[key](*args)

    return call


def count() -> int:
    """Number of programs that were compiled and are not forgotten."""
    return len(_PROGRAMS)


def clear() -> None:
    """Forgets all programs."""
    _PROGRAMS.clear()


_PROGRAMS: dict[str, Any] = {}
"""Executables by the digest of their text."""


def _kind(leaf: Any) -> Any:
    """What a program is compiled for."""
    aval = jax.typeof(leaf)
    return aval, getattr(leaf, "sharding", None), getattr(leaf, "committed", False)
