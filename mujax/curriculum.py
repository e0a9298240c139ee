"""How hard each example is to forget, and the stages made of it (CUFG).

CUFG: *CUFG: Curriculum Unlearning Guided by the Forgetting Gradient*,
arXiv:2509.14633.

CUFG forgets D_f in stages, easy examples first. The paper's own score is not public,
so the score is any function of single examples: six are here, random order as the
control among them, all float32 of shape (N,) and larger for harder. Stages split the
examples by quantile of any score. All but :func:`stage_indices` work under ``jit``
and ``vmap``; the two scores made of gradients compile once for a loss.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mujax import gradients
from mujax._checks import check_count, check_labels, in_range
from mujax._meshes import num_shards, on_auto_axes, one_by_one
from mujax._programs import program
from mujax._trees import PyTree, match, widened


def confidence_difficulty(
    probs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike
) -> jax.Array:
    r"""Lack of confidence in the true class.

    .. math:: d_i = 1 - p_{i, y_i}

    Args:
      probs: softmax outputs, (N, K).
      labels: true labels in [0, K), (N,).

    Returns:
      Difficulties in [0, 1], float32 (N,); NaN inside ``jit`` where a label is no
      class.

    Raises:
      ValueError: the shapes do not fit each other, or a label is outside [0, K).
      TypeError: the labels are not integers.

    Example:
      >>> confidence_difficulty(jnp.array([[0.75, 0.25]]), jnp.array([0]))
      Array([0.25], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_ for the curriculum.
    """
    return 1 - _true_class(probs, labels)


def el2n(probs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike) -> jax.Array:
    r"""Norm of the error vector (EL2N).

    .. math:: d_i = \lVert p_i - \mathrm{onehot}(y_i) \rVert_2

    Args:
      probs: softmax outputs, (N, K).
      labels: true labels in [0, K), (N,).

    Returns:
      Difficulties in [0, √2], float32 (N,); NaN inside ``jit`` where a label is no
      class.

    Raises:
      ValueError: the shapes do not fit each other, or a label is outside [0, K).
      TypeError: the labels are not integers.

    Example:
      >>> el2n(jnp.array([[0.0, 0.0, 1.0], [0.0, 0.6, 0.4]]), jnp.array([2, 1]))
      Array([0.       , 0.5656854], dtype=float32)

    Reference:
      `Paul et al. (2021) <https://arxiv.org/abs/2107.07075>`_.
    """
    probs, labels = _check_outputs(probs, labels)
    return jnp.linalg.norm(
        probs - jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype), axis=1
    )


def loss_difficulty(
    probs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike
) -> jax.Array:
    r"""Cross-entropy of each example.

    .. math:: d_i = -\log p_{i, y_i}

    A probability of zero counts as the smallest normal float32: 87.3, not infinity.

    Args:
      probs: softmax outputs, (N, K).
      labels: true labels in [0, K), (N,).

    Returns:
      Difficulties in nats, float32 (N,); NaN inside ``jit`` where a label is no class.

    Raises:
      ValueError: the shapes do not fit each other, or a label is outside [0, K).
      TypeError: the labels are not integers.

    Example:
      >>> loss_difficulty(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([0, 1]))
      Array([ 0.6931472, 87.33655  ], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_ for the curriculum.
    """
    floor = jnp.finfo(jnp.float32).tiny
    return -jnp.log(jnp.maximum(_true_class(probs, labels), floor))


def gradient_norm(
    loss_fn: gradients.LossFn, params: PyTree, examples: PyTree, *, batch_size: int = 32
) -> jax.Array:
    r"""Norm of each example's gradient over all parameters (GraNd).

    .. math:: d_i = \lVert \nabla_\theta \ell(\theta; \{x_i\}) \rVert_2

    Args:
      loss_fn: ``(params, batch) -> scalar``, in evaluation mode; it is given batches
        of one example, whose leading axis stays.
      params: any tree of floating-point arrays.
      examples: a tree whose leaves lead with the example axis of length N.
      batch_size: gradients held at a time, each as large as ``params``.

    Returns:
      Difficulties >= 0, float32 (N,); a gradient that is not finite gives NaN.

    Raises:
      ValueError: there is no example, the leading axes differ, or the batch size is
        below 1.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x @ w)
      >>> gradient_norm(loss_fn, jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 1.0]]))
      Array([5., 1.], dtype=float32)

    Reference:
      `Paul et al. (2021) <https://arxiv.org/abs/2107.07075>`_.
    """
    return _map_gradients(_norm, loss_fn, params, examples, batch_size)


def gradient_alignment(
    loss_fn: gradients.LossFn,
    params: PyTree,
    examples: PyTree,
    retain_grads: PyTree,
    *,
    batch_size: int = 32,
) -> jax.Array:
    r"""Cosine of each example's gradient with the mean retain gradient.

    .. math:: d_i = \cos(\nabla_\theta \ell(\theta; \{x_i\}), \bar g_r)

    Descending the retain loss descends the loss of an example of high cosine too, so
    that forgetting it conflicts with retaining: it is hard.

    Args:
      loss_fn: ``(params, batch) -> scalar``, in evaluation mode; it is given batches
        of one example, whose leading axis stays.
      params: any tree of floating-point arrays.
      examples: a tree whose leaves lead with the example axis of length N.
      retain_grads: the mean gradient of the same loss over D_r, like ``params``.
      batch_size: gradients held at a time, each as large as ``params``.

    Returns:
      Difficulties in [-1, 1], float32 (N,); 0 where either gradient is zero, NaN where
      one is not finite.

    Raises:
      ValueError: the trees differ, there is no example, the leading axes differ, or
        the batch size is below 1.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x @ w)
      >>> examples = jnp.array([[2.0, 0.0], [-3.0, 4.0], [0.0, 0.0]])
      >>> gradient_alignment(loss_fn, jnp.zeros(2), examples, jnp.array([5.0, 0.0]))
      Array([ 1. , -0.6,  0. ], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_ for the curriculum.
    """
    retain_grads = match(retain_grads, params, "retain_grads", "params")
    direction, _ = _normalise(retain_grads)
    return _map_gradients(_cosine, loss_fn, params, examples, batch_size, direction)


def random_difficulty(key: jax.Array, num_examples: int) -> jax.Array:
    """Random order without ties: the control that knows nothing of the examples.

    Args:
      key: a typed PRNG key.
      num_examples: N, fewer than 2²⁴.

    Returns:
      A uniformly random permutation of 0 … N − 1, float32 (N,).

    Raises:
      ValueError: N is below 1 or too large for distinct float32 numbers.

    Example:
      >>> random_difficulty(jax.random.key(0), 4).sum()
      Array(6., dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_ for the curriculum.
    """
    num_examples = check_count(num_examples, "num_examples", least=0)
    if not 1 <= num_examples < 1 << 24:
        raise ValueError(
            f"Got num_examples={num_examples}, wanted from 1 to 2**24 - 1."
        )
    return jax.random.permutation(key, num_examples).astype(jnp.float32)


def assign_stages(difficulty: jax.typing.ArrayLike, num_stages: int) -> jax.Array:
    r"""Splits the examples by quantile of their difficulty.

    .. math:: s_i = \lfloor S \, \mathrm{rank}(d_i) / N \rfloor

    Args:
      difficulty: real scores, larger for harder, (N,); NaN is the hardest.
      num_stages: :math:`S` in [1, N], static under ``jit``.

    Returns:
      The stage of each example, int32 (N,), 0 for the easiest. Sizes differ by at most
      one; of equal scores the lower index is taken as the easier.

    Raises:
      ValueError: the scores are not one axis, or S is outside [1, N].

    Example:
      >>> assign_stages(jnp.array([0.9, 0.1, 0.5, 0.2]), 2)
      Array([1, 0, 1, 0], dtype=int32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_.
    """
    difficulty = jnp.asarray(difficulty)
    if difficulty.ndim != 1:
        raise ValueError(
            f"Got difficulty of shape {difficulty.shape}, wanted (N,); vmap any other "
            "axis."
        )
    count = difficulty.size
    num_stages = check_count(num_stages, "num_stages", least=0)
    if not 1 <= num_stages <= count:
        raise ValueError(
            f"Got num_stages={num_stages}, wanted from 1 to the {count} examples."
        )
    # On the host, in int64: N·S may exceed int32.
    stage_of_rank = np.arange(count) * num_stages // count
    easy_to_hard = on_auto_axes(lambda d: jnp.argsort(d, stable=True), difficulty)
    stages = jnp.zeros(count, jnp.int32)
    return stages.at[easy_to_hard].set(jnp.asarray(stage_of_rank, jnp.int32))


def stage_indices(
    difficulty: jax.typing.ArrayLike,
    num_stages: int,
    *,
    order: Sequence[int] | None = None,
) -> tuple[np.ndarray, ...]:
    """Lists the examples of every stage, in the order they are forgotten; on the host.

    Args:
      difficulty: real scores, larger for harder, (N,).
      num_stages: number of stages, from 1 to N.
      order: a permutation of ``range(num_stages)``; easy to hard by default.

    Returns:
      One array of indices, each ascending, for every stage of the order.

    Raises:
      ValueError: the order is no permutation, or as in :func:`assign_stages`.

    Example:
      >>> stage_indices(jnp.array([0.9, 0.1, 0.5, 0.2]), 2, order=(1, 0))
      (array([0, 2]), array([1, 3]))

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_.
    """
    stages = np.asarray(assign_stages(difficulty, num_stages))
    order = list(range(num_stages)) if order is None else list(order)
    if sorted(order) != list(range(num_stages)):
        raise ValueError(
            f"Got order={order}, wanted each of 0 to {num_stages - 1} exactly once."
        )
    return tuple(np.flatnonzero(stages == stage) for stage in order)


def _map_gradients(
    score: Callable[..., jax.Array],
    loss_fn: gradients.LossFn,
    params: PyTree,
    examples: PyTree,
    batch_size: int,
    *args: PyTree,
) -> jax.Array:
    """Scores the gradient of each example, ``batch_size`` gradients at a time."""
    gradients.num_examples(examples, "examples")
    batch_size = check_count(batch_size, "batch_size")
    examples = one_by_one(examples, params)
    shards = max(map(num_shards, jax.tree.leaves(examples)))
    run = program(_scores, loss_fn, score, batch_size, shards)
    return run(params, examples, *args)


def _scores(loss_fn, score, batch_size, shards, params, examples, *args):
    """Score of each example's gradient, every device looking at its own examples."""

    def score_one(example):
        one = jax.tree.map(lambda x: x[None], example)
        return score(gradients.gradient_of(loss_fn, params, one), *args)

    def score_part(part):
        return jax.lax.map(score_one, part, batch_size=max(1, batch_size // shards))

    if shards == 1:
        return score_part(examples)
    parts = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), examples)
    return jax.vmap(score_part)(parts).reshape(-1)


def _norm(gradient: PyTree) -> jax.Array:
    """Norm of a gradient."""
    return _normalise(gradient)[1]


def _cosine(gradient: PyTree, direction: PyTree) -> jax.Array:
    """Cosine of a gradient with a direction of norm 1 or 0."""
    unit, _ = _normalise(gradient)
    products = jax.tree.map(
        lambda u, d: jnp.sum(jnp.real(jnp.conj(u) * d)), unit, direction
    )
    return jnp.clip(jnp.sum(jnp.array(jax.tree.leaves(products))), -1, 1)


def _normalise(tree: PyTree) -> tuple[PyTree, jax.Array]:
    """Unit vector (zero stays zero) and norm, in float32 and without underflow."""
    tree = jax.tree.map(widened, tree)
    peaks = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]
    largest = jnp.max(jnp.array(peaks))
    scale = jnp.where(largest == 0, 1, largest)
    tree = jax.tree.map(lambda x: x / scale, tree)
    norm = jnp.sqrt(sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(tree)))
    safe = jnp.where(norm == 0, 1, norm)
    return jax.tree.map(lambda x: x / safe, tree), norm * scale


def _true_class(probs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike) -> jax.Array:
    """Probability of the true class, float32 (N,)."""
    probs, labels = _check_outputs(probs, labels)
    return jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0]


def _check_outputs(
    probs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Both as arrays, if they fit; probabilities are NaN where a label is no class."""
    probs, labels = jnp.asarray(probs, jnp.float32), jnp.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"Got probs {probs.shape} and labels {labels.shape}, wanted (N, K) and "
            "(N,)."
        )
    check_labels(labels, probs.shape[1])
    known = in_range(labels, probs.shape[1])
    return jnp.where(known[:, None], probs, jnp.nan), labels
