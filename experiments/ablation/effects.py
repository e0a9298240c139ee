r"""Main effects and two-way interactions of a factorial study, with intervals.

The model of a seed's numbers is

.. math:: y_{abcd} = \mu + \sum_f \alpha^f + \sum_{f<g} \gamma^{fg} + \varepsilon

with levels that sum to zero in each factor, fitted by least squares to the cells that
the seed has. What is reported are differences to the first level of a factor,
:math:`\alpha^f_i - \alpha^f_0`, and differences of differences,
:math:`\gamma_{ij} - \gamma_{i0} - \gamma_{0j} + \gamma_{00}`. Seeds repeat the whole
study, so that the spread of an effect over seeds is its error; intervals hold for all
effects at once (Bonferroni), and p-values are Holm's.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

Factors = Mapping[str, Sequence[str]]
"""Levels of each factor, the first of which is the reference."""


class Effect(NamedTuple):
    """An effect over seeds.

    Attributes:
      levels: by factor; one for a main effect, two for an interaction.
      mean: over seeds, in the unit of the numbers.
      half_width: of the interval that holds for all effects of the family at once.
      p_value: Holm's, of no effect.
    """

    levels: Mapping[str, str]
    mean: float
    half_width: float
    p_value: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width


class Better(NamedTuple):
    """A cell that is better than each of some others.

    Attributes:
      cell: its index.
      mean: difference to the nearest of the others, over seeds.
      half_width: of the interval of that difference.
    """

    cell: int
    mean: float
    half_width: float


def estimate(
    numbers: np.ndarray,
    cells: Sequence[Sequence[str]],
    factors: Factors,
    level: float = 0.95,
) -> list[Effect]:
    """Main effects, and then two-way interactions, as one family of comparisons.

    Args:
      numbers: of each seed and cell (S, C); NaN where a seed has none.
      cells: the level of each factor, for each cell.
      factors: at least one of two levels.
      level: of the intervals, in (0, 1), for all of them together.

    Returns:
      An effect for each level but the first of each factor, and for each pair of such.

    Raises:
      ValueError: there are fewer than two seeds, no factor has two levels, or the
        cells of a seed do not tell the effects apart.

    Example:
      >>> cells = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
      >>> numbers = np.array([[1.0, 2.0, 4.0, 9.0], [1.2, 2.2, 4.0, 9.2]])
      >>> found = estimate(numbers, cells, {"x": ["a", "b"], "y": ["c", "d"]})
      >>> [round(effect.mean, 3) for effect in found]
      [4.95, 3.05, 4.1]
    """
    numbers = np.asarray(numbers, float)
    if len(numbers) < 2:
        raise ValueError(
            f"Got numbers of {len(numbers)} seeds, wanted two at least: what repeats "
            "tells how sure an effect is."
        )
    design, contrasts, names = _design(cells, factors)
    if not names:
        raise ValueError("Got no factor of two levels: there is nothing to compare.")
    found = np.stack([_fit(design, row) @ contrasts.T for row in numbers])
    means, halves, p_values = _simultaneous(found, found.shape[1], level)
    return [
        Effect(*values)
        for values in zip(
            names, means.tolist(), halves.tolist(), holm(p_values).tolist(), strict=True
        )
    ]


def beats_all(
    numbers: np.ndarray, ours: Sequence[int], theirs: Sequence[int], level: float = 0.95
) -> list[Better]:
    """Cells that are smaller than each of some others, beyond their intervals.

    A cell has to pass the test against every one of the others, so that only the number
    of cells that try counts as comparisons. Differences are paired by seed.

    Args:
      numbers: of each seed and cell (S, C); NaN where a seed has none.
      ours: the cells that try.
      theirs: the cells to beat.
      level: of the intervals, in (0, 1), for all that try together.

    Returns:
      Those that do, the smallest mean first; none where there are too few seeds.

    Example:
      >>> numbers = np.array([[1.0, 3.0, 4.0], [1.1, 3.0, 4.1], [1.0, 3.1, 4.0]])
      >>> [better.cell for better in beats_all(numbers, [0], [1, 2])]
      [0]
    """
    numbers, found = np.asarray(numbers, float), []
    for cell in ours:
        differences = numbers[:, [cell]] - numbers[:, list(theirs)]
        differences = differences[np.isfinite(differences).all(1)]
        if len(differences) < 2:
            continue
        means, halves, _ = _simultaneous(differences, len(ours), level)
        if np.all(means + halves < 0):
            nearest = int(np.argmax(means))
            found.append(Better(cell, float(means[nearest]), float(halves[nearest])))
    return sorted(found, key=lambda better: np.nanmean(numbers[:, better.cell]))


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values that hold for all comparisons together, by Holm's steps.

    Example:
      >>> holm(np.array([0.01, 0.04, 0.03])).round(3)
      array([0.03, 0.06, 0.06])

    Reference:
      Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    steps = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    adjusted = np.empty_like(steps)
    adjusted[order] = steps
    return adjusted


def _simultaneous(values: np.ndarray, comparisons: int, level: float):
    """Means over seeds, half-widths of Bonferroni's intervals, and plain p-values."""
    count = len(values)
    means = values.mean(0)
    errors = values.std(0, ddof=1) / np.sqrt(count)
    quantile = scipy.stats.t.ppf(1 - (1 - level) / (2 * comparisons), count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means == 0, 0.0, np.abs(means) / errors)
    return means, quantile * errors, 2 * scipy.stats.t.sf(ratios, count - 1)


def _fit(design: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Least-squares coefficients of the cells that a seed has."""
    known = np.isfinite(row)
    coefficients, _, rank, _ = np.linalg.lstsq(design[known], row[known])
    if rank < design.shape[1]:
        raise ValueError(
            f"Got {known.sum()} of {len(row)} cells of a seed, which do not tell its "
            f"{design.shape[1]} coefficients apart: leave the seed or a level out."
        )
    return coefficients


def _design(cells: Sequence[Sequence[str]], factors: Factors):
    """Columns of each cell, contrasts of the coefficients, and what each is called."""
    codes, rows, start = {}, {}, 1
    for place, (factor, levels) in enumerate(factors.items()):
        code = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
        index = [list(levels).index(cell[place]) for cell in cells]
        codes[factor], rows[factor] = code, code[index]
    columns, blocks, names = [np.ones((len(cells), 1))], [], []
    for order in (1, 2):
        for chosen in itertools.combinations(factors, order):
            columns.append(_products([rows[f] for f in chosen]))
            width = columns[-1].shape[1]
            change = [codes[f][1:] - codes[f][0] for f in chosen]
            contrast = change[0] if order == 1 else np.kron(*change)
            blocks.append((slice(start, start + width), contrast))
            start += width
            others = [list(factors[f])[1:] for f in chosen]
            names += [
                dict(zip(chosen, levels, strict=True))
                for levels in itertools.product(*others)
            ]
    contrasts, at = np.zeros((len(names), start)), 0
    for where, contrast in blocks:
        contrasts[at : at + len(contrast), where] = contrast
        at += len(contrast)
    return np.concatenate(columns, 1), contrasts, names


def _products(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All products of a column of each part, by row."""
    if len(parts) == 1:
        return parts[0]
    return np.einsum("ni,nj->nij", *parts).reshape(len(parts[0]), -1)
