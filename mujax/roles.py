"""Roles of leaves: which are kernels, and how a kernel is seen as matrices.

A tree of arrays does not say which of them multiply activations. Names, shapes and
neighbours do, under the conventions of the model libraries:

* ``kernel`` (flax Linen, NNX) and ``w`` (haiku) lead with their inputs and end with
  their outputs, convolutions are HWIO; ``weight`` (Equinox) is outputs × inputs and
  convolutions are OIHW; ``embedding`` and ``embeddings`` are entries × features.
* A bias spans its kernel's outputs, which tells a stack of layers (L, in, out) with
  biases (L, out) from attention (embed, heads, dim) with biases (heads, dim).
* All leaves of a stack share their first axis, the scales of its norms among them.
* Names of modules (``query``, ``out``, ``Conv_0``, ``experts``) settle the rest.

What this leaves open is an error that says how to name the leaf, never a guess.
"""

import collections
import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mujax._readings import Leaf, MatrixAxes, Path, Reading, has, module_of, read
from mujax._trees import PyTree, is_array

LARGEST_WINDOW = 11  # side of the largest window that is taken for one by its shape


@dataclasses.dataclass(frozen=True)
class Role:
    """What a leaf is; a leaf itself, no pytree.

    Attributes:
      name: of kernels ``dense``, ``attention``, ``convolution``, ``embedding`` or
        ``lora``; of the rest ``vector`` (biases and scales, of any shape) or
        ``parameter`` (positions and tokens: what is added to activations); ``given``
        where the caller says it.
      axes: the matrix view, None where the leaf is no kernel.
    """

    name: str
    axes: MatrixAxes | None = None


class UnknownRoleError(ValueError):
    """The role of a leaf cannot be told.

    Attributes:
      leaf: its name.
      reason: its shape, and what it could be.
    """

    def __init__(self, leaf: str, reason: str):
        super().__init__(
            f"{reason}; say which with overrides={{{leaf!r}: MatrixAxes(...)}}, or "
            "None there if it is no kernel."
        )
        self.leaf, self.reason = leaf, reason


def infer(
    params: PyTree, overrides: Mapping[str, MatrixAxes | None] | None = None
) -> PyTree:
    """The role of every leaf, from its path, its shape and its neighbours.

    A dense kernel is one matrix, inputs × outputs. So is an attention kernel, all heads
    in one: it is one linear map, and models that store it with two axes and with three
    then have the same subspaces. A convolution is one C_out × window matrix for each
    input channel, also where it is grouped or transposed. The layers of a stack, and
    experts, are matrices of their own.

    Args:
      params: arrays, or anything with shapes, in any container.
      overrides: views by patterns of leaf names, such as ``"blocks/*/proj/kernel"``
        (see :func:`leaf_names`). A star stands for anything, the first pattern that
        fits counts, and None says that a leaf is no kernel.

    Returns:
      A tree like ``params`` of :class:`Role`.

    Raises:
      UnknownRoleError: the role of a leaf cannot be told.
      ValueError: a pattern fits no leaf.

    Example:
      >>> layer = {"kernel": np.ones((8, 2, 4)), "bias": np.ones((2, 4))}
      >>> roles = infer({"query": layer})
      >>> roles["query"]["kernel"]
      Role(name='attention', axes=MatrixAxes(batch=(), rows=(0,), columns=(1, 2)))
      >>> roles["query"]["bias"]
      Role(name='vector', axes=None)
    """
    leaves, structure = jax.tree.flatten(params)
    names = leaf_names(params)
    given = match_names(overrides or {}, names)
    shapes = {
        tuple(name.split("/")) if name else (): np.shape(leaf)
        for name, leaf in zip(names, leaves, strict=True)
        if is_array(leaf)
    }
    read_leaves = {"/".join(leaf.path): leaf for leaf in read(shapes)}
    for i in given:
        if names[i] in read_leaves:
            read_leaves[names[i]].readings = []
    _agree(list(read_leaves.values()))
    scopes: dict[Path, list[Leaf]] = collections.defaultdict(list)
    for leaf in read_leaves.values():
        for depth in range(len(leaf.path)):
            scopes[leaf.path[:depth]].append(leaf)
    roles, unknown = [], []
    for i, name in enumerate(names):
        if i in given:
            roles.append(Role("given", given[i]))
        elif name not in read_leaves:
            roles.append(Role("vector"))
        else:
            picked = _pick(read_leaves[name], scopes)
            roles.append(Role(picked[0].role, picked[0].axes) if picked else None)
            if len(picked) != 1:
                unknown.append((read_leaves[name], picked))
    if unknown:
        raise _unknown(*unknown[0], others=len(unknown) - 1)
    return structure.unflatten(roles)


def leaf_names(tree: PyTree) -> list[str]:
    """Each leaf's path as ``"blocks/0/query/kernel"``, the same for all containers.

    Example:
      >>> leaf_names({"mlp/~/linear_0": {"w": 1.0}, "blocks": [2.0]})
      ['blocks/0', 'mlp/~/linear_0/w']
    """
    return [leaf_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def match_names(patterns: Mapping[str, Any], names: Sequence[str]) -> dict[int, Any]:
    """What the first pattern that fits a name gives it, by the name's index.

    Raises:
      ValueError: a pattern fits no name.

    Example:
      >>> match_names({"*/bias": None, "*": 1}, ["a/kernel", "a/bias"])
      {0: 1, 1: None}
    """
    found = {}
    for pattern, value in patterns.items():
        fits = [i for i, x in enumerate(names) if fnmatch.fnmatchcase(x, pattern)]
        if not fits:
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise ValueError(
                f"The pattern {pattern!r} fits no leaf; their names are {some}."
            )
        found = dict.fromkeys(fits, value) | found
    return dict(sorted(found.items()))


def leaf_name(path: Iterable[Any]) -> str:
    """A key path as ``"blocks/0/query/kernel"``, without what boxes add.

    Example:
      >>> leaf_name((jax.tree_util.DictKey("w"), jax.tree_util.GetAttrKey("value")))
      'w'
    """
    names = []
    for key in path:
        entry = getattr(key, "key", None)
        for part in entry if isinstance(entry, tuple) else (key,):
            text = (
                jax.tree_util.keystr((key,), simple=True) if part is key else str(part)
            )
            names += [x for x in re.split(r"[/.]", text) if x]
    while len(names) > 1 and names[-1] in ("value", "raw_value"):
        names.pop()
    return "/".join(names)


def _agree(leaves: Sequence[Leaf]) -> None:
    """Holds the projections of one attention layer to the same stack, in place.

    What the queries put out, heads × dim entries, is what the output projection takes.
    """
    layers = collections.defaultdict(list)
    for leaf in leaves:
        if leaf.heads and leaf.readings:
            layers[leaf.path[:-2]].append(leaf)
    for layer in layers.values():
        stacks = set.intersection(*({r.stack for r in x.readings} for x in layer))
        for query in layer:
            for out in layer:
                if out.heads == "out" and has(module_of(query.path), ["query", "q"]):
                    stacks = {s for s in stacks if _joined(query, out, s)} or stacks
        for leaf in layer if stacks else ():
            leaf.readings = [r for r in leaf.readings if r.stack in stacks]
            leaf.loose = leaf.loose and len(leaf.readings) > 1


def _joined(query: Leaf, out: Leaf, stack: int) -> bool:
    """Whether the queries' outputs are as many as the inputs of the projection."""
    sides = math.prod(query.shape[stack + 1 :]), math.prod(out.shape[stack:-1])
    return sides[0] == sides[1] or has(query.path[-1], ["weight"])


def _pick(leaf: Leaf, scopes: Mapping[Path, Sequence[Leaf]]) -> list[Reading]:
    """The readings that remain: one if the leaf's role is known."""
    if not any(r.axes for r in leaf.readings):
        return leaf.readings[:1]
    kernels = [r for r in leaf.readings if r.axes]
    stacks = {r.stack for r in leaf.readings} - {0}
    for stack in sorted(stacks, reverse=True) if len(leaf.readings) > 1 else ():
        if _stacked(leaf, stack, scopes):
            picked = [r for r in leaf.readings if r.stack == stack]
            # One vector a layer, or a matrix that is none's: it cannot be told.
            return _by_window(picked) if picked[0].axes else leaf.readings
    if leaf.loose:
        return _by_window(kernels)
    lowest = min(r.stack for r in kernels)
    picked = [r for r in kernels if r.stack == lowest]
    odd = len(picked[0].window) > 1 and not _window_like(picked[0].window)
    return kernels if odd else _by_window(picked)


def _stacked(leaf: Leaf, stack: int, scopes: Mapping[Path, Sequence[Leaf]]) -> bool:
    """Whether a module around the leaf stacks its layers on that many axes.

    All its leaves then share these axes and can be read so, and one of them must be, or
    the module's name says it.
    """
    for depth in range(len(leaf.path)):
        scope = leaf.path[:depth]
        inside = scopes[scope]
        alike = all(
            x.shape[:stack] == leaf.shape[:stack]
            and (not x.readings or max(r.stack for r in x.readings) >= stack)
            for x in inside
        )
        named = bool(scope) and has(scope[-1], ["scan", "vmap", "stack"])
        if alike and (named or any(_shows(x, stack) for x in inside if x is not leaf)):
            return True
    return False


def _shows(leaf: Leaf, stack: int) -> bool:
    """Whether a leaf has at least that many stacked axes, whatever the others have."""
    if leaf.lone:
        return len(leaf.shape) > stack and 1 not in leaf.shape[:stack]
    kernels = [r.stack for r in leaf.readings if r.axes]
    return bool(kernels) and min(r.stack for r in leaf.readings) >= stack


def _by_window(readings: list[Reading]) -> list[Reading]:
    """The reading whose window is square and smallest, if several compete."""
    if len(readings) == 1:
        return readings
    square = [r for r in readings if len(r.window) > 1 and len(set(r.window)) == 1]
    square = [r for r in square if r.window[0] <= LARGEST_WINDOW]
    if not square and all(len(r.window) > 1 for r in readings):
        square = readings
    sizes = [math.prod(r.window) for r in square]
    smallest = [r for r, s in zip(square, sizes, strict=True) if s == min(sizes)]
    return smallest if len(smallest) == 1 else readings


def _window_like(window: Sequence[int]) -> bool:
    """Whether a convolution may have this window, and not layers beside a window."""
    small = len(window) == 2 and max(window) <= LARGEST_WINDOW
    return len(set(window)) == 1 or 1 in window or small


def _unknown(leaf: Leaf, readings: Sequence[Reading], others: int) -> UnknownRoleError:
    """The error that says what a leaf could be."""
    name = "/".join(leaf.path)
    could = dict.fromkeys(
        f"{r.role} {r.axes}" if r.axes else "a stack of vectors" for r in readings
    )
    also = f" ({others} more {'leaf is' if others == 1 else 'leaves are'} open, too)"
    return UnknownRoleError(
        name,
        f"The leaf {name or 'at the root'} of shape {leaf.shape} could be "
        f"{' or '.join(list(could)[:2])}{' or other' * (len(could) > 2)}"
        f"{also * (others > 0)}",
    )
