"""Influence unlearning: one Newton step that takes the forget set out.

Izzo et al. (2021), arXiv:2002.10077, and Jia et al. (2023), arXiv:2304.04934, with
WoodFisher's estimate of the curvature (Singh and Alistarh, 2020, arXiv:2004.14340).
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mujax import gradients
from mujax._meshes import one_by_one
from mujax._programs import program
from mujax._trees import (
    PyTree,
    check_mask,
    check_real,
    match,
    select,
    widened,
)
from mujax.methods import base


def influence(
    loss_fn: base.LossFn,
    *,
    scale: float | jax.Array = 1.0,
    damping: float | jax.Array = 1e-2,
    iterations: int = 100,
    axis_name: str | None = None,
) -> base.Method:
    r"""Adds what upweighting the retain set would do, to first order (IU).

    .. math:: \theta \leftarrow \theta + \alpha F^{-1} (\bar g_f - \bar g_r),
       \quad F = \delta I + \frac 1 N \sum_{i \in D_r} g_i g_i^T

    with mean gradients of the forget and the retain set and the empirical Fisher matrix
    of N retain examples. It is solved by conjugate gradients on products of Jacobians,
    so that nothing of the size of F is held; the recursion of rank-one updates gives
    the same vector. The released program keeps its vectors parallel to the first
    gradient.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        evaluation mode.
      scale: :math:`\alpha`, with the share of the forget set in it.
      damping: :math:`\delta`, above 0.
      iterations: at most so many of conjugate gradients.
      axis_name: mapped axis to average over.

    Returns:
      The method; ``init`` wants ``retain_batches`` beside the forget batches
      (``data_use.retain_at_start``) and does it all; a step changes nothing.

    Raises:
      ValueError: from ``init``, without batches.

    Example:
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = influence(loss_fn, damping=1.0)
      >>> forget, retain = jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]])
      >>> state = method.init(jnp.zeros(2), (), [forget], retain_batches=[retain])
      >>> method.finish(state)[0].round(3)
      Array([1., 4.], dtype=float32)

    Reference:
      `Jia et al. (2023) <https://arxiv.org/abs/2304.04934>`_, "IU".
    """

    def init(
        params: PyTree,
        model_state: PyTree = (),
        forget_batches: Iterable[PyTree] | None = None,
        *,
        mask: PyTree | None = None,
        retain_batches: Iterable[PyTree] | None = None,
        key: jax.Array | None = None,
    ) -> base.State:
        del key
        check_real(params, "params")
        if mask is not None:
            check_mask(mask)
            mask = match(mask, params, "mask", "params")
        forget = list(
            base.need_batches(forget_batches, base.FORGET, "their mean gradient")
        )
        retain = list(base.need_batches(retain_batches, base.RETAIN, "the curvature"))
        loss = base.plain_loss(loss_fn, model_state)
        away, stay = (
            base.mean_over(axis_name, gradients.mean_gradient(loss, params, batches))
            for batches in (forget, retain)
        )
        solve = program(_solve, loss, axis_name, iterations)
        rhs = jax.tree.map(jnp.subtract, away, stay)
        direction = solve(params, retain, rhs, jnp.asarray(damping, jnp.float32))
        moved = jax.tree.map(
            lambda p, d: (widened(p) + scale * d).astype(p.dtype), params, direction
        )
        if mask is not None:
            moved = select(mask, moved, params)
        zero = jnp.zeros([], jnp.int32)
        state = base.State(moved, (), model_state, (), mask, None, zero)
        return jax.tree.map(jnp.copy, state)

    def step(state, batch, *, forget_batch=None, key=None, **extra_args: Any):
        del forget_batch, key, extra_args
        loss, (_, aux) = loss_fn(state.trained, state.model_state, batch, None)
        loss = base.mean_over(axis_name, loss).astype(jnp.float32)
        return state._replace(step=state.step + 1), base.StepInfo(loss, aux)

    def finish(state):
        return state.trained, state.model_state

    data_use = base.DataUse(passes=((base.RETAIN,),), epochs=1, retain_at_start=True)
    return base.Method(init, step, finish, data_use)


def _solve(loss, axis_name, iterations: int, params, batches, rhs, damping) -> PyTree:
    """(δI + F)⁻¹ of a float32 tree."""

    def damped(v):
        product = base.mean_over(axis_name, _curvature(loss, params, batches, v))
        return jax.tree.map(lambda f, x: f + damping * x, product, v)

    solution, _ = jax.scipy.sparse.linalg.cg(damped, rhs, maxiter=iterations)
    return solution


def _curvature(loss, params: PyTree, batches: list[PyTree], v: PyTree) -> PyTree:
    """Mean over examples of g (g·v), without the gradients of one example."""
    wide_params = jax.tree.map(widened, params)

    def losses(trained, batch):
        narrow = jax.tree.map(lambda t, p: t.astype(p.dtype), trained, params)
        one = jax.vmap(lambda x: loss(narrow, jax.tree.map(lambda y: y[None], x)))
        return widened(one(one_by_one(batch, params)))

    total, count = jax.tree.map(jnp.zeros_like, wide_params), 0
    for batch in batches:
        _, along = jax.jvp(lambda t, b=batch: losses(t, b), (wide_params,), (v,))
        _, back = jax.vjp(lambda t, b=batch: losses(t, b), wide_params)
        total = jax.tree.map(jnp.add, total, back(along)[0])
        count += gradients.num_examples(batch)
    return jax.tree.map(lambda t: t / count, total)
