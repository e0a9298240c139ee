"""Data sets by name, each read into a :class:`Dataset`; nothing downloads."""

import contextlib
import functools
import gzip
import hashlib
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data.dataset import ARRAYS, DataError, Dataset, checked, reading
from experiments.data.splits import others, shuffled


def load(name: str) -> Dataset:
    """Reads a data set that is on this machine.

    ``digits`` comes with scikit-learn (1,437 training and 360 test images of 8×8).
    ``fashion_mnist``, ``cifar10``, ``cifar100`` and ``svhn`` are read as prepared by
    tensorflow-datasets (``fashion_mnist`` first from its Debian package).
    ``npz:PATH`` is a person's own file with uint8 ``train_images`` and ``test_images``
    (NHWC, or NHW for grey), integer ``train_labels`` and ``test_labels``, and, if
    wanted, the names of the ``classes``; or a folder of ``train_images.npy`` and so
    on, which is mapped from disk, for images that exceed the memory.

    Args:
      name: one of the names above.

    Returns:
      The data set.

    Raises:
      DataError: if it is unknown, absent, damaged or inconsistent.

    >>> digits = load("digits")
    >>> print(digits.train_images.shape, digits.num_classes)
    (1437, 8, 8, 1) 10
    """
    if not name.isprintable():
        raise DataError(f"The name {name!r} holds characters that do not print.")
    if name.startswith("npz:"):
        return _npz(name)
    if name not in LOADERS:
        raise DataError(
            f"There is no data set {name!r}. Choose {', '.join(LOADERS)}, or npz:PATH "
            "for your own."
        )
    return LOADERS[name]()


def _digits() -> Dataset:
    """The digits of scikit-learn; 36 of every class, drawn with seed 0, are test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = shuffled(len(labels), seed=0)
    test = np.sort(np.concatenate([order[labels[order] == c][:36] for c in range(10)]))
    train = others(test, len(labels))
    arrays = {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
    return checked("digits", arrays, classes=None, augment=False)


def _fashion_mnist() -> Dataset:
    """Fashion-MNIST from its Debian package or, without one, prepared by tfds."""
    for folder in FASHION_MNIST_FOLDERS:
        if folder.is_dir():
            arrays = {
                f"{split}_{kind}": _idx(folder / f"{prefix}-{kind}-idx{ndim}-ubyte.gz")
                for split, prefix in (("train", "train"), ("test", "t10k"))
                for kind, ndim in (("images", 3), ("labels", 1))
            }
            return checked("fashion_mnist", arrays, FASHION_MNIST, augment=False)
    return _tfds(
        "fashion_mnist",
        augment=False,
        remedy="On Debian or Ubuntu: apt-get install dataset-fashion-mnist. Else: ",
    )


def _idx(path: pathlib.Path) -> np.ndarray:
    """A gzipped array of bytes: zeros, type 8, rank, big-endian sizes, values."""
    with reading(str(path), "Install dataset-fashion-mnist again."):
        data = gzip.decompress(path.read_bytes())
        if data[:3] != b"\0\0\x08":
            raise DataError(f"{path} is no idx file of bytes. Install it again.")
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


def _tfds(
    name: str, augment: bool, builder: str | None = None, remedy: str = ""
) -> Dataset:
    """A data set that tensorflow-datasets prepared, read without TensorFlow."""
    builder = builder or name
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} needs tensorflow-datasets, which is not installed.\n"
            f"{remedy}pip install tensorflow-datasets"
        ) from error
    # Not "tfds build": its command line fails to start without apache-beam.
    remedy += (
        "Prepare it once (a copy in another file format must go first): "
        "pip install tensorflow importlib_resources && python -c "
        f"\"import tensorflow_datasets as t; t.data_source('{builder}')\""
    )
    arrays: dict[str, np.ndarray] = {}
    classes: Sequence[str] = ()
    with reading(f"The data set {name}, prepared by tfds,", remedy), _quiet("absl"):
        for split in ("train", "test"):
            source: Any = tfds.data_source(builder, split=split, download=False)
            images, labels = _records(source, split)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
            classes = source.dataset_info.features["label"].names
    return checked(name, arrays, classes, augment)


def _records(source: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split in the order of the original files."""
    total, features = len(source), source.dataset_info.features
    images = np.empty((total, *features["image"].shape), np.uint8)
    labels = np.empty(total, np.int32)
    keys = []
    for place, record in enumerate(source):
        images[place], labels[place] = record["image"], record["label"]
        # Ids count up behind one prefix ("train_16399"): the longer is the later.
        keys.append((len(record["id"]), record["id"]) if "id" in record else None)
    if "id" in features:
        order = sorted(range(total), key=keys.__getitem__)
    else:
        # tfds stores image i of the original files in the order of this hash, and
        # promises a new major version of every data set before it changes the rule.
        hashed = [hashlib.md5(f"{split}{i}".encode()).digest() for i in range(total)]
        order = np.argsort(sorted(range(total), key=hashed.__getitem__))
    return images[order], labels[order]


def _npz(name: str) -> Dataset:
    """A person's own data set: an npz file, or a folder of npy files."""
    path = pathlib.Path(name.removeprefix("npz:"))
    remedy = (
        "Save plain arrays with numpy.savez, or one numpy.save a file in a folder "
        "where they exceed the memory."
    )
    arrays: dict[str, np.ndarray] = {}
    with reading(name, remedy):
        if path.is_dir():
            for key in (*ARRAYS, "classes"):
                file = path / f"{key}.npy"
                if file.exists():
                    arrays[key] = np.lib.format.open_memmap(file, mode="r")
        elif not path.exists():
            raise DataError(f"There is no file or folder {str(path)!r} for {name}.")
        elif not zipfile.is_zipfile(path):
            raise DataError(f"{name} is not an npz file, or only part of one. {remedy}")
        else:
            # Opened here: np.load leaves the file open where the archive is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                for key in (*ARRAYS, "classes"):
                    if key in archive:
                        arrays[key] = np.asarray(archive[key])
        classes = arrays.pop("classes", None)
        if classes is not None:
            if classes.ndim != 1 or classes.dtype.kind != "U":
                raise DataError(
                    f"classes of {name} is {classes.dtype} of shape {classes.shape}; "
                    "wanted one name a class, as in numpy.array(['cat', 'dog'])."
                )
            classes = classes.tolist()
    return checked(name, arrays, classes, augment=False)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Holds back a logger's warnings: they would bury our own message."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MNIST_FOLDERS = (
    pathlib.Path("/usr/local/share/datasets/fashion-mnist"),
    pathlib.Path("/usr/share/datasets/fashion-mnist"),
)
# Crops and mirroring: only where a mirrored image keeps its class, so not for digits.
LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": functools.partial(_tfds, "cifar10", augment=True),
    "cifar100": functools.partial(_tfds, "cifar100", augment=True),
    "svhn": functools.partial(_tfds, "svhn", augment=False, builder="svhn_cropped"),
}
