"""Ascent on the forget set: alone (GA), or beside retain steps (NegGrad+, GDR-GMA)."""

import jax
import optax

from mujax import transforms
from mujax.methods import base


def gradient_ascent(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`-\ell(D_f)` (GA).

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform; a small learning rate, for the loss is unbounded.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the forget set.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(w * batch), (model_state, None)
      >>> method = gradient_ascent(loss_fn, optax.sgd(1.0))
      >>> state, info = method.step(method.init(jnp.float32(1)), jnp.ones(2))
      >>> method.finish(state)[0]
      Array(2., dtype=float32)

    Reference:
      `Thudi et al. (2022) <https://arxiv.org/abs/2109.13398>`_.
    """
    data_use = base.DataUse(passes=((base.FORGET,),), epochs=5)
    return base.descend(loss_fn, optimizer, data_use, sign=-1.0, axis_name=axis_name)


def neggrad_plus(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    retain_share: transforms.Scalar = 0.95,
    combine: optax.GradientTransformation | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\alpha \ell(D_r) - (1 - \alpha) \ell(D_f)` (NegGrad+).

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move with the retain batch alone.
      optimizer: any optax transform.
      retain_share: :math:`\alpha`, a number or a schedule of the step.
      combine: another rule in place of the weighted sum, such as
        :func:`mujax.transforms.correct_updates`.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set with a forget batch beside every step.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(w * batch), (model_state, None)
      >>> method = neggrad_plus(loss_fn, optax.sgd(1.0), retain_share=0.75)
      >>> state = method.init(jnp.float32(0))
      >>> state, _ = method.step(state, jnp.ones(2), forget_batch=2 * jnp.ones(2))
      >>> method.finish(state)[0]
      Array(-0.25, dtype=float32)

    Reference:
      `Kurmanji et al. (2023) <https://arxiv.org/abs/2302.09880>`_.
    """
    combine = transforms.blend_updates(retain_share) if combine is None else combine
    return base.descend(
        loss_fn,
        optax.chain(combine, optimizer),
        base.DataUse(passes=((base.RETAIN,),), companion="sampled", epochs=5),
        forget_loss_fn=loss_fn,
        axis_name=axis_name,
    )


def gdr_gma(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    level: float | jax.Array = 0.02,
    slope: float | jax.Array = 100.0,
    axis_name: str | None = None,
) -> base.Method:
    r"""NegGrad+ without conflicts, that yields where the retain loss grows (GDR-GMA).

    Gradient directions are rectified and their magnitudes adjusted as in
    :func:`mujax.transforms.rectify_updates`.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move with the retain batch alone.
      optimizer: any optax transform; the authors' is AdamW.
      level: retain loss at which both gradients count alike.
      slope: how fast forgetting yields to a larger loss.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set with a forget batch beside every step.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = gdr_gma(loss_fn, optax.sgd(1.0), level=0.0)
      >>> state, retain = method.init(jnp.zeros(2)), jnp.array([[1.0, 0.0]])
      >>> state, _ = method.step(state, retain, forget_batch=jnp.array([[1.0, -1.0]]))
      >>> method.finish(state)[0]
      Array([-0.25, -0.75], dtype=float32)

    Reference:
      Lin et al. (2024), *GDR-GMA: Machine Unlearning via Direction-Rectified and
      Magnitude-Adjusted Gradients*, ACM Multimedia.
    """
    return neggrad_plus(
        loss_fn,
        optimizer,
        combine=transforms.rectify_updates(level, slope),
        axis_name=axis_name,
    )
