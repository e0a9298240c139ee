"""What a bank of margins says of each method, as columns of a table.

The audits are functions of :mod:`mujax.auditing`; here they are given the arrays that
they are meant for, and an interval: the jackknife that leaves out a pair of models.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments.audit.bank import Margins
from experiments.reporting.summary import Column, Estimate, MethodSummary, Summary
from mujax import auditing

REFERENCE, FLOOR = "retrain", "retrain_again"
GAP = "klom"
FPR = 0.01


class Audit(NamedTuple):
    """A column of the table, and the number of a method behind it.

    ``score`` is given the margins of the method and of Retrain; None where the bank is
    too small for it.
    """

    column: Column
    score: Callable[[Margins, Margins], float | None]


def forgotten(bank: Margins) -> np.ndarray:
    """Margins (N / 2, 2f) of each pool example by the models that forgot it."""
    return _of(bank, bank.member)


def never(bank: Margins) -> np.ndarray:
    """Margins (N / 2, 2f) of each pool example by the models that never saw it."""
    return _of(bank, ~bank.member)


def ratios(bank: Margins) -> np.ndarray:
    """Log-likelihood ratios (N, 2f) of having been trained on, and unlearned."""
    return auditing.likelihood_ratio(bank.pool, bank.member)


def shift(bank: Margins) -> np.ndarray:
    """How far forgotten margins lie above those never seen, in deviations (2f,)."""
    ours, others = forgotten(bank), never(bank)
    spread = np.sqrt((ours.var(0, ddof=1) + others.var(0, ddof=1)) / 2)
    return (ours.mean(0) - others.mean(0)) / np.maximum(spread, 1e-12)


def _ratio_area(ours: Margins, oracle: Margins) -> float:
    del oracle
    return 100 * auditing.roc_area(ratios(ours), ours.member)


def _ratio_tpr(ours: Margins, oracle: Margins) -> float | None:
    del oracle
    if np.sum(~ours.member) * FPR < 10:
        return None
    return 100 * auditing.tpr_at(ratios(ours), ours.member, FPR)


def _population_area(ours: Margins, oracle: Margins) -> float:
    del oracle
    return 100 * auditing.roc_area(ours.pool, ours.member)


def _shift(ours: Margins, oracle: Margins) -> float:
    del oracle
    return float(np.median(shift(ours)))


def _klom(ours: Margins, oracle: Margins) -> float:
    return float(np.mean(auditing.gaussian_klom(forgotten(ours), oracle.pool)))


def _klom_retain(ours: Margins, oracle: Margins) -> float:
    return float(np.mean(auditing.gaussian_klom(ours.retain, oracle.retain)))


def _epsilon(ours: Margins, oracle: Margins) -> float:
    return float(np.mean(auditing.forgetting_epsilon(forgotten(ours), oracle.pool)))


AUDITS = (
    Audit(
        Column(
            "ratio",
            "U-LiRA",
            "%",
            1,
            reference=False,
            description="area under the ROC curve of the likelihood ratio between "
            "models that forgot an example and models that never saw it; 50 is chance",
        ),
        _ratio_area,
    ),
    Audit(
        Column(
            "ratio_tpr",
            "TPR@1",
            "%",
            1,
            reference=False,
            description="true positives of that attack at 1 % false ones; 1 is chance",
        ),
        _ratio_tpr,
    ),
    Audit(
        Column(
            "population",
            "Pop",
            "%",
            1,
            reference=False,
            description="area of one threshold on the margin for all examples; below "
            "50, what was forgotten is less certain than what was never seen",
        ),
        _population_area,
    ),
    Audit(
        Column(
            "shift",
            "d′",
            "",
            2,
            reference=False,
            description="median shift of forgotten margins against never seen ones, in "
            "standard deviations: positive is remembered, negative is overdone",
        ),
        _shift,
    ),
    Audit(
        Column(
            "klom",
            "KLOM",
            "nats",
            2,
            reference=False,
            description="mean divergence of the margins of a forgotten example from "
            "Retrain's, both as normal distributions",
        ),
        _klom,
    ),
    Audit(
        Column(
            "klom_retain",
            "KLOM R",
            "nats",
            2,
            reference=False,
            description="the same on the retain set: damage done beside",
        ),
        _klom_retain,
    ),
    Audit(
        Column(
            "epsilon",
            "ε",
            "nats",
            2,
            reference=False,
            description="mean ε of forgetting, biased upwards: compare with Retrain "
            "again, not with 0",
        ),
        _epsilon,
    ),
)
READING = "\n".join(
    [
        *(f"{a.column.label}: {a.column.description}." for a in AUDITS),
        "± after UA, RA, TA and Gap: 95 % interval over models. After the audits: the "
        "jackknife that leaves out one pair of models and fits anew.",
        "Retrain again is Retrain as a method: all of its numbers are noise. It is a "
        "Retrain of R, whatever half it is said to have forgotten.",
        "The audits hold an algorithm that we ran, not a model that somebody gives.",
    ]
)


def audited(summary: Summary, banks: Mapping[str, Margins]) -> Summary:
    """The summary with the audits' columns, ranked by KLOM.

    Retrain itself, which the others are compared with, has the audits that compare
    nothing with it. Where too few models are done there are no numbers yet.
    """
    oracle = banks.get(REFERENCE)
    columns = (*summary.columns, *(audit.column for audit in AUDITS))

    def with_audits(entry: MethodSummary) -> MethodSummary:
        bank, values = banks.get(entry.method), {}
        for audit in AUDITS:
            compared = audit.score in (_klom, _klom_retain, _epsilon)
            if (
                bank is None
                or oracle is None
                or (compared and entry.method == REFERENCE)
            ):
                values[audit.column.key] = Estimate(None, None, 0)
            else:
                values[audit.column.key] = estimate(audit, bank, oracle)
        return dataclasses.replace(entry, values={**entry.values, **values})

    return dataclasses.replace(
        summary,
        columns=columns,
        gap=GAP,
        methods=tuple(map(with_audits, summary.methods)),
    )


def estimate(audit: Audit, bank: Margins, oracle: Margins) -> Estimate:
    """A score with the half-width of its 95 % interval, by the jackknife over pairs."""
    score, count = audit.score(bank, oracle), len(bank.models)
    if score is None:
        return Estimate(None, None, count)

    def statistic(*arrays: np.ndarray) -> float:
        ours, theirs = Margins(*arrays[:5]), Margins(*arrays[5:])
        left = audit.score(ours, theirs)
        return np.nan if left is None else left

    _, error = auditing.jackknife(statistic, *bank, *oracle)
    if not np.isfinite(error):
        return Estimate(score, None, count)
    quantile = scipy.stats.t.ppf(0.975, count // 2 - 1)
    return Estimate(score, float(quantile * error), count)


def _of(bank: Margins, chosen: np.ndarray) -> np.ndarray:
    """The rows of each column that are chosen, as many in all columns."""
    order = np.argsort(~chosen, axis=0, kind="stable")[: len(chosen) // 2]
    return np.take_along_axis(bank.pool, order, axis=0)
