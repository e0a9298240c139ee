"""What an ablation found: gaps of whole seeds, their effects, and sentences on them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.ablation.cells import CELLS, FACTORS, PUBLISHED
from experiments.ablation.effects import Effect, beats_all, estimate
from experiments.engine.task import ORIGINAL
from experiments.reporting.summary import number

PAPERS = "salient_none_full_none", "none_none_cores_none", "none_corrector_full_easy"
"""The cells that are SalUn, SEMU and CUFG."""
_METRICS = "ua", "ra", "ta", "mia"


class Found(NamedTuple):
    """What the rows of a study say.

    Attributes:
      cells: names of those that have a row.
      gaps: of the seeds for which all have ended (S, C); NaN where a run diverged.
      effects: main effects and then interactions of the cells that never diverged;
        empty where too little has run.
      why: why there are none, or empty.
      same: groups of cells whose numbers agree on all of several seeds; the original
        model stands among those that moved nothing that can be measured.
    """

    cells: list[str]
    gaps: np.ndarray
    effects: list[Effect]
    why: str
    same: list[list[str]]


def gather(rows: Sequence[Mapping[str, Any]]) -> Found:
    """Gaps of the seeds for which every cell has ended, and their effects."""
    ended = {(row["method"], row["seed"]): row for row in rows}
    cells = [name for name in CELLS if any(name == method for method, _ in ended)]
    seeds = sorted({seed for _, seed in ended})
    whole = [s for s in seeds if all((name, s) in ended for name in cells)]
    gaps = np.array([[_gap(ended[name, s]) for name in cells] for s in whole])
    gaps = gaps.reshape(len(whole), len(cells))
    found, why = [], ""
    # Seeds on which such a cell has barely survived would count as the whole of it.
    stable = np.where(np.isnan(gaps).any(0), np.nan, gaps)
    try:
        found = estimate(stable, [CELLS[name].levels for name in cells], _levels(cells))
    except ValueError as error:
        why = str(error)
    groups: dict[Any, list[str]] = {}
    for name in (ORIGINAL, *cells) if len(whole) > 1 else ():
        runs = [ended.get((name, s), {}) for s in whole]
        if all(run.get("status") == "ok" for run in runs):
            told = tuple(tuple(map(run.get, _METRICS)) for run in runs)
            groups.setdefault(told, []).append(name)
    return Found(cells, gaps, found, why, [g for g in groups.values() if len(g) > 1])


def verdict(found: Found) -> list[str]:
    """What the gaps say of the combinations, in sentences."""
    sentences = [
        f"{len(found.cells)} of {len(CELLS)} combinations of parts have run on "
        f"{len(found.gaps)} whole seeds."
    ]
    means = found.gaps.mean(0) if len(found.gaps) else np.full(len(found.cells), np.nan)
    if np.isfinite(means).any():
        best = int(np.nanargmin(means))
        sentences.append(f"The smallest mean gap has {_label(found, best, means)}.")
        sentences.append(_comparison(found, means))
    if found.why:
        sentences.append(f"There are no effects: {found.why}")
    lost = np.isnan(found.gaps).sum(0)
    if names := [f"{found.cells[i]} ({lost[i]})" for i in np.flatnonzero(lost)]:
        sentences.append(
            "Diverged, on so many seeds, and left out of the effects on all: "
            f"{', '.join(names)}."
        )
    if found.same:
        groups = "; ".join(" = ".join(group) for group in found.same)
        sentences.append(f"The same numbers on all seeds: {groups}.")
    return sentences


def table(found: Found) -> str:
    """Effects as lines of text."""
    if not found.effects:
        return found.why
    head = (
        "Change of the gap in points against the first level of a factor; of pairs, "
        "the change beyond the sum of both.\n"
        f"± holds for all {len(found.effects)} at once (Bonferroni, 95 %), p is "
        "Holm's, * leaves out zero.\n"
    )
    lines = [
        f"{name(effect):47} {effect.mean:+6.2f} ± {effect.half_width:5.2f} "
        f"{'*' if effect.clear else ' '}  p = {effect.p_value:.2g}"
        for effect in found.effects
    ]
    return "\n".join([head, *lines])


def name(effect: Effect) -> str:
    """The levels of an effect, by their names in the report."""
    return " × ".join(FACTORS[factor][level] for factor, level in effect.levels.items())


def _comparison(found: Found, means: np.ndarray) -> str:
    """Whether a combination is better than each of SalUn, SEMU and CUFG."""
    theirs = [found.cells.index(name) for name in PAPERS if name in found.cells]
    ours = [i for i, name in enumerate(found.cells) if name not in PUBLISHED]
    if len(theirs) < len(PAPERS):
        return (
            "SalUn, SEMU and CUFG have not all run, so that nothing can be said of "
            "which combination is better."
        )
    papers = ", ".join(_label(found, i, means) for i in theirs)
    corrected = f"corrected for {len(ours)} combinations"
    won = beats_all(found.gaps, ours, theirs)
    if not won:
        return (
            f"No combination is better than each of {papers} beyond the interval of "
            f"the difference, {corrected}."
        )
    listed = "; ".join(
        f"{_label(found, better.cell, means)}, nearest difference {better.mean:.2f} ± "
        f"{better.half_width:.2f}"
        for better in won
    )
    return f"Better than each of {papers} beyond the interval, {corrected}: {listed}."


def _label(found: Found, index: int, means: np.ndarray) -> str:
    """A cell with its mean gap."""
    return f"{CELLS[found.cells[index]].NOTE.label} ({means[index]:.2f})"


def _gap(row: Mapping[str, Any]) -> float:
    """A run's gap; NaN where it diverged."""
    gap = number(row.get("gap"))
    return np.nan if gap is None else gap


def _levels(cells: Sequence[str]) -> dict[str, list[str]]:
    """The levels of each factor that the cells have."""
    levels = [CELLS[name].levels for name in cells]
    return {
        factor: [level for level in known if any(level == own[i] for own in levels)]
        for i, (factor, known) in enumerate(FACTORS.items())
    }
