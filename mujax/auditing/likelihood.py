"""Per-example membership over a bank of models: likelihood ratios, and their kin."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mujax._checks import check_labels
from mujax.auditing import _banks
from mujax.auditing.curves import roc_area

Variance = Literal["shrunk", "example", "global"]
"""How spreads are estimated; see :func:`likelihood_ratio`."""
PRIOR_DEGREES = 6.0
"""Degrees of freedom that the common variance counts as, in ``"shrunk"``."""


def margins(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    r"""How much the true class leads, the logit of its probability.

    .. math:: \varphi = z_y - \log \sum_{k \ne y} e^{z_k} = \log \frac{p_y}{1 - p_y}

    In float64 and from logits: of float32 probabilities near 1 nothing is left.

    Args:
      logits: (…, K) with K of at least 2.
      labels: true labels in [0, K), integers that broadcast to the leading axes.

    Returns:
      Margins, float64 (…).

    Raises:
      ValueError: fewer than two classes, labels outside [0, K) or of another shape.
      TypeError: the labels are not integers.

    Example:
      >>> margins([[2.0, 0.0], [0.0, 3.0]], [0, 0])
      array([ 2., -3.])

    Reference:
      `Carlini et al. (2022) <https://arxiv.org/abs/2112.03570>`_.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"Got logits of shape {logits.shape}, wanted (…, K), K >= 2.")
    check_labels(labels, logits.shape[-1])
    labels = np.broadcast_to(labels, logits.shape[:-1])[..., None]
    true = np.take_along_axis(logits, labels, -1)[..., 0]
    others = logits.copy()
    np.put_along_axis(others, labels, -np.inf, -1)
    return true - special.logsumexp(others, axis=-1)


def likelihood_ratio(
    margins: ArrayLike,
    member: ArrayLike,
    *,
    pairs: bool = True,
    variance: Variance = "shrunk",
) -> np.ndarray:
    r"""Log-likelihood ratio of membership, each model scored by the others (LiRA).

    .. math:: \log N(\varphi; \mu_{in}, \sigma_{in}^2)
       - \log N(\varphi; \mu_{out}, \sigma_{out}^2)

    With unlearned models this is U-LiRA: *in* are those that were trained on the
    example and then made to forget it, *out* those that never saw it. The scored model,
    and the one of the complementary half with ``pairs``, is left out of the fits:
    scores of models that were fitted on tell members even where there is nothing to
    tell.

    Args:
      margins: of N models on n examples, (N, n).
      member: whether a model was trained on an example, bools (N, n).
      pairs: models 2i and 2i + 1 have complementary halves.
      variance: ``"shrunk"``: one variance of an example for both arms, drawn to the
        geometric mean over examples, best below 64 models an arm. ``"global"``: one for
        all examples. ``"example"``: one for each example and arm, as published.

    Returns:
      Scores, higher for members, (N, n).

    Raises:
      ValueError: shapes that do not fit, numbers that are not finite, models that are
        no pairs, or fewer than two models left in an arm.
      TypeError: ``member`` is not of bools.

    Example:
      >>> half = np.array([[True, False], [False, True]] * 3)
      >>> margins = 4.0 * half + np.array([[0.1, 0], [0, 0.1], [0, 0]] * 2)
      >>> scores = likelihood_ratio(margins, half)
      >>> bool((scores[half] > 0).all() and (scores[~half] < 0).all())
      True

    Reference:
      `Carlini et al. (2022) <https://arxiv.org/abs/2112.03570>`_; `Hayes et al. (2024)
      <https://arxiv.org/abs/2403.01218>`_.
    """
    if variance not in get_args(Variance):
        raise ValueError(
            f"Got variance={variance!r}, wanted one of {', '.join(get_args(Variance))}."
        )
    values = _banks.numbers(margins, "margins")
    inside = _banks.membership(member, values.shape)
    if pairs:
        _banks.check_pairs(inside)
    scores, size = np.empty_like(values), 2 if pairs else 1
    for first in range(0, len(values), size):
        left_out = slice(first, first + size)
        fitted = np.delete(values, left_out, 0), np.delete(inside, left_out, 0)
        scores[left_out] = _log_ratio(values[left_out], *fitted, variance)
    return scores


def _log_ratio(
    scored: np.ndarray, values: np.ndarray, member: np.ndarray, variance: Variance
) -> np.ndarray:
    """Scores by two normal distributions an example, fitted to other models."""
    means, squares, degrees = [], [], []
    for arm in (member, ~member):
        count = arm.sum(0)
        if count.min() < 2:
            raise ValueError(
                f"An example has {count.min()} models in an arm once the scored ones "
                "are left out, wanted at least 2: train more models."
            )
        mean = np.sum(values, 0, where=arm) / count
        means.append(mean)
        squares.append(np.sum((values - mean) ** 2, 0, where=arm))
        degrees.append(count - 1)
    least = np.finfo(np.float64).tiny
    if variance == "example":
        spreads = [
            np.maximum(s / d, least) for s, d in zip(squares, degrees, strict=True)
        ]
    else:
        square, degree = sum(squares), sum(degrees)
        own = np.maximum(square / degree, least)
        common = np.exp(np.mean(np.log(own)))
        if variance == "global":
            own = np.full_like(own, np.sum(square) / np.sum(degree))
        else:
            own = (degree * own + PRIOR_DEGREES * common) / (degree + PRIOR_DEGREES)
        spreads = [np.maximum(own, least)] * 2
    logs = [
        -0.5 * (np.log(spread) + (scored - mean) ** 2 / spread)
        for mean, spread in zip(means, spreads, strict=True)
    ]
    return logs[0] - logs[1]


def population_attack(margins: ArrayLike, member: ArrayLike) -> float:
    """Area under the ROC curve of one threshold on the margin for all examples.

    Cheap and weak: examples differ more from each other than a forgotten one from
    itself unseen. Below 0.5, what was forgotten is less certain than what never was
    seen.

    Args:
      margins: of N models on n examples, (N, n); or any scores of one shape.
      member: bools of that shape.

    Returns:
      The area in [0, 1]; 0.5 is chance.

    Raises:
      ValueError: shapes that do not fit, or one class only.
      TypeError: ``member`` is not of bools.

    Example:
      >>> population_attack([[3.0, 1.0], [2.0, 0.0]], [[True, False], [True, False]])
      1.0

    Reference:
      `Yeom et al. (2018) <https://arxiv.org/abs/1709.01604>`_.
    """
    return roc_area(margins, member)


def rmia(
    probs: ArrayLike,
    references: ArrayLike,
    *,
    population: tuple[ArrayLike, ArrayLike] | None = None,
    a: float = 0.33,
    gamma: float = 1.0,
) -> np.ndarray:
    r"""Relative membership inference with models that never saw the example.

    .. math:: r(x) = \frac{p(x \mid \theta)}{\frac12 ((1 + a) \bar p_{out}(x) + 1 - a)},
       \quad s(x) = \Pr_z [r(x) \ge \gamma\, r(z)]

    One reference has most of the power. It sees remembering only: what a method has
    overdone scores low, as does what was never seen.

    Args:
      probs: probability of the true class under N targets, (N, n).
      references: the same under M models that never saw the examples, (M, n).
      population: both arrays again, (N, k) and (M, k), on examples that no model saw;
        None returns the ratios r, which rank alike within a target.
      a: how far a reference's probability is from the mean over in and out, in [0, 1].
      gamma: factor on the population's ratio.

    Returns:
      Scores (N, n), higher for members.

    Raises:
      ValueError: shapes that do not fit, or ``a`` outside [0, 1].

    Example:
      >>> rmia([[0.9, 0.5]], [[0.5, 0.5]], a=1.0)
      array([[1.8, 1. ]])

    Reference:
      `Zarifzadeh et al. (2024) <https://arxiv.org/abs/2312.03262>`_.
    """
    if not 0 <= a <= 1:
        raise ValueError(f"Got a={a}, wanted a number in [0, 1].")

    def ratio(ours: ArrayLike, theirs: ArrayLike) -> np.ndarray:
        target, reference = _banks.two_arms(ours, theirs)
        expected = ((1 + a) * reference.mean(0) + 1 - a) / 2
        return target / np.maximum(expected, np.finfo(np.float64).tiny)

    found = ratio(probs, references)
    if population is None:
        return found
    others = np.sort(gamma * ratio(*population), axis=1)
    if len(others) != len(found):
        raise ValueError(
            f"Got a population of {len(others)} targets for {len(found)} targets."
        )
    below = [
        np.searchsorted(row, values, side="right")
        for row, values in zip(others, found, strict=True)
    ]
    return np.array(below) / others.shape[1]
