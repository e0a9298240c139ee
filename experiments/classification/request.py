"""What is to be forgotten: the split of a request, and what it asks of the recipes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import data
from experiments.classification import heldout, recipes
from experiments.classification.config import Config


def make_split(
    config: Config, dataset: data.Dataset, seeds: Sequence[int] = (0,)
) -> data.Split:
    """Which images the first of the seeds forgets, retains and is tested on.

    Raises:
      DataError: one of the seeds has no such split.
    """
    forgotten = np.empty(0, np.int32)
    if config.forgotten_indices is not None:
        names = config.forgotten_indices
        forgotten = data.read_indices(dataset, names, "forgotten")
    if config.scenario == "random":
        _check_draws(config, dataset, seeds, forgotten)
        return config.draw(dataset, seeds[0], forgotten)
    if config.scenario == "mislabelled":
        return config.draw(dataset, 0, forgotten)
    if config.scenario in ("memorised", "typical"):
        rank = heldout.certainty(config, dataset, config.forget_seed, forgotten)
        rank = rank if config.scenario == "memorised" else -rank
        return data.ranked_split(dataset, config.forget_fraction, rank, forgotten)
    if config.scenario == "class":
        return data.class_split(dataset, config.forget_class, forgotten)
    if config.forget_indices is None:
        raise data.DataError("--scenario indices needs --forget-indices FILE.")
    return data.index_split(dataset, config.forget_indices, forgotten)


def as_learned(
    config: Config, dataset: data.Dataset, split: data.Split
) -> data.Dataset:
    """The data set with the labels that are learned, some wrong where asked for."""
    if config.scenario != "mislabelled":
        return dataset
    return data.mislabelled(dataset, split.forget, config.forget_seed)


def _check_draws(
    config: Config, dataset: data.Dataset, seeds: Sequence[int], forgotten: np.ndarray
) -> None:
    """Raises if a seed draws what cannot be forgotten; names all that do."""
    lost: dict[int, data.LostClassError] = {}
    for seed in seeds:
        try:
            config.draw(dataset, seed, forgotten)
        except data.LostClassError as error:
            lost[seed] = error
    if lost:
        first, *others = lost
        listed = ", ".join(map(str, others[:8])) + " …" * (len(others) > 8)
        also = f" (and likewise with {listed})" if others else ""
        raise data.DataError(f"With seed {first}{also}: {lost[first]}")


def fit(
    numbers: Mapping[str, Any],
    chosen: Sequence[str],
    config: Config,
    dataset: data.Dataset,
    split: data.Split,
) -> tuple[dict[str, Any], list[str]]:
    """The numbers as this request needs them, and what a person should know of it."""
    fitted, notes, count = dict(numbers), [], len(split.forget)
    for name, recipe in numbers.items():
        stages = getattr(recipe, "stages", 1)
        given = any("stages" in config.changes.get(g, ()) for g in ("recipe", name))
        if stages > count and not given:
            fitted[name] = dataclasses.replace(recipe, stages=count)
            if name in chosen:
                notes.append(
                    f"{recipes.NOTES[name].label} forgets in {count} of its {stages} "
                    "stages: there are no more images to forget."
                )
    left_out = len(dataset.test_labels) - len(split.test)
    if left_out and config.scenario != "class":
        classes = np.setdiff1d(dataset.train_labels, dataset.train_labels[split.retain])
        names = ", ".join(dataset.classes[i] for i in classes[:9])
        notes.append(
            f"No training image of {names}{' …' * (len(classes) > 9)} is retained: the "
            f"{left_out} test images of it are left out, as in the class scenario."
        )
    return fitted, notes
