"""What one leaf could be, from its names, its shape and its bias, for `mujax.roles`.

A reading says how many leading axes stack layers, and which of the others are inputs,
outputs and window. A bias, of shape (stack…, outputs…), leaves only those it fits.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_VECTOR = {"bias", "biases", "scale", "scales", "offset", "gamma", "beta"}
_STATISTIC = {"mean", "var", "g"}  # only as the whole name
_PLACE = {"pos", "position", "positions", "positional", "posemb", "posembed", "pe"}
_TOKEN = {"token", "tokens", "cls", "register", "registers", "prompt", "latents"}
_BESIDE = {"class", "mask", "dist", "rel", "relative", "abs", "learned", "encoding"}
_TABLE = {"embedding", "embeddings", "embed", "emb", "table", "wte", "wpe"}
_NORM = {"ln", "bn", "gn", "rms"}
_DENSE = {"dense", "linear", "fc", "mlp"}
_INTO_HEADS = {"query", "queries", "key", "keys", "value", "values"}
_INTO_HEADS |= {"q", "k", "v", "qkv", "kv", "wq", "wk", "wv"}
_OUT_OF_HEADS = {"out", "output", "o", "wo", "proj", "projection"}
_EXPERTS = {"expert", "experts", "moe"}

Shape = tuple[int, ...]
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """How a kernel is seen as matrices: each axis stands in exactly one field.

    An attention kernel (embed, heads, head_dim) as one matrix a head is
    ``MatrixAxes(batch=(1,), rows=(0,), columns=(2,))``. This is a leaf, no pytree.

    Attributes:
      batch: axes that count independent matrices.
      rows: axes that run along the rows, flattened in this order.
      columns: axes that run along the columns, flattened in this order.
    """

    batch: tuple[int, ...] = ()
    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (1,)


class Reading(NamedTuple):
    """One way to see a leaf."""

    role: str
    stack: int  # leading axes that count layers
    axes: MatrixAxes | None = None
    outputs: Shape = ()  # lengths that a bias has after the stack
    window: Shape = ()  # lengths of a convolution's window


@dataclasses.dataclass
class Leaf:
    """A leaf and what it could be.

    Attributes:
      path: names down to the leaf.
      shape: its shape.
      readings: what it could be, the likeliest first where its names tell.
      loose: its names do not tell.
      lone: a vector without a kernel beside it, such as a norm's scale: all its axes
        but one are a stack's.
      heads: ``"in"`` or ``"out"`` for the projections of attention.
    """

    path: Path
    shape: Shape
    readings: list[Reading]
    loose: bool = False
    lone: bool = False
    heads: str = ""


def words(name: str) -> list[str]:
    """Lower-case words of a name, without its numbers."""
    return [x.lower() for x in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def has(name: str, vocabulary: Iterable[str]) -> bool:
    """Whether a word of the name is in the vocabulary."""
    return not set(words(name)).isdisjoint(vocabulary)


def read(shapes: dict[Path, Shape]) -> list[Leaf]:
    """Every leaf with its readings."""
    kinds = {path: _kind(path, shapes) for path in shapes}
    plain = ("vector", "parameter")
    with_kernel = {path[:-1] for path, kind in kinds.items() if kind not in plain}
    attentions = {path[:-2] for path in shapes if has(module_of(path), _INTO_HEADS)}
    leaves = []
    for path, shape in shapes.items():
        kind = kinds[path]
        if kind in plain:
            found = [Reading(kind, s) for s in range(max(len(shape), 1))]
            lone = kind == "vector" and path[:-1] not in with_kernel
            leaves.append(Leaf(path, shape, found, lone=lone))
        else:
            leaves.append(_kernel(path, shapes, kind, path[:-2] in attentions))
    return leaves


def module_of(path: Path) -> str:
    """The name of a leaf's module, the nearest that is no index."""
    return next((x for x in reversed(path[:-1]) if not x.isdigit()), "")


def _kind(path: Path, shapes: dict[Path, Shape]) -> str:
    """What the leaf's own name says: vector, parameter, or a kind of kernel."""
    name, shape, module = path[-1] if path else "", shapes[path], module_of(path)
    norm = has(module, _NORM) or any("norm" in word for word in words(module))
    if len(shape) < 2 or has(name, _VECTOR) or name in _STATISTIC:
        return "vector"
    if _is_short_bias(path, shapes):
        return "vector"
    for kind in ("lora", "kernel"):
        if has(name, [kind]):
            return kind
    if re.fullmatch(r"[wW](\d+|_\w+)?", name):
        return "w"
    if has(name, ["weight"]):
        scales = norm or shape == shapes.get(_sibling(path, "weight", "bias"))
        return "vector" if scales else "weight"
    if norm:
        return "vector"
    known = set(words(name)) <= {*_PLACE, *_TOKEN, *_BESIDE, *_TABLE}
    if known and (has(name, _PLACE) or (has(name, _TOKEN) and not has(name, _TABLE))):
        return "parameter"
    if has(name, _TABLE):
        return "vector" if has(module, ["bias"]) else "table"
    if len(shape) > 2 and max(shape) == math.prod(shape) and "conv" not in name.lower():
        return "parameter"  # (1, 1, width), broadcast over examples and tokens
    return "other"


def _sibling(path: Path, old: str, new: str) -> Path:
    """The path of the leaf beside, with a part of the name exchanged."""
    return (*path[:-1], path[-1].replace(old, new, 1)) if path else path


def _is_short_bias(path: Path, shapes: dict[Path, Shape]) -> bool:
    """Whether a leaf is haiku's ``b``: beside a ``w``, or alone in a module "bias"."""
    if not path or not re.fullmatch(r"[bB](\d+|_\w+)?", path[-1]):
        return False
    beside = [_sibling(path, b, w) for b, w in ("bw", "bW", "BW")]
    kernel = any(p != path and p in shapes for p in beside)
    return kernel or has(module_of(path), ["bias"])


def _bias_of(path: Path, shapes: dict[Path, Shape], kind: str) -> Shape | None:
    """The shape of a kernel's bias, if it has one."""
    swaps = {"kernel": [("kernel", "bias")], "weight": [("weight", "bias")]}
    swaps["w"] = [("w", "b"), ("W", "b"), ("W", "B")]
    beside = [_sibling(path, *swap) for swap in swaps.get(kind, ())]
    return next((shapes[p] for p in beside if p != path and p in shapes), None)


def _kernel(
    path: Path, shapes: dict[Path, Shape], kind: str, in_attention: bool
) -> Leaf:
    """A kernel: what its names allow and its bias confirms."""
    shape, module = shapes[path], module_of(path)
    ndim = len(shape)
    bias = _bias_of(path, shapes, kind)
    table = kind == "weight" and ndim == 2 and bias is None and has(module, _TABLE)
    if kind == "table" or table:
        return Leaf(path, shape, [_dense(shape, ndim - 2, 1, "embedding")])
    if kind == "lora":
        either = [r for r in _any_of(shape, "last", kind, False) if not r.window]
        return Leaf(path, shape, either, loose=True)

    role = "dense"
    heads = "in" if has(module, _INTO_HEADS) else ""
    if in_attention and not heads and has(module, _OUT_OF_HEADS):
        heads = "out"
    if heads:
        role = "attention"
    layout = {"kernel": "last", "w": "last", "weight": "first"}.get(kind, "either")
    named = path[-1] if kind == "other" and path else module
    conv = "conv" in named.lower() and not has(named, ["local"])
    # haiku keeps the kernel of a transposed convolution as (window, out, in).
    turned = kind == "w" and "transpose" in named.lower()
    everything = _any_of(shape, layout, role, turned)
    narrow = everything
    if conv and ndim > 2:
        narrow = [r for r in everything if r.window]
    elif any(has(x, _EXPERTS) for x in path[-3:]) and not heads:
        narrow = [r for r in everything if r.stack == ndim - 2]
    elif kind == "kernel" and heads == "in":
        triple = has(module, ["qkv"])
        narrow = [_dense(shape, ndim - 1 - o, 1, role) for o in (1, 2, 3)[: ndim - 1]]
        narrow = [r for r in narrow if len(r.outputs) < 3 or triple][::-1]
    elif kind == "kernel" and heads == "out":
        narrow = [_dense(shape, ndim - 1 - i, i, role) for i in (2, 1)[-ndim + 1 :]]
    elif has(module, ["general"]):
        splits = [(i, o) for i in range(1, ndim) for o in range(1, ndim - i + 1)]
        narrow = [_dense(shape, ndim - i - o, i, role) for i, o in splits]
    elif has(module, _DENSE) and kind != "other":
        narrow = [r for r in everything if r.stack == ndim - 2]
    loose = narrow is everything
    if bias is not None and ndim > 2:
        swapped = _any_of(shape, layout, role, not turned)
        for readings in (narrow, everything, swapped):
            fits = [r for r in readings if _fits(bias, shape, r)]
            if fits:
                return Leaf(path, shape, fits, len(fits) > 1, heads=heads)
        return Leaf(path, shape, everything, True, heads=heads)
    if ndim == 2 and kind in ("weight", "other") and bias is None:
        narrow = [*narrow, Reading("vector", 1)]
    return Leaf(path, shape, narrow, loose and ndim > 2, heads=heads)


def _any_of(shape: Shape, layout: str, role: str, transposed: bool) -> list[Reading]:
    """All readings of a kernel whose module says nothing."""
    ndim = len(shape)
    found = []
    for stack in range(ndim - 1):
        for n in range(1, min(3, ndim - 2 - stack) + 1):
            if stack + n + 2 == ndim:
                if layout != "first":
                    found.append(_convolution(shape, stack, n, "last", transposed))
                if layout != "last":
                    found.append(_convolution(shape, stack, n, "first", False))
        if stack == ndim - 2:
            found.append(_dense(shape, stack, 1, role, layout == "first"))
        elif layout != "first":
            splits = [(1, 2), (2, 1), (2, 2)]
            found += [
                _dense(shape, stack, i, role)
                for i, o in splits
                if stack + i + o == ndim
            ]
    return found


def _dense(
    shape: Shape, stack: int, inputs: int, role: str, outputs_first: bool = False
) -> Reading:
    """Inputs × outputs, after a stack."""
    batch, rest = tuple(range(stack)), tuple(range(stack, len(shape)))
    rows, columns = rest[:inputs], rest[inputs:]
    if outputs_first:
        rows, columns = columns, rows
    outputs = tuple(shape[axis] for axis in columns)
    return Reading(role, stack, MatrixAxes(batch, rows, columns), outputs)


def _convolution(
    shape: Shape, stack: int, n: int, channels: str, transposed: bool
) -> Reading:
    """C_out × window for each input channel, after a stack."""
    if channels == "last":
        window = tuple(range(stack, stack + n))
        inputs, outputs = stack + n, stack + n + 1
        if transposed:
            inputs, outputs = outputs, inputs
    else:
        outputs, inputs = stack, stack + 1
        window = tuple(range(stack + 2, stack + 2 + n))
    axes = MatrixAxes((*range(stack), inputs), (outputs,), window)
    lengths = tuple(shape[axis] for axis in window)
    return Reading("convolution", stack, axes, (shape[outputs],), lengths)


def _fits(bias: Shape, shape: Shape, reading: Reading) -> bool:
    """Whether a bias spans the outputs, with or without ones for the window."""
    wanted = shape[: reading.stack] + reading.outputs
    return bias in (wanted, wanted + (1,) * len(reading.window))
