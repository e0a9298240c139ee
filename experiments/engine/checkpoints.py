"""Trees of arrays on disk, whole or not at all, and checked when read.

A study keeps what it computes with Orbax. A model that comes from elsewhere is taken in
any format of :mod:`experiments.engine.formats`, and goes back in the same one.
"""

import errno
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from experiments.engine import formats
from experiments.errors import UserError
from experiments.models import foreign

_OVERHEAD = 8192
"""Bytes that Orbax writes about a leaf, roughly."""


class StoreError(UserError):
    """A folder that cannot be used; the message says what to do."""


def save_checkpoint(path: pathlib.Path, tree: dict[str, Any]) -> None:
    """Writes nested dictionaries of arrays with Orbax, replacing what is there.

    Arrays without an entry, which Orbax refuses, are kept as a note beside it.

    Raises:
      OSError: it cannot be written.
    """
    leaves: dict[Any, Any] = traverse_util.flatten_dict(tree, keep_empty_nodes=True)
    empty = {}
    for where, leaf in list(leaves.items()):
        if hasattr(leaf, "size") and not leaf.size:
            empty["/".join(where)] = [str(leaf.dtype), leaf.shape]
            del leaves[where]
    # Asked first: on a full disk Orbax prints pages from its threads.
    # On the host: an array that names its device is not read back where it is absent.
    # But what lies over several processes each of them writes its part of.
    tree = jax.tree.map(
        lambda leaf: leaf if is_spread(leaf) else jax.device_get(leaf),
        traverse_util.unflatten_dict(leaves),
    )
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    needed += _OVERHEAD * (len(leaves) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    try:
        formats.write_orbax(path, tree, {"empty": empty} if empty else None)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # its storage has errors of its own for a full disk
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def is_spread(leaf: Any) -> bool:
    """Whether a leaf stays on its devices: a random key, or of several processes."""
    return foreign.is_key(leaf) or not getattr(leaf, "is_fully_addressable", True)


def load_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
      StoreError: there is no checkpoint, or it is damaged.
    """
    try:
        tree = formats.read_tree(path)
        empty = formats.read_notes(path).get("empty", {})
    except ValueError as error:
        raise StoreError(str(error)) from error
    leaves: dict[Any, Any] = traverse_util.flatten_dict(tree, keep_empty_nodes=True)
    for name, (dtype, shape) in empty.items():
        leaves[tuple(name.split("/"))] = np.zeros(shape, dtype)
    return traverse_util.unflatten_dict(leaves)


def load_original(
    path: pathlib.Path, init: Callable[[Any], tuple[Any, Any]]
) -> dict[str, Any]:
    """Reads a trained model from anywhere, if it fits.

    What was left aside and which dtypes changed is said on standard error.

    Args:
      path: folder or file of a format that is read; its leaves may lie as a
        ``TrainState``, a module's state, its parts or PyTorch's names lay them.
      init: the model's initialisation, of a key.

    Returns:
      ``{"params": …, "model_state": …}`` as ``init`` gives them.

    Raises:
      StoreError: there is no such checkpoint, or a leaf is not the model's.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    model = {"params": shapes[0], "model_state": shapes[1]}
    remedy = "Give the --model (and --width) that it was trained with."
    tree, _, match = _match(path, model, remedy)
    try:
        original, changes = foreign.take(tree, match, model)
    except ValueError as error:
        raise StoreError(f"The checkpoint {path} cannot be used: {error}.") from error
    if notes := [*match.notes, *changes]:
        print(f"From --checkpoint {path}: {'; '.join(notes)}.", file=sys.stderr)
    return original


def hand_back(
    unlearned: pathlib.Path, like: pathlib.Path, out: pathlib.Path
) -> formats.Kind:
    """Writes a study's model in the form that the trained one came in.

    Args:
      unlearned: checkpoint of a study.
      like: the trained model that was given to the study.
      out: file or folder to write; it must not be there.

    Returns:
      The format: that of ``like``, with its names, layouts and dtypes. What else it
      holds, such as the optimiser's state, is that of ``like`` too.

    Raises:
      StoreError: one of them cannot be read, or they are of different models.
      OSError: it cannot be written.
    """
    if out.exists():
        raise StoreError(f"{out} is there already. Give another --out.")
    model = load_checkpoint(unlearned)
    if not isinstance(model, dict) or sorted(model) != sorted(foreign.PARTS):
        raise StoreError(
            f"{unlearned} is not of a study. Give a folder in RESULTS/checkpoints."
        )
    tree, kind, match = _match(like, model, "Give the --like that the study was given.")
    out.parent.mkdir(parents=True, exist_ok=True)
    formats.write(out, foreign.put_back(tree, match, model), kind)
    return kind


def reason(error: BaseException) -> str:
    """The start of an error's message."""
    return formats.first_line(error)


def _match(
    path: pathlib.Path, model: dict[str, Any], remedy: str
) -> tuple[Any, formats.Kind, foreign.Match]:
    """A tree from elsewhere, its format, and where it has the model."""
    try:
        tree, kind = formats.read(path)
    except ValueError as error:
        raise StoreError(str(error)) from error
    try:
        return tree, kind, foreign.find(tree, model)
    except ValueError as error:
        raise StoreError(
            f"The checkpoint {path} does not fit: {error}. {remedy}"
        ) from error
