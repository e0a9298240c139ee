"""Bases of kernels' gradients: what of their SVD is kept, for `mujax.subspace`."""

import functools

import jax
import jax.numpy as jnp

from mujax._meshes import on_auto_axes
from mujax._svd import einsum, find_range, svds
from mujax._views import Basis, matrices


@functools.partial(
    jax.jit, static_argnames=("views", "rank", "max_rank", "per_channel")
)
def factor(grads, weights, slack, **options):
    """Bases of kernels, one function for all, so that small ones share their work.

    Args:
      grads: kernels' gradients.
      weights: the kernels to stay orthogonal to, or None.
      slack: the share of energy that may be lost.
      **options: ``views``, a ``MatrixAxes`` for each kernel, and ``rank``,
        ``max_rank`` and ``per_channel`` of :func:`mujax.subspace.svd_bases`.
    """
    return on_auto_axes(functools.partial(_factor, **options), grads, weights, slack)


def _factor(grads, weights, slack, *, views, rank, max_rank, per_channel):
    """Bases of kernels; no axis of a mesh is Explicit."""
    grads, weights = jax.lax.stop_gradient((grads, weights))
    if weights is not None:
        grads = [_orthogonal(g, w) for g, w in zip(grads, weights, strict=True)]
    stacks = [matrices(g, view) for g, view in zip(grads, views, strict=True)]
    wide = [a.shape[1] < a.shape[2] for a in stacks]
    tall = [
        _scaled(a.mT if w else a, (1, 2)) for a, w in zip(stacks, wide, strict=True)
    ]
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
    grad, weight = (_scaled(x.astype(jnp.float32)) for x in (grad, weight))
    share = jnp.sum(grad * weight) / jnp.maximum(jnp.sum(weight**2), 1)
    return grad - share * weight


def _scaled(a: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """An array with largest entry 1, so that squares neither under- nor overflow.

    Where an entry is not finite, all become NaN, so that every direction shows it.
    """
    largest = jnp.max(jnp.abs(a), axes, keepdims=True)
    scaled = a / jnp.where(largest > 0, largest, 1)
    return jnp.where(jnp.isfinite(largest), scaled, jnp.nan)


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
    kept = jnp.where(jnp.isnan(squares).any(1), 0, kept)
    return kept, (jnp.arange(limit) < kept[:, None])[:, None, :]
