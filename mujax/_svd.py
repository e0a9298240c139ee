"""Singular value decompositions that batch, vmap and shard, for `mujax.subspace`.

Small matrices go through Jacobi rotations on their Gram matrices, which is plain array
code; large ones one by one through LAPACK, or through a randomised range finder.
Batched LAPACK calls are avoided: a dozen in one jit can wait for each other for ever.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

JACOBI_LIMIT = 64  # largest small side that `_jacobi` takes; LAPACK beyond
OVERSAMPLING = 10  # extra columns of the randomised range finder
_EPS = float(np.finfo(np.float32).eps)
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def svds(tall: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    """U, σ (sorted down) and V of matrices (B, m, n) with m >= n."""
    fits = [a.shape[2] <= JACOBI_LIMIT for a in tall]
    small = iter(_small_svds([a for a, fit in zip(tall, fits, strict=True) if fit]))
    large = [a for a, fit in zip(tall, fits, strict=True) if not fit]
    large = iter(_by_shape(jax.vmap(_lapack_svd), large))
    found = []
    for a, fit in zip(tall, fits, strict=True):
        u, sigma, v = next(small if fit else large)
        # Below rounding a singular value is zero and its direction noise.
        noise = sigma <= a.shape[2] * _EPS * sigma[:, :1]
        u, v = (jnp.where(noise[:, None], 0, x) for x in (u, v))
        found.append((u, jnp.where(noise, 0, sigma), v))
    return found


def find_range(a: jax.Array, max_rank: int | None) -> jax.Array | None:
    """Orthonormal (B, m, l) that spans most of (B, m, n), None if n is near l."""
    if max_rank is None or a.shape[2] <= max_rank + OVERSAMPLING:
        return None
    shape = (len(a), a.shape[2], max_rank + OVERSAMPLING)
    orthonormal = jax.vmap(_lapack_q)
    q = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    q = orthonormal(einsum("bmn,bnl->bml", a, q))
    for _ in range(2):
        q = orthonormal(einsum("bmn,bml->bnl", a, q))
        q = orthonormal(einsum("bmn,bnl->bml", a, q))
    return q


def _by_shape(function: Callable, stacks: list[jax.Array]) -> list[tuple]:
    """Applies a function to stacks (B, …), in one call for all of the same shape."""
    found = {}
    for shape in {x.shape[1:] for x in stacks}:
        same = [i for i, x in enumerate(stacks) if x.shape[1:] == shape]
        ends = np.cumsum([len(stacks[i]) for i in same])[:-1]
        results = function(jnp.concatenate([stacks[i] for i in same]))
        parts = zip(*(jnp.split(x, ends) for x in results), strict=True)
        found |= zip(same, parts, strict=True)
    return [found[i] for i in range(len(stacks))]


# Under vmap these loop. Batched LAPACK calls in one jit can wait for each other for
# ever on CPU, and concurrent ones slow each other down.
_lapack_q = jax.custom_batching.sequential_vmap(lambda a: jnp.linalg.qr(a)[0])


@jax.custom_batching.sequential_vmap
def _lapack_svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U, σ and V of one matrix."""
    u, sigma, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, sigma, vt.T


def _small_svds(tall: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    """U, σ and V of matrices (B, m, n), n small, from their Gram matrices.

    AᵀA alone loses what lies below √ε·σ₁. But its V makes the columns of AV nearly
    orthogonal, and the Gram matrix of those is accurate relative to each of them: a
    second round restores the accuracy of a direct SVD.
    """

    def orthogonalise(_, carry):
        images, vs, _squares = carry
        found = _eigen([einsum("bmi,bmj->bij", b, b) for b in images])
        squares, turns = zip(*found, strict=True)
        images, vs = (
            [einsum("bmi,bij->bmj", x, t) for x, t in zip(xs, turns, strict=True)]
            for xs in (images, vs)
        )
        return images, vs, list(squares)

    if not tall:
        return []
    eye = functools.partial(jnp.eye, dtype=jnp.float32)
    vs = [jnp.broadcast_to(eye(a.shape[2]), (len(a), *2 * a.shape[2:])) for a in tall]
    start = (tall, vs, [v[:, 0] for v in vs])
    images, vs, squares = jax.lax.fori_loop(0, 2, orthogonalise, start)
    sigmas = [jnp.sqrt(x) for x in squares]
    us = [
        b / jnp.where(s > 0, s, 1)[:, None] for b, s in zip(images, sigmas, strict=True)
    ]
    return list(zip(us, sigmas, vs, strict=True))


def _eigen(grams: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    """Eigenvalues, sorted down, and vectors of (B, n, n), in few calls.

    Zeros pad sizes to even numbers up to 16 and to multiples of 16 beyond, so that few
    remain. Padding never rotates and sorts last.
    """
    sizes = [g.shape[1] for g in grams]
    pads = [(0, -n % (2 if n <= 16 else 16)) for n in sizes]
    padded = [jnp.pad(g, ((0, 0), p, p)) for g, p in zip(grams, pads, strict=True)]
    return [
        (values[:, :n], vectors[:, :n, :n])
        for n, (values, vectors) in zip(sizes, _by_shape(_jacobi, padded), strict=True)
    ]


@jax.jit
def _jacobi(grams: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, sorted down, and vectors of (B, n, n), n even, by Jacobi rotations.

    Unlike LAPACK it is plain array code: it batches, vmaps and cannot wait for itself
    inside a jit. A round rotates n/2 disjoint pairs at once, seat i with seat i + n/2.
    Then all move on as in a round-robin tournament, so that n − 1 rounds, a sweep, meet
    every pair and restore the order. The batch is the last axis, along which all is
    elementwise.
    """
    n = grams.shape[1]
    half, rounds = n // 2, n - 1
    h = jnp.moveaxis(grams, 0, 2)
    v = jnp.broadcast_to(jnp.eye(n, dtype=jnp.float32)[:, :, None], h.shape)
    negligible = _EPS**2 * jnp.trace(h)
    top = np.arange(half)
    circle = np.concatenate([top[1:], top[::-1] + half])  # position 0 stays
    seats = np.zeros(n, int)
    seats[circle] = np.roll(circle, 1)

    def turn(x, c, s):
        a, b = x[:half], x[half:]
        return jnp.concatenate([c * a - s * b, s * a + c * b])[seats]

    def rotate(carry):
        i, h, v, moved = carry
        p, q = h[top, top], h[top + half, top + half]
        # Both triangles, or rounding lets the antisymmetric part grow unseen.
        off = (h[top, top + half] + h[top + half, top]) / 2
        moves = jnp.abs(off) > _EPS * jnp.sqrt(jnp.abs(p * q)) + negligible
        gap = q - p
        root = jnp.abs(gap) + jnp.sqrt(gap**2 + 4 * off**2)
        t = jnp.where(gap < 0, -2, 2) * off / jnp.where(moves, root, jnp.inf)
        c = (1 / jnp.sqrt(1 + t**2))[:, None]
        s = c * t[:, None]
        h = turn(turn(h, c, s).swapaxes(0, 1), c, s)
        return i + 1, h, turn(v, c, s), (moved & (i % rounds > 0)) | moves.any()

    def unfinished(carry):
        i, _, _, moved = carry
        return (i % rounds > 0) | (moved & (i < 20 * rounds))

    _, h, v, _ = jax.lax.while_loop(unfinished, rotate, (0, h, v, jnp.ones((), bool)))
    values, vectors = jnp.abs(jnp.diagonal(h)), jnp.moveaxis(v, 2, 0)  # as rows
    order = jnp.argsort(-values, 1)
    vectors = jnp.take_along_axis(vectors, order[:, :, None], 1)
    return jnp.take_along_axis(values, order, 1), vectors.mT
