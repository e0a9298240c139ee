"""Files of arrays as other programs leave them: read, and written the same way.

A folder is Orbax's: a tree, the items of a step, or the steps of a CheckpointManager,
of which the latest is read, whatever devices wrote it. A file is told by its first
bytes, never by its name: flax's msgpack, an npz, safetensors. Nothing is unpickled: a
pickle can run any code when it is read.
"""

import io
import json
import pathlib
import re
import threading
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from experiments.files import write_atomically
from experiments.models.foreign import is_key, numbers

Kind = Literal["orbax", "msgpack", "npz", "safetensors"]
"""A format; npz and safetensors hold a flat dictionary of names."""

ACCEPTED = (
    "Give an Orbax folder, or a file of flax msgpack, npz or safetensors, that holds "
    "the model's parameters and other state."
)
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; d = torch.load('{0}', "
    "weights_only=True); d = d.get('state_dict', d); s.save_file("
    "{{k: v.clone() for k, v in d.items() if hasattr(v, 'clone')}}, '{1}')\""
)

_STEP = re.compile(r"(?:(?:checkpoint|ckpt|step)[_-]?)?(\d+)")
_TREE, _NOTES = "_METADATA", "_CHECKPOINT_METADATA"


def read(path: pathlib.Path) -> tuple[Any, Kind]:
    """Reads a tree of NumPy arrays, and says in which format it came.

    Args:
      path: folder or file.

    Returns:
      The tree in the containers that the format has, and the format.

    Raises:
      ValueError: it is of no kind that is read, or damaged; the message says what was
        found.
    """
    if path.is_dir():
        found = _inside(path)
        if isinstance(found, list):
            return {item.name: read_tree(item) for item in found}, "orbax"
        if found.is_dir():
            return read_tree(found), "orbax"
        path = found
    try:
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 1))
            tail = file.read(1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. {ACCEPTED}") from (
            error
        )
    kind = _kind(path, head, tail)
    try:
        return _READERS[kind](path), kind
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # each parser raises what it likes
        raise ValueError(
            f"{path} looks like {kind} but cannot be read: {first_line(error)}. "
            f"{ACCEPTED}"
        ) from error


def write(path: pathlib.Path, tree: Any, kind: Kind) -> None:
    """Writes a tree in a format that :func:`read` read it from.

    Raises:
      OSError: it cannot be written.
    """
    if kind == "orbax":
        write_orbax(path, tree)
    elif kind == "msgpack":
        write_atomically(path, serialization.msgpack_serialize(tree))
    elif kind == "npz":
        data = io.BytesIO()
        np.savez(data, **tree)
        write_atomically(path, data.getvalue())
    else:
        leaves = {name: np.ascontiguousarray(leaf) for name, leaf in tree.items()}
        write_atomically(path, _safetensors().save(leaves))


def read_tree(folder: pathlib.Path) -> Any:
    """Reads one Orbax tree as NumPy arrays and random keys, whatever devices wrote it.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    handler, place = ocp.PyTreeCheckpointHandler(), epath.Path(folder.absolute())
    try:
        tree: Any = handler.metadata(place)
        arguments = jax.tree.map(_restored, getattr(tree, "tree", tree))
        tree = handler.restore(
            place, args=ocp.args.PyTreeRestore(restore_args=arguments)
        )
        tree = jax.tree.map(lambda x: x if is_key(x) else jax.device_get(x), tree)
        # Orbax does not notice a wrong byte in an array.
        if read_notes(folder).get("crc32", _checksum(tree)) != _checksum(tree):
            raise ValueError("its checksum is another")
    except MemoryError:
        raise
    except Exception as error:  # Orbax raises whatever its storage does
        raise ValueError(
            f"{folder} is not a readable checkpoint: {first_line(error)}"
        ) from error
    finally:
        handler.close()
    return tree


def write_orbax(
    folder: pathlib.Path, tree: Any, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes a tree with Orbax in place of what is there, with a checksum.

    Args:
      folder: appears whole or not at all.
      tree: arrays on the host, which no device is remembered for; with several
        processes, of which each calls this, arrays that lie over their devices.
      notes: plain values to keep beside it; see :func:`read_notes`.
    """
    notes = dict(notes or {})
    if jax.process_count() == 1:
        notes["crc32"] = _checksum(tree)
    with _ONE_AT_A_TIME, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True, custom_metadata=notes)


_ONE_AT_A_TIME = threading.Lock()
"""Held while Orbax writes: two saves of one process wait for each other for ever."""


def read_notes(folder: pathlib.Path) -> dict[str, Any]:
    """What was kept beside an Orbax tree; empty where nothing was."""
    try:
        notes = json.loads((folder / _NOTES).read_text())
    except FileNotFoundError:  # asking Orbax would print a warning
        return {}
    return notes.get("custom_metadata") or {}


def first_line(error: BaseException) -> str:
    """The start of an error's message: storages print whole specifications."""
    words = getattr(error, "strerror", None) or str(error).strip()
    return (words or type(error).__name__).splitlines()[0][:200].rstrip(" .")


def _inside(folder: pathlib.Path) -> pathlib.Path | list[pathlib.Path]:
    """The tree in a folder, or the file of a step, or the trees that are its items."""
    if (folder / _TREE).exists():
        return folder
    inside = sorted(folder.iterdir())
    items = [child for child in inside if (child / _TREE).exists()]
    found = [(_STEP.fullmatch(child.name), child) for child in inside]
    steps = {int(match[1]): child for match, child in found if match}
    if steps:
        latest = steps[max(steps)]
        return _inside(latest) if latest.is_dir() else latest
    if items:
        return items if len(items) > 1 else items[0]
    names = [child.name for child in inside if not child.name.startswith(".")]
    listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    likely = [
        child
        for child in inside
        if child.suffix in (".safetensors", ".msgpack", ".npz")
        or (child.is_dir() and any(child.glob(f"**/{_TREE}")))
    ]
    way_out = f"Give what is meant, such as {likely[0]}." if likely else ACCEPTED
    raise ValueError(
        f"{folder} is no Orbax checkpoint: it holds {listed or 'nothing'}. {way_out}"
    )


def _restored(leaf: Any) -> ocp.RestoreArgs:
    """How to restore a leaf: arrays on the host, a number or a text as it is."""
    if not hasattr(leaf, "shape"):
        return ocp.RestoreArgs()
    if leaf.dtype == np.uint32:  # a random key is told from its numbers on a device
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=place)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _checksum(tree: Any) -> int:
    """CRC-32 over the leaves' bytes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(numbers(leaf)).tobytes(), total)
    return total


def _kind(path: pathlib.Path, head: bytes, tail: bytes) -> Kind:
    """The format that a file's first bytes tell, or an error that tells another."""
    if head[8:9] == b"{":  # after the header's length
        return "safetensors"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        if any(name.endswith(".pkl") for name in names):
            raise ValueError(_refusal(path, "a pickle of PyTorch"))
        raise ValueError(f"{path} is a zip archive of other things. {ACCEPTED}")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 1:
        raise ValueError(_refusal(path, "a pickle"))
    if head[:1] in (b"(", b"}", b"]") and tail == b".":
        raise ValueError(_refusal(path, "an old pickle"))
    for start, what in (
        (b"\x93NUMPY", "one array (npy): np.savez keeps them by name"),
        (b"\x89HDF", "an HDF5 file: read it with h5py and keep it with np.savez"),
    ):
        if head.startswith(start):
            raise ValueError(f"{path} is {what}. {ACCEPTED}")
    if not head or not (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        what = "of no known format" if head else "empty"
        raise ValueError(f"{path} is {what}. {ACCEPTED}")
    return "msgpack"


def _refusal(path: pathlib.Path, what: str) -> str:
    """Why a pickle is not read, and the line that makes another file of it."""
    line = CONVERT.format(path, path.with_suffix(".safetensors"))
    return (
        f"{path} is {what}, which can run any code when it is read, so it is not. If "
        f"you trust it, convert it where PyTorch is: {line}"
    )


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        tree = {}
        for name in data.files:
            try:
                tree[name] = data[name]
            except ValueError as error:
                if "pickle" not in str(error):
                    raise
                raise ValueError(
                    f"{name} is an array of Python objects, which only a pickle holds; "
                    "keep one array a name"
                ) from error
            if tree[name].dtype.kind == "V":
                raise ValueError(
                    f"{name} has the dtype {tree[name].dtype}: npz cannot tell "
                    "bfloat16; keep it as float32"
                )
    return tree


def _safetensors() -> Any:
    """The package, which not every machine has."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ValueError(
            "safetensors files need the package of that name: pip install safetensors."
        ) from error
    return safetensors.numpy


_READERS = {
    "msgpack": lambda path: serialization.msgpack_restore(path.read_bytes()),
    "npz": _read_npz,
    "safetensors": lambda path: _safetensors().load_file(path),
}
