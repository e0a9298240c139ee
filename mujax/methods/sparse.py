"""Fine-tuning towards sparse weights.

Jia et al. (2023), *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mujax._trees import PyTree
from mujax.methods import base
from mujax.transforms import Scalar


def l1_sparse(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 5e-4,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_r) + \alpha \Vert \theta \Vert_1`.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform; it is given the gradient with the penalty's.
      strength: :math:`\alpha`, a number or a schedule of the step; the paper lets it
        fall linearly to 0, ``optax.linear_schedule(5e-4, 0.0, steps)``. All parameters
        are penalised, biases and norms too.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set.

    Example:
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = l1_sparse(loss_fn, optax.sgd(1.0), strength=0.5)
      >>> state = method.init(jnp.array([2.0, -2.0]))
      >>> method.finish(method.step(state, jnp.array([[1.0, 1.0]]))[0])[0]
      Array([ 0.5, -2.5], dtype=float32)

    Reference:
      `Jia et al. (2023) <https://arxiv.org/abs/2304.04934>`_.
    """
    data_use = base.DataUse(passes=((base.RETAIN,),), epochs=10)
    chain = optax.chain(_penalty(strength), optimizer)
    return base.descend(loss_fn, chain, data_use, axis_name=axis_name)


class _Done(NamedTuple):
    steps: jax.Array


def _penalty(strength: Scalar) -> optax.GradientTransformation:
    """Adds the subgradient of the 1-norm, which is 0 at 0."""

    def init(params: PyTree) -> _Done:
        del params
        return _Done(jnp.zeros([], jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None):
        factor = strength(state.steps) if callable(strength) else strength

        def add(g, p):
            return (g + factor * jnp.sign(p)).astype(g.dtype)

        return jax.tree.map(add, updates, params), _Done(state.steps + 1)

    return optax.GradientTransformation(init, update)
