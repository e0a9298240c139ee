"""Checks and small helpers on pytrees that several modules share.

Trees that people hold beside each other (a mask and the updates, two gradients) come in
different containers: flax NNX gives a ``State`` of variables to an optimiser's ``init``
and plain arrays to its ``update``. They are matched by the paths of their leaves, never
by the containers.
"""

import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any


def match(
    tree: PyTree,
    like: PyTree,
    name: str,
    like_name: str,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """The leaves of ``tree`` in the structure of ``like``, matched by their paths.

    A path is the names on the way to a leaf: ``["a"][0]``, ``.a["0"]`` and, in a box
    such as a flax variable, ``.a[0].value`` are the same. Leaves that ``like`` hides
    behind :class:`optax.MaskedNode`, as in a partition, are left out. What is no array
    or number, such as an activation function in an Equinox module, matches nothing and
    becomes None.

    Args:
      tree: the tree that is held or given.
      like: the tree to fit it to.
      name: of ``tree``, for the message.
      like_name: of ``like``.
      is_leaf: what else is a leaf of ``tree``, such as None.

    Raises:
      ValueError: a leaf is missing in either, or of another shape; the message names
        it.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_masked)
    held = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        if is_array(leaf) or (is_leaf is not None and is_leaf(leaf)):
            held[_names(path)] = (jax.tree_util.keystr(path), leaf)
    leaves: list[Any] = []
    hidden = []
    for path, leaf in pairs:
        found = None
        if _is_masked(leaf):
            hidden.append(_names(path))
            found = leaf
        elif is_array(leaf):
            where = jax.tree_util.keystr(path)
            if _names(path) not in held:
                raise ValueError(
                    f"{name} has no leaf at {where or 'the root'}, where {like_name} "
                    f"has shape {np.shape(leaf)}; give both the same structure."
                )
            _, found = held.pop(_names(path))
            if is_array(found) and np.shape(found) != np.shape(leaf):
                raise ValueError(
                    f"{name}{where} has shape {np.shape(found)}, {like_name} has "
                    f"{np.shape(leaf)}; give both the same shapes."
                )
        leaves.append(found)
    for names, (where, leaf) in held.items():
        masked = any(names[: len(start)] == start for start in hidden)
        if leaf is not None and not masked:
            raise ValueError(
                f"{name} has a leaf at {where or 'the root'}, where {like_name} has "
                "none; give both the same structure."
            )
    return structure.unflatten(leaves)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, of shape and dtype, or a number."""
    return hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)


def array_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The arrays and numbers of a tree, each with its path as text."""
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if is_array(leaf)
    ]


def check_fraction(fraction: Any, name: str = "fraction") -> None:
    """Raises unless a fraction is in [0, 1]; NaN is not. One that is traced passes."""
    if is_traced(fraction):
        return
    if np.shape(fraction) != () or not 0 <= float(fraction) <= 1:
        raise ValueError(f"Got {name}={fraction}, wanted a share in [0, 1].")


def check_finite(tree: PyTree, name: str) -> None:
    """Raises if a leaf holds a number that is not finite; what is traced passes.

    Raises:
      ValueError: naming the first such leaf.
    """
    pairs = array_leaves(tree)
    if any(is_traced(leaf) for _, leaf in pairs):
        return
    finite = jax.device_get(_finite([leaf for _, leaf in pairs]))
    for (where, leaf), sound in zip(pairs, finite, strict=True):
        if not sound:
            raise ValueError(
                f"{name}{where} of shape {np.shape(leaf)} holds a number that is not "
                "finite, wanted finite ones: a loss or a gradient overflowed (float16?)"
                " or diverged; compute it in float32 or leave out the batch."
            )


def check_inexact(tree: PyTree, name: str) -> None:
    """Raises if a leaf cannot have a gradient: integers, booleans and keys.

    Raises:
      ValueError: naming the first such leaf.
    """
    for where, leaf in array_leaves(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name}{where} is {dtype}, wanted floating or complex numbers: pass "
                "what is not trained as the model's other state (nnx.split, "
                "equinox.partition)."
            )


def check_real(tree: PyTree, name: str) -> None:
    """Raises if a leaf has no order: complex numbers and keys.

    Raises:
      ValueError: naming the first such leaf.
    """
    for where, leaf in array_leaves(tree):
        dtype = jnp.result_type(leaf)
        real = (jnp.floating, jnp.integer, jnp.bool_)
        if not any(jnp.issubdtype(dtype, kind) for kind in real):
            raise ValueError(
                f"{name}{where} is {dtype}, wanted real numbers; take their magnitude."
            )


def check_mask(mask: PyTree) -> None:
    """Raises unless every leaf is boolean.

    Raises:
      ValueError: naming the first other leaf.
    """
    for where, leaf in array_leaves(mask):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
            raise ValueError(
                f"mask{where} is {jnp.result_type(leaf)}, wanted bool: make it with "
                "mujax.saliency, or compare the numbers with a threshold."
            )


def is_traced(x: Any) -> bool:
    """Whether a value is known only when a compiled program runs."""
    return isinstance(x, jax.core.Tracer)


def wide(dtype: Any) -> Any:
    """The dtype in which sums are kept: float32 or complex64, or a wider one."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Any) -> jax.Array:
    """An array in :func:`wide` of its dtype."""
    x = jnp.asarray(x)
    return x.astype(wide(x.dtype))


def select(mask: PyTree, kept: PyTree, other: PyTree) -> PyTree:
    """Takes ``kept`` where the mask is true and ``other`` where it is false."""
    return jax.tree.map(lambda m, a, b: jnp.where(m, a, b), mask, kept, other)


def size(tree: PyTree) -> int:
    """Number of entries of all leaves together."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree) if is_array(leaf))


@jax.jit
def _finite(leaves: list[Any]) -> list[jax.Array]:
    """Whether each leaf is finite; what has no such notion is."""
    return [
        jnp.all(jnp.isfinite(leaf))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        else jnp.asarray(True)
        for leaf in leaves
    ]


def _is_masked(node: Any) -> bool:
    """Whether a node stands for leaves that a partition leaves out."""
    return isinstance(node, optax.MaskedNode)


def _names(path: Iterable[Any]) -> tuple[str, ...]:
    """A path as text; boxes hold their leaf at ``.value``, which tells nothing."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    while names and names[-1] == "value":
        names.pop()
    return tuple(names)
