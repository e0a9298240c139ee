"""Which of a data set's training images must be forgotten: sorted index arrays."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.data.dataset import DataError, Dataset, reading


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which images to forget, to retain and to test on: sorted int32 indices.

    Attributes:
      forget: indices into the training images.
      retain: the other training images.
      test: indices into the test images.
    """

    forget: np.ndarray
    retain: np.ndarray
    test: np.ndarray


def random_split(dataset: Dataset, fraction: float, seed: int) -> Split:
    """Forgets ``round(fraction · N)`` training images, drawn uniformly.

    Args:
      dataset: the data set.
      fraction: share of the training images, between 0 and 1.
      seed: not negative; the same seed gives the same images on every machine.

    Returns:
      The split; all test images stay.

    Raises:
      DataError: if the fraction is outside (0, 1) or a set or class would be empty.

    >>> from experiments.data import load
    >>> split = random_split(load("digits"), 0.1, seed=0)
    >>> print(len(split.forget), len(split.retain), len(split.test))
    144 1293 360
    """
    return _split(dataset, _random_indices(dataset, fraction, seed))


def class_split(dataset: Dataset, forget_class: int | str) -> Split:
    """Forgets a whole class, and leaves it out of the test images.

    Args:
      dataset: the data set.
      forget_class: the class's name or, where no class has that name, its number.

    Returns:
      The split.

    Raises:
      DataError: if there is no such class, or no other class to test on.

    >>> from experiments.data import load
    >>> split = class_split(load("digits"), 3)
    >>> print(len(split.forget), len(split.retain), len(split.test))
    147 1290 324
    """
    numbers = {str(i): i for i in range(dataset.num_classes)}
    numbers |= {name: i for i, name in enumerate(dataset.classes)}
    number = numbers.get(str(forget_class))
    if number is None:
        raise DataError(
            f"{dataset.name} has no class {forget_class!r}. Choose a name or a number "
            f"from 0: {_listed(dataset.classes)}."
        )
    forget = np.flatnonzero(dataset.train_labels == number)
    test = np.flatnonzero(dataset.test_labels != number)
    if not len(test):
        raise DataError(
            f"All test images of {dataset.name} are of class {forget_class!r}: "
            "without it nothing is left to test on. Add test images of other classes."
        )
    retain = others(forget, len(dataset.train_labels))
    return Split(forget.astype(np.int32), retain, test.astype(np.int32))


def index_split(dataset: Dataset, path: str | pathlib.Path) -> Split:
    """Forgets the training images whose indices a text file lists.

    Args:
      dataset: the data set.
      path: text with one index from 0 a line; blank lines are skipped, and so is
        everything from a ``#`` to the end of its line.

    Returns:
      The split; all test images stay.

    Raises:
      DataError: if the file cannot be read, if a line is no index of a training image
        or repeats one, or if a set or class would be empty.

    >>> import tempfile
    >>> from experiments.data import load
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "forget.txt"
    >>> _ = path.write_text("# withdrawn consent" + chr(10) + "7" + chr(10) + "3")
    >>> print(index_split(load("digits"), path).forget)
    [3 7]
    """
    path, total = pathlib.Path(path), len(dataset.train_labels)
    remedy = "Give a text file with one index a line."
    if not str(path).isprintable():
        raise DataError(f"The name {str(path)!r} holds characters that do not print.")
    with reading(f"The file of forget indices {str(path)!r}", remedy):
        if not path.exists():
            raise DataError(f"There is no file of forget indices {str(path)!r}.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        # 19 digits or more: no index, and perhaps more than int() takes.
        valid = text.isascii() and text.isdigit() and len(text) < 19
        index = int(text) if valid else total
        if index >= total:
            raise DataError(
                f"Line {number} of {path} holds {text[:40]!r}: wanted one whole "
                f"number from 0 to {total - 1}, the index of a training image."
            )
        if index in seen:
            raise DataError(
                f"Line {number} of {path} repeats the index {index} of line "
                f"{seen[index]}. Remove one of them."
            )
        seen[index] = number
    if not seen:
        raise DataError(f"{path} lists no index. {remedy}")
    return _split(dataset, np.sort(list(seen)))


def validation_split(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Holds out ``round(fraction · N)`` training images in place of the test split.

    For tuning: what is chosen on the returned data set has never seen a test image.
    Both parts are copied into memory.

    Args:
      dataset: the data set.
      fraction: share of the training images, between 0 and 1.
      seed: not negative; the same seed gives the same images on every machine.

    Returns:
      The data set whose test split is the held-out part of the training split.

    Raises:
      DataError: if the fraction is outside (0, 1) or a split or class would be empty.

    >>> from experiments.data import load
    >>> tuning = validation_split(load("digits"), 0.2, seed=0)
    >>> print(len(tuning.train_images), len(tuning.test_images))
    1150 287
    """
    split = _split(dataset, _random_indices(dataset, fraction, seed))
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[split.retain],
        train_labels=dataset.train_labels[split.retain],
        test_images=dataset.train_images[split.forget],
        test_labels=dataset.train_labels[split.forget],
    )


def _split(dataset: Dataset, forget: np.ndarray) -> Split:
    """The split that forgets these sorted indices, if every class keeps an image."""
    total = len(dataset.train_labels)
    retain = others(forget, total)
    if not len(forget) or not len(retain):
        raise DataError(
            f"{len(forget)} of the {total} training images of {dataset.name} would be "
            "taken out: some must be, and some must stay. Change the share or the file."
        )
    labels = dataset.train_labels
    lost = np.setdiff1d(labels[forget], labels[retain])
    if len(lost):
        names = _listed([dataset.classes[i] for i in lost])
        raise DataError(
            f"No training image of {names} would be left in {dataset.name}. Take out "
            "fewer, or forget a whole class with the class scenario."
        )
    test = np.arange(len(dataset.test_labels), dtype=np.int32)
    return Split(forget.astype(np.int32), retain, test)


def _random_indices(dataset: Dataset, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of a random share of the training images."""
    if not 0 < fraction < 1:
        raise DataError(f"The fraction is {fraction}; wanted one between 0 and 1.")
    if seed < 0:
        raise DataError(f"The seed is {seed}; wanted 0 or more.")
    total = len(dataset.train_labels)
    return np.sort(shuffled(total, seed)[: round(fraction * total)])


def shuffled(total: int, seed: int) -> np.ndarray:
    """A random order of ``range(total)``, the same under every version of NumPy."""
    # NumPy promises stable streams for its bit generators, not for its Generator.
    return np.argsort(np.random.PCG64(seed).random_raw(total), kind="stable")


def others(indices: np.ndarray, total: int) -> np.ndarray:
    """The indices below ``total`` that are not among these."""
    left = np.ones(total, bool)
    left[indices] = False
    return np.flatnonzero(left).astype(np.int32)


def _listed(names: Sequence[str], limit: int = 20) -> str:
    """The names with commas between them, cut where they are many."""
    more = f" … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
