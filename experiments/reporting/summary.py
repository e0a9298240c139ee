"""Means, intervals and differences over seeds, of any experiment's rows.

Columns are data, so that classification and diffusion share this. Rows come from
``results.json``, one for each method and seed. Every method is compared with Retrain,
paired by seed, and a second, independent Retrain gives the noise floor: a gap below it
means nothing.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of the rows.

    ``reference``: shown with its difference to Retrain. ``error``: key of its own
    standard error in a row, where it has one.
    """

    key: str
    label: str
    unit: str
    decimals: int
    reference: bool = True
    description: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds and the half-width of its interval, where known."""

    mean: float | None
    half_width: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """A method over its seeds: estimates and differences to the reference by column."""

    method: str
    label: str
    seeds: int  # that ended well: the ones averaged
    diverged: int
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]  # empty for the reference itself
    errors: Mapping[str, float]  # largest standard error of one run


@dataclasses.dataclass(frozen=True)
class Summary:
    """All methods in the order shown, and the names that have a role."""

    columns: tuple[Column, ...]
    methods: tuple[MethodSummary, ...]
    original: str
    reference: str
    floor: str
    gap: str
    level: float
    labels: Mapping[str, str]

    def label(self, method: str) -> str:
        """Name of a method as shown, whether or not it has a row."""
        plain = method.replace("_", " ")
        return self.labels.get(method, plain[:1].upper() + plain[1:])

    def get(self, method: str) -> MethodSummary | None:
        """Summary of one method, if it has a row."""
        return next((m for m in self.methods if m.method == method), None)

    @property
    def method_labels(self) -> dict[str, str]:
        """``{method: label}`` in the order shown, as the figures take it."""
        return {m.method: m.label for m in self.methods}

    @property
    def noise_floor(self) -> Estimate:
        """Gap between two independent Retrains."""
        floor = self.get(self.floor)
        missing = Estimate(None, None, 0)
        return floor.values.get(self.gap, missing) if floor else missing

    @property
    def ranking(self) -> list[tuple[float, MethodSummary]]:
        """``(gap, method)`` by rising gap: no baseline, none with a diverged seed."""
        baselines = (self.original, self.reference, self.floor)
        ranked = [
            (estimate.mean, m)
            for m in self.methods
            if m.method not in baselines and not m.diverged
            if (estimate := m.values.get(self.gap)) and estimate.mean is not None
        ]
        return sorted(ranked, key=lambda pair: pair[0])

    @property
    def within_floor(self) -> list[MethodSummary]:
        """Methods as close to Retrain as a second Retrain is, closest first."""
        floor = self.noise_floor.mean
        return [m for gap, m in self.ranking if floor is not None and gap <= floor]

    @property
    def best(self) -> list[MethodSummary]:
        """Methods within the noise floor, or else the one closest to Retrain."""
        return self.within_floor or [m for _, m in self.ranking[:1]]


def summarise(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    original: str = "original",
    reference: str = "retrain",
    floor: str = "retrain_again",
    gap: str = "gap",
    level: float = 0.95,
    labels: Mapping[str, str] | None = None,
) -> Summary:
    r"""Means over seeds with Student t intervals, and differences paired by seed.

    .. math:: \bar x \pm t_{(1 + level)/2,\, n - 1}\, s / \sqrt n

    Rows whose ``status`` is not ``"ok"`` count as diverged and are averaged nowhere;
    a value that is missing or not finite is left out. Of two rows of one method and
    seed the last one stands.

    Args:
      rows: mappings with ``method``, ``seed``, optionally ``status`` (``"ok"``,
        ``"diverged"``), and the columns' keys.
      columns: what to average, in the order shown.
      original: method that unlearned nothing; shown first where it has rows.
      reference: method that the others are compared with; shown second.
      floor: independent repetition of the reference; shown third.
      gap: key of the column that holds the distance to the reference.
      level: of the intervals, in (0, 1).
      labels: names to show, by method.

    Returns:
      The ``Summary``; other methods stand in the order of their first row.

    Raises:
      ValueError: ``level`` is outside (0, 1).

    Example:
      >>> rows = [{"method": "retrain", "seed": s, "ua": 4.0 + s} for s in range(3)]
      >>> rows += [{"method": "salun", "seed": s, "ua": 5.0 + s} for s in range(3)]
      >>> summary = summarise(rows, [Column("ua", "UA", "%", 2)])
      >>> estimate = summary.methods[1].values["ua"]
      >>> print(f"{estimate.mean:.2f} ± {estimate.half_width:.2f}")
      6.00 ± 2.48
      >>> summary.methods[1].differences["ua"]
      Estimate(mean=1.0, half_width=0.0, count=3)

    Reference:
      Student (1908), "The probable error of a mean".
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected level={level} in (0, 1), such as 0.95.")
    runs: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["method"], {})[row["seed"]] = row
    finished = {
        method: {seed: r for seed, r in by_seed.items() if _ok(r)}
        for method, by_seed in runs.items()
    }

    def values(method: str, key: str) -> dict[Any, float]:
        by_seed = finished.get(method, {})
        numbers = {seed: number(row.get(key)) for seed, row in by_seed.items()}
        return {seed: x for seed, x in numbers.items() if x is not None}

    def difference(method: str, key: str) -> Estimate:
        ours, theirs = values(method, key), values(reference, key)
        return _estimate([x - theirs[s] for s, x in ours.items() if s in theirs], level)

    summary = Summary(
        tuple(columns), (), original, reference, floor, gap, level, dict(labels or {})
    )
    methods = tuple(
        MethodSummary(
            method=method,
            label=summary.label(method),
            seeds=len(finished[method]),
            diverged=len(runs[method]) - len(finished[method]),
            values={
                c.key: _estimate(list(values(method, c.key).values()), level)
                for c in columns
            },
            differences={c.key: difference(method, c.key) for c in columns}
            if method != reference
            else {},
            errors={
                c.key: max(errors)
                for c in columns
                if c.error and (errors := values(method, c.error).values())
            },
        )
        for method in in_order(summary, runs)
    )
    return dataclasses.replace(summary, methods=methods)


def in_order(summary: Summary, methods: Iterable[str]) -> list[str]:
    """Original, reference and floor first, then the others as they came; no repeats."""
    names = dict.fromkeys(methods)
    first = (summary.original, summary.reference, summary.floor)
    return [m for m in first if m in names] + [m for m in names if m not in first]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _ok(row: Mapping[str, Any]) -> bool:
    """Whether a run ended well."""
    return row.get("status", "ok") == "ok"


def _estimate(values: Sequence[float], level: float) -> Estimate:
    """Mean and half-width of the Student t interval."""
    count = len(values)
    if not count:
        return Estimate(None, None, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # 1e200 squared
        mean, deviation = np.mean(values), np.std(values, ddof=1) if count > 1 else None
    if deviation is None:
        return Estimate(number(mean), None, count)
    quantile = scipy.stats.t.ppf((1 + level) / 2, count - 1)
    return Estimate(number(mean), number(quantile * deviation / count**0.5), count)
