"""A trained model kept in other forms, and the unlearned one read in the same."""

from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import safetensors.flax
from flax import serialization, traverse_util


def save_orbax(path, tree):  # variables, boxed or not, a TrainState, nnx.state(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def load_orbax(path, tree):
    return ocp.StandardCheckpointer().restore(path.absolute(), tree)


def save_msgpack(path, tree):  # variables or a TrainState
    path.write_bytes(serialization.to_bytes(tree))


def load_msgpack(path, tree):
    return serialization.from_bytes(tree, path.read_bytes())


def save_npz(path, tree):  # variables, or nnx.to_pure_dict of a state
    np.savez(path, **flat(tree))


def load_npz(path):
    return traverse_util.unflatten_dict(dict(np.load(path)), sep=".")


def save_safetensors(path, tree):
    safetensors.flax.save_file(flat(tree), path)


def load_safetensors(path):
    return traverse_util.unflatten_dict(safetensors.flax.load_file(path), sep=".")


def flat(tree) -> dict[str, Any]:
    leaves = traverse_util.flatten_dict(tree).items()
    return {".".join(map(str, path)): leaf for path, leaf in leaves}
