"""Views of kernels as matrices, bases, and how both line up with a tree's leaves.

For `mujax.subspace`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax import roles
from mujax._trees import PyTree, match
from mujax.roles import MatrixAxes


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["left", "right", "rank"],
    meta_fields=["axes"],
)
@dataclasses.dataclass(frozen=True)
class Basis:
    """Leading singular directions of one kernel's B matrices of m × n.

    Columns from ``rank`` on are zero, so that a masked direction gets no gradient and
    adds nothing. Columns of a zero singular value are zero as well.

    Attributes:
      left: U, shape (B, m, r), float32.
      right: V, shape (B, n, r), float32.
      rank: directions kept in each matrix, shape (B,), int32, at most r.
      axes: the matrix view of the kernel, static.
    """

    left: jax.Array
    right: jax.Array
    rank: jax.Array
    axes: MatrixAxes

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of the core R: (B, r, r), or (r, r) without batch axes."""
        batch, _, r = self.left.shape
        return (batch, r, r) if self.axes.batch else (r, r)


def matrix_shape(axes: MatrixAxes, shape: Sequence[int]) -> tuple[int, ...]:
    """(B, m, n) of a kernel."""
    groups = (axes.batch, axes.rows, axes.columns)
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def matrices(leaf: jax.Array, axes: MatrixAxes) -> jax.Array:
    """A kernel as float32 matrices (B, m, n)."""
    moved = jnp.transpose(leaf, axes.batch + axes.rows + axes.columns)
    return moved.astype(jnp.float32).reshape(matrix_shape(axes, jnp.shape(leaf)))


def tensor(stack: jax.Array, shape: Sequence[int], axes: MatrixAxes) -> jax.Array:
    """Matrices (B, m, n) as a kernel of a shape; the inverse of `matrices`."""
    order = axes.batch + axes.rows + axes.columns
    moved = stack.reshape([shape[axis] for axis in order])
    return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])


def is_basis(node: Any) -> bool:
    """Whether a node is a basis, the leaf of a tree of bases."""
    return isinstance(node, Basis)


def views_of(
    grads: PyTree, axes: Any, overrides: Mapping[str, MatrixAxes | None] | None
) -> list[MatrixAxes | None]:
    """The checked view of each leaf, None where it is no kernel."""
    pairs = jax.tree.leaves_with_path(grads)
    if axes is None:
        entries = [role.axes for role in jax.tree.leaves(roles.infer(grads, overrides))]
    else:
        given = roles.match_names(overrides or {}, roles.leaf_names(grads))
        if callable(axes):
            entries = [
                given[i] if i in given else axes(path, leaf)
                for i, (path, leaf) in enumerate(pairs)
            ]
        else:
            entries = entries_of(axes, grads, "axes", MatrixAxes)
            entries = [given.get(i, entry) for i, entry in enumerate(entries)]
    views: list[Any] = entries
    return [
        None if view is None else checked_view(view, leaf, jax.tree_util.keystr(path))
        for view, (path, leaf) in zip(views, pairs, strict=True)
    ]


def checked_view(view: MatrixAxes, leaf: Any, path: str) -> MatrixAxes:
    """A view as tuples of non-negative axes, if it fits the leaf."""
    ndim = np.ndim(leaf)
    batch, rows, columns = (
        tuple(axis + ndim if axis < 0 else axis for axis in axes)
        for axes in (view.batch, view.rows, view.columns)
    )
    if sorted(batch + rows + columns) != list(range(ndim)) or 0 in np.shape(leaf):
        raise ValueError(
            f"The leaf {path} of shape {np.shape(leaf)} came with {view}; name each of "
            "its axes once, and give no axes to an empty leaf."
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"The leaf {path} of shape {np.shape(leaf)} is {dtype}, wanted real "
            "floating-point numbers in a kernel; give None as its axes to leave it out."
        )
    return MatrixAxes(batch, rows, columns)


def entries_of(tree: PyTree, like: PyTree, name: str, kind: type) -> list[Any]:
    """Entries of a tree at the leaves of another, each a ``kind`` or None."""

    def is_entry(node: Any) -> bool:
        mistaken = isinstance(node, tuple) and all(isinstance(x, int) for x in node)
        return node is None or isinstance(node, kind) or mistaken

    held = match(tree, like, name, "the tree", is_leaf=is_entry)
    entries = jax.tree.structure(like).flatten_up_to(held)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(like)]
    for path, entry in zip(paths, entries, strict=True):
        if not (entry is None or isinstance(entry, kind)):
            raise ValueError(
                f"{name} has {type(entry).__name__} at {path}; give a {kind.__name__} "
                "or None there."
            )
    return entries


def flatten_with_bases(tree: PyTree, bases: PyTree):
    """Structure and leaves of a tree, and (index, path, basis) of its kernels."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    entries = entries_of(bases, tree, "bases", Basis)
    kernels = []
    for i, ((path, leaf), basis) in enumerate(zip(pairs, entries, strict=True)):
        if basis is not None:
            name, shape = jax.tree_util.keystr(path), np.shape(leaf)
            wanted = matrix_shape(checked_view(basis.axes, leaf, name), shape)
            came = (*basis.left.shape[:-1], *basis.right.shape[1:-1])
            if came != wanted:
                raise ValueError(
                    f"The leaf {name} of shape {shape} is {wanted} matrices (B, m, n), "
                    f"its basis is for {came}; give bases made for this tree."
                )
            kernels.append((i, name, basis))
    return treedef, [leaf for _, leaf in pairs], kernels
