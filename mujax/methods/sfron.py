"""SFRon: salient, weighted ascent on the forget set between steps on the retain set.

Huang et al. (2024), *Unified Gradient-Based Machine Unlearning with Remain Geometry
Enhancement*, arXiv:2409.19732; with an optimiser of its own for the forget steps, as in
*DualOptim* (2025), arXiv:2504.15827.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from mujax import gradients
from mujax._programs import Adapted
from mujax._trees import PyTree, select
from mujax.methods import base
from mujax.methods.distillation import OutputsFn


def sfron(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    forget_optimizer: optax.GradientTransformation,
    *,
    every: int = 5,
    power: float | jax.Array = 0.5,
    importance: float | jax.Array = 1.0,
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_r)`, and every few steps ascends on :math:`D_f` first.

    A forget step descends, on the weights with :math:`F_f \ge \gamma F_r` alone,

    .. math:: - \frac 1 B \sum_i w_i \ell_i, \quad
       w_i \propto \ell_i^{-\lambda}, \quad \frac 1 B \sum_i w_i = 1

    so that examples which are forgotten already count less; F are the means over
    examples of squared gradients at the original. The released program's slow copy of
    the weights moves with a factor of 1.0, which does nothing, and is left out.

    Args:
      outputs_fn: outputs in training mode; the statistics move with the retain batch.
      optimizer: any optax transform, for the retain steps.
      forget_optimizer: another one for the forget steps, with a state of its own; the
        paper clips the norm to 7 and lets a large rate fall along a cosine.
      every: a forget step stands before every so many retain steps, the first included.
      power: :math:`\lambda`.
      importance: :math:`\gamma`; 0 lets all weights move.
      eval_outputs_fn: outputs in evaluation mode, for forget steps and F;
        ``outputs_fn`` if None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set with a forget batch beside every step. ``init``
      wants ``retain_batches`` beside the forget batches (``data_use.retain_at_start``).

    Raises:
      ValueError: from ``init``, without batches; ``every`` below 1.

    Example:
      >>> from mujax.methods import Outputs
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> method = sfron(outputs_fn, optax.sgd(0.0), optax.sgd(1.0))
      >>> forget = jnp.array([[1.0, 0.0]]), jnp.array([0])
      >>> retain = jnp.array([[0.0, 1.0]]), jnp.array([0])
      >>> state = method.init(jnp.zeros((2, 2)), (), [forget], retain_batches=[retain])
      >>> state, _ = method.step(state, retain, forget_batch=forget)
      >>> method.finish(state)[0]
      Array([[-0.5,  0.5],
             [ 0. ,  0. ]], dtype=float32)

    Reference:
      `Huang et al. (2024) <https://arxiv.org/abs/2409.19732>`_.
    """
    if every < 1:
        raise ValueError(f"Got every={every}, wanted at least 1.")
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn
    forget_tx = optax.with_extra_args_support(forget_optimizer)

    def ascended(params, model_state, batch, key):
        losses, weights, _ = _rows(look, params, model_state, batch, key)
        forgotten = jax.lax.stop_gradient(jnp.maximum(losses, 1e-6)) ** -power
        ours = weights * forgotten
        ours = ours * (jnp.mean(weights) / jnp.mean(ours))
        return -base.mean_over(axis_name, jnp.mean(ours * losses))

    method = base.descend(
        Adapted(_mean_loss, outputs_fn),
        optimizer,
        base.DataUse(
            passes=((base.RETAIN,),),
            companion="sampled",
            epochs=5,
            retain_at_start=True,
        ),
        axis_name=axis_name,
    )

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
        state = method.init(params, model_state, mask=mask)
        forget = base.need_batches(forget_batches, base.FORGET, "SFRon's mask")
        retain = base.need_batches(retain_batches, base.RETAIN, "SFRon's mask")
        loss = base.plain_loss(Adapted(_mean_loss, look), model_state)
        ours, others = (
            base.mean_over(
                axis_name, gradients.mean_squared_gradient(loss, params, batches)
            )
            for batches in (forget, retain)
        )
        salient = jax.tree.map(lambda f, r: f >= importance * r, ours, others)
        if state.mask is not None:
            salient = jax.tree.map(jnp.logical_and, salient, state.mask)
        both = (state.opt_state, forget_tx.init(state.trained))
        return state._replace(fixed=salient, opt_state=both)

    def step(state, batch, *, forget_batch=None, key=None, **extra_args):
        if forget_batch is None:
            raise ValueError(
                "step got forget_batch=None, but this method steps on both sets: give "
                "a batch of the forget set (see data_use)."
            )
        retain_key, forget_key = (None, None) if key is None else jax.random.split(key)
        retain_state, forget_state = state.opt_state

        def away(given):
            params, forget_state = given
            grads = jax.grad(ascended)(
                params, state.model_state, forget_batch, forget_key
            )
            grads = jax.tree.map(jnp.conj, base.mean_over(axis_name, grads))
            grads = jax.tree.map(
                lambda s, g: jnp.where(s, g, jnp.zeros_like(g)), state.fixed, grads
            )
            updates, forget_state = forget_tx.update(grads, forget_state, params)
            moved = optax.apply_updates(params, updates)
            return select(state.fixed, moved, params), forget_state

        trained, forget_state = jax.lax.cond(
            state.step % every == 0,
            away,
            lambda given: given,
            (state.trained, forget_state),
        )
        state = state._replace(trained=trained, opt_state=retain_state)
        state, info = method.step(state, batch, key=retain_key, **extra_args)
        return state._replace(opt_state=(state.opt_state, forget_state)), info

    return method._replace(init=init, step=step)


def _mean_loss(look: OutputsFn, params, model_state, batch, key):
    """The mean cross-entropy as a loss function."""
    losses, weights, model_state = _rows(look, params, model_state, batch, key)
    return jnp.mean(weights * losses), (model_state, None)


def _rows(look: OutputsFn, params, model_state, batch, key):
    """Cross-entropies (B,), their weights (B,), and the model's state."""
    ours = look(params, model_state, batch, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        ours.logits.astype(jnp.float32), ours.labels
    )
    weights = jnp.ones_like(losses) if ours.weights is None else ours.weights
    return losses, weights, ours.model_state
