"""Methods that look across the original's boundary: boundary shrinking and AMUN.

They need the inputs of a batch as floats, and a batch with other inputs:
``get_inputs`` and ``set_inputs``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mujax import transforms
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
        loss = _mean(_cross_entropy(ours.logits, labels), ours.weights)
        return loss, (ours.model_state, None)

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


def amun(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    get_inputs: Callable[[PyTree], jax.Array],
    set_inputs: Callable[[PyTree, jax.Array], PyTree],
    share: transforms.Scalar = 0.1,
    size: float | jax.Array = 0.5,
    radii: int = 4,
    attack_steps: int = 50,
    bounds: tuple[float, float] = (0.0, 1.0),
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`(1 - s) \ell(D_r) + s \, \ell(D_a)` (AMUN).

    :math:`D_a` has for each forget example its neighbour in the smallest of the balls
    of radius :math:`\epsilon, 2 \epsilon, 4 \epsilon, \dots` in which a projected
    gradient ascent on the original's loss finds another class, with the most likely
    wrong class there as its label. In the last ball that class counts also where the
    true one is still ahead.

    Args:
      outputs_fn: outputs in training mode, with true labels; the statistics move with
        the retain batch alone.
      optimizer: any optax transform.
      get_inputs: ``batch -> x``, the inputs (B, …) as floats within ``bounds``.
      set_inputs: ``(batch, x) -> batch`` with these inputs in their place.
      share: :math:`s` in [0, 1]; the share of the forget set makes all examples count
        alike, as published. A number or a schedule of the step.
      size: :math:`\epsilon`, an Euclidean length in units of the inputs.
      radii: number of balls.
      attack_steps: steps of the ascent in each.
      bounds: lowest and highest value of an input.
      eval_outputs_fn: the original's outputs, in evaluation mode; ``outputs_fn`` if
        None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set with a forget batch beside every step. The
      neighbours are found anew in each step, which takes ``radii · attack_steps``
      gradients of the inputs.

    Raises:
      ValueError: ``radii`` or ``attack_steps`` below 1.

    Example:
      >>> from mujax.methods import Outputs
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> method = amun(
      ...     outputs_fn,
      ...     optax.sgd(1.0),
      ...     get_inputs=lambda batch: batch[0],
      ...     set_inputs=lambda batch, x: (x, batch[1]),
      ...     share=1.0,
      ... )
      >>> state = method.init(jnp.eye(2))
      >>> batch = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> state, _ = method.step(state, batch, forget_batch=batch)
      >>> logits = batch[0] @ method.finish(state)[0]
      >>> logits.argmax()  # what was class 0 has been taught the other one
      Array(1, dtype=int32)

    Reference:
      `AMUN (2025) <https://arxiv.org/abs/2503.00917>`_.
    """
    if radii < 1 or attack_steps < 1:
        raise ValueError(
            f"Got radii={radii} and attack_steps={attack_steps}, wanted at least 1."
        )
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn

    def loss_fn(params, model_state, batch, key):
        ours = outputs_fn(params, model_state, batch, key)
        loss = _mean(_cross_entropy(ours.logits, ours.labels), ours.weights)
        return loss, (ours.model_state, None)

    def away(params, model_state, batch, key):
        inside, labels = batch
        ours = look(params, model_state, inside, key)
        # The engine negates this one, for methods that ascend.
        return -_mean(_cross_entropy(ours.logits, labels), ours.weights), ((), None)

    def nearest(fixed, batch):
        original, original_state = fixed
        x = get_inputs(batch)
        labels = look(original, original_state, batch, None).labels

        def logits_of(inputs):
            there = set_inputs(batch, inputs)
            return look(original, original_state, there, None).logits

        found, done = x, jnp.zeros(len(x), bool)
        for i in range(radii):
            near = _ascend(logits_of, x, labels, size * 2**i, attack_steps, bounds)
            found = jnp.where(_along(done, x), found, near)
            done |= jnp.argmax(logits_of(near), -1) != labels
        logits = logits_of(found)
        true = jnp.arange(logits.shape[-1]) == labels[:, None]
        wrong = jnp.argmax(jnp.where(true, -jnp.inf, logits), axis=-1)
        return set_inputs(batch, found), wrong

    def start(params, model_state, forget_batches, mask):
        del forget_batches
        return base.Start(params, (params, model_state), mask)

    method = base.descend(
        loss_fn,
        optax.chain(transforms.blend_updates(_rest(share)), optimizer),
        base.DataUse(passes=((base.RETAIN,),), companion="sampled", epochs=10),
        start=start,
        forget_loss_fn=away,
        axis_name=axis_name,
    )

    def step(state, batch, *, forget_batch=None, **options):
        if forget_batch is not None:
            forget_batch = jax.lax.stop_gradient(nearest(state.fixed, forget_batch))
        return method.step(state, batch, forget_batch=forget_batch, **options)

    return method._replace(step=step)


def _ascend(logits_of, x, labels, radius, steps: int, bounds) -> jax.Array:
    """Where projected gradient ascent on the loss leads within a ball."""

    def loss(inputs):
        return jnp.sum(_cross_entropy(logits_of(inputs), labels))

    def one(_, moved):
        gradient = jax.grad(loss)(x + moved)
        moved = moved + 2.5 * radius / steps * _unit(gradient)
        length = _length(moved)
        moved = moved * jnp.minimum(1, radius / jnp.maximum(length, 1e-12))
        return (jnp.clip(x + moved, *bounds) - x).astype(x.dtype)

    return x + jax.lax.fori_loop(0, steps, one, jnp.zeros_like(x))


def _length(x: jax.Array) -> jax.Array:
    """Euclidean length of each example, for broadcasting."""
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(_length(x), 1e-12)


def _along(chosen: jax.Array, x: jax.Array) -> jax.Array:
    """A number for each example, for broadcasting."""
    return chosen.reshape(-1, *[1] * (x.ndim - 1))


def _rest(share: transforms.Scalar) -> transforms.Scalar:
    """What the retain loss counts."""
    return (lambda step: 1 - share(step)) if callable(share) else 1 - share


def _mean(losses, weights):
    """Mean of weighted losses."""
    return jnp.mean(losses if weights is None else weights * losses)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
