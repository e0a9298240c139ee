"""Figures of an ablation: a map of all cells, main effects, interactions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.ablation.cells import FACTORS, PUBLISHED, Cell
from experiments.ablation.effects import Effect
from experiments.ablation.findings import name
from experiments.reporting import drawing


@drawing.styled
def cells(numbers: np.ndarray, names: Sequence[str]) -> Figure:
    """Mean gap of every cell, spaces and masks down, correctors and orders across.

    Args:
      numbers: gaps (S, C).
      names: of the cells.
    """
    if not numbers.size:
        return drawing.nothing("No seed has run whole yet")
    places = list(FACTORS.values())
    masks, correctors, spaces, orders = (list(levels) for levels in places)
    means = dict(zip(names, numbers.mean(0), strict=True))
    down = [(space, mask) for space in spaces for mask in masks]
    across = [(corrector, order) for corrector in correctors for order in orders]
    names_of = [
        [Cell(mask, corrector, space, order).name for corrector, order in across]
        for space, mask in down
    ]
    grid = np.array([[means.get(name, np.nan) for name in row] for row in names_of])
    figure = drawing.blank(1.6 + 0.5 * len(down))
    axes = figure.add_subplot()
    low, high = np.nanmin(grid), np.nanquantile(grid, 0.9)
    axes.imshow(
        grid, cmap="viridis_r", vmin=low, vmax=max(high, low + 1e-9), aspect="auto"
    )
    for (i, j), value in np.ndenumerate(grid):
        text = "—" if np.isnan(value) else f"{value:.2f}"
        dark = value > (low + high) / 2
        colour = "white" if dark else drawing.INK
        axes.annotate(text, (j, i), ha="center", va="center", color=colour, fontsize=9)
        if names_of[i][j] in PUBLISHED:
            frame = {"fill": False, "color": drawing.PALETTE[1], "lw": 2.5}
            axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, **frame))
    axes.set_yticks(range(len(down)), [f"{space}, {mask} mask" for space, mask in down])
    words = [f"{corrector}\n{order}" for corrector, order in across]
    axes.set_xticks(range(len(across)), words, fontsize=8)
    axes.tick_params(length=0)
    return figure


@drawing.styled
def main_effects(effects: Sequence[Effect]) -> Figure:
    """A dot with its interval for each level but the first of each factor."""
    rows = [effect for effect in effects if len(effect.levels) == 1]
    words = [
        f"{FACTORS[factor][level]} − {next(iter(FACTORS[factor].values()))}"
        for effect in rows
        for factor, level in effect.levels.items()
    ]
    return _dots(rows, words)


@drawing.styled
def interactions(effects: Sequence[Effect]) -> Figure:
    """The same for each pair of levels of two factors."""
    rows = [effect for effect in effects if len(effect.levels) == 2]
    return _dots(rows, [name(effect) for effect in rows])


def _dots(rows: Sequence[Effect], words: Sequence[str]) -> Figure:
    """Effects from top to bottom; those whose interval holds zero are grey."""
    if not rows:
        return drawing.nothing("No factor has two levels")
    figure = drawing.blank(1.1 + 0.3 * len(rows))
    axes = figure.add_subplot()
    drawing.methods_axis(axes, words)
    axes.set_xlabel("Change of the gap to Retrain (points)")
    axes.axvline(0, color=drawing.INK, lw=1.2, zorder=1)
    reach = max(abs(effect.mean) + effect.half_width for effect in rows) or 1.0
    axes.set_xlim(-1.05 * reach, 1.05 * reach)
    for y, effect in enumerate(rows):
        colour = drawing.PALETTE[0] if effect.clear else drawing.GREYS["retrain_again"]
        look = drawing.Look(colour, "o")
        drawing.dot(axes, effect.mean, effect.half_width, y, look, None)
        axes.annotate(
            f"{effect.mean:+.2f} ± {effect.half_width:.2f}".replace("-", "−"),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=drawing.INK if effect.clear else drawing.MUTED,
        )
    return figure
