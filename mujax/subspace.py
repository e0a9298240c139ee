r"""SEMU's subspaces: matrix views of kernels, their SVD bases, and trainable cores.

*SEMU: Singular Value Decomposition for Efficient Machine Unlearning*,
arXiv:2502.07587. The SVD of a kernel's forget gradient finds the few directions U, V
that carry most of its energy; unlearning trains only the small core R in
:math:`W = W_0 + U R V^T`.

A kernel is seen as a batch of matrices (:class:`MatrixAxes`): a dense kernel is one,
a convolution one C_out × kh·kw matrix for each input channel. All is computed in
float32 at the highest matmul precision, kernel by kernel where the kernel lives.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mujax._svd import einsum, find_range, svds
from mujax._trees import PyTree, match, size


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


def kernel_axes(path: Any, leaf: Any) -> MatrixAxes | None:
    """The default view: 2-d is dense in×out, 4-d a convolution HWIO, else no kernel.

    Args:
      path: key path of the leaf, unused.
      leaf: an array.

    Returns:
      The view, or None where the leaf is no kernel.

    Example:
      >>> kernel_axes((), np.zeros((3, 3, 16, 32)))
      MatrixAxes(batch=(2,), rows=(3,), columns=(0, 1))
    """
    del path
    return {2: MatrixAxes(), 4: MatrixAxes((2,), (3,), (0, 1))}.get(np.ndim(leaf))


def svd_bases(
    grads: PyTree,
    energy: float = 0.95,
    orthogonal_to: PyTree | None = None,
    *,
    rank: int | None = None,
    max_rank: int | None = None,
    per_channel: bool = False,
    axes: PyTree | Callable[[Any, Any], MatrixAxes | None] | None = None,
) -> PyTree:
    r"""The singular directions that carry a share of each kernel's gradient energy.

    .. math::
      r = \min \Big\{ r \ge 1 : \sum_{i \le r} \sigma_i^2 \ge
          \gamma \sum_i \sigma_i^2 \Big\}, \qquad
      P = G - \frac{\langle G, W \rangle}{\lVert W \rVert^2} W

    with :math:`\sigma` the singular values of a matrix of G, or of P if
    ``orthogonal_to`` is given. The matrices of one kernel share the largest of their
    ranks unless ``per_channel``.

    On concrete arrays the bases are cut to the real ranks. Inside jit and vmap shapes
    cannot depend on data: there the rank is a mask of zero columns, and :func:`trim`
    cuts later. With ``rank`` the shapes are the same everywhere. No gradient flows
    through bases. Errors are those of a float32 SVD, about :math:`10^{-7} \sigma_1`.

    Args:
      grads: gradients, summed over the forget set.
      energy: :math:`\gamma`, in (0, 1].
      orthogonal_to: weights W, of the structure and shapes of ``grads``.
      rank: one fixed rank for all kernels, clipped to min(m, n), instead of energy.
      max_rank: bound on all ranks. A kernel whose smaller side exceeds it by more
        than 10 takes a randomised range finder, its energy measured against the exact
        :math:`\lVert G \rVert^2`; without it an exact SVD, slow beyond 1,000.
      per_channel: let each matrix of a kernel keep its own rank.
      axes: which leaves are kernels: a tree of ``MatrixAxes | None`` like ``grads``,
        or a function ``(path, leaf) -> MatrixAxes | None``; by default
        :func:`kernel_axes`.

    Returns:
      A tree like ``grads`` with a :class:`Basis` at kernels and None elsewhere.

    Raises:
      ValueError: energy or a rank is out of range, or trees or axes do not fit; the
        message names the leaf.

    Example:
      >>> grads = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0])), "b": jnp.ones(3)}
      >>> svd_bases(grads, energy=0.9)["w"].rank  # 9/14 is too little, 13/14 enough
      Array([2], dtype=int32)

    Reference:
      `SEMU (2025) <https://arxiv.org/abs/2502.07587>`_; range finder:
      `Halko et al. (2011) <https://arxiv.org/abs/0909.4061>`_, algorithm 4.4.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; give a share in (0, 1].")
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; give an int of at least 1 or None.")
    if orthogonal_to is not None:
        orthogonal_to = match(orthogonal_to, grads, "orthogonal_to", "grads")
    leaves, treedef = jax.tree.flatten(grads)
    views = _views(grads, axes)
    kernels = [i for i, view in enumerate(views) if view is not None]
    weights = None if orthogonal_to is None else jax.tree.leaves(orthogonal_to)
    found = _factor(
        [leaves[i] for i in kernels],
        weights and [weights[i] for i in kernels],
        1 - energy,
        views=tuple(views[i] for i in kernels),
        rank=rank,
        max_rank=max_rank,
        per_channel=per_channel,
    )
    bases: list[Basis | None] = [None] * len(leaves)
    for i, basis in zip(kernels, found, strict=True):
        bases[i] = basis
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found))
    tree = treedef.unflatten(bases)
    return tree if traced or rank is not None else trim(tree)


def trim(bases: PyTree) -> PyTree:
    """Cuts bases made inside jit or vmap to the ranks they have; on the host.

    Args:
      bases: from :func:`svd_bases`; leading axes added by vmap are kept.

    Returns:
      The same tree with the largest rank as r in each :class:`Basis`.

    Raises:
      jax.errors.ConcretizationTypeError: inside jit, where shapes cannot change.

    Example:
      >>> bases = jax.jit(svd_bases)({"w": jnp.diag(jnp.array([9.0, 9.0, 1.0]))})
      >>> bases["w"].left.shape, trim(bases)["w"].left.shape
      ((1, 3, 3), (1, 3, 2))
    """

    def cut(basis):
        r = int(jnp.max(basis.rank))
        left, right = basis.left[..., :r], basis.right[..., :r]
        return dataclasses.replace(basis, left=left, right=right)

    return jax.tree.map(cut, bases, is_leaf=_is_basis)


def init_cores(bases: PyTree) -> tuple[jax.Array, ...]:
    """Zero cores R, the only parameters that SEMU trains.

    Args:
      bases: from :func:`svd_bases`.

    Returns:
      A float32 array for each kernel in tree order, of shape (B, r, r), or (r, r) if
      the kernel has no batch axes. Their sizes add up to the trainable count (entries
      that ``per_channel`` masks are counted too).

    Example:
      >>> bases = svd_bases({"w": jnp.eye(4), "b": jnp.ones(4)}, rank=2)
      >>> sum(core.size for core in init_cores(bases))
      4
    """
    kernels = jax.tree.leaves(bases, is_leaf=_is_basis)
    return tuple(jnp.zeros(_core_shape(basis), jnp.float32) for basis in kernels)


def apply_cores(params: PyTree, bases: PyTree, cores: Sequence[jax.Array]) -> PyTree:
    r"""The weights with their cores, :math:`W + U R V^T`, differentiable in R.

    Args:
      params: weights W.
      bases: from :func:`svd_bases`, for a tree like ``params``.
      cores: from :func:`init_cores`, trained or not.

    Returns:
      ``params`` with each kernel moved, in its own dtype; other leaves untouched.

    Raises:
      ValueError: weights, bases and cores do not fit; the message names the leaf.

    Example:
      >>> params = {"w": jnp.zeros((2, 2)), "b": jnp.ones(2)}
      >>> bases = svd_bases({"w": jnp.diag(jnp.array([1.0, 0.0])), "b": jnp.ones(2)})
      >>> apply_cores(params, bases, (jnp.array([[5.0]]),))["w"]
      Array([[5., 0.],
             [0., 0.]], dtype=float32)
    """
    treedef, leaves, kernels = _flatten_with_bases(params, bases)
    if len(cores) != len(kernels):
        raise ValueError(
            f"{len(cores)} cores came for {len(kernels)} kernels; make them with "
            "init_cores from these bases."
        )
    for (i, path, basis), core in zip(kernels, cores, strict=True):
        if jnp.shape(core) != _core_shape(basis):
            raise ValueError(
                f"The core of {path} has shape {jnp.shape(core)}, its basis wants "
                f"{_core_shape(basis)}; make cores with init_cores from these bases."
            )
        r = basis.left.shape[-1]
        core = jnp.asarray(core, jnp.float32).reshape(-1, r, r)
        delta = einsum("bmi,bij,bnj->bmn", basis.left, core, basis.right)
        delta = _tensor(delta, leaves[i].shape, basis.axes)
        moved = leaves[i].astype(jnp.float32) + delta
        leaves[i] = moved.astype(leaves[i].dtype)
    return treedef.unflatten(leaves)


def project(tree: PyTree, bases: PyTree) -> PyTree:
    r"""Restricts each kernel to its subspace, :math:`U U^T M V V^T`.

    Gradient descent on the cores walks as descent on the weights with projected
    gradients does.

    Args:
      tree: gradients, updates or weights M.
      bases: from :func:`svd_bases`, for a tree like ``tree``.

    Returns:
      ``tree`` with each kernel projected, in its own dtype; other leaves untouched.

    Raises:
      ValueError: the trees do not fit; the message names the leaf.

    Example:
      >>> bases = svd_bases({"w": jnp.diag(jnp.array([1.0, 0.0]))})
      >>> project({"w": jnp.full((2, 2), 3.0)}, bases)["w"]
      Array([[3., 0.],
             [0., 0.]], dtype=float32)
    """
    treedef, leaves, kernels = _flatten_with_bases(tree, bases)
    for i, _, basis in kernels:
        left, right, leaf = basis.left, basis.right, leaves[i]
        core = einsum("bmi,bmn,bnj->bij", left, _matrix(leaf, basis.axes), right)
        inside = einsum("bmi,bij,bnj->bmn", left, core, right)
        leaves[i] = _tensor(inside, leaf.shape, basis.axes).astype(leaf.dtype)
    return treedef.unflatten(leaves)


def trainable_fraction(params: PyTree, cores: Sequence[jax.Array]) -> float:
    """Trainable parameters as a share of all; times 100 the papers' "TParams".

    Args:
      params: all parameters of the model.
      cores: from :func:`init_cores`.

    Returns:
      Entries of the cores over entries of the parameters.

    Example:
      >>> trainable_fraction({"w": jnp.ones((4, 4))}, (jnp.ones((2, 2)),))
      0.25
    """
    return size(cores) / size(params)


def _is_basis(node: Any) -> bool:
    """Whether a node is a basis, the leaf of a tree of bases."""
    return isinstance(node, Basis)


def _core_shape(basis: Basis) -> tuple[int, ...]:
    """Shape of a basis' core."""
    batch, _, r = basis.left.shape
    return (batch, r, r) if basis.axes.batch else (r, r)


# Trees: which leaves are kernels, and how bases line up with them.


def _views(grads: PyTree, axes: Any) -> list[MatrixAxes | None]:
    """The checked view of each leaf, None where it is no kernel."""
    pairs = jax.tree.leaves_with_path(grads)
    if axes is None or callable(axes):
        entries: list[Any] = [(axes or kernel_axes)(path, leaf) for path, leaf in pairs]
    else:
        entries = _flatten_up_to(grads, axes, "axes", MatrixAxes)
    return [
        None if view is None else _checked(view, leaf, jax.tree_util.keystr(path))
        for view, (path, leaf) in zip(entries, pairs, strict=True)
    ]


def _checked(view: MatrixAxes, leaf: Any, path: str) -> MatrixAxes:
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
    return MatrixAxes(batch, rows, columns)


def _flatten_up_to(tree: PyTree, other: PyTree, name: str, kind: type) -> list[Any]:
    """Entries of ``other`` at the leaves of ``tree``, each a ``kind`` or None."""
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(tree)]
    try:
        entries = jax.tree.structure(tree).flatten_up_to(other)
    except (ValueError, TypeError, KeyError) as error:
        came = jax.tree.leaves_with_path(
            other, is_leaf=lambda x: x is None or isinstance(x, kind)
        )
        odd = {jax.tree_util.keystr(path) for path, _ in came} ^ set(paths)
        raise ValueError(
            f"{name} and the tree they are for differ in structure at "
            f"{min(odd, default='a container')}; give a {kind.__name__} or None for "
            "each leaf of the tree."
        ) from error
    for path, entry in zip(paths, entries, strict=True):
        if not (entry is None or isinstance(entry, kind)):
            raise ValueError(
                f"{name} has {type(entry).__name__} at {path}; give a {kind.__name__} "
                "or None there."
            )
    return entries


def _flatten_with_bases(tree: PyTree, bases: PyTree):
    """Structure and leaves of a tree, and (index, path, basis) of its kernels."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    entries = _flatten_up_to(tree, bases, "bases", Basis)
    kernels = []
    for i, ((path, leaf), basis) in enumerate(zip(pairs, entries, strict=True)):
        if basis is not None:
            name, shape = jax.tree_util.keystr(path), np.shape(leaf)
            wanted = _matrix_shape(_checked(basis.axes, leaf, name), shape)
            came = (*basis.left.shape[:-1], *basis.right.shape[1:-1])
            if came != wanted:
                raise ValueError(
                    f"The leaf {name} of shape {shape} is {wanted} matrices (B, m, n), "
                    f"its basis is for {came}; give bases made for this tree."
                )
            kernels.append((i, name, basis))
    return treedef, [leaf for _, leaf in pairs], kernels


def _matrix_shape(axes: MatrixAxes, shape: Sequence[int]) -> tuple[int, ...]:
    """(B, m, n) of a kernel."""
    groups = (axes.batch, axes.rows, axes.columns)
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def _matrix(leaf: jax.Array, axes: MatrixAxes) -> jax.Array:
    """A kernel as float32 matrices (B, m, n)."""
    moved = jnp.transpose(leaf, axes.batch + axes.rows + axes.columns)
    return moved.astype(jnp.float32).reshape(_matrix_shape(axes, jnp.shape(leaf)))


def _tensor(matrix: jax.Array, shape: Sequence[int], axes: MatrixAxes) -> jax.Array:
    """Matrices (B, m, n) as a kernel of a shape; the inverse of `_matrix`."""
    order = axes.batch + axes.rows + axes.columns
    moved = matrix.reshape([shape[axis] for axis in order])
    return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])


# Factoring: one function for all kernels, so that small ones share their work.


@functools.partial(
    jax.jit, static_argnames=("views", "rank", "max_rank", "per_channel")
)
def _factor(grads, weights, slack, *, views, rank, max_rank, per_channel):
    """Bases of kernels; ``slack`` is the share of energy that may be lost."""
    grads, weights = jax.lax.stop_gradient((grads, weights))
    if weights is not None:
        grads = [_orthogonal(g, w) for g, w in zip(grads, weights, strict=True)]
    matrices = [_matrix(g, view) for g, view in zip(grads, views, strict=True)]
    wide = [a.shape[1] < a.shape[2] for a in matrices]
    tall = [_scaled(a.mT if w else a) for a, w in zip(matrices, wide, strict=True)]
    ranges = [find_range(a, max_rank) for a in tall]
    reduced = [
        a if q is None else einsum("bmn,bml->bnl", a, q)
        for a, q in zip(tall, ranges, strict=True)
    ]
    bases = []
    for a, q, (u, sigma, v), w, view in zip(
        tall, ranges, svds(reduced), wide, views, strict=True
    ):
        lost = 0 if q is None else jnp.sum(a**2, (1, 2)) - jnp.sum(sigma**2, 1)
        kept, mask = _keep(sigma**2, lost, slack, rank, max_rank, per_channel)
        u, v = (x[..., : mask.shape[-1]] * mask for x in (u, v))
        if q is not None:  # what was factored is (QᵀA)ᵀ
            u, v = einsum("bml,blr->bmr", q, v), u
        bases.append(Basis(*((v, u) if w else (u, v)), kept, view))
    return bases


def _orthogonal(grad: jax.Array, weight: jax.Array) -> jax.Array:
    """A gradient without its component along the weights; as it is if they are 0."""
    grad, weight = grad.astype(jnp.float32), weight.astype(jnp.float32)
    share = jnp.sum(grad * weight) / jnp.maximum(jnp.sum(weight**2), 1e-37)
    return grad - share * weight


def _scaled(a: jax.Array) -> jax.Array:
    """Matrices with largest entry 1, so that squares neither under- nor overflow."""
    largest = jnp.max(jnp.abs(a), (1, 2), keepdims=True)
    return a / jnp.where(largest > 0, largest, 1)


def _keep(squares, lost, slack, rank, max_rank, per_channel):
    """Ranks (B,) and the mask (B, 1, r) of directions to keep, from σ² (B, n)."""
    limit = min(squares.shape[1], max_rank or squares.shape[1])
    if rank is not None:
        limit = min(limit, rank)
        kept = jnp.full(len(squares), limit, jnp.int32)
    else:
        # The energy that the first r directions leave, summed from the small end.
        left = jnp.cumsum(squares[:, ::-1], 1)[:, ::-1] + jnp.expand_dims(lost, -1)
        short = left[:, 1:] > slack * left[:, :1]
        kept = jnp.minimum(1 + jnp.sum(short, 1, dtype=jnp.int32), limit)
        kept = kept if per_channel else jnp.full_like(kept, kept.max())
    return kept, (jnp.arange(limit) < kept[:, None])[:, None, :]
