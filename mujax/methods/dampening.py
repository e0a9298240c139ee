"""Methods that look once at all data and then change the weights: SSD and Fisher.

Their steps only measure, at the original parameters; ``finish`` changes these. They
have no optimiser, and an epoch over the data is all that they need.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mujax import gradients
from mujax._trees import PyTree, check_inexact, check_mask, match, select, wide
from mujax.methods import base


def ssd(
    loss_fn: base.LossFn,
    *,
    threshold: float | jax.Array = 10.0,
    dampening: float | jax.Array = 1.0,
    axis_name: str | None = None,
) -> base.Method:
    r"""Dampens weights that matter to the forget set more than to all data (SSD).

    .. math:: \theta \leftarrow \theta \min(\lambda F_D / F_f, 1)
       \quad \text{where} \quad F_f > \alpha F_D

    with the importance F the mean over batches of the squared gradient of a batch, as
    released; with batches of one example it is the diagonal of the empirical Fisher
    information.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        evaluation mode.
      threshold: :math:`\alpha`.
      dampening: :math:`\lambda`.
      axis_name: mapped axis to average over.

    Returns:
      The method; ``init`` reads the forget batches, the steps forget and retain set
      together, once. Give all batches one size.

    Example:
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = ssd(loss_fn, threshold=2.0)
      >>> forget, other = jnp.array([[2.0, 1.0]]), jnp.array([[0.0, 1.0]])
      >>> state = method.init(jnp.ones(2), (), [forget])
      >>> for batch in (forget, other, other, other):
      ...     state, _ = method.step(state, batch)
      >>> method.finish(state)[0]
      Array([0.25, 1.  ], dtype=float32)

    Reference:
      `Foster et al. (2024) <https://arxiv.org/abs/2308.07707>`_.
    """

    def squared(params, model_state, batch):
        grads = jax.grad(base.plain_loss(loss_fn, model_state))(params, batch)
        grads = base.mean_over(axis_name, grads)
        return jax.tree.map(_square, grads)

    def start(params, model_state, forget_batches):
        batches = list(
            base.need_batches(forget_batches, base.FORGET, "SSD's importance")
        )
        squares = [squared(params, model_state, batch) for batch in batches]
        return jax.tree.map(lambda *x: sum(x) / len(x), *squares)

    def end(params, importance, total, count, key_data):
        del key_data

        def dampened(p, f, d):
            d = d / count
            factor = jnp.minimum(dampening * d / jnp.where(f > 0, f, 1), 1)
            return jnp.where(f > threshold * d, (factor * p).astype(p.dtype), p)

        return jax.tree.map(dampened, params, importance, total)

    passes = ((base.FORGET, base.RETAIN),)
    return _measure(loss_fn, squared, start, end, passes, axis_name)


def fisher(
    loss_fn: base.LossFn,
    *,
    noise: float | jax.Array = 1e-6,
    cap: float | jax.Array = 1e-3,
    num_classes: int | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Adds noise where the retain set does not mind it, clamped (Fisher forgetting).

    .. math:: \theta \leftarrow \theta + \xi \min(\sqrt{\alpha / F_r}, c),
       \quad \xi \sim N(0, 1)

    with F the mean over examples of the squared gradient of one example. The clamp
    decides nearly everywhere, in the released program as here.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        evaluation mode.
      noise: :math:`\alpha`.
      cap: :math:`c`, the largest standard deviation.
      num_classes: leaves whose last axis has this length get ten times the noise, as in
        the released program; None for no leaf.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set once. ``step`` wants a key; that of the first
      step makes the noise.

    Raises:
      ValueError: from ``step``, without a key.

    Example:
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = fisher(loss_fn, noise=1e-12, cap=1.0)
      >>> state = method.init(jnp.zeros(2))
      >>> batch = jnp.array([[1.0, 0.0]])  # nothing holds the second weight
      >>> state, _ = method.step(state, batch, key=jax.random.key(0))
      >>> jnp.abs(method.finish(state)[0]).round(2) > 0
      Array([False,  True], dtype=bool)

    Reference:
      `Golatkar et al. (2020) <https://arxiv.org/abs/1911.04933>`_.
    """

    def squared(params, model_state, batch):
        loss = base.plain_loss(loss_fn, model_state)
        grads = gradients.example_gradients(loss, params, batch)
        return base.mean_over(
            axis_name, jax.tree.map(lambda g: _square(g).mean(0), grads)
        )

    def end(params, fixed, total, count, key_data):
        del fixed
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.wrap_key_data(key_data), len(leaves))
        moved = []
        for key, p, f in zip(keys, leaves, jax.tree.leaves(total), strict=True):
            information = jnp.maximum(f / count, 1e-30)
            deviation = jnp.minimum(jnp.sqrt(noise / information), cap)
            if num_classes is not None and p.ndim and p.shape[-1] == num_classes:
                deviation = 10 * deviation
            drawn = jax.random.normal(key, p.shape, deviation.dtype)
            moved.append((p + deviation * drawn).astype(p.dtype))
        return jax.tree.unflatten(structure, moved)

    passes = ((base.RETAIN,),)
    method = _measure(loss_fn, squared, lambda *_: (), end, passes, axis_name)

    def step(state, batch, *, key=None, **options):
        if key is None:
            raise ValueError("step got key=None, wanted one to draw the noise.")
        return method.step(state, batch, key=key, **options)

    return method._replace(step=step)


def _measure(
    loss_fn: base.LossFn,
    squared: Callable[[PyTree, PyTree, PyTree], PyTree],
    start: Callable[..., PyTree],
    end: Callable[..., PyTree],
    passes: tuple[tuple[str, ...], ...],
    axis_name: str | None,
) -> base.Method:
    """A method whose steps add up squared gradients.

    Args:
      loss_fn: for the loss that is reported.
      squared: ``(params, model_state, batch) -> squares``.
      start: ``(params, model_state, forget_batches) -> fixed``.
      end: ``(params, fixed, total, count, key_data) -> params``.
      passes: what is read.
      axis_name: mapped axis.
    """

    def init(params, model_state=(), forget_batches=None, *, mask=None):
        check_inexact(params, "params")
        if mask is not None:
            check_mask(mask)
            mask = match(mask, params, "mask", "params")
        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, wide(jnp.abs(p).dtype)), params
        )
        key_data = jnp.zeros_like(jax.random.key_data(jax.random.key(0)))
        state = base.State(
            trained=params,
            fixed=start(params, model_state, forget_batches),
            model_state=model_state,
            opt_state=(zeros, key_data),
            mask=mask,
            forget_grads=None,
            step=jnp.zeros([], jnp.int32),
        )
        return jax.tree.map(jnp.copy, state)

    def step(state, batch, *, forget_batch=None, key=None, **extra_args: Any):
        del forget_batch, extra_args
        total, key_data = state.opt_state
        loss, (_, aux) = loss_fn(state.trained, state.model_state, batch, None)
        squares = squared(state.trained, state.model_state, batch)
        total = jax.tree.map(lambda t, s: t + s.astype(t.dtype), total, squares)
        if key is not None:
            # Keys of any kind make the words of the one that is kept.
            first = jax.random.bits(key, key_data.shape, key_data.dtype)
            key_data = jnp.where(state.step == 0, first, key_data)
        loss = base.mean_over(axis_name, loss).astype(jnp.float32)
        new = state._replace(opt_state=(total, key_data), step=state.step + 1)
        return new, base.StepInfo(loss, aux)

    def finish(state):
        total, key_data = state.opt_state
        count = jnp.maximum(state.step, 1)
        moved = end(state.trained, state.fixed, total, count, key_data)
        moved = jax.tree.map(
            lambda m, p: jnp.where(state.step > 0, m, p), moved, state.trained
        )
        if state.mask is not None:
            moved = select(state.mask, moved, state.trained)
        return moved, state.model_state

    return base.Method(init, step, finish, base.DataUse(passes=passes, epochs=1))


def _square(x: jax.Array) -> jax.Array:
    """Squared magnitude, in a type that holds sums."""
    return jnp.square(jnp.abs(x).astype(wide(jnp.abs(x).dtype)))
