"""Numbers of a run: what they may be, and what takes their place.

A recipe is a frozen dataclass whose fields come from :func:`field`; each is a flag of
the command line. Every recipe has ``epochs`` and ``batch_size``. One method is a module
(:class:`MethodFile`), whose recipe has the fields that it reads and no others.
"""

import dataclasses
import json
import math
import pathlib
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from experiments.errors import UserError, printable
from experiments.reporting.report import MethodNote

R = TypeVar("R", bound=Any)
Changes = Mapping[str, Mapping[str, Any]]
"""Numbers that take the place of a recipe's: of ``train``, of every method that has
them under ``recipe``, or of one method under its name, which goes first."""


class RecipeError(UserError):
    """A number that cannot be, or a file that holds no recipes."""


class Limit(NamedTuple):
    """What a number may be, and how to say so."""

    holds: Callable[[Any], bool]
    wanted: str


def _real(low: float, high: float = math.inf, *, above: bool = False):
    """Whether a value is a finite number in a range, whose low end may be left out."""

    def holds(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        inside = low < value <= high if above else low <= value <= high
        return inside and abs(value) <= sys.float_info.max

    return holds


def _whole(low: int, high: int = 10**6):
    return lambda value: type(value) is int and low <= value <= high


POSITIVE = Limit(_real(0, above=True), "a positive number")
NOT_NEGATIVE = Limit(_real(0), "a number of at least 0")
FINITE = Limit(_real(-math.inf), "a finite number")
SHARE = Limit(_real(0, 1), "a share between 0 and 1")
SHARE_ABOVE_0 = Limit(_real(0, 1, above=True), "a share above 0, up to 1")
COUNT = Limit(_whole(1), "a number from 1 to a million")
COUNT_OR_NONE = Limit(
    lambda value: value is None or COUNT.holds(value), f"{COUNT.wanted}, or None"
)
NOT_NEGATIVE_OR_NONE = Limit(
    lambda value: value is None or NOT_NEGATIVE.holds(value),
    f"{NOT_NEGATIVE.wanted}, or None",
)
COUNT_OR_0 = Limit(_whole(0), "a whole number of at least 0")
SWITCH = Limit(lambda value: isinstance(value, bool), "true or false")


def one_of(*names: str) -> Limit:
    """One of some names."""
    return Limit(lambda value: value in names, f"one of {', '.join(names)}")


def field(default: Any, text: str, limit: Limit, *, value: bool = False) -> Any:
    """A field of a recipe, with the help text of its flag and what it may be.

    A ``value`` is a number that programs read, as every float is: nothing has another
    shape for it. See ``programs``.
    """
    metadata = {"help": text, "limit": limit, "value": value}
    return dataclasses.field(default=default, metadata=metadata)


class MethodFile(Protocol):
    """A method's side of an experiment, one module a method.

    Attributes:
      NOTE: label, paper and a line for the report.
      Recipe: its numbers, a dataclass of :func:`field`.
    """

    @property
    def NOTE(self) -> MethodNote: ...  # noqa: D102, N802
    @property
    def Recipe(self) -> type[Any]: ...  # noqa: D102, N802


def fields(recipe: Any) -> dict[str, Any]:
    """Fields (``dataclasses.Field``) of a recipe, or of its class, by name."""
    return {field.name: field for field in dataclasses.fields(recipe)}


def flag(group: str, name: str) -> str:
    """How a number is written on the command line."""
    return f"--{group}.{name}".replace("_", "-")


def resolve(changes: Changes, training: R, recipes: Mapping[str, R]) -> dict[str, R]:
    """The numbers of training, under ``"training"``, and of every method.

    Args:
      changes: what takes the place of the recipes' own numbers.
      training: recipe of the original model and of Retrain.
      recipes: of the methods.

    Raises:
      RecipeError: a number is out of its range.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Recipe:
      ...     density: float = field(0.5, "Share that may move.", SHARE)
      >>> resolve({"salun": {"density": 0.2}}, Recipe(), {"salun": Recipe()})["salun"]
      Recipe(density=0.2)
    """
    return {"training": _replace(training, changes.get("train", {}), "train")} | {
        name: changed(recipe, changes, name) for name, recipe in recipes.items()
    }


def changed(recipe: R, changes: Changes, name: str) -> R:
    """One method's recipe with what takes the place of its numbers.

    Raises:
      RecipeError: a number is out of its range.
    """
    shared = changes.get("recipe", {})
    known = {k: v for k, v in shared.items() if k in fields(recipe)}
    return _replace(_replace(recipe, known, "recipe"), changes.get(name, {}), name)


def read(path: pathlib.Path, methods: Mapping[str, MethodFile]) -> dict[str, Any]:
    """Recipes of a file that a search wrote, by method.

    A number that the method does not read, but another one does, is left out: files of
    old have all numbers for every method.

    Raises:
      RecipeError: the file is not one of recipes.
    """
    known = {name for method in methods.values() for name in fields(method.Recipe)}
    try:
        entries = json.loads(path.read_text())
        if unknown := entries.keys() - methods.keys():
            raise ValueError(f"there is no method {reprlib.repr(min(unknown))}")
        return {
            name: _from_plain(methods[name].Recipe, name, entry["recipe"], known)
            for name, entry in entries.items()
        }
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError),
        RecursionError,  # brackets in brackets
    ) as error:
        raise RecipeError(
            f"{path} is not a file of recipes ({printable(str(error))}). Give one that "
            "experiments.tune wrote."
        ) from error


def _from_plain(recipe_class: type[R], method: str, plain: Any, known: set[str]) -> R:
    """A recipe of plain values."""
    own = fields(recipe_class)
    if unknown := plain.keys() - own.keys() - known:
        raise ValueError(f"{method} has no {reprlib.repr(min(unknown))}")
    values = {name: value for name, value in plain.items() if name in own}
    for name, value in values.items():
        _check(own[name], value, f"{method}.{name}")
        values[name] = type(own[name].default)(value)  # a whole number may be a float
    return recipe_class(**values)


def _replace(recipe: R, numbers: Mapping[str, Any], group: str) -> R:
    """The recipe with other numbers."""
    own = fields(recipe)
    for name, value in numbers.items():
        if name not in own:
            raise RecipeError(f"{flag(group, name)}: choose from {', '.join(own)}.")
        _check(own[name], value, flag(group, name))
    return dataclasses.replace(recipe, **numbers)


def _check(field: dataclasses.Field, value: Any, place: str) -> None:
    limit: Limit = field.metadata["limit"]
    if not limit.holds(value):
        raise RecipeError(f"{place} {reprlib.repr(value)}: give {limit.wanted}.")
