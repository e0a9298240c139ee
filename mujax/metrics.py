"""Unlearning metrics of a classifier: UA, RA, TA, the average gap and ToW.

The table of Fan et al. (2024), arXiv:2310.12508, and the tug-of-war of Zhao et al.
(2024), arXiv:2406.01257.

Accuracies are in percent, come from outputs in evaluation mode, and work under
``jit`` and ``vmap``. A row of outputs that holds a NaN is wrong, never right, so that a
diverged model earns no accuracy (and a UA of 100). A label that is no class (255, −1)
is refused; inside ``jit``, where labels are unknown, the metric is NaN then. What a
method must reach is not UA 100 but Retrain: :func:`average_gap` and :func:`tow`
measure the distance to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from mujax._checks import check_labels, in_range


def accuracy(outputs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike) -> jax.Array:
    r"""Share of examples whose largest output is the true class, in percent.

    .. math:: \frac{100}{N} \sum_i [\arg\max_k z_{ik} = y_i]

    Args:
      outputs: logits or probabilities, (N, K); of equal outputs the first class wins,
        and a row with a NaN is wrong.
      labels: true labels in [0, K), (N,).

    Returns:
      A float32 scalar in [0, 100]; NaN inside ``jit`` if a label is outside [0, K).

    Raises:
      ValueError: there is no example, the shapes do not fit each other, or a label is
        outside [0, K).
      TypeError: the labels are not integers.

    Example:
      >>> accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0]))
      Array(50., dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    correct, known = _correct(outputs, labels)
    return _percent(jnp.sum(correct), jnp.where(known, correct.size, 0))


def unlearning_accuracy(
    forget_outputs: jax.typing.ArrayLike, forget_labels: jax.typing.ArrayLike
) -> jax.Array:
    r"""UA, the error on the forget set in percent.

    .. math:: \mathrm{UA} = 100 - \mathrm{acc}(D_f)

    Args:
      forget_outputs: logits or probabilities on D_f, (N, K).
      forget_labels: true labels in [0, K) of D_f, (N,).

    Returns:
      A float32 scalar in [0, 100].

    Raises:
      ValueError, TypeError: as in :func:`accuracy`.

    Example:
      >>> unlearning_accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([1, 1]))
      Array(50., dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    return 100 - accuracy(forget_outputs, forget_labels)


def retain_accuracy(
    retain_outputs: jax.typing.ArrayLike, retain_labels: jax.typing.ArrayLike
) -> jax.Array:
    r"""RA, the accuracy on the retain set in percent.

    .. math:: \mathrm{RA} = \mathrm{acc}(D_r)

    Args:
      retain_outputs: logits or probabilities on D_r, (N, K).
      retain_labels: true labels in [0, K) of D_r, (N,).

    Returns:
      A float32 scalar in [0, 100].

    Raises:
      ValueError, TypeError: as in :func:`accuracy`.

    Example:
      >>> retain_accuracy(jnp.array([[2.0, 1.0]]), jnp.array([0]))
      Array(100., dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    return accuracy(retain_outputs, retain_labels)


def test_accuracy(
    test_outputs: jax.typing.ArrayLike,
    test_labels: jax.typing.ArrayLike,
    *,
    exclude_class: int | None = None,
) -> jax.Array:
    r"""TA, the accuracy on the test set in percent, without a forgotten class.

    .. math:: \mathrm{TA} = \mathrm{acc}(\{(x, y) \in D_t : y \ne c\})

    Args:
      test_outputs: logits or probabilities on D_t, (N, K).
      test_labels: true labels in [0, K) of D_t, (N,).
      exclude_class: :math:`c`, the class that class-wise forgetting forgets; None
        keeps the whole test set.

    Returns:
      A float32 scalar in [0, 100].

    Raises:
      ValueError: as in :func:`accuracy`, or nothing is left without the class; inside
        ``jit``, where the labels are unknown, that gives NaN.

    Example:
      >>> outputs = jnp.array([[2.0, 1.0], [0.0, 3.0]])
      >>> test_accuracy(outputs, jnp.array([1, 1])).item()
      50.0
      >>> test_accuracy(outputs, jnp.array([0, 0]), exclude_class=1).item()
      50.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    if exclude_class is None:
        return accuracy(test_outputs, test_labels)
    correct, known = _correct(test_outputs, test_labels)
    kept = jnp.asarray(test_labels) != exclude_class
    if not isinstance(kept, Tracer) and not kept.any():
        raise ValueError(
            f"Got test labels of class {exclude_class} alone, which is excluded; give "
            "examples of another class."
        )
    return _percent(jnp.sum(correct & kept), jnp.where(known, jnp.sum(kept), 0))


def average_gap(
    row: Mapping[str, Any],
    reference: Mapping[str, Any],
    keys: Sequence[str] = ("ua", "ra", "ta", "mia"),
) -> Any:
    r"""Mean distance to Retrain over the metrics of the table, in percentage points.

    .. math:: \frac{1}{|M|} \sum_{m \in M} |m - m^\mathrm{Retrain}|

    Compare runs of the same seed. Zero is out of reach: a second Retrain's gap is the
    noise floor.

    Args:
      row: a method's metrics, numbers or arrays (one entry a seed).
      reference: Retrain's metrics.
      keys: the metrics that count.

    Returns:
      A number or an array, as the metrics are; NaN if one of them is.

    Raises:
      ValueError: there is no key, or a metric is missing.

    Example:
      >>> average_gap({"ua": 3.0, "ra": 98.0}, {"ua": 5.0, "ra": 99.0}, ("ua", "ra"))
      1.5

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    if not keys:
        raise ValueError("Got no key, wanted the names of the metrics that count.")
    for name, metrics in (("row", row), ("reference", reference)):
        missing = [key for key in keys if key not in metrics]
        if missing:
            raise ValueError(f"{name} lacks {missing}; it has {sorted(metrics)}.")
    return sum(abs(row[key] - reference[key]) for key in keys) / len(keys)


def tow(forget: Any, retain: Any, test: Any, *, reference: tuple[Any, Any, Any]) -> Any:
    r"""ToW, the tug-of-war between forgetting, retaining and generalising.

    .. math:: \mathrm{ToW} = \prod_{S \in \{D_f, D_r, D_t\}}
      (1 - |\mathrm{acc}(S) - \mathrm{acc}^\mathrm{Retrain}(S)| / 100)

    Args:
      forget: accuracy on D_f in percent (not UA), a number or an array.
      retain: accuracy on D_r in percent.
      test: accuracy on D_t in percent.
      reference: Retrain's three accuracies in percent, in the same order.

    Returns:
      A share in [0, 1], 1 for Retrain itself.

    Raises:
      ValueError: the reference does not hold three accuracies.

    Example:
      >>> tow(100.0, 100.0, 90.0, reference=(50.0, 100.0, 100.0))
      0.45

    Reference:
      `Zhao et al. (2024) <https://arxiv.org/abs/2406.01257>`_.
    """
    if len(reference) != 3:
        raise ValueError(
            f"Got a reference of {len(reference)} accuracies, wanted Retrain's three "
            "on D_f, D_r and D_t."
        )
    share = 1.0
    for ours, theirs in zip((forget, retain, test), reference, strict=True):
        share = share * (1 - abs(ours - theirs) / 100)
    return share


def _correct(
    outputs: jax.typing.ArrayLike, labels: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Whether each row is right, boolean (N,), and whether all labels are classes."""
    outputs, labels = jnp.asarray(outputs), jnp.asarray(labels)
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1]:
        raise ValueError(
            f"Got outputs {outputs.shape} and labels {labels.shape}, wanted (N, K) and "
            "(N,)."
        )
    if not outputs.size:
        raise ValueError(
            f"Got outputs {outputs.shape}, wanted at least one example; is the set "
            "empty?"
        )
    check_labels(labels, outputs.shape[1])
    # argmax alone would choose a NaN.
    finite = ~jnp.isnan(outputs).any(axis=1)
    known = in_range(labels, outputs.shape[1]).all()
    return finite & (jnp.argmax(outputs, axis=1) == labels), known


def _percent(hits: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    """Share in percent; NaN of nothing."""
    # XLA divides by a constant through its reciprocal: N of N would be 100.00001.
    perfect = (hits == count) & (hits > 0)
    share = jnp.where(count == 0, jnp.nan, hits / jnp.maximum(count, 1))
    return jnp.where(perfect, 100.0, 100 * share).astype(jnp.float32)
