"""Which of a data set's training images must be forgotten: sorted index arrays."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.data.dataset import DataError, Dataset, reading


class LostClassError(DataError):
    """A draw took the last training image of a class."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which images to forget, to retain and to test on: sorted int32 indices.

    Attributes:
      forget: indices into the training images.
      retain: the training images that are neither to forget nor forgotten.
      test: indices into the test images, of the classes that are retained.
      forgotten: training images that the model has been made to forget before.
    """

    forget: np.ndarray
    retain: np.ndarray
    test: np.ndarray
    forgotten: np.ndarray


NOTHING = np.empty(0, np.int32)
"""No training images."""


def random_split(
    dataset: Dataset, fraction: float, seed: int, forgotten: np.ndarray = NOTHING
) -> Split:
    """Forgets ``round(fraction · N)`` of N training images, drawn uniformly.

    Args:
      dataset: the data set.
      fraction: share of the training images, between 0 and 1.
      seed: not negative; the same seed gives the same images on every machine.
      forgotten: sorted indices of images that are forgotten already; the others are
        the N to draw from.

    Returns:
      The split; all test images of classes that are not forgotten stay.

    Raises:
      DataError: if the fraction is outside (0, 1) or a set or class would be empty.

    >>> from experiments.data import load
    >>> split = random_split(load("digits"), 0.1, seed=0)
    >>> print(len(split.forget), len(split.retain), len(split.test))
    144 1293 360
    """
    left = others(forgotten, len(dataset.train_labels))
    forget = left[_random_indices(len(left), fraction, seed)]
    split = _split(dataset, forget, forgotten)
    _check_classes(dataset, split)
    return split


def ranked_split(
    dataset: Dataset, fraction: float, rank: np.ndarray, forgotten: np.ndarray = NOTHING
) -> Split:
    """Forgets the ``round(fraction · N)`` of N training images that rank lowest.

    Args:
      dataset: the data set.
      fraction: share of the training images, between 0 and 1.
      rank: a number (n,) for each training image; of equal ones the first goes first.
      forgotten: sorted indices of images that are forgotten already; the others are
        the N.

    Returns:
      The split; all test images of classes that are not forgotten stay.

    Raises:
      DataError: if the fraction is outside (0, 1) or a set or class would be empty.

    >>> from experiments.data import load
    >>> digits = load("digits")
    >>> print(ranked_split(digits, 0.002, np.arange(1437)[::-1]).forget)
    [1434 1435 1436]
    """
    left = others(forgotten, len(dataset.train_labels))
    order = left[np.argsort(rank[left], kind="stable")]
    split = _split(dataset, np.sort(order[: _count(len(left), fraction)]), forgotten)
    _check_classes(dataset, split)
    return split


def class_split(
    dataset: Dataset, forget_class: int | str, forgotten: np.ndarray = NOTHING
) -> Split:
    """Forgets whole classes, and leaves them out of the test images.

    Args:
      dataset: the data set.
      forget_class: as in :func:`class_numbers`.
      forgotten: sorted indices of images that are forgotten already.

    Returns:
      The split.

    Raises:
      DataError: if there is no such class, or no other class to test on.

    >>> from experiments.data import load
    >>> split = class_split(load("digits"), "3,7")
    >>> print(len(split.forget), len(split.retain), len(split.test))
    290 1147 288
    """
    numbers = class_numbers(dataset, forget_class)
    asked = np.flatnonzero(np.isin(dataset.train_labels, numbers))
    return _split(dataset, np.setdiff1d(asked, forgotten), forgotten)


def class_numbers(dataset: Dataset, names: int | str) -> list[int]:
    """Numbers of the classes in a list.

    Args:
      dataset: the data set.
      names: a class's name or, where no class has that name, its number; or several,
        separated by commas.

    Raises:
      DataError: if there is no such class.

    >>> from experiments.data import load
    >>> class_numbers(load("digits"), "7, 3")
    [3, 7]
    """
    numbers = {str(i): i for i in range(dataset.num_classes)}
    numbers |= {name: i for i, name in enumerate(dataset.classes)}
    whole = str(names)
    listed = [whole] if whole in numbers else [x.strip() for x in whole.split(",")]
    for name in listed:
        if name not in numbers:
            raise DataError(
                f"{dataset.name} has no class {name!r}. Choose a name or a number "
                f"from 0, or several with commas between: {_listed(dataset.classes)}."
            )
    return sorted({numbers[name] for name in listed})


def index_split(
    dataset: Dataset, paths: str | pathlib.Path, forgotten: np.ndarray = NOTHING
) -> Split:
    """Forgets the training images whose indices text files list.

    Args:
      dataset: the data set.
      paths: as in :func:`read_indices`.
      forgotten: sorted indices of images that are forgotten already.

    Returns:
      The split; a class of which no training image is left is left out of the test
      images, as in :func:`class_split`.

    Raises:
      DataError: if a file cannot be read or holds a fault, if an image is forgotten
        already, or if a set would be empty.

    >>> import tempfile
    >>> from experiments.data import load
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "forget.txt"
    >>> _ = path.write_text("# withdrawn consent" + chr(10) + "7" + chr(10) + "3")
    >>> print(index_split(load("digits"), path).forget)
    [3 7]
    """
    forget = read_indices(dataset, paths)
    if twice := np.intersect1d(forget, forgotten).tolist():
        raise DataError(
            f"{len(twice)} of the training images to forget are forgotten already, "
            f"{twice[0]} among them. Take them off one of the two lists."
        )
    return _split(dataset, forget, forgotten)


def read_indices(
    dataset: Dataset, paths: str | pathlib.Path, what: str = "forget"
) -> np.ndarray:
    """Sorted indices of the training images that text files list.

    Args:
      dataset: the data set.
      paths: text with one index from 0 a line; blank lines are skipped, and so is
        everything from a ``#`` to the end of its line. Or several such files,
        separated by commas, each of which may list what another does.
      what: kind of indices, for messages.

    Raises:
      DataError: if a file cannot be read, or if a line is no index of a training image
        or repeats one of its file.
    """
    whole = str(paths)
    if not whole.isprintable():
        raise DataError(f"The name {whole!r} holds characters that do not print.")
    names = [name.strip() for name in whole.split(",") if name.strip()]
    if not names or os.path.lexists(whole):  # a name may hold a comma
        names = [whole]
    total = len(dataset.train_labels)
    return np.unique(np.concatenate([_read(name, total, what) for name in names]))


def _read(name: str, total: int, what: str) -> list[int]:
    """The indices below ``total`` that a file lists, at least one."""
    path, remedy = pathlib.Path(name), "Give a text file with one index a line."
    with reading(f"The file of {what} indices {name!r}", remedy):
        if not path.exists():
            raise DataError(f"There is no file of {what} indices {name!r}.")
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
    return list(seen)


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
    split = random_split(dataset, fraction, seed)
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[split.retain],
        train_labels=dataset.train_labels[split.retain],
        test_images=dataset.train_images[split.forget],
        test_labels=dataset.train_labels[split.forget],
    )


def subset(dataset: Dataset, count: int) -> Dataset:
    """The data set with so many of its training images, drawn once and for all.

    Args:
      dataset: the data set.
      count: how many, the same ones on every machine.

    Returns:
      The data set; its training images are numbered anew, in their old order.

    Raises:
      DataError: there are fewer, or none of a class would be left.

    >>> from experiments.data import load
    >>> print(len(subset(load("digits"), 500).train_images))
    500
    """
    total = len(dataset.train_labels)
    if not 1 <= count <= total:
        raise DataError(
            f"{count} training images were asked for, and {dataset.name} has {total}: "
            "give a number up to that."
        )
    some = np.sort(shuffled(total, 0)[:count])
    labels = dataset.train_labels[some]
    lost = np.setdiff1d(dataset.train_labels, labels)
    if len(lost):
        names = _listed([dataset.classes[i] for i in lost])
        raise DataError(
            f"Of {count} training images of {dataset.name} none is of {names}: give a "
            "larger number."
        )
    return dataclasses.replace(
        dataset, train_images=dataset.train_images[some], train_labels=labels
    )


def mislabelled(dataset: Dataset, indices: np.ndarray, seed: int) -> Dataset:
    """The data set with wrong labels on some training images.

    Args:
      dataset: the data set.
      indices: of these images, (n,).
      seed: not negative.

    Returns:
      The data set; each of the other classes is a wrong label as often as the others.

    >>> from experiments.data import load
    >>> digits = load("digits")
    >>> wrong = mislabelled(digits, np.array([3, 7]), seed=0)
    >>> print(np.flatnonzero(wrong.train_labels != digits.train_labels))
    [3 7]
    """
    labels = dataset.train_labels.copy()
    steps = 1 + shuffled(len(indices), seed + 1) % (dataset.num_classes - 1)
    labels[indices] = (labels[indices] + steps) % dataset.num_classes
    return dataclasses.replace(dataset, train_labels=labels)


def _split(dataset: Dataset, forget: np.ndarray, forgotten: np.ndarray) -> Split:
    """The split that forgets these sorted indices, and tests on the classes left."""
    total, labels = len(dataset.train_labels), dataset.train_labels
    retain = others(np.concatenate([forget, forgotten]).astype(int), total)
    if not len(forget) or not len(retain):
        before = f", {len(forgotten)} forgotten before," if len(forgotten) else ""
        raise DataError(
            f"{len(forget)} of the {total} training images of {dataset.name}{before} "
            "would be taken out: some must be, and some must stay. Change the share, "
            "the classes or the file."
        )
    test = np.flatnonzero(np.isin(dataset.test_labels, labels[retain]))
    if not len(test):
        left = [dataset.classes[i] for i in np.unique(labels[retain])]
        raise DataError(
            f"No test image of {dataset.name} is of a class that would be left "
            f"({_listed(left)}): nothing is left to test on. Add test images of them."
        )
    return Split(
        forget.astype(np.int32),
        retain,
        test.astype(np.int32),
        forgotten.astype(np.int32),
    )


def _check_classes(dataset: Dataset, split: Split) -> None:
    """Raises if a draw takes the last image of a class."""
    labels = dataset.train_labels
    lost = np.setdiff1d(labels[split.forget], labels[split.retain])
    if len(lost):
        names = _listed([dataset.classes[i] for i in lost])
        raise LostClassError(
            f"No training image of {names} would be left in {dataset.name}. Take out "
            "fewer or add some; a whole class is forgotten with the class scenario."
        )


def _random_indices(total: int, fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of a random share of so many images."""
    count = _count(total, fraction)
    if seed < 0:
        raise DataError(f"The seed is {seed}; wanted 0 or more.")
    return np.sort(shuffled(total, seed)[:count])


def _count(total: int, fraction: float) -> int:
    """How many images a share of them is."""
    if not 0 < fraction < 1:
        raise DataError(f"The fraction is {fraction}; wanted one between 0 and 1.")
    return round(fraction * total)


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
