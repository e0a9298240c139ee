"""The support vector machine that tells members from non-members by one feature.

SalUn's "MIA", Fan et al. (2024), arXiv:2310.12508. It learns to tell training examples
(members) from test examples (non-members); the share of the forget set that it then
calls non-members is the "forget efficacy".

The attack draws as many members as there are non-members, and its answer can hang on
that draw. Its kernel has a width of one: where a model is sure of everything, the
feature varies by far less, the machine reaches its bound at every example, and its
boundary is half-way between the two most extreme examples of the draw, on the side
that the draw's means happen to lie. The same model and forget set then get anything
from 0 to 100. :func:`forget_efficacy` is that attack as published;
:func:`mean_forget_efficacy` is its mean over draws, which does not hang on one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.svm import SVC

from mujax._checks import check_count
from mujax.auditing.features import Feature, confidence


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
    seed: int | Sequence[int],
    num_member: int,
    num_nonmember: int,
    *,
    max_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many members as non-members, all of the smaller side.

    Args:
      seed: seed of the draw, a number or several.
      num_member: number of members to draw from.
      num_nonmember: number of non-members to draw from.
      max_size: number of each to draw at most; None has no limit.

    Returns:
      Two ascending arrays of min(``num_member``, ``num_nonmember``, ``max_size``)
      distinct indices.

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
    if max_size is not None:
        size = min(size, check_count(max_size, "max_size"))
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

    Members are retain examples, non-members test examples, equally many of both. This
    is one draw of them, as published; to rank methods take
    :func:`mean_forget_efficacy`.

    Args:
      probs_retain: softmax outputs on D_r, (n, K).
      labels_retain: true labels of D_r, (n,).
      probs_test: softmax outputs on D_t, (m, K).
      labels_test: true labels of D_t, (m,).
      probs_forget: softmax outputs on D_f, (t, K).
      labels_forget: true labels of D_f, (t,).
      feature: ``(probs, labels) -> (n,) or (n, d)``, any of this package.
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


class MeanEfficacy(NamedTuple):
    """Forget efficacy over draws of the attack's members.

    Attributes:
      mean: percent in [0, 100].
      error: standard error of that mean, in percentage points; 0 where there is but
        one draw to make.
      draws: number of draws.
    """

    mean: float
    error: float
    draws: int


def mean_forget_efficacy(
    probs_retain: ArrayLike,
    labels_retain: ArrayLike,
    probs_test: ArrayLike,
    labels_test: ArrayLike,
    probs_forget: ArrayLike,
    labels_forget: ArrayLike,
    *,
    feature: Feature = confidence,
    seed: int = 0,
    max_error: float = 1.0,
    min_draws: int = 10,
    max_draws: int = 100,
    max_size: int = 10_000,
) -> MeanEfficacy:
    r"""MIA as the mean over draws of the attack's members, with its standard error.

    .. math:: \overline{\mathrm{MIA}} = \frac{1}{B} \sum_b \mathrm{MIA}_b, \quad
      \mathrm{error} = s / \sqrt{B}

    Each draw is :func:`forget_efficacy` with fresh members, and with fresh non-members
    where not all of them are used. It draws until the error is small enough, and always
    ``max_draws`` times where a draw's members may look less like members than its
    non-members do: few draws could then agree by chance. Look at ``error``: after
    ``max_draws`` it may still be too large. The error is that of the draws alone; how
    models differ is seen over seeds.

    Args:
      probs_retain: softmax outputs on D_r, (n, K).
      labels_retain: true labels of D_r, (n,).
      probs_test: softmax outputs on D_t, (m, K).
      labels_test: true labels of D_t, (m,).
      probs_forget: softmax outputs on D_f, (t, K).
      labels_forget: true labels of D_f, (t,).
      feature: ``(probs, labels) -> (n,) or (n, d)``, any of this package.
      seed: seed of the draws.
      max_error: standard error that is small enough, in percentage points.
      min_draws: draws made in any case, at least 2.
      max_draws: draws after which it stops.
      max_size: members, and non-members, of one draw at most. A fit's time grows with
        the square of their number (10,000 a side take seconds), but small draws turn
        more: of one model on Fashion-MNIST, 1,000 a side said 20 with a standard
        deviation of 12, 10,000 a side 13 with one of 0.7.

    Returns:
      Mean, standard error and number of draws.

    Raises:
      ValueError: as in :func:`forget_efficacy`, or an option is out of its range.

    Example:
      >>> seen, unseen = [[0.9, 0.1]] * 9, [[0.6, 0.4], [0.5, 0.5]]
      >>> sets = seen, [0] * 9, unseen, [0, 0], [[0.55, 0.45]], [0]
      >>> mean_forget_efficacy(*sets)
      MeanEfficacy(mean=100.0, error=0.0, draws=10)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_ for a single draw.
    """
    if not 0 <= max_error < math.inf:
        raise ValueError(f"Got max_error={max_error}, wanted a number of at least 0.")
    min_draws = check_count(min_draws, "min_draws", least=2)
    max_draws = check_count(max_draws, "max_draws", least=min_draws)
    member = feature(probs_retain, labels_retain)
    nonmember = feature(probs_test, labels_test)
    target = feature(probs_forget, labels_forget)
    size = min(len(member), len(nonmember), check_count(max_size, "max_size"))
    needed = max_draws if _turns_with_the_draw(member, nonmember, size) else min_draws
    found: list[float] = []
    while len(found) < max_draws:
        members, nonmembers = balanced_subsets(
            (seed, len(found)), len(member), len(nonmember), max_size=max_size
        )
        share = svc_membership(member[members], nonmember[nonmembers], target)
        found.append(100 * share)
        if len(members) == len(member) == len(nonmember):
            return MeanEfficacy(found[0], 0.0, 1)
        if len(found) >= needed and stats.sem(found) <= max_error:
            break
    return MeanEfficacy(float(np.mean(found)), float(stats.sem(found)), len(found))


def _turns_with_the_draw(member: np.ndarray, nonmember: np.ndarray, size: int) -> bool:
    """Whether the sides of a draw may lie the other way round, for a single feature.

    That is, their means differ by less than three standard errors of such a draw.
    """
    if member.ndim > 1 or not size:
        return False
    variance = 0.0
    for side in (member, nonmember):
        variance += np.var(side, dtype=np.float64) / size * (1 - size / len(side))
    difference = member.mean(dtype=np.float64) - nonmember.mean(dtype=np.float64)
    return bool(abs(difference) < 3 * math.sqrt(variance))


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
