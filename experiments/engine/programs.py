"""One compiled program for what is the same.

The numbers of a recipe (rates, decays, thresholds, lengths) are values that a program
reads, not constants that it is built with: a method is made of them anew while its
program is traced. Programs that come out equal, word for word, are compiled once, for
all seeds, trials and methods that share a step.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.engine import stopwatch
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
            known[key] = _compile_once(digest, lowered)
        return known[key](*args)

    return call


def count() -> int:
    """Number of programs that were compiled and are not forgotten."""
    return len(_PROGRAMS)


def clear() -> None:
    """Forgets all programs."""
    _PROGRAMS.clear()


_PROGRAMS: dict[str, concurrent.futures.Future] = {}
"""Executables by the digest of their text."""
_LOCK = threading.Lock()


def _compile_once(digest: str, lowered: Any) -> Any:
    """The executable; a thread waits for another that compiles the same."""
    with _LOCK:
        future = _PROGRAMS.get(digest)
        mine = future is None
        if future is None:
            future = _PROGRAMS[digest] = concurrent.futures.Future()
    if mine:
        try:
            future.set_result(_compile(lowered))
        except BaseException as error:
            _PROGRAMS.pop(digest, None)
            future.set_exception(error)
            raise
        return future.result()
    begun = time.perf_counter()
    executable = future.result()
    stopwatch.leave_out(time.perf_counter() - begun)
    return executable


def _compile(lowered: Any) -> Any:
    """The executable; on CPU by the faster of two ways to emit code."""
    if jax.default_backend() == "cpu":
        # Half the time to compile, and programs as fast: patches are matrix products.
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # no such option
            return lowered.compile({"xla_cpu_use_fusion_emitters": False})
    return lowered.compile()


def _kind(leaf: Any) -> Any:
    """What a program is compiled for."""
    aval = jax.typeof(leaf)
    return aval, getattr(leaf, "sharding", None), getattr(leaf, "committed", False)
