"""Data sets, and which of their images must be forgotten.

A data set is four arrays, a forget set is an index array into its training images.
``load`` reads ``digits``, ``fashion_mnist``, ``cifar10``, ``cifar100``, ``svhn`` or a
person's own ``npz:PATH``. Index ``i`` means the same image on every machine: the
``i``-th of the data set's original files, whatever order the copy on disk has.
Nothing downloads. Every fault of the input is a ``DataError``. ``dataset`` holds what
``readers`` bring, ``splits`` divides it, ``augment`` prepares pixels for a network.
"""

from experiments.data.dataset import DataError, Dataset, Pixels
from experiments.data.readers import LOADERS, load
from experiments.data.splits import (
    NOTHING,
    LostClassError,
    Split,
    class_numbers,
    class_split,
    index_split,
    mislabelled,
    others,
    random_split,
    ranked_split,
    read_indices,
    shuffled,
    subset,
    validation_split,
)

__all__ = (
    "LOADERS",
    "NOTHING",
    "DataError",
    "Dataset",
    "LostClassError",
    "Pixels",
    "Split",
    "class_numbers",
    "class_split",
    "index_split",
    "load",
    "mislabelled",
    "others",
    "random_split",
    "ranked_split",
    "read_indices",
    "shuffled",
    "subset",
    "validation_split",
)
