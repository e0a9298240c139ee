"""How far unlearned models lie from Retrains, example by example."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mujax.auditing import _banks

CLIP = 100.0
"""Margins beyond are taken for it, so that one model does not set all bins."""


def klom(
    unlearned: ArrayLike,
    oracle: ArrayLike,
    *,
    bins: int = 20,
    floor: float | None = 1e-5,
) -> np.ndarray:
    r"""KL divergence of margins (KLOM) between histograms over models.

    .. math:: \sum_b p_b \log \frac{p_b}{\max(q_b, \mathrm{floor})}

    with p of the unlearned models and q of Retrains, in equal bins over the range of
    both. The published form needs a hundred models of each: an empty bin costs up to
    :math:`\ln 10^5`, and below that two banks of Retrains are far apart. Show what two
    halves of the Retrains have beside it.

    Args:
      unlearned: margins of N models on n examples, (N, n).
      oracle: margins of M Retrains, (M, n).
      bins: number of bins.
      floor: least probability of a bin under Retrain; None is 1 / (2M), for fewer
        models.

    Returns:
      A divergence an example in nats, (n,); 0 for equal histograms.

    Raises:
      ValueError: shapes that do not fit, or numbers that are not finite.

    Example:
      >>> klom([[0.0], [1.0]], [[0.0], [1.0]], bins=2)
      array([0.])
      >>> klom([[0.0], [0.0]], [[1.0], [1.0]], bins=2).round(2)
      array([11.51])

    Reference:
      `Georgiev et al. (2024) <https://arxiv.org/abs/2410.23232>`_.
    """
    ours, theirs = (np.clip(x, -CLIP, CLIP) for x in _banks.two_arms(unlearned, oracle))
    low = np.minimum(ours.min(0), theirs.min(0))
    width = np.maximum(ours.max(0), theirs.max(0)) - low

    def histogram(values: np.ndarray) -> np.ndarray:
        share = np.divide(
            values - low, width, where=width > 0, out=np.zeros_like(values)
        )
        places = np.minimum((bins * share).astype(int), bins - 1)  # the largest as well
        places += bins * np.arange(values.shape[1])
        counts = np.bincount(places.ravel(), minlength=bins * values.shape[1])
        return counts.reshape(-1, bins) / len(values)

    p, q = histogram(ours), histogram(theirs)
    q = np.maximum(q, 1 / (2 * len(theirs)) if floor is None else floor)
    return special.xlogy(p, p / q).sum(1)


def gaussian_klom(unlearned: ArrayLike, oracle: ArrayLike) -> np.ndarray:
    r"""KL divergence of margins between two normal distributions over models.

    .. math:: \ln \frac{\sigma_o}{\sigma_u}
       + \frac{\sigma_u^2 + (\mu_u - \mu_o)^2}{2 \sigma_o^2} - \frac12

    Tells a shift of one deviation from none with 32 models, where histograms cannot.

    Args:
      unlearned: margins of N models on n examples, (N, n), N of at least 2.
      oracle: margins of M Retrains, (M, n), M of at least 2.

    Returns:
      A divergence an example in nats, (n,); infinite where one side alone is constant.

    Raises:
      ValueError: shapes that do not fit, too few models, or numbers not finite.

    Example:
      >>> gaussian_klom([[1.0], [3.0]], [[0.0], [2.0]])
      array([0.25])

    Reference:
      Kullback and Leibler (1951); KLOM as in `Georgiev et al. (2024)
      <https://arxiv.org/abs/2410.23232>`_.
    """
    ours, theirs = _banks.two_arms(unlearned, oracle, least=2)
    u, o = ours.var(0, ddof=1), theirs.var(0, ddof=1)
    shift = (ours.mean(0) - theirs.mean(0)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (np.log(o / u) + (u + shift) / o - 1) / 2
    found = np.where((u == 0) | (o == 0), np.inf, found)
    return np.where((u == 0) & (o == 0) & (shift == 0), 0.0, np.maximum(found, 0))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    r"""Jensen-Shannon divergence of two models' outputs, in nats.

    .. math:: \tfrac12 KL(p \Vert m) + \tfrac12 KL(q \Vert m), \quad m = (p + q) / 2

    Between an unlearned model and Retrain; show that of two Retrains beside it.

    Args:
      p: probabilities (n, K).
      q: probabilities (n, K).

    Returns:
      A divergence an example in [0, ln 2], (n,): 0 for equal rows, ln 2 for disjoint.

    Raises:
      ValueError: shapes that do not fit, or rows that are no distributions.

    Example:
      >>> jensen_shannon([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]).round(4)
      array([0.6931, 0.    ])

    Reference:
      Lin (1991).
    """
    first, second = _banks.two_arms(p, q)
    if len(first) != len(second):
        raise ValueError(f"Got {len(first)} and {len(second)} rows, wanted as many.")
    for name, rows in (("p", first), ("q", second)):
        if (rows < 0).any() or not np.allclose(rows.sum(1), 1, atol=1e-3):
            raise ValueError(f"A row of {name} is no distribution; give probabilities.")
    middle = (first + second) / 2
    sides = [special.rel_entr(rows, middle).sum(1) for rows in (first, second)]
    return np.clip(sum(sides) / 2, 0.0, np.log(2))


def completeness(predictions: ArrayLike, reference: ArrayLike) -> float:
    """Share of examples for which two models predict the same class.

    One minus the churn. Between an unlearned model and Retrain; two Retrains differ
    too, and theirs is what to compare with.

    Args:
      predictions: classes (n,).
      reference: classes (n,) of the other model.

    Returns:
      A share in [0, 1].

    Raises:
      ValueError: shapes that do not fit, or no example.

    Example:
      >>> completeness([0, 1, 2, 2], [0, 1, 1, 2])
      0.75

    Reference:
      Cao and Yang (2015), *Towards making systems forget with machine unlearning*.
    """
    first, second = np.asarray(predictions), np.asarray(reference)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"Got shapes {first.shape} and {second.shape}, wanted (n,) of both."
        )
    return float(np.mean(first == second))
