"""Intervals over seeds and over models, and what chance alone would give."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mujax._checks import check_count
from mujax.auditing import _banks


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


def jackknife(
    statistic: Callable[..., float], *banks: ArrayLike, size: int = 2
) -> tuple[float, float]:
    r"""A statistic of banks of models, and its standard error over models.

    .. math:: \sqrt{\tfrac{g - 1}{g} \sum_i (s_{(i)} - \bar s)^2}

    over g groups of models, each left out once and everything fitted anew: scores that
    share their fits are no independent examples, so that a bootstrap over examples is
    too narrow.

    Args:
      statistic: takes the banks, returns a number.
      *banks: arrays (N, …) of the same N models.
      size: models that are left out together: 2 for complementary pairs.

    Returns:
      The statistic of all, and its standard error.

    Raises:
      ValueError: N differs, is no multiple of ``size``, or is less than two groups.

    Example:
      >>> value, error = jackknife(np.mean, np.arange(6.0), size=1)
      >>> value, round(error, 4)  # for a mean, its standard error
      (2.5, 0.7638)

    Reference:
      Tukey (1958); Efron and Stein (1981).
    """
    arrays = [np.asarray(bank) for bank in banks]
    counts = {len(array) for array in arrays}
    count = counts.pop() if len(counts) == 1 else 0
    groups = count // size
    if count % size or groups < 2:
        raise ValueError(
            f"Got banks of {[len(array) for array in arrays]} models, wanted as many "
            f"in all, and at least two groups of {size}."
        )
    left = np.array(
        [
            statistic(*(np.delete(a, slice(i, i + size), 0) for a in arrays))
            for i in range(0, count, size)
        ]
    )
    spread = np.sum((left - left.mean()) ** 2)
    return float(statistic(*arrays)), float(np.sqrt((groups - 1) / groups * spread))


def pair_swap_null(
    statistic: Callable[[np.ndarray], float],
    member: ArrayLike,
    *,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    r"""The statistic under random swaps of complementary pairs: its null.

    Where nothing is remembered it does not matter which model of a pair had which
    half. Swap on the bank of Retrains: on a bank that does remember the test is valid
    but weak. A p-value is :math:`(1 + \#\{null \ge s\}) / (1 + draws)`.

    Args:
      statistic: takes a membership (N, n), returns a number.
      member: bools (N, n), models 2i and 2i + 1 complements.
      draws: number of swaps.
      seed: of the draws.

    Returns:
      The statistics, (draws,).

    Raises:
      ValueError: models that are no pairs.
      TypeError: ``member`` is not of bools.

    Example:
      >>> half = np.array([[True, False], [False, True]])
      >>> np.unique(pair_swap_null(lambda m: float(m[0, 0]), half, draws=20))
      array([0., 1.])

    Reference:
      Fisher (1935), *The design of experiments*.
    """
    inside = _banks.membership(member, np.shape(member))
    _banks.check_pairs(inside)
    rng = np.random.default_rng(seed)
    swaps = rng.random((check_count(draws, "draws"), len(inside) // 2)) < 0.5
    found = [statistic(inside ^ np.repeat(swap, 2)[:, None]) for swap in swaps]
    return np.array(found)
