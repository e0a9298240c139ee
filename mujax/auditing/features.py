"""What a membership attack looks at: numbers of a model's output, one row an example.

The features are those of Song and Mittal (2021), arXiv:2003.10595. All take softmax
outputs and true labels, on the host. A row of NaN gives NaN (and is not correct).
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from mujax._checks import check_labels

Feature = Callable[[ArrayLike, ArrayLike], np.ndarray]
"""``(probs, labels) -> (n,) or (n, d)``."""


def confidence(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Probability of the true class, :math:`p_y`.

    Args:
      probs: softmax outputs, (n, K).
      labels: true labels in [0, K), (n,).

    Returns:
      One feature an example in [0, 1], float32 (n,).

    Raises:
      ValueError: the shapes do not fit each other, a label is outside [0, K), or a
        row is no distribution (logits, say); a row with a NaN passes.
      TypeError: the labels are not integers.

    Example:
      >>> confidence([[0.75, 0.25]], [1])
      array([0.25], dtype=float32)

    Reference:
      `Song and Mittal (2021) <https://arxiv.org/abs/2003.10595>`_.
    """
    probs, labels = _check_outputs(probs, labels)
    return probs[np.arange(len(labels)), labels]


def correctness(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Whether the prediction is right, :math:`[\arg\max_k p_k = y]`.

    Args:
      probs: softmax outputs, (n, K); a row with a NaN is wrong.
      labels: true labels in [0, K), (n,).

    Returns:
      1 for a right prediction and 0 for a wrong one, float32 (n,).

    Raises:
      ValueError: the shapes do not fit each other, a label is outside [0, K), or a
        row is no distribution (logits, say); a row with a NaN passes.
      TypeError: the labels are not integers.

    Example:
      >>> correctness([[0.75, 0.25], [0.75, 0.25]], [0, 1])
      array([1., 0.], dtype=float32)

    Reference:
      `Song and Mittal (2021) <https://arxiv.org/abs/2003.10595>`_.
    """
    probs, labels = _check_outputs(probs, labels)
    known = ~np.isnan(probs).any(axis=1)
    return (known & (probs.argmax(axis=1) == labels)).astype(np.float32)


def entropy(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Entropy of the output, :math:`-\sum_k p_k \log p_k`, with 0 log 0 = 0.

    Args:
      probs: softmax outputs, (n, K).
      labels: true labels in [0, K), (n,); only checked.

    Returns:
      One feature an example in nats, from 0 to log K, float32 (n,).

    Raises:
      ValueError: the shapes do not fit each other, a label is outside [0, K), or a
        row is no distribution (logits, say); a row with a NaN passes.
      TypeError: the labels are not integers.

    Example:
      >>> entropy([[0.5, 0.5], [0.25, 0.75]], [0, 0]).round(4)
      array([0.6931, 0.5623], dtype=float32)

    Reference:
      `Song and Mittal (2021) <https://arxiv.org/abs/2003.10595>`_.
    """
    probs, _ = _check_outputs(probs, labels)
    return -np.sum(probs * _log(probs), axis=1)


def modified_entropy(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Entropy that knows the true class: low only if the model is sure and right.

    .. math:: -(1 - p_y) \log p_y - \sum_{k \ne y} p_k \log(1 - p_k)

    A logarithm's argument counts as at least 1e-30, so a sure and wrong row is large
    and finite.

    Args:
      probs: softmax outputs, (n, K).
      labels: true labels in [0, K), (n,).

    Returns:
      One feature an example in nats, >= 0, float32 (n,).

    Raises:
      ValueError: the shapes do not fit each other, a label is outside [0, K), or a
        row is no distribution (logits, say); a row with a NaN passes.
      TypeError: the labels are not integers.

    Example:
      >>> modified_entropy([[0.5, 0.5], [1.0, 0.0]], [0, 1]).round(4)
      array([  0.6931, 138.1551], dtype=float32)

    Reference:
      `Song and Mittal (2021) <https://arxiv.org/abs/2003.10595>`_.
    """
    probs, labels = _check_outputs(probs, labels)
    true = np.arange(probs.shape[1]) == labels[:, None]
    # The true class enters with p and 1 − p exchanged.
    weight, inside = np.where(true, 1 - probs, probs), np.where(true, probs, 1 - probs)
    return -np.sum(weight * _log(inside), axis=1)


def probabilities(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""The whole output vector as the feature, :math:`p`.

    Args:
      probs: softmax outputs, (n, K).
      labels: true labels in [0, K), (n,); only checked.

    Returns:
      K features an example, float32 (n, K).

    Raises:
      ValueError: the shapes do not fit each other, a label is outside [0, K), or a
        row is no distribution (logits, say); a row with a NaN passes.
      TypeError: the labels are not integers.

    Example:
      >>> probabilities([[0.75, 0.25]], [0])
      array([[0.75, 0.25]], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    return _check_outputs(probs, labels)[0]


FEATURES: Mapping[str, Feature] = {
    "confidence": confidence,
    "correctness": correctness,
    "entropy": entropy,
    "modified_entropy": modified_entropy,
    "probabilities": probabilities,
}
"""All of them by name."""


def _log(x: np.ndarray) -> np.ndarray:
    """Logarithm that stays finite at zero."""
    return np.log(np.maximum(x, 1e-30))


def _check_outputs(
    probs: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, probabilities in float32, if they are what they should be."""
    # The precision of the published attack: the SVC stops at a tolerance, so that even
    # the last bit of a feature can turn an example at its boundary.
    probs, labels = np.asarray(probs, np.float32), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"Got probs {probs.shape} and labels {labels.shape}, wanted (n, K) and "
            "(n,)."
        )
    check_labels(labels, probs.shape[1])
    # Sums of float16 and bfloat16 softmax outputs are off by up to half a percent.
    sums = probs.sum(axis=1)
    wrong = (probs < 0).any(axis=1) | (np.abs(sums - 1) > 0.01) | np.isinf(sums)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"Got probs whose row {row} goes from {probs[row].min():g} to "
            f"{probs[row].max():g} and sums to {sums[row]:g}, wanted probabilities "
            "that sum to 1; take the softmax of logits first."
        )
    return probs, labels
