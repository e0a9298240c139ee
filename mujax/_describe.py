"""What each leaf is and how much of it trains, as a table, for `mujax.subspace`."""

import dataclasses
import glob
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mujax import roles
from mujax._trees import PyTree
from mujax._views import Basis, checked_view, entries_of, matrix_shape
from mujax.roles import MatrixAxes


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """What :func:`describe` says of one leaf.

    Attributes:
      leaf: its name, as patterns of ``overrides`` see it.
      shape: its shape.
      role: its role's name, see :class:`mujax.roles.Role`.
      view: matrices B × m × n, None where it is no kernel.
      ranks: the smallest and the largest rank of its matrices, None without bases.
      trainable: entries of its core, 0 without one.
      size: entries of the leaf.
    """

    leaf: str
    shape: tuple[int, ...]
    role: str
    view: tuple[int, ...] | None
    ranks: tuple[int, int] | None
    trainable: int
    size: int

    @property
    def share(self) -> float:
        """Trainable entries as a share of the leaf's."""
        return self.trainable / max(self.size, 1)


class Description(tuple[LeafRow, ...]):
    """The rows of :func:`describe`; as text a table."""

    @property
    def share(self) -> float:
        """Trainable entries of all leaves as a share of all entries ("TParams")."""
        return sum(row.trainable for row in self) / max(sum(x.size for x in self), 1)

    def __str__(self) -> str:
        """A table of aligned columns, with the total last."""
        cells = [("leaf", "shape", "role", "matrices", "rank", "trainable")]
        for row in self:
            view = "" if row.view is None else "{} of {}×{}".format(*row.view)
            low, high = row.ranks or (None, None)
            rank = "" if low is None else f"{low}" if low == high else f"{low}–{high}"
            share = f"{100 * row.share:.3f} %" if row.trainable else ""
            shape = "×".join(map(str, row.shape))
            cells.append((row.leaf, shape, row.role, view, rank, share))
        total, kernels = (
            sum(x.size for x in self),
            sum(x.view is not None for x in self),
        )
        share = f"{100 * self.share:.3f} %"
        cells.append(("total", f"{total:,}", f"{kernels} kernels", "", "", share))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )


def describe(
    params: PyTree,
    bases: PyTree | None = None,
    *,
    overrides: Mapping[str, MatrixAxes | None] | None = None,
) -> Description:
    """What each leaf is, how it is seen, and how much of it trains.

    Args:
      params: arrays, or anything with shapes.
      bases: from :func:`svd_bases`, for ranks and trainable shares.
      overrides: as in :func:`svd_bases`.

    Returns:
      A tuple of a :class:`LeafRow` a leaf; ``str()`` of it is a table.

    Raises:
      ValueError: without bases, a leaf's role cannot be told; or bases do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from mujax.subspace import svd_bases
      >>> grads = {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0])), "bias": jnp.ones(3)}
      >>> print(describe(grads, svd_bases(grads, energy=0.9)))
      leaf    shape  role       matrices  rank  trainable
      bias    3      vector
      kernel  3×3    dense      1 of 3×3  2     44.444 %
      total   12     1 kernels                  33.333 %
    """
    names, leaves = roles.leaf_names(params), jax.tree.leaves(params)
    held: list[Basis | None] = [None] * len(leaves)
    if bases is not None:
        held = entries_of(bases, params, "bases", Basis)
    rows = []
    for name, leaf, role, basis in zip(
        names,
        leaves,
        _roles(params, overrides, bases and dict(zip(names, held, strict=True))),
        held,
        strict=True,
    ):
        axes = role.axes if bases is None else basis and basis.axes
        known = role if role.axes == axes else roles.Role("given")
        if axes is not None:
            axes = checked_view(axes, leaf, name)
        view = None if axes is None else matrix_shape(axes, np.shape(leaf))
        ranks, trainable = None, 0
        if basis is not None:
            rank = _readable(basis.rank)
            ranks = int(np.min(rank)), int(np.max(rank))
            trainable = int(np.sum(np.square(rank, dtype=np.int64)))
        rows.append(
            LeafRow(
                name, np.shape(leaf), known.name, view, ranks, trainable, np.size(leaf)
            )
        )
    return Description(rows)


def _readable(array: Any) -> np.ndarray:
    """Numbers of an array, which may lie over several processes."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _roles(
    params: PyTree,
    overrides: Mapping[str, MatrixAxes | None] | None,
    bases: Mapping[str, Basis | None] | None,
) -> list[roles.Role]:
    """The role of each leaf; where it cannot be told, what the leaf's basis says."""
    known = dict(overrides or {})
    while True:
        try:
            return jax.tree.leaves(roles.infer(params, known))
        except roles.UnknownRoleError as error:
            if bases is None:
                raise
            basis = bases[error.leaf]
            known[glob.escape(error.leaf)] = basis and basis.axes
