"""Fine-tuning on the retain set, and training anew on it.

Both descend the retain loss. Fine-tuning starts from the original model and hopes
that what is not rehearsed is forgotten; retraining starts from new parameters and is
exact unlearning: the reference that every other method is measured against.
"""

import optax

from mujax.methods import base


def finetune(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_r)` from the original parameters (FT).

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean((w - batch) ** 2), (model_state, None)
      >>> method = finetune(loss_fn, optax.sgd(0.25))
      >>> state, info = method.step(method.init(jnp.float32(0)), jnp.ones(2))
      >>> method.finish(state)[0]
      Array(0.5, dtype=float32)

    Reference:
      `Warnecke et al. (2021) <https://arxiv.org/abs/2108.11577>`_.
    """
    data_use = base.DataUse(passes=((base.RETAIN,),), epochs=10)
    return base.descend(loss_fn, optimizer, data_use, axis_name=axis_name)


def retrain(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_r)` from new parameters: exact unlearning.

    ``data_use.fresh_start`` asks the loop for newly initialised parameters; use the
    original model's own recipe for everything else. Args as in :func:`finetune`.

    Returns:
      The method; reads the retain set.

    Example:
      >>> loss_fn = lambda p, s, b, k: (p, (s, None))
      >>> retrain(loss_fn, optax.sgd(0.1)).data_use.fresh_start
      True
    """
    data_use = base.DataUse(passes=((base.RETAIN,),), epochs=182, fresh_start=True)
    return base.descend(loss_fn, optimizer, data_use, axis_name=axis_name)
