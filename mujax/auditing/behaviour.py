"""What a model still does that a Retrain would not."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mujax._checks import check_count
from mujax.auditing import _banks

S = TypeVar("S")


def memorization(correct: ArrayLike, member: ArrayLike) -> np.ndarray:
    r"""How much more often an example is right for models that were trained on it.

    .. math:: P(\hat y = y \mid x \in D) - P(\hat y = y \mid x \notin D)

    With N models its standard error is up to :math:`1 / \sqrt N`: good for strata, not
    for single examples.

    Args:
      correct: whether each of N models predicts example x rightly, (N, n).
      member: whether it was trained on x, bools (N, n).

    Returns:
      A number an example in [-1, 1], (n,).

    Raises:
      ValueError: shapes that do not fit, or an example with one arm only.
      TypeError: ``member`` is not of bools.

    Example:
      >>> memorization([[1, 1], [0, 1]], [[True, False], [False, True]])
      array([1., 0.])

    Reference:
      `Feldman and Zhang (2020) <https://arxiv.org/abs/2008.03703>`_.
    """
    right = _banks.numbers(correct, "correct")
    inside = _banks.membership(member, right.shape)
    counts = inside.sum(0)
    if counts.min() == 0 or counts.max() == len(inside):
        raise ValueError(
            "An example was in all models or in none: wanted some that were trained on "
            "it and some that were not."
        )
    inner, outer = (np.sum(right, 0, where=arm) for arm in (inside, ~inside))
    return inner / counts - outer / (len(inside) - counts)


class InterclassConfusion(NamedTuple):
    """What is left of two classes' swapped labels.

    Attributes:
      error: share of the two classes' test examples that are misclassified.
      swapped: how many of them are taken for the other of the two.
    """

    error: float
    swapped: int


def interclass_confusion(
    predictions: ArrayLike, labels: ArrayLike, classes: tuple[int, int]
) -> InterclassConfusion:
    r"""Confusion of two classes on test data, after some labels of theirs were swapped.

    Train with n examples of class a labelled b and n of b labelled a, forget those, and
    compare with Retrain: harm that is to be undone, seen with one model.

    Args:
      predictions: classes (n,) on test data.
      labels: true classes (n,).
      classes: a and b.

    Returns:
      The error on both classes, and the count :math:`C_{ab} + C_{ba}`.

    Raises:
      ValueError: shapes that do not fit, or no example of either class.

    Example:
      >>> interclass_confusion([0, 1, 1, 2], [0, 0, 1, 1], (0, 1))
      InterclassConfusion(error=0.5, swapped=1)

    Reference:
      `Goel et al. (2022) <https://arxiv.org/abs/2201.06640>`_.
    """
    found, true = np.asarray(predictions), np.asarray(labels)
    if found.shape != true.shape or found.ndim != 1:
        raise ValueError(
            f"Got shapes {found.shape} and {true.shape}, wanted (n,) twice."
        )
    a, b = classes
    ours = np.isin(true, classes)
    if a == b or not ours.any():
        raise ValueError(f"Got classes {a} and {b}, wanted two that the labels have.")
    swapped = ((true == a) & (found == b)) | ((true == b) & (found == a))
    return InterclassConfusion(
        float(np.mean(found[ours] != true[ours])), int(swapped.sum())
    )


def poison_score(gradients: ArrayLike, noise: ArrayLike, scale: float) -> np.ndarray:
    r"""How much a model's input gradients know of Gaussian poisons (GUS).

    .. math:: I_x = \frac{\langle \nabla_x \ell(\theta; x, y), \xi \rangle}
       {\varepsilon_p \Vert \nabla_x \ell \Vert}, \quad \xi \sim N(0, \varepsilon_p^2)

    exactly standard normal if the model does not depend on the noise; its mean is above
    0 for one trained on x + ξ. One model suffices: :math:`\sqrt n` times the mean is a
    z-score.

    Args:
      gradients: of the loss by the clean inputs, (n, …).
      noise: ξ that training added to each, of the same shape.
      scale: standard deviation of the noise.

    Returns:
      A score an example, (n,); 0 where the gradient is zero.

    Raises:
      ValueError: shapes that do not fit, or a scale that is not positive.

    Example:
      >>> poison_score([[3.0, 4.0]], [[0.6, 0.8]], scale=0.5)
      array([2.])

    Reference:
      `Pawelczyk et al. (2024) <https://arxiv.org/abs/2406.17216>`_.
    """
    grads, xi = np.asarray(gradients, np.float64), np.asarray(noise, np.float64)
    if grads.shape != xi.shape or grads.ndim < 2:
        raise ValueError(
            f"Got shapes {grads.shape} and {xi.shape}, wanted (n, …) twice."
        )
    if not scale > 0:
        raise ValueError(f"Got scale={scale}, wanted a positive number.")
    grads, xi = grads.reshape(len(grads), -1), xi.reshape(len(xi), -1)
    sizes = np.linalg.norm(grads, axis=1)
    products = np.sum(grads * xi, axis=1)
    return np.divide(products, scale * sizes, out=np.zeros_like(sizes), where=sizes > 0)


def relearn_steps(
    step: Callable[[S], S],
    state: S,
    loss: Callable[[S], float],
    target: float,
    *,
    limit: int,
) -> int:
    r"""Optimiser steps on the forget set until its loss is down to a target.

    Far fewer than Retrain needs means that the model still knew. Compare medians over
    seeds, as a ratio to Retrain's (the anamnesis index), beside Original, which needs
    none, and random weights.

    Args:
      step: ``state -> state``, one step on the forget set.
      state: to begin with; it is not changed.
      loss: ``state -> loss`` on the forget set.
      target: the loss to reach.
      limit: give up after so many steps.

    Returns:
      The number of steps, from 0 to ``limit``, which also stands for more.

    Raises:
      ValueError: a limit below 1.

    Example:
      >>> relearn_steps(lambda w: 0.5 * w, 8.0, lambda w: w, 1.0, limit=100)
      3

    Reference:
      `Golatkar et al. (2020) <https://arxiv.org/abs/1911.04933>`_; the ratio,
      `Chundawat et al. (2023) <https://arxiv.org/abs/2201.05629>`_.
    """
    for done in range(check_count(limit, "limit")):
        if float(loss(state)) <= target:
            return done
        state = step(state)
    return limit
