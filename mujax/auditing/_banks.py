"""Checks of a bank's arrays: one row a model, one column an example."""

import numpy as np
from numpy.typing import ArrayLike


def numbers(values: ArrayLike, name: str, ndim: int = 2) -> np.ndarray:
    """Finite float64 numbers of so many axes.

    Raises:
      ValueError: another number of axes, an empty one, or a number that is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != ndim or not array.size:
        axes = ("n,", "models, examples", "models, examples, classes")[ndim - 1]
        raise ValueError(
            f"Got {name} of shape {array.shape}, wanted ({axes}), at least one each."
        )
    if not np.isfinite(array).all():
        count = int(np.sum(~np.isfinite(array)))
        raise ValueError(
            f"{name} has {count} entries that are not finite; leave those models out."
        )
    return array


def membership(member: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Which model was trained on which example, as bools of this shape.

    Raises:
      TypeError: it is not of bools.
      ValueError: it has another shape, or one class only.
    """
    array = np.asarray(member)
    if array.dtype != bool:
        raise TypeError(f"Got member of {array.dtype}, wanted bools.")
    if array.shape != shape:
        raise ValueError(f"Got member of shape {array.shape}, wanted {shape}.")
    if array.all() or not array.any():
        raise ValueError("member is the same everywhere: wanted both members and not.")
    return array


def check_pairs(member: np.ndarray) -> None:
    """Raises unless models 2i and 2i + 1 are complements."""
    if len(member) % 2 or not np.array_equal(member[::2], ~member[1::2]):
        raise ValueError(
            f"The {len(member)} models are no pairs: wanted models 2i and 2i + 1 to "
            "have been trained on complementary halves; give pairs=False otherwise."
        )


def two_arms(
    unlearned: ArrayLike, oracle: ArrayLike, ndim: int = 2, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of unlearned models and of Retrains, on the same examples.

    Raises:
      ValueError: the examples differ in number, or there are too few models.
    """
    ours = numbers(unlearned, "unlearned", ndim)
    theirs = numbers(oracle, "oracle", ndim)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"Got unlearned of shape {ours.shape} and oracle of shape {theirs.shape}, "
            "wanted as many examples in both."
        )
    if min(len(ours), len(theirs)) < least:
        raise ValueError(
            f"Got {len(ours)} unlearned models and {len(theirs)} Retrains, wanted at "
            f"least {least} of each."
        )
    return ours, theirs
