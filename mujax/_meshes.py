"""Computing on arrays that lie over a mesh, whose axes may be Explicit."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mujax._trees import PyTree, is_array, is_traced


def on_auto_axes(
    function: Callable[..., PyTree], *args: PyTree, like: PyTree | None = None
) -> PyTree:
    """``function(*args)``, where the compiler finds how to shard what is inside.

    On Explicit axes, the default of ``jax.make_mesh``, each contraction and reshaping
    must state its sharding. Here all axes are Auto within the function.

    Args:
      function: any function of arrays.
      *args: trees of arrays.
      like: a tree like what is returned, whose shardings its leaves take; without it
        they are replicated.
    """
    meshes = [_sharding(x).mesh for x in jax.tree.leaves((args, like))]
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    if mesh is None:
        return function(*args)
    whole = NamedSharding(mesh, PartitionSpec())
    out = jax.tree.map(
        lambda x: whole if _sharding(x).mesh.empty else _sharding(x), like
    )
    out = whole if like is None else out
    return jax.sharding.auto_axes(function, out_sharding=out)(*args)


def one_by_one(examples: PyTree, params: PyTree) -> PyTree:
    """Examples as ``vmap`` over them wants them on Explicit axes: all leaves alike.

    An axis of the mesh cannot carry both parameters and one gradient for each example.
    Where it would, the examples are gathered, which are smaller.
    """
    taken = {axis for x in jax.tree.leaves(params) for axis in _axes(_spec(x))}
    arrays = [x for x in jax.tree.leaves(examples) if jnp.ndim(x)]
    leads = {_axes(_spec(x)[:1]) for x in arrays}
    if len(leads) < 2 and not taken.intersection(*leads):
        return examples
    return jax.tree.map(lambda x: _gathered(x) if jnp.ndim(x) else x, examples)


def in_pieces(x: Any, size: int) -> jax.Array:
    """An array (N, …) as (N / size, size, …), its examples dealt out in turn.

    Each piece then lies over the devices as the whole does and nothing moves; only
    where the devices do not share a piece evenly are the examples gathered.
    """
    x = jnp.asarray(x)
    if size % num_shards(x):
        x = _gathered(x)
    return x.reshape(size, -1, *x.shape[1:]).swapaxes(0, 1)


def along(x: jax.Array, examples: PyTree) -> jax.Array:
    """An array (N, …) that lies along its leading axis as the examples do."""
    for leaf in jax.tree.leaves(examples):
        lead = _spec(leaf)[:1]
        if _axes(lead):
            mesh = _sharding(leaf).mesh if is_traced(leaf) else leaf.sharding.mesh
            rest = [None] * (x.ndim - 1)
            sharding = NamedSharding(mesh, PartitionSpec(*lead, *rest))
            return jax.sharding.reshard(x, sharding)
    return x


def zeros_along(x: Any, dtype: Any) -> jax.Array:
    """Zeros of the shape of an array that lie on the devices as it does.

    ``jnp.zeros_like`` forgets that of an array that a traced function closes over.
    """
    return jnp.equal(x, x).astype(dtype) * jnp.zeros([], dtype)


def num_shards(x: Any) -> int:
    """In how many parts the leading axis lies; 1 if only the compiler knows."""
    if isinstance(x, jax.Array) and not is_traced(x):
        part = x.sharding.shard_shape(x.shape)[0]
        return x.shape[0] // part if part else 1
    sizes = _sharding(x).mesh.shape
    return math.prod(sizes[axis] for axis in _axes(_spec(x)[:1]))


def _gathered(x: Any) -> Any:
    """The array with its leading axis whole wherever it lies."""
    lead, *rest = _spec(x)
    if lead is None:
        return x
    sharding = NamedSharding(_sharding(x).mesh, PartitionSpec(None, *rest))
    return jax.sharding.reshard(x, sharding)


def _spec(x: Any) -> tuple[Any, ...]:
    """Over which Explicit axes of the mesh each axis of an array lies."""
    return tuple(_sharding(x).spec) if is_array(x) else ()


def _axes(spec: tuple[Any, ...]) -> tuple[str, ...]:
    """The mesh axes in a specification."""
    entries = [(e,) if isinstance(e, str) else e or () for e in spec]
    return tuple(itertools.chain.from_iterable(entries))


def _sharding(x: Any) -> NamedSharding:
    """How an array lies on Explicit axes, if it does."""
    return jax.typeof(x).sharding
