"""ESD: train a model away from what its original would have answered.

Gandikota et al. (2023), *Erasing Concepts from Diffusion Models*, arXiv:2303.07345.

The loss looks at the trained parameters and at the frozen original ones; with
:func:`mujax.diffusion.erase_loss` the model answers the erased condition as the
original, guided away from it, would. No retain data.
"""

import optax

from mujax.methods import base


def esd(
    loss_fn: base.PairLossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends a loss on :math:`D_f` that compares with the original, frozen model.

    A mask given to ``init`` restricts which parameters move.

    Args:
      loss_fn: ``(params, original, model_state, batch, key) -> (loss, (model_state,
        aux))``, the mean over the batch.
      optimizer: any optax transform.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the forget set with its own labels.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, original, model_state, batch, key):
      ...     return jnp.sum((w + original) ** 2) / 2, (model_state, None)
      >>> method = esd(loss_fn, optax.sgd(1.0))
      >>> state = method.init(jnp.array([1.0, -3.0]))
      >>> method.finish(method.step(state, batch=None)[0])[0]
      Array([-1.,  3.], dtype=float32)

    Reference:
      `Gandikota et al. (2023) <https://arxiv.org/abs/2303.07345>`_.
    """

    def start(params, model_state, forget_batches, mask):
        del model_state, forget_batches
        return base.Start(params, params, mask)

    return base.descend(
        loss_fn,
        optimizer,
        base.DataUse(passes=((base.FORGET,),)),
        start=start,
        original=lambda fixed: fixed,
        axis_name=axis_name,
    )
