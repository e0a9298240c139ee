"""Intervals over seeds."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


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
