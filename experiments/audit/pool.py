"""Which examples each model of a bank is trained on, and which of them it forgets.

The training images are split once into R, which all models keep, and a pool T. Model m
is trained on R and one half of T, and unlearns that half; model m + 1 has the other
half. Oracles are trained on R alone: one target for all models, sets and methods.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from experiments import data
from experiments.errors import UserError

Panel = Literal["mislabelled", "random", "class", "memorised", "typical"]
"""What the pool is: a random share with wrong labels, one with its own, a class, or the
examples that models which never saw them are least, or most, certain of."""
PANELS: tuple[Panel, ...] = get_args(Panel)


class PoolError(UserError):
    """A pool that cannot be drawn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """A data set and its part that models are made to forget.

    Attributes:
      dataset: the images, with the labels that models are trained on.
      pool: sorted indices (2f,) of the training images of T.
      retain: sorted indices of R.
      test: indices of the test images, of classes that R has.
      seed: of the halves.
    """

    dataset: data.Dataset
    pool: np.ndarray
    retain: np.ndarray
    test: np.ndarray
    seed: int

    def member(self, models: Sequence[int]) -> np.ndarray:
        """Which of the pool's examples (2f,) each model was trained on, as bools.

        The halves of models 2i and 2i + 1 are each other's complement, and depend on
        the seed and i alone: a larger bank begins with the models of a smaller one.
        """
        return np.stack([self._half(model) for model in models])

    def split(self, model: int) -> data.Split:
        """What a model forgets, retains, is tested on, and never saw."""
        member = self._half(model)
        forget, unseen = self.pool[member], self.pool[~member]
        return data.Split(forget, self.retain, self.test, unseen)

    def _half(self, model: int) -> np.ndarray:
        total, stream = len(self.pool), 1_000_003 * (self.seed + 1) + model // 2
        member = np.zeros(total, bool)
        member[data.shuffled(total, stream)[: total // 2]] = True
        return ~member if model % 2 else member


def draw(
    dataset: data.Dataset,
    panel: Panel,
    share: float,
    forget_class: str,
    seed: int,
    certainty: np.ndarray | None = None,
) -> Pool:
    """Draws T and R.

    Args:
      dataset: the images.
      panel: what T is.
      share: of the training images that one model forgets; T has twice as many.
      forget_class: name or number of the class of the panel ``class``.
      seed: not negative.
      certainty: of each training image, for the panels ``memorised`` and ``typical``.

    Returns:
      The pool. Wrong labels are uniform over the other classes.

    Raises:
      PoolError: T would have fewer than four images, or R would lose a class of T.
    """
    total = len(dataset.train_labels)
    if panel == "class":
        numbers = data.class_numbers(dataset, forget_class)
        pool = np.flatnonzero(np.isin(dataset.train_labels, numbers))
        pool = pool[: len(pool) // 2 * 2]
        left_out = np.flatnonzero(np.isin(dataset.train_labels, numbers))
    else:
        order = data.shuffled(total, seed)
        if panel in ("memorised", "typical"):
            assert certainty is not None
            order = np.argsort(certainty, kind="stable")
            order = order if panel == "memorised" else order[::-1]
        pool = np.sort(order[: 2 * round(share * total)])
        left_out = pool
    retain = data.others(left_out, total)
    labels = dataset.train_labels
    if len(pool) < 4 or not len(retain):
        raise PoolError(
            f"The pool would have {len(pool)} of the {total} training images of "
            f"{dataset.name}: wanted at least 4, and some to retain. Change --share or "
            "--forget-class."
        )
    lost = np.setdiff1d(labels[pool], labels[retain])
    if panel != "class" and len(lost):
        raise PoolError(
            f"No image of class {dataset.classes[lost[0]]} would be retained: give a "
            "smaller --share, or another --pool-seed."
        )
    if panel == "mislabelled":
        dataset = data.mislabelled(dataset, pool, seed)
    test = np.flatnonzero(np.isin(dataset.test_labels, labels[retain]))
    if not len(test):
        raise PoolError(f"No test image of {dataset.name} is of a class in R.")
    return Pool(dataset, pool.astype(np.int32), retain, test.astype(np.int32), seed)
