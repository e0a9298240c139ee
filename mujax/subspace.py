r"""SEMU's subspaces: matrix views of kernels, their SVD bases, and trainable cores.

*SEMU: Singular Value Decomposition for Efficient Machine Unlearning*,
arXiv:2502.07587. The SVD of a kernel's forget gradient finds the few directions U, V
that carry most of its energy; unlearning trains only the small core R in
:math:`W = W_0 + U R V^T`.

A kernel is seen as a batch of matrices (:class:`MatrixAxes`): a dense or attention
kernel is one, a convolution one C_out × kh·kw matrix for each input channel.
:mod:`mujax.roles` says which leaves are kernels, :func:`describe` shows it. All is
computed in float32 at the highest matmul precision, kernel by kernel where the kernel
lives, on one device or on a mesh of Auto or Explicit axes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax import roles
from mujax._describe import Description as Description
from mujax._describe import LeafRow as LeafRow
from mujax._describe import describe as describe
from mujax._factor import factor
from mujax._meshes import on_auto_axes
from mujax._svd import einsum
from mujax._trees import PyTree, check_finite, is_traced, match, size
from mujax._views import Basis as Basis
from mujax._views import flatten_with_bases, is_basis, matrices, tensor, views_of
from mujax.roles import MatrixAxes as MatrixAxes


def kernel_axes(path: Any, leaf: Any) -> MatrixAxes | None:
    """The view of one leaf by its path and shape alone, as :mod:`mujax.roles` has it.

    For an ``axes`` function of :func:`svd_bases` that decides some leaves itself. The
    default there knows more, since it sees each leaf's neighbours.

    Args:
      path: key path of the leaf.
      leaf: an array.

    Returns:
      The view, or None where the leaf is no kernel.

    Raises:
      ValueError: the leaf's role cannot be told.

    Example:
      >>> kernel_axes((), np.zeros((3, 3, 16, 32)))
      MatrixAxes(batch=(2,), rows=(3,), columns=(0, 1))
    """
    name = roles.leaf_name(path)
    return roles.infer({name: leaf})[name].axes


def svd_bases(
    grads: PyTree,
    energy: float | np.floating | jax.Array = 0.95,
    orthogonal_to: PyTree | None = None,
    *,
    rank: int | np.integer | jax.Array | None = None,
    max_rank: int | np.integer | jax.Array | None = None,
    per_channel: bool = False,
    few_shapes: bool = False,
    axes: PyTree | Callable[[Any, Any], MatrixAxes | None] | None = None,
    overrides: Mapping[str, MatrixAxes | None] | None = None,
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
    cuts later. A matrix that is not finite then has rank 0 and NaN directions. With
    ``rank`` the shapes are the same everywhere. No gradient flows through bases. Errors
    are those of a float32 SVD, about :math:`10^{-7} \sigma_1`.

    Args:
      grads: gradients, summed over the forget set.
      energy: :math:`\gamma`, in (0, 1]; may be traced, and is then not checked.
      orthogonal_to: weights W, of the leaves and shapes of ``grads``.
      rank: one fixed rank for all kernels, clipped to min(m, n), instead of energy.
      max_rank: bound on all ranks. A kernel whose smaller side exceeds it by more
        than 10 takes a randomised range finder, its energy measured against the exact
        :math:`\lVert G \rVert^2`; without it an exact SVD, slow beyond 1,000.
      per_channel: let each matrix of a kernel keep its own rank.
      few_shapes: leave zero columns behind the rank, up to one of few sizes, so that
        gradients of other ranks make arrays of the same shapes and what is compiled
        for them serves again.
      axes: which leaves are kernels: a tree of ``MatrixAxes | None`` like ``grads``,
        or a function ``(path, leaf) -> MatrixAxes | None``; by default
        :func:`mujax.roles.infer` tells.
      overrides: views by patterns of leaf names, ``{"blocks/*/proj/kernel":
        MatrixAxes(...)}``, None for no kernel; they come before ``axes``.

    Returns:
      A tree like ``grads`` with a :class:`Basis` at kernels and None elsewhere.

    Raises:
      ValueError: energy or a rank is out of range, trees or axes do not fit, a leaf's
        role cannot be told, a kernel is no real floating-point array, or a number is
        not finite; the message names the leaf.

    Example:
      >>> grads = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0])), "b": jnp.ones(3)}
      >>> svd_bases(grads, energy=0.9)["w"].rank  # 9/14 is too little, 13/14 enough
      Array([2], dtype=int32)

    Reference:
      `SEMU (2025) <https://arxiv.org/abs/2502.07587>`_; range finder:
      `Halko et al. (2011) <https://arxiv.org/abs/0909.4061>`_, algorithm 4.4.
    """
    _check_energy(energy)
    rank, max_rank = _checked_rank("rank", rank), _checked_rank("max_rank", max_rank)
    leaves, treedef = jax.tree.flatten(grads)
    views = views_of(grads, axes, overrides)
    weights: list[Any] = leaves
    if orthogonal_to is not None:
        orthogonal_to = match(orthogonal_to, grads, "orthogonal_to", "grads")
        weights = treedef.flatten_up_to(orthogonal_to)
    with jax.ensure_compile_time_eval():  # a jit may close over known gradients
        check_finite(grads, "grads")
        check_finite(orthogonal_to, "orthogonal_to")
    kernels = [i for i, view in enumerate(views) if view is not None]
    found = factor(
        [leaves[i] for i in kernels],
        None if orthogonal_to is None else [weights[i] for i in kernels],
        1 - energy,
        views=tuple(views[i] for i in kernels),
        rank=rank,
        max_rank=max_rank,
        per_channel=per_channel,
    )
    bases: list[Basis | None] = [None] * len(leaves)
    for i, basis in zip(kernels, found, strict=True):
        bases[i] = basis
    traced = any(is_traced(x) for x in jax.tree.leaves(found))
    tree = treedef.unflatten(bases)
    return tree if traced or rank is not None else trim(tree, few_shapes=few_shapes)


def trim(bases: PyTree, *, few_shapes: bool = False) -> PyTree:
    """Cuts bases made inside jit or vmap to the ranks they have; on the host.

    Args:
      bases: from :func:`svd_bases`; leading axes added by vmap are kept.
      few_shapes: cut no basis of up to 16 columns, others to a power of two.

    Returns:
      The same tree with the largest rank as r in each :class:`Basis`.

    Raises:
      jax.errors.ConcretizationTypeError: inside jit, where shapes cannot change.
      ValueError: a basis is of a gradient that was not finite; the message names it.

    Example:
      >>> bases = jax.jit(svd_bases)({"w": jnp.diag(jnp.array([9.0, 9.0, 1.0]))})
      >>> bases["w"].left.shape, trim(bases)["w"].left.shape
      ((1, 3, 3), (1, 3, 2))
    """

    def cut(path, basis):
        r = int(jnp.max(basis.rank))
        if not jnp.all(basis.rank):
            raise ValueError(
                f"The basis of {jax.tree_util.keystr(path)} has rank 0: its gradient "
                "was not finite; compute the loss in float32 or leave out the batch."
            )
        if few_shapes:
            r = max(16, 1 << (r - 1).bit_length())
        left, right = basis.left[..., :r], basis.right[..., :r]
        return dataclasses.replace(basis, left=left, right=right)

    return jax.tree.map_with_path(cut, bases, is_leaf=is_basis)


def init_cores(bases: PyTree) -> tuple[jax.Array, ...]:
    """Zero cores R, the only parameters that SEMU trains.

    Args:
      bases: from :func:`svd_bases`.

    Returns:
      A float32 array for each kernel in tree order, of shape (B, r, r), or (r, r) if
      the kernel has no batch axes; :func:`core_mask` tells which entries count.

    Example:
      >>> bases = svd_bases({"w": jnp.eye(4), "b": jnp.ones(4)}, rank=2)
      >>> sum(core.size for core in init_cores(bases))
      4
    """
    kernels = jax.tree.leaves(bases, is_leaf=is_basis)
    return tuple(jnp.zeros(basis.core_shape, jnp.float32) for basis in kernels)


def core_mask(bases: PyTree) -> tuple[jax.Array, ...]:
    """Which entries of the cores stand for directions that are kept; others do nothing.

    Args:
      bases: from :func:`svd_bases`.

    Returns:
      A boolean array for each core of :func:`init_cores`, of its shape.

    Example:
      >>> bases = jax.jit(svd_bases)({"w": jnp.diag(jnp.array([9.0, 9.0, 1.0]))})
      >>> core_mask(bases)[0].sum()  # two of three directions
      Array(4, dtype=int32)
    """

    def mask(basis):
        kept = jnp.arange(basis.left.shape[-1]) < basis.rank[..., None]
        return (kept[..., :, None] & kept[..., None, :]).reshape(basis.core_shape)

    return tuple(map(mask, jax.tree.leaves(bases, is_leaf=is_basis)))


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
    treedef, leaves, kernels = flatten_with_bases(params, bases)
    if len(cores) != len(kernels):
        raise ValueError(
            f"{len(cores)} cores came for {len(kernels)} kernels; make them with "
            "init_cores from these bases."
        )
    for (_, path, basis), core in zip(kernels, cores, strict=True):
        if jnp.shape(core) != basis.core_shape:
            raise ValueError(
                f"The core of {path} has shape {jnp.shape(core)}, its basis wants "
                f"{basis.core_shape}; make cores with init_cores from these bases."
            )
    return _replace(treedef, leaves, kernels, _moved, cores)


def project(tree: PyTree, bases: PyTree) -> PyTree:
    r"""Restricts each kernel to its subspace, :math:`U U^T M V V^T`.

    Gradient descent on the cores walks as descent on the weights with projected
    gradients does.

    Args:
      tree: gradients, updates or weights M; leaves that a partition hides behind
        :class:`optax.MaskedNode` stay hidden.
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
    treedef, leaves, kernels = flatten_with_bases(tree, bases)
    return _replace(treedef, leaves, kernels, _projected)


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


def _check_energy(energy: Any) -> None:
    """Raises unless energy is a share in (0, 1]; one that is traced passes."""
    if is_traced(energy):
        return
    number = hasattr(energy, "dtype") or isinstance(energy, int | float)
    if not number or np.shape(energy) != () or not 0 < float(energy) <= 1:
        raise ValueError(f"energy is {energy}; give a share in (0, 1].")


def _checked_rank(name: str, rank: Any) -> int | None:
    """A rank as an int, if it is a whole number of at least 1 or None."""
    if rank is None:
        return None
    dtype = getattr(rank, "dtype", np.dtype(type(rank)) if type(rank) is int else None)
    whole = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    if is_traced(rank) or not whole or np.shape(rank) != () or int(rank) < 1:
        raise ValueError(
            f"{name} is {rank!r}; give an int of at least 1, not traced, or None."
        )
    return int(rank)


def _moved(leaf: jax.Array, basis: Basis, core: jax.Array) -> jax.Array:
    """A kernel with its core."""
    r = basis.left.shape[-1]
    core = jnp.asarray(core, jnp.float32).reshape(-1, r, r)
    delta = einsum("bmi,bij,bnj->bmn", basis.left, core, basis.right)
    delta = tensor(delta, leaf.shape, basis.axes)
    return (leaf.astype(jnp.float32) + delta).astype(leaf.dtype)


def _projected(leaf: jax.Array, basis: Basis) -> jax.Array:
    """A kernel's part in its subspace."""
    left, right = basis.left, basis.right
    core = einsum("bmi,bmn,bnj->bij", left, matrices(leaf, basis.axes), right)
    inside = einsum("bmi,bij,bnj->bmn", left, core, right)
    return tensor(inside, leaf.shape, basis.axes).astype(leaf.dtype)


def _replace(treedef, leaves, kernels, function, *others) -> PyTree:
    """A tree of ``function(kernel, basis, *others)``, each kernel placed as before."""

    def apply(*lists):
        return [function(*each) for each in zip(*lists, strict=True)]

    old = [jnp.asarray(leaves[i]) for i, _, _ in kernels]
    bases = [basis for _, _, basis in kernels]
    new = on_auto_axes(apply, old, bases, *map(list, others), like=old)
    for (i, _, _), kernel, before in zip(kernels, new, old, strict=True):
        # Outside jit a reshaping may have gathered what lay on several devices.
        placed = not is_traced(before)
        leaves[i] = jax.device_put(kernel, before.sharding) if placed else kernel
    return treedef.unflatten(leaves)
