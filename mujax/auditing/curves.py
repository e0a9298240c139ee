"""How well scores tell members from others: the ROC curve and points on it."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mujax.auditing import _banks


def roc(scores: ArrayLike, member: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from 0 to 1.

    Args:
      scores: of any shape, higher for members.
      member: bools of that shape.

    Returns:
      Two arrays (t,), rising; the first point is (0, 0), the last (1, 1). Equal scores
      share a point.

    Raises:
      ValueError: shapes that do not fit, one class only, or a score that is NaN.
      TypeError: ``member`` is not of bools.

    Example:
      >>> roc([3.0, 2.0, 1.0], [True, False, True])
      (array([0., 0., 1., 1.]), array([0. , 0.5, 0.5, 1. ]))
    """
    values, inside = _flat(scores, member)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    true, false = np.cumsum(inside[order])[ends], np.cumsum(~inside[order])[ends]
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def roc_area(scores: ArrayLike, member: ArrayLike) -> float:
    r"""Area under the ROC curve: the chance that a member scores above another.

    .. math:: P(s_{in} > s_{out}) + \tfrac12 P(s_{in} = s_{out})

    Over scores of a bank, pool all models and examples: within an example, scores that
    leave a model out lie below chance where there is nothing to tell.

    Args:
      scores: of any shape, higher for members.
      member: bools of that shape.

    Returns:
      The area in [0, 1]; 0.5 is chance.

    Raises:
      ValueError: shapes that do not fit, one class only, or a score that is NaN.
      TypeError: ``member`` is not of bools.

    Example:
      >>> roc_area([3.0, 2.0, 1.0], [True, False, False])
      1.0

    Reference:
      Mann and Whitney (1947); Hanley and McNeil (1982).
    """
    values, inside = _flat(scores, member)
    ranks, count = stats.rankdata(values), int(inside.sum())
    won = ranks[inside].sum() - count * (count + 1) / 2
    return float(won / (count * (len(values) - count)))


def tpr_at(scores: ArrayLike, member: ArrayLike, fpr: float) -> float:
    """True positive rate at a low false positive rate.

    Args:
      scores: of any shape, higher for members.
      member: bools of that shape.
      fpr: false positives that are allowed, a share in (0, 1).

    Returns:
      The largest rate of true positives whose threshold lets no more false ones pass.

    Raises:
      ValueError: shapes that do not fit, one class only, a NaN, or fewer than ten
        false positives expected, so few that the rate is mostly luck.
      TypeError: ``member`` is not of bools.

    Example:
      >>> scores = np.arange(2000.0)
      >>> tpr_at(scores, scores >= 1000, 0.01)
      1.0

    Reference:
      `Carlini et al. (2022) <https://arxiv.org/abs/2112.03570>`_.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"Got fpr={fpr}, wanted a share between 0 and 1.")
    values, inside = _flat(scores, member)
    expected = float(fpr * np.sum(~inside))
    if expected < 10:
        raise ValueError(
            f"Got {np.sum(~inside)} non-members for fpr={fpr}: {expected:.3g} false "
            f"positives are expected, wanted at least 10. Take fpr >= "
            f"{10 / np.sum(~inside):.2g}, or more models."
        )
    false, true = roc(values, inside)
    return float(true[false <= fpr].max())


def _flat(scores: ArrayLike, member: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores and membership, checked, each along one axis."""
    values = np.asarray(scores, np.float64)
    inside = _banks.membership(member, values.shape)
    if np.isnan(values).any():
        raise ValueError("A score is NaN; leave that model or example out.")
    return values.ravel(), inside.ravel()
