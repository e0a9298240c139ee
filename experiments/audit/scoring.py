"""How well audits tell models that forgot from models that did not: arrays in.

A candidate looks at some models at once and gives a number, zero for models that never
saw what they were to forget and larger the more is left. Where it is known which models
are which, the candidate itself can be scored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments.audit import audits
from experiments.audit.bank import Margins
from mujax import auditing

GROUP = 8
"""Models that an audit of many looks at: as few as the likelihood ratio can take."""


class Asked(NamedTuple):
    """What some models say.

    Attributes:
      margins: on T, on R and on the test set.
      errors: on F, R and the test set (N, 3), in %.
    """

    margins: Margins
    errors: np.ndarray


class Candidate(NamedTuple):
    """An audit as a number for some models.

    Attributes:
      label: its name.
      models: how many unlearned models it looks at.
      retrains: how many Retrains it compares them with: 0, 1 or all (None).
      score: ``(ours, oracle) -> number``, zero where all is forgotten.
    """

    label: str
    models: int
    retrains: int | None
    score: Callable[[Asked, Asked], float]


class Verdict(NamedTuple):
    """What a candidate is worth.

    Attributes:
      area: how often a bad unit scores above a good one, in [0, 1].
      low: lower end of its 95 % interval, by the bootstrap over units.
      high: upper end.
      false_alarms: share of good units of another kind above the threshold that a
        twentieth of the null exceeds.
      dose: rank correlation of the mean score with the share that was trained on.
      rounding: agreement of the scores before and after the weights are rounded, 1 at
        best.
      halves: rank correlation of the kinds' mean scores between two halves of the bank.
    """

    area: float
    low: float
    high: float
    false_alarms: float
    dose: float
    rounding: float
    halves: float


def faithfulness(bad: np.ndarray, good: np.ndarray) -> float:
    """How often a bad unit scores above a good one; ties count half.

    >>> faithfulness(np.array([2.0, 1.0]), np.array([0.0, 1.0]))
    0.875
    """
    above = bad[:, None] > good[None]
    return float(np.mean(above + 0.5 * (bad[:, None] == good[None])))


def interval(
    bad: Sequence[np.ndarray], good: Sequence[np.ndarray], draws: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of the faithfulness, by the bootstrap within each kind."""
    rng = np.random.default_rng(0)

    def drawn(kinds):
        return np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])

    areas = [faithfulness(drawn(bad), drawn(good)) for _ in range(draws)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def threshold(null: np.ndarray) -> float:
    """What a twentieth of the null's scores exceed."""
    return float(np.quantile(null, 0.95))


def agreement(before: np.ndarray, after: np.ndarray) -> float:
    """1 − |Δ| / (|before| + |after|) of the means: 1 where nothing changes."""
    first, second = abs(float(np.mean(before))), abs(float(np.mean(after)))
    total = first + second
    return 1.0 if total == 0 else 1 - abs(first - second) / total


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; nan where one side does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(np.corrcoef(*map(scipy.stats.rankdata, (first, second)))[0, 1])


def verdict(
    scores: Mapping[str, np.ndarray],
    *,
    bad: Sequence[str],
    good: Sequence[str],
    null: str,
    doses: Sequence[tuple[float, str]],
    rounded: tuple[str, str],
) -> Verdict:
    """Scores a candidate.

    Args:
      scores: numbers of its units, by kind of model.
      bad: kinds that forgot nothing.
      good: kinds that never saw it; the first that is not ``null`` gives false alarms.
      null: the good kind that sets the threshold.
      doses: shares that were trained on, each with its kind.
      rounded: a kind before and after its weights were rounded.
    """
    wrong, right = [scores[kind] for kind in bad], [scores[kind] for kind in good]
    low, high = interval(wrong, right)
    others = np.concatenate([scores[kind] for kind in good if kind != null])
    kinds = [*bad, *good]
    halves = [[float(np.mean(scores[k][i::2])) for k in kinds] for i in (0, 1)]
    return Verdict(
        faithfulness(np.concatenate(wrong), np.concatenate(right)),
        low,
        high,
        float(np.mean(others > threshold(scores[null]))),
        rank_correlation(
            [dose for dose, _ in doses],
            [float(np.mean(scores[kind])) for _, kind in doses],
        ),
        agreement(*(scores[kind] for kind in rounded)),
        rank_correlation(*halves),
    )


def flagged(
    scores: Mapping[str, np.ndarray], kinds: Sequence[str], null: str
) -> dict[str, float]:
    """Share of each kind's units above the threshold of the null."""
    bar = threshold(scores[null])
    return {kind: float(np.mean(scores[kind] > bar)) for kind in kinds}


def units(candidate: Candidate, bank: Asked, oracle: Asked) -> np.ndarray:
    """The candidate's numbers on the models of a bank, so many at a time."""
    count = len(bank.errors) // candidate.models * candidate.models
    groups = np.arange(count).reshape(-1, candidate.models)
    found = []
    for group in groups:
        theirs = oracle
        if candidate.retrains == 1:
            theirs = _some(oracle, group)
        found.append(candidate.score(_some(bank, group), theirs))
    return np.array(found)


def _some(bank: Asked, group: np.ndarray) -> Asked:
    margins = Margins(*(array[group] for array in bank.margins))
    return Asked(margins, bank.errors[group])


def _forget_error(ours: Asked, oracle: Asked) -> float:
    return abs(float((ours.errors - oracle.errors)[:, 0].mean()))


def _gap(ours: Asked, oracle: Asked) -> float:
    return float(np.mean(np.abs(ours.errors - oracle.errors)))


def _population(ours: Asked, oracle: Asked) -> float:
    del oracle
    return _from_chance(auditing.roc_area(ours.margins.pool, ours.margins.member))


def _references(ours: Asked, oracle: Asked) -> float:
    """Forgotten against unseen, each margin measured by Retrain's mean and spread."""
    theirs = oracle.margins.pool
    spread = np.maximum(theirs.std(0, ddof=1), 1e-12)
    measured = (ours.margins.pool - theirs.mean(0)) / spread
    return _from_chance(auditing.roc_area(measured, ours.margins.member))


def _ratio(ours: Asked, oracle: Asked) -> float:
    del oracle
    ratios = audits.ratios(ours.margins)
    return _from_chance(auditing.roc_area(ratios, ours.margins.member))


def _shift(ours: Asked, oracle: Asked) -> float:
    del oracle
    return abs(float(np.median(audits.shift(ours.margins))))


def _klom(ours: Asked, oracle: Asked) -> float:
    forgotten = audits.forgotten(ours.margins)
    return float(np.mean(auditing.gaussian_klom(forgotten, oracle.margins.pool)))


def _klom_retain(ours: Asked, oracle: Asked) -> float:
    retained = ours.margins.retain, oracle.margins.retain
    return float(np.mean(auditing.gaussian_klom(*retained)))


def _epsilon(ours: Asked, oracle: Asked) -> float:
    forgotten = audits.forgotten(ours.margins)
    return float(np.mean(auditing.forgetting_epsilon(forgotten, oracle.margins.pool)))


def _from_chance(area: float) -> float:
    """Distance of an area from one half, in %: below it is overdone."""
    return 100 * abs(area - 0.5)


CANDIDATES = (
    Candidate("UA", 1, 1, _forget_error),
    Candidate("Gap", 1, 1, _gap),
    Candidate("Pop", 1, 0, _population),
    Candidate("Pop by Retrains", 1, None, _references),
    Candidate("U-LiRA", GROUP, 0, _ratio),
    Candidate("d′", GROUP, 0, _shift),
    Candidate("KLOM", GROUP, None, _klom),
    Candidate("KLOM R", GROUP, None, _klom_retain),
    Candidate("ε", GROUP, None, _epsilon),
)
"""The audits of the report that are functions of margins, cheapest first."""
