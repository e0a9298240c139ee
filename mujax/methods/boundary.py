"""Boundary shrinking: the forget set learns the class across the nearest boundary.

Chen et al. (2023), *Boundary Unlearning*, arXiv:2303.11570.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mujax._trees import PyTree
from mujax.methods import base
from mujax.methods.distillation import OutputsFn


def boundary_shrink(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    get_inputs: Callable[[PyTree], jax.Array],
    set_inputs: Callable[[PyTree, jax.Array], PyTree],
    size: float | jax.Array = 0.1,
    bounds: tuple[float, float] = (0.0, 1.0),
    levels: int | None = 255,
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Learns for each forget example what the original says of its neighbour.

    .. math:: x' = x + \epsilon \, \mathrm{sign} \nabla_x \ell(\theta_0; x, y),
       \quad y' = \arg\max_k z_k(\theta_0; x')

    and descends the cross-entropy of :math:`(x, y')`. A neighbour that the original
    takes for the true class keeps its label, as released.

    Args:
      outputs_fn: outputs in training mode, with true labels; the statistics move.
      optimizer: any optax transform.
      get_inputs: ``batch -> x``, the inputs (B, …) as floats within ``bounds``.
      set_inputs: ``(batch, x) -> batch`` with these inputs in their place.
      size: :math:`\epsilon`, in units of the inputs.
      bounds: lowest and highest value of an input; :math:`x'` is clipped to them.
      levels: :math:`x'` is rounded to so many steps between the bounds, as images are;
        None leaves it.
      eval_outputs_fn: the original's outputs, in evaluation mode; ``outputs_fn`` if
        None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the forget set alone.

    Example:
      >>> from mujax.methods import Outputs
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> method = boundary_shrink(
      ...     outputs_fn,
      ...     optax.sgd(1.0),
      ...     get_inputs=lambda batch: batch[0],
      ...     set_inputs=lambda batch, x: (x, batch[1]),
      ... )
      >>> state = method.init(jnp.eye(2))
      >>> batch = jnp.array([[0.55, 0.45]]), jnp.array([0])  # near the boundary
      >>> state, _ = method.step(state, batch)
      >>> (method.finish(state)[0] - jnp.eye(2)).round(2)
      Array([[-0.29,  0.29],
             [-0.24,  0.24]], dtype=float32)

    Reference:
      `Chen et al. (2023) <https://arxiv.org/abs/2303.11570>`_.
    """
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn
    low, high = bounds

    def crossed(fixed, batch):
        original, original_state = fixed

        def loss(x):
            theirs = look(original, original_state, set_inputs(batch, x), None)
            return jnp.sum(_cross_entropy(theirs.logits, theirs.labels))

        x = get_inputs(batch)
        near = jnp.clip(x + size * jnp.sign(jax.grad(loss)(x)), low, high)
        if levels is not None:
            near = low + jnp.round((near - low) / (high - low) * levels) * (
                (high - low) / levels
            )
        there = set_inputs(batch, near.astype(x.dtype))
        return jnp.argmax(look(original, original_state, there, None).logits, axis=-1)

    def loss_fn(params, fixed, model_state, batch, key):
        labels = jax.lax.stop_gradient(crossed(fixed, batch))
        ours = outputs_fn(params, model_state, batch, key)
        losses = _cross_entropy(ours.logits, labels)
        if ours.weights is not None:
            losses = ours.weights * losses
        return jnp.mean(losses), (ours.model_state, None)

    def start(params, model_state, forget_batches, mask):
        del forget_batches
        return base.Start(params, (params, model_state), mask)

    return base.descend(
        loss_fn,
        optimizer,
        base.DataUse(passes=((base.FORGET,),), epochs=10),
        start=start,
        original=lambda fixed: fixed,
        axis_name=axis_name,
    )


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
