"""The flags of an experiment: from settings and recipes to a configuration, and help.

A dataclass of settings makes a group of flags under its ``HEADING``; a field's metadata
may give its ``flag`` another name, or None for no flag at all. Numbers of recipes
are flags, too: ``--train.…``, ``--recipe.…`` for every method that has one, and
``--METHOD.…`` for one. ``--help`` has those of all; ``--help-method``, those of one.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from typing_extensions import Doc

from experiments.engine import recipes
from experiments.errors import UserError, printable

C = TypeVar("C", bound=Any)
EXPLAIN = "--help-method"
HELP = {
    "train": "Recipe of the original model and of Retrain.",
    "recipe": "Recipe of all methods. What only some have are flags, too, here for all "
    "of them and under a method's name: see --help-method.",
}


def parse(config_class: type[C], prog: str, arguments: Sequence[str]) -> C:
    """The configuration that the flags describe.

    Args:
      config_class: a dataclass of settings, see ``cli.StudyConfig``.
      prog: the command as a person types it.
      arguments: of the command line.

    Raises:
      UserError: a flag or a value is wrong.
      SystemExit: with code 0, after help that was asked for.
    """
    if _methods(config_class) and any(w.startswith(EXPLAIN) for w in arguments):
        _explain(config_class, prog, arguments)
        raise SystemExit(0)
    settings, numbers = _settings(config_class), _numbers(config_class, arguments)
    given = _read(settings, numbers, prog, arguments, inspect.getdoc(config_class))
    values = {
        field: getattr(getattr(given, group), field)
        for group, fields in settings.items()
        for field in fields
    }
    changes = {}
    for group, fields in numbers.items():
        found = {field: getattr(getattr(given, group), field) for field in fields}
        if found := {k: v for k, v in found.items() if v is not None}:
            changes[group] = found
    return config_class(**values, **({"changes": changes} if numbers else {}))


class Flag(NamedTuple):
    """A flag before it is parsed."""

    type: Any
    default: Any
    help: str
    hint: str | None = None  # in place of the default
    name: str | None = None  # in place of the field's


Flags = dict[str, dict[str, Flag]]
"""Flags by group."""


def _settings(config_class: type[Any]) -> Flags:
    """Flags of the settings, those of each class in a group."""
    owners, texts, groups = {}, {}, {}
    for cls in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(cls):
            heading = getattr(cls, "HEADING", "command")
            owners |= dict.fromkeys(inspect.get_annotations(cls), heading)
            texts |= _texts(cls)
            groups[heading] = {}
    types = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        name = field.metadata.get("flag", field.name)
        if field.name == "changes" or name is None:
            continue
        groups[owners[field.name]][field.name] = Flag(
            types[field.name], field.default, texts.get(field.name, ""), name=name
        )
    return groups


def _texts(cls: type[Any]) -> dict[str, str]:
    """The string under each field of a class."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def _numbers(config_class: type[Any], arguments: Sequence[str]) -> Flags:
    """Flags of the recipes: those of all, and those that the command line speaks of."""
    methods = _methods(config_class)
    if not methods:
        return {}
    named = (re.match(r"--([^.=]+)\.", word) for word in arguments)
    named = {match[1].replace("-", "_") for match in named if match}
    every = [recipes.fields(method.Recipe) for method in methods.values()]
    shared = {k: v for own in reversed(every) for k, v in own.items()}
    if "recipe" not in named:
        half = len(every) / 2
        shared = {
            k: v for k, v in shared.items() if sum(k in own for own in every) > half
        }
    groups = {"train": recipes.fields(config_class.TRAINING), "recipe": shared}
    for name in methods:
        if name in named:
            groups[name] = recipes.fields(methods[name].Recipe)
    return {
        group: {
            name: Flag(field.type | None, None, field.metadata["help"], "")
            for name, field in fields.items()
        }
        for group, fields in groups.items()
    }


def _methods(config_class: type[Any]) -> Mapping[str, recipes.MethodFile]:
    """What a command can run; nothing where it is no study."""
    return getattr(config_class, "METHODS", {})


def _explain(config_class: type[Any], prog: str, arguments: Sequence[str]) -> None:
    """Prints the flags of some methods, or which methods there are."""
    methods = _methods(config_class)
    text = ",".join(arguments).partition(EXPLAIN)[2]
    names = re.split(r"[,=\s]+", text.removeprefix("s").replace("-", "_"))
    names = [name for name in names if name]
    if names == ["all"]:
        names = list(methods)
    for name in names:
        if name not in methods:
            raise UserError(
                f"{EXPLAIN} {printable(name)}: there is no such method. Choose from "
                f"{', '.join(methods)}, or all."
            )
    if not names:
        width = max(map(len, methods))
        for name, method in methods.items():
            print(f"{name:{width}}  {method.NOTE.label}: {method.NOTE.one_line}")
        print(f"\n{prog} {EXPLAIN} NAME lists the flags of one, all those of all.")
    for name in names:
        note = methods[name].NOTE
        flags = {
            key: Flag(field.type | None, field.default, field.metadata["help"])
            for key, field in recipes.fields(methods[name].Recipe).items()
        }
        title = f"{note.label} ({note.paper})" if note.paper else note.label
        with contextlib.suppress(SystemExit):
            _read({}, {name: flags}, prog, ["--help"], f"{title}: {note.one_line}")


def _read(
    settings: Flags,
    numbers: Flags,
    prog: str,
    arguments: Sequence[str],
    description: str | None,
) -> Any:
    """Values by group and flag."""
    import tyro  # not on every machine that runs experiments from Python

    def group_class(group: str, flags: dict[str, Flag]) -> Any:
        return dataclasses.make_dataclass(
            group,
            [
                (
                    name,
                    Annotated[
                        flag.type,
                        Doc(flag.help),
                        tyro.conf.arg(help_behavior_hint=flag.hint, name=flag.name),
                    ],
                    flag.default,
                )
                for name, flag in flags.items()
            ],
        )

    groups = [
        (group, tyro.conf.OmitArgPrefixes[group_class(group, flags)])
        for group, flags in settings.items()
    ] + [
        (group, Annotated[group_class(group, flags), Doc(HELP.get(group, ""))])
        for group, flags in numbers.items()
    ]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                dataclasses.make_dataclass("Flags", groups),
                args=arguments,
                prog=prog,
                description=description,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        more = f" and {EXPLAIN}" if numbers else ""
        raise UserError(f"{_first_words(said.getvalue())} See --help{more}.") from None


def _first_words(box: str) -> str:
    """What the parser says, out of its frame and on one line."""
    lines = [line.strip("│╭╮╰╯─| ") for line in box.splitlines()[1:]]
    # Where the locale has no other characters, the frame is of these.
    inside = itertools.dropwhile(lambda line: not line.strip("-+"), lines)
    words = itertools.takewhile(lambda line: line.strip("-+"), inside)
    return printable(" ".join(words))
