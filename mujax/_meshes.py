"""Computing on arrays whose mesh axes are Explicit."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mujax._trees import PyTree


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


def _sharding(x: Any) -> NamedSharding:
    """How an array lies on Explicit axes, if it does."""
    return jax.typeof(x).sharding
