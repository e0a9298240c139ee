"""An extension of griffe: roles and formulas of docstrings, as Markdown."""

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|data):`([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +\S.*|\n(?=\n\1 ))*)", re.MULTILINE)
LINK = re.compile(r"`([^`<]+?)\s+<(https?://[^>]+)>`_")


class Roles(griffe.Extension):
    """Rewrites the docstring of whatever is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one object's docstring."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj.module.path)


def to_markdown(text: str, module: str) -> str:
    """A module's docstring with links, and formulas in fences, of Markdown."""
    text = BLOCK.sub(_fence, text.replace("``", "`"))
    text = MATH.sub(lambda m: f"`#!math {' '.join(m[1].split())}`", text)
    text = LINK.sub(r"[\1](\2)", text).replace("::\n", ":\n")
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return ROLE.sub(lambda m: _link(m[1], module), text)


def _fence(match: re.Match[str]) -> str:
    formula = textwrap.dedent(match[2]).strip()
    return textwrap.indent(f"```math\n{formula}\n```", match[1])


def _link(name: str, module: str) -> str:
    """A link to where the pages document a name; what is not ours is just code."""
    if "." not in name:
        room = module.split(".")[1]
        room = "subspace" if room.startswith("_") else room  # which shows their names
        return f"[`{name}`][mujax.{room}.{name}]"
    return f"[`{name}`][{name}]" if name.startswith("mujax.") else f"`{name}`"
