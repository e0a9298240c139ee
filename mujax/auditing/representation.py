"""What a model's hidden features still hold."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mujax.auditing import _banks


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    regularization: float = 1.0,
) -> float:
    """Accuracy of a logistic regression on frozen features.

    A method that only moves the last layer leaves the features as they were: compare
    with the probe on Retrain's features. For random forget sets probe membership, not
    the class, which Retrain knows as well.

    Args:
      features: (n, d), to fit on; each is standardised.
      labels: (n,).
      test_features: (m, d).
      test_labels: (m,).
      regularization: inverse strength of the penalty on squared weights.

    Returns:
      The accuracy on the test features, in [0, 1].

    Raises:
      ValueError: shapes that do not fit, one class only, or numbers not finite.

    Example:
      >>> linear_probe([[0.0], [1.0]] * 8, [0, 1] * 8, [[-1.0], [2.0]], [0, 1])
      1.0

    Reference:
      `Alain and Bengio (2016) <https://arxiv.org/abs/1610.01644>`_.
    """
    seen, unseen = _banks.two_arms(features, test_features)
    known, true = np.asarray(labels), np.asarray(test_labels)
    for found, rows in ((known, seen), (true, unseen)):
        if found.shape != (len(rows),):
            raise ValueError(f"Got labels {found.shape} for {len(rows)} rows.")
    if len(np.unique(known)) < 2:
        raise ValueError("Got labels of one class, wanted at least two.")
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=regularization, max_iter=2000)
    )
    return float(np.mean(probe.fit(seen, known).predict(unseen) == true))


def cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> float:
    r"""Linear centred kernel alignment of two models' features.

    .. math:: \frac{HSIC(x, y)}{\sqrt{HSIC(x, x)\, HSIC(y, y)}}

    Show that of two Retrains beside it. Without the correction, independent features of
    n examples in d dimensions already have about d / (n + d).

    Args:
      x: features (n, d), n of at least 4.
      y: features (n, e) on the same examples.
      debiased: use the unbiased estimate of HSIC.

    Returns:
      The similarity, at most 1: 1 for features that are rotated or scaled, about 0 for
      independent ones.

    Raises:
      ValueError: shapes that do not fit, too few examples, constant features, or
        numbers that are not finite.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(50, 3))
      >>> round(cka(x, 2 * x[:, ::-1]), 6)
      1.0

    Reference:
      `Kornblith et al. (2019) <https://arxiv.org/abs/1905.00414>`_; the unbiased
      estimate, Song et al. (2012).
    """
    first, second = _banks.numbers(x, "x"), _banks.numbers(y, "y")
    if len(first) != len(second) or len(first) < 4:
        raise ValueError(
            f"Got {len(first)} and {len(second)} examples, wanted as many, at least 4."
        )
    hsic = _unbiased_hsic if debiased else _biased_hsic
    kernels = [z @ z.T for z in (first - first.mean(0), second - second.mean(0))]
    own = hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1])
    if not own > 0:
        raise ValueError("Features do not vary between examples: no alignment.")
    return float(hsic(*kernels) / np.sqrt(own))


def _biased_hsic(k: np.ndarray, other: np.ndarray) -> float:
    """Of kernels of centred features, up to a factor."""
    return float(np.sum(k * other))


def _unbiased_hsic(k: np.ndarray, other: np.ndarray) -> float:
    """Song et al. (2012), eq. 5, up to a factor."""
    n = len(k)
    a, b = (np.where(np.eye(n, dtype=bool), 0.0, kernel) for kernel in (k, other))
    return float(
        np.sum(a * b)
        + a.sum() * b.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * np.dot(a.sum(0), b.sum(0))
    )
