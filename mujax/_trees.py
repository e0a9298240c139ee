"""Checks and small helpers on pytrees that several modules share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def check_like(tree: PyTree, like: PyTree, name: str, like_name: str) -> None:
    """Raises ValueError, naming the leaf, unless both trees have the same shapes."""
    came = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(tree)}
    wanted = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(like)}
    for path, leaf in wanted.items():
        if path not in came:
            raise ValueError(
                f"{name} has no leaf at {path}, where {like_name} has shape "
                f"{np.shape(leaf)}; give both the same structure."
            )
    for path, leaf in came.items():
        if path not in wanted:
            raise ValueError(
                f"{name} has a leaf at {path} of shape {np.shape(leaf)}, where "
                f"{like_name} has none; give both the same structure."
            )
    for path, leaf in wanted.items():
        if np.shape(came[path]) != np.shape(leaf):
            raise ValueError(
                f"{name}{path} has shape {np.shape(came[path])}, {like_name} has "
                f"{np.shape(leaf)}; give both the same shapes."
            )
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(tree)}, {like_name} has "
            f"{jax.tree.structure(like)}; give both the same containers."
        )


def check_fraction(fraction: float) -> None:
    """Raises unless the fraction is in [0, 1]; NaN is not."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"Got fraction={fraction}, wanted a share in [0, 1].")


def select(mask: PyTree, kept: PyTree, other: PyTree) -> PyTree:
    """Takes ``kept`` where the mask is true and ``other`` where it is false."""
    return jax.tree.map(lambda m, a, b: jnp.where(m, a, b), mask, kept, other)


def size(tree: PyTree) -> int:
    """Number of entries of all leaves together."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
