"""Membership attacks on a classifier, and intervals over seeds; on the host.

The attack is SalUn's "MIA", Fan et al. (2024), arXiv:2310.12508; the features are those
of Song and Mittal (2021), arXiv:2003.10595.

A support vector machine learns to tell training examples (members) from test examples
(non-members) by one feature of the model's output. The share of the forget set that it
then calls non-members is the "forget efficacy". Everything is NumPy and scikit-learn:
``pip install mujax[auditing]``.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.svm import SVC

Feature = Callable[[ArrayLike, ArrayLike], np.ndarray]


def confidence(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""Probability of the true class, :math:`p_y`.

    Args:
      probs: softmax outputs, (n, K).
      labels: true labels in [0, K), (n,).

    Returns:
      One feature an example in [0, 1], float32 (n,).

    Raises:
      ValueError: the shapes do not fit each other, or a label is outside [0, K).

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
      ValueError: the shapes do not fit each other, or a label is outside [0, K).

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
      ValueError: the shapes do not fit each other, or a label is outside [0, K).

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
      ValueError: the shapes do not fit each other, or a label is outside [0, K).

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
      ValueError: the shapes do not fit each other, or a label is outside [0, K).

    Example:
      >>> probabilities([[0.75, 0.25]], [0])
      array([[0.75, 0.25]], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    return _check_outputs(probs, labels)[0]


def svc_membership(member: ArrayLike, nonmember: ArrayLike, target: ArrayLike) -> float:
    r"""Share of the target that a support vector machine calls non-members.

    SVC(C = 3, RBF kernel, gamma = 1/d), fitted on members against non-members. Give it
    as many of each (:func:`balanced_subsets`): with 810 against 897 it has been seen to
    call everything a non-member.

    Args:
      member: features of examples that the model was trained on, (n,) or (n, d).
      nonmember: features of examples that it never saw, (m,) or (m, d).
      target: features of the examples in question, (t,) or (t, d).

    Returns:
      A share in [0, 1].

    Raises:
      ValueError: an argument is empty, not finite, or of another d.

    Example:
      >>> svc_membership([1.0, 0.9, 1.0], [0.1, 0.0, 0.2], [0.95, 0.05, 0.0, 0.1])
      0.75

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    member = _check_features(member, "member")
    nonmember = _check_features(nonmember, "nonmember")
    target = _check_features(target, "target")
    if not member.shape[1] == nonmember.shape[1] == target.shape[1]:
        raise ValueError(
            f"Got member, nonmember and target of {member.shape[1]}, "
            f"{nonmember.shape[1]} and {target.shape[1]} features, wanted as many."
        )
    model = SVC(C=3, kernel="rbf", gamma="auto")
    is_member = np.repeat([1, 0], [len(member), len(nonmember)])
    model.fit(np.concatenate([member, nonmember]), is_member)
    return float(np.mean(model.predict(target) == 0))


def balanced_subsets(
    seed: int, num_member: int, num_nonmember: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many members as non-members, all of the smaller side.

    Args:
      seed: seed of the draw.
      num_member: number of members to draw from.
      num_nonmember: number of non-members to draw from.

    Returns:
      Two ascending arrays of min(``num_member``, ``num_nonmember``) distinct indices.

    Raises:
      ValueError: there is no member or no non-member.

    Example:
      >>> members, nonmembers = balanced_subsets(0, 1000, 3)
      >>> len(members), nonmembers
      (3, array([0, 1, 2]))

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    size = min(num_member, num_nonmember)
    if size < 1:
        raise ValueError(
            f"Got {num_member} members and {num_nonmember} non-members, wanted at "
            "least one of each."
        )
    rng = np.random.default_rng(seed)
    draw = [rng.choice(n, size, replace=False) for n in (num_member, num_nonmember)]
    return np.sort(draw[0]), np.sort(draw[1])


def forget_efficacy(
    probs_retain: ArrayLike,
    labels_retain: ArrayLike,
    probs_test: ArrayLike,
    labels_test: ArrayLike,
    probs_forget: ArrayLike,
    labels_forget: ArrayLike,
    *,
    feature: Feature = confidence,
    seed: int = 0,
) -> float:
    r"""MIA, the share of the forget set that the attack takes for unseen, in percent.

    .. math:: \mathrm{MIA} = \frac{100}{|D_f|} \, |\{x \in D_f : \mathrm{SVC}(x) = 0\}|

    Members are retain examples, non-members test examples, equally many of both.

    Args:
      probs_retain: softmax outputs on D_r, (n, K).
      labels_retain: true labels of D_r, (n,).
      probs_test: softmax outputs on D_t, (m, K).
      labels_test: true labels of D_t, (m,).
      probs_forget: softmax outputs on D_f, (t, K).
      labels_forget: true labels of D_f, (t,).
      feature: ``(probs, labels) -> (n,) or (n, d)``, any of this module.
      seed: seed of the draw of :func:`balanced_subsets`.

    Returns:
      Percent in [0, 100]; compare with Retrain's, since higher is not better.

    Raises:
      ValueError: a set is empty, its features hold a NaN, or its shapes or labels do
        not fit.

    Example:
      >>> seen, unseen = [[0.9, 0.1], [0.95, 0.05]], [[0.6, 0.4], [0.5, 0.5]]
      >>> forget_efficacy(seen, [0, 0], unseen, [0, 0], [[0.55, 0.45]], [0])
      100.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    member = feature(probs_retain, labels_retain)
    nonmember = feature(probs_test, labels_test)
    target = feature(probs_forget, labels_forget)
    members, nonmembers = balanced_subsets(seed, len(member), len(nonmember))
    return 100 * svc_membership(member[members], nonmember[nonmembers], target)


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    r"""Mean over seeds and half the width of its confidence interval.

    .. math:: \bar v \pm t_{n-1, (1 + \mathrm{level})/2} \, s / \sqrt{n}

    Args:
      values: one number a seed, (n,).
      level: confidence level in (0, 1).

    Returns:
      The mean and the half width; the half width of a single value is NaN, unknown.

    Raises:
      ValueError: there is no value, more than one axis, or the level is outside (0, 1).

    Example:
      >>> mean, half_width = mean_interval([1.0, 2.0, 3.0])
      >>> mean, round(half_width, 3)
      (2.0, 2.484)

    Reference:
      Student (1908), *The probable error of a mean*.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"Got values of shape {values.shape}, wanted (n,) with n >= 1."
        )
    if not 0 < level < 1:
        raise ValueError(f"Got level={level}, wanted a share between 0 and 1.")
    if values.size == 1:
        return float(values[0]), math.nan
    quantile = stats.t.ppf((1 + level) / 2, values.size - 1)
    return float(values.mean()), float(quantile * stats.sem(values))


def _log(x: np.ndarray) -> np.ndarray:
    """Logarithm that stays finite at zero."""
    return np.log(np.maximum(x, 1e-30))


def _check_outputs(
    probs: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, probabilities in float32, if shapes and labels are right."""
    # The precision of the published attack: the SVC stops at a tolerance, so that even
    # the last bit of a feature can turn an example at its boundary.
    probs, labels = np.asarray(probs, np.float32), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"Got probs {probs.shape} and labels {labels.shape}, wanted (n, K) and "
            "(n,)."
        )
    outside = labels[(labels < 0) | (labels >= probs.shape[1])]
    if outside.size:
        raise ValueError(
            f"Got label {outside[0]} for {probs.shape[1]} classes, wanted labels from "
            f"0 to {probs.shape[1] - 1}."
        )
    return probs, labels


def _check_features(features: ArrayLike, name: str) -> np.ndarray:
    """Features as (n, d), if there are some and all are finite."""
    features = np.asarray(features, np.float64)
    if features.ndim not in (1, 2) or not features.size:
        raise ValueError(
            f"Got {name} of shape {features.shape}, wanted (n,) or (n, d) with n >= 1."
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{name} holds a NaN or an infinity; has the model diverged?")
    return features.reshape(len(features), -1)
