"""Which parameters are kernels, as a person says it on the command line.

``'blocks/*/w=batch:0;rows:1;columns:2 stem/w=none'``: patterns of parameters' names,
each with the axes that count matrices (these may be left out), run along the rows and
along the columns, or with ``none`` for no kernel.
"""

import re
from collections.abc import Mapping
from typing import Any

from experiments.engine.recipes import Limit, fields, flag
from experiments.errors import UserError, printable
from mujax import roles, subspace

_AXES = r"(?:batch:(\d+(?:,\d+)*);)?rows:(\d+(?:,\d+)*);columns:(\d+(?:,\d+)*)"
_ENTRY = re.compile(rf"(\S+)=(?:none|{_AXES})", re.ASCII)


class KernelError(UserError):
    """Axes that do not fit the model, or a parameter whose role must be said."""


def parse(text: str) -> dict[str, roles.MatrixAxes | None]:
    """Views by pattern of a parameter's name.

    Raises:
      ValueError: the text is of another form.

    Example:
      >>> parse("a/*=rows:0,1;columns:2 b=none")["a/*"]
      MatrixAxes(batch=(), rows=(0, 1), columns=(2,))
    """
    views = {}
    for entry in text.split():
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(f"{entry!r} is no PATTERN=rows:0;columns:1.")
        pattern, *groups = found.groups()
        axes = [tuple(map(int, x.split(","))) if x else () for x in groups]
        views[pattern] = roles.MatrixAxes(*axes) if axes[1] else None
    return views


def _parses(value: Any) -> bool:
    try:
        parse(value)
    except (ValueError, AttributeError):
        return False
    return True


AXES = Limit(
    _parses, "PATTERN=batch:0;rows:1;columns:2 or PATTERN=none, with spaces between"
)


def check(params: Any, recipes: Mapping[str, Any]) -> None:
    """Looks at the kernels of a model before anything is trained.

    Args:
      params: the parameters, or their shapes.
      recipes: of the methods that will run, by name.

    Raises:
      KernelError: a role cannot be told, or axes do not fit; the message is a line.
    """
    for name, recipe in recipes.items():
        if "axes" not in fields(recipe):
            continue
        where = flag(name, "axes")
        try:
            subspace.describe(params, overrides=parse(recipe.axes))
        except roles.UnknownRoleError as error:
            leaf = printable(error.leaf)
            raise KernelError(
                f"{printable(error.reason)}; say which with {where} "
                f"'{leaf}=batch:0;rows:1;columns:2', or '{leaf}=none' if it is no "
                "kernel."
            ) from error
        except ValueError as error:
            raise KernelError(f"{where}: {printable(str(error))}") from error
