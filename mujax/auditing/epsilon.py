"""How well an attacker tells unlearned models from Retrains, as an ε."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mujax.auditing import _banks

CAP = 50.0
"""ε of arms that a threshold tells apart without an error."""
LEVELS = (0.0, 0.02, 0.1, 0.25, 0.5)
"""Shares of Retrains above the thresholds of :func:`epsilon_lower_bound`."""


def forgetting_epsilon(
    unlearned: ArrayLike, oracle: ArrayLike, *, delta: float = 1e-5
) -> np.ndarray:
    r"""ε of forgetting of each example, by its best threshold (NeurIPS 2023).

    .. math:: \varepsilon_t = \max\left(\log \frac{1 - \delta - FPR_t}{FNR_t},
       \log \frac{1 - \delta - FNR_t}{FPR_t}\right)

    The side with the larger median is the positive one. A threshold with exactly one
    rate of zero says nothing and is left out; both zero give 50. The maximum over
    thresholds is biased upwards: two banks of Retrains have about 1.2, so this is no
    bound, and is to be read beside that number. For a bound see
    :func:`epsilon_lower_bound`.

    Args:
      unlearned: margins of N models on n examples, (N, n).
      oracle: margins of M Retrains, (M, n).
      delta: :math:`\delta`, in [0, 1).

    Returns:
      An ε an example, (n,), from 0 to 50; the same if the arms are swapped.

    Raises:
      ValueError: shapes that do not fit, or numbers that are not finite.

    Example:
      >>> forgetting_epsilon([[2.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]])
      array([50.,  0.])

    Reference:
      `Triantafillou et al. (2024) <https://arxiv.org/abs/2406.09073>`_.
    """
    ours, theirs = _banks.two_arms(unlearned, oracle)
    if not 0 <= delta < 1:
        raise ValueError(f"Got delta={delta}, wanted a number in [0, 1).")
    joint = np.concatenate([ours, theirs])
    is_ours = np.arange(len(joint)) < len(ours)
    order = np.argsort(joint, axis=0, kind="stable")
    ordered = np.take_along_axis(joint, order, 0)
    # Shares of each arm below the cut behind every number but the last.
    below_ours = np.cumsum(is_ours[order], 0)[:-1] / len(ours)
    below_theirs = np.cumsum(~is_ours[order], 0)[:-1] / len(theirs)
    cut = ordered[1:] > ordered[:-1]
    higher = np.median(ours, 0) - np.median(theirs, 0)

    def best(positive_below: np.ndarray, negative_below: np.ndarray) -> np.ndarray:
        fnr, fpr = positive_below, 1 - negative_below
        fpr = np.where(fpr < 1e-12, 0.0, fpr)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.maximum(
                np.log((1 - delta - fpr) / fnr), np.log((1 - delta - fnr) / fpr)
            )
        found = np.where((fnr == 0) & (fpr == 0), CAP, found)
        useful = cut & ((fnr == 0) == (fpr == 0)) & ~np.isnan(found)
        return np.max(found, axis=0, initial=0.0, where=useful)

    up, down = best(below_ours, below_theirs), best(below_theirs, below_ours)
    sides = np.where(higher > 0, up, np.where(higher < 0, down, np.maximum(up, down)))
    return np.minimum(sides, CAP)


def forgetting_score(epsilon: ArrayLike, models: int) -> float:
    r"""Forgetting quality F of the NeurIPS 2023 competition: mean of :math:`2^{-k}`.

    Example x is in bucket :math:`k = \lfloor 2 \varepsilon_x \rfloor`, and worth
    nothing beyond :math:`\lceil \log(N - 1) \rceil`. Two banks of Retrains reach about
    0.35, which is the ceiling: show the score as a share of theirs.

    Args:
      epsilon: of :func:`forgetting_epsilon`, (n,).
      models: N, at least 3.

    Returns:
      A score in [0, 1].

    Raises:
      ValueError: fewer than 3 models, or no example.

    Example:
      >>> forgetting_score([0.0, 0.6, 50.0], models=64)
      0.5

    Reference:
      `Triantafillou et al. (2024) <https://arxiv.org/abs/2406.09073>`_.
    """
    values = _banks.numbers(epsilon, "epsilon", 1)
    if models < 3:
        raise ValueError(f"Got models={models}, wanted at least 3.")
    worth = 2.0 ** -np.floor(2 * values)
    return float(np.mean(np.where(values < np.ceil(np.log(models - 1)), worth, 0)))


def epsilon_lower_bound(
    unlearned: ArrayLike,
    oracle: ArrayLike,
    *,
    delta: float = 1e-5,
    significance: float = 0.05,
    two_sided: bool = False,
) -> float:
    r"""Lower bound on the ε of (ε, δ)-unlearning that holds with confidence.

    .. math:: \varepsilon \ge \log \frac{1 - \delta - \overline{FPR}}{\overline{FNR}}

    and with the rates swapped, at a few thresholds with Clopper-Pearson upper limits of
    the rates, corrected for their number. Thresholds are order statistics of the
    Retrains, for which the limit is exact. A certificate of failure only: with 64
    models it is seldom above 1.

    Args:
      unlearned: one independent score a model, (N,), higher for what is remembered,
        such as the mean log-likelihood ratio over what it forgot.
      oracle: the same of Retrains, (M,).
      delta: :math:`\delta`, in [0, 1).
      significance: chance that the bound is wrong, in (0, 1).
      two_sided: test lower scores as well, at half the significance.

    Returns:
      The bound, at least 0.

    Raises:
      ValueError: shapes that do not fit, or numbers out of their range.

    Example:
      >>> round(epsilon_lower_bound([1.0] * 64, [0.0] * 64), 2)
      2.82
      >>> epsilon_lower_bound([1.0, 0.0] * 32, [0.0, 1.0] * 32)
      0.0

    Reference:
      Clopper and Pearson (1934); `Jagielski et al. (2020)
      <https://arxiv.org/abs/2006.07709>`_.
    """
    ours, theirs = _banks.two_arms(unlearned, oracle, 1)
    if not 0 <= delta < 1 or not 0 < significance < 1:
        raise ValueError(
            f"Got delta={delta} and significance={significance}, wanted delta in "
            "[0, 1) and significance in (0, 1)."
        )
    if two_sided:
        level = significance / 2
        return max(
            epsilon_lower_bound(
                sign * ours, sign * theirs, delta=delta, significance=level
            )
            for sign in (1, -1)
        )
    falling = np.sort(theirs)[::-1]
    ranks = (np.array(LEVELS) * len(theirs)).round().astype(int)
    thresholds = np.unique(falling[np.minimum(ranks, len(theirs) - 1)])
    missed = np.sum(ours[:, None] <= thresholds, 0)
    accused = np.sum(theirs[:, None] > thresholds, 0)
    level = significance / (2 * len(thresholds))
    fnr, fpr = _upper(missed, len(ours), level), _upper(accused, len(theirs), level)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log([(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr])
    return float(np.max(found, initial=0.0, where=~np.isnan(found)))


def _upper(count: np.ndarray, total: int, level: float) -> np.ndarray:
    """Clopper-Pearson upper limit of a rate."""
    limit = stats.beta.ppf(1 - level, count + 1, np.maximum(total - count, 1))
    return np.where(count >= total, 1.0, limit)
