"""Trees of arrays on disk (Orbax), whole or not at all, and checked when read."""

import errno
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import UserError

_OVERHEAD = 8192
"""Bytes that Orbax writes about a leaf, roughly."""


class StoreError(UserError):
    """A folder that cannot be used; the message says what to do."""


def save_checkpoint(path: pathlib.Path, tree: Any) -> None:
    """Writes a tree of arrays with Orbax, replacing what is there.

    Raises:
      OSError: it cannot be written.
    """
    # Asked first: on a full disk Orbax prints pages from its threads.
    # On the host: an array that names its device is not read back where it is absent.
    tree = jax.device_get(tree)
    leaves = jax.tree.leaves(tree)
    needed = sum(leaf.nbytes for leaf in leaves) + _OVERHEAD * (len(leaves) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(
                path.absolute(),
                tree,
                force=True,
                custom_metadata={"crc32": _checksum(tree)},
            )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # its storage has errors of its own for a full disk
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def load_checkpoint(path: pathlib.Path) -> Any:
    """Reads a tree of arrays as it was saved.

    Raises:
      StoreError: there is no checkpoint, or it is damaged.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path.absolute())
            kept = checkpointer.metadata(path.absolute()).custom_metadata or {}
        # Orbax does not notice a wrong byte in an array.
        if "crc32" in kept and kept["crc32"] != _checksum(tree):
            raise ValueError("its checksum is another")
    except MemoryError:
        raise
    except Exception as error:  # Orbax raises whatever its storage does
        raise StoreError(
            f"{path} is not a readable checkpoint: {reason(error)}"
        ) from error
    return tree


def load_original(
    path: pathlib.Path, init: Callable[[Any], tuple[Any, Any]]
) -> dict[str, Any]:
    """Reads a trained model's ``{"params": …, "model_state": …}``, if it fits.

    Args:
      path: Orbax folder; in place of the model state the tree may hold the further
        collections of a Linen model's variables, such as ``"batch_stats"``.
      init: the model's initialisation, of a key.

    Raises:
      StoreError: there is no such checkpoint, or a leaf is not the model's.
    """
    try:
        tree = load_checkpoint(path)
        params = tree.pop("params")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        fault = error if isinstance(error, ValueError) else f"{path} has no 'params'"
        raise StoreError(
            f"{fault}. Give --checkpoint a folder that Orbax saved as "
            '{"params": …, "model_state": …}.'
        ) from error
    original = {"params": params, "model_state": tree.pop("model_state", tree)}
    wanted = jax.eval_shape(init, jax.random.key(0))
    wanted = dict(zip(("params", "model_state"), wanted, strict=True))
    kinds = {name: _kinds(part) for name, part in (("in", original), ("of", wanted))}
    for name in sorted(kinds["in"].keys() | kinds["of"].keys()):
        came, expected = kinds["in"].get(name), kinds["of"].get(name)
        if came != expected:
            raise StoreError(
                f"The checkpoint {path} is of another model: {name} is "
                f"{came or 'missing'} in it and {expected or 'absent'} in the model. "
                "Give the --model (and --width) that it was trained with."
            )
    return original


def _checksum(tree: Any) -> int:
    """CRC-32 over the leaves' bytes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total


def _kinds(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{getattr(leaf, 'dtype', type(leaf).__name__)} {np.shape(leaf)}"
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def reason(error: BaseException) -> str:
    """The start of an error's message: storages print whole specifications."""
    words = getattr(error, "strerror", None) or str(error).strip()
    return (words or type(error).__name__).splitlines()[0][:200].rstrip(" .")
