"""Gradients over a whole data set, in float32 and one batch at a time.

What the methods know of the data they must forget is a gradient: SalUn ranks its
entries, SEMU takes its singular directions, CUFG bends the retain gradient with it.
Each function here takes ``loss_fn(params, batch) -> scalar`` (the mean over the
batch) and any iterable of batches, which may have different sizes.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from mujax._trees import PyTree

LossFn = Callable[[PyTree, PyTree], jax.Array]


def sum_gradients(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    transform: Callable[[jax.Array], jax.Array] = lambda gradient: gradient,
    weight: Callable[[PyTree], float] = lambda batch: 1.0,
) -> PyTree:
    r"""Sums the gradients of the batches.

    .. math:: G = \sum_b w_b \, T(\nabla_\theta \ell(\theta; b))

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch.
      params: any tree of floating-point arrays.
      batches: an iterable of batches; inside ``jit`` a list or a tuple.
      transform: element-wise function of each batch's gradient.
      weight: the weight of a batch; one by default.

    Returns:
      A float32 tree of the structure and shapes of ``params``.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> sum_gradients(loss_fn, jnp.float32(1), [jnp.ones(4), 2 * jnp.ones(2)])
      Array(3., dtype=float32)
    """

    @jax.jit
    def add(total, batch):
        gradient = jax.grad(loss_fn)(params, batch)
        return jax.tree.map(
            lambda t, g: t + weight(batch) * transform(g.astype(jnp.float32)),
            total,
            gradient,
        )

    zero = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)
    total = None
    for batch in batches:
        total = add(zero if total is None else total, batch)
    if total is None:
        raise ValueError("Got no batch, wanted at least one; is the data set empty?")
    return total


def mean_gradient(loss_fn: LossFn, params: PyTree, batches: Iterable[PyTree]) -> PyTree:
    r"""The gradient of the mean loss over all examples of the batches.

    .. math:: \bar g = \frac{1}{\sum_b n_b} \sum_b n_b \nabla_\theta \ell(\theta; b)

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch.
      params: any tree of floating-point arrays.
      batches: an iterable of batches, whose leaves lead with the example axis;
        a batch counts by its size :math:`n_b`.

    Returns:
      A float32 tree of the structure and shapes of ``params``.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> mean_gradient(loss_fn, jnp.float32(1), [jnp.ones(3), 5 * jnp.ones(1)])
      Array(2., dtype=float32)
    """
    batches = list(batches)
    total = sum_gradients(loss_fn, params, batches, weight=_num_examples)
    count = sum(_num_examples(batch) for batch in batches)
    return jax.tree.map(lambda g: g / count, total)


def example_gradients(loss_fn: LossFn, params: PyTree, batch: PyTree) -> PyTree:
    r"""One gradient an example, :math:`g_i = \nabla_\theta \ell(\theta; \{x_i\})`.

    Args:
      loss_fn: ``(params, batch) -> scalar``; it is given batches of one example.
      params: any tree of floating-point arrays.
      batch: a tree whose leaves lead with the example axis of length n.

    Returns:
      A tree of the structure of ``params``; each leaf leads with an axis of length n.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> example_gradients(loss_fn, jnp.float32(1), jnp.array([1.0, 2.0]))
      Array([1., 2.], dtype=float32)
    """

    def gradient(example):
        one = jax.tree.map(lambda x: x[None], example)
        return jax.grad(loss_fn)(params, one)

    return jax.vmap(gradient)(batch)


def _num_examples(batch: PyTree) -> int:
    """Length of the leading axis."""
    return jax.tree.leaves(batch)[0].shape[0]
