"""Data sets, and which of their images must be forgotten.

A data set is four arrays, a forget set is an index array into its training images.
``load`` reads ``digits``, ``fashion_mnist``, ``cifar10``, ``cifar100``, ``svhn`` or a
person's own ``npz:PATH``. Index ``i`` means the same image on every machine: the
``i``-th of the data set's original files, whatever order the copy on disk has.
Nothing downloads. Every fault of the input is a ``DataError``.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import itertools
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np


class DataError(ValueError):
    """What came, what was wanted, what to do: shown to the person as it is."""


Pixels = Literal["standardised", "unit", "bytes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in a training and a test split.

    Attributes:
      name: the name that ``load`` took.
      train_images: uint8 ``(N, height, width, channels)``, possibly mapped from disk.
      train_labels: int32 ``(N,)``, 0 to ``num_classes − 1``, each of them present.
      test_images: uint8 ``(M, height, width, channels)``.
      test_labels: int32 ``(M,)``.
      classes: name of each class.
      augment: whether random crops and mirroring keep an image's meaning.
      pixels: what a model is given: ``"standardised"`` by channel, ``"unit"`` for
        values in [0, 1], or ``"bytes"`` for 0 to 255.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    augment: bool
    pixels: Pixels = "standardised"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def mean(self) -> np.ndarray:
        """What is taken from each channel of images in [0, 1], float32."""
        return self._scaling[0]

    @property
    def std(self) -> np.ndarray:
        """What each channel is then divided by, float32."""
        return self._scaling[1]

    @property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray]:
        if self.pixels == "standardised":
            return self._moments
        ones = np.ones(self.input_shape[-1], np.float32)
        return 0 * ones, ones if self.pixels == "unit" else ones / 255

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells these images and labels, as a model gets them, from any others'."""
        digest = hashlib.sha256(f"{self.pixels} {self.augment}".encode())
        for array in itertools.chain(
            (self.train_labels, self.test_labels),
            _chunks(self.train_images),
            _chunks(self.test_images),
        ):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        # Sums of integers are exact, so every machine gets the same bits.
        total = squares = np.zeros(self.input_shape[-1], np.int64)
        for chunk in _chunks(self.train_images):
            total = total + chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            square = np.square(chunk, dtype=np.uint16)
            squares = squares + square.sum(axis=(0, 1, 2), dtype=np.int64)
        count = self.train_images.size // self.input_shape[-1]
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


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
    retain = _others(forget, len(dataset.train_labels))
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
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "forget.txt"
    >>> _ = path.write_text("# withdrawn consent" + chr(10) + "7" + chr(10) + "3")
    >>> print(index_split(load("digits"), path).forget)
    [3 7]
    """
    path, total = pathlib.Path(path), len(dataset.train_labels)
    remedy = "Give a text file with one index a line."
    if not str(path).isprintable():
        raise DataError(f"The name {str(path)!r} holds characters that do not print.")
    with _reading(f"The file of forget indices {str(path)!r}", remedy):
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


# Forget sets ---------------------------------------------------------------------


def _split(dataset: Dataset, forget: np.ndarray) -> Split:
    """The split that forgets these sorted indices, if every class keeps an image."""
    total = len(dataset.train_labels)
    retain = _others(forget, total)
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
    return np.sort(_shuffled(total, seed)[: round(fraction * total)])


def _shuffled(total: int, seed: int) -> np.ndarray:
    """A random order of ``range(total)``, the same under every version of NumPy."""
    # NumPy promises stable streams for its bit generators, not for its Generator.
    return np.argsort(np.random.PCG64(seed).random_raw(total), kind="stable")


def _others(indices: np.ndarray, total: int) -> np.ndarray:
    """The indices below ``total`` that are not among these."""
    left = np.ones(total, bool)
    left[indices] = False
    return np.flatnonzero(left).astype(np.int32)


def _listed(names: Sequence[str], limit: int = 20) -> str:
    """The names with commas between them, cut where they are many."""
    more = f" … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# Readers -------------------------------------------------------------------------


def _digits() -> Dataset:
    """The digits of scikit-learn; 36 of every class, drawn with seed 0, are test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = _shuffled(len(labels), seed=0)
    test = np.sort(np.concatenate([order[labels[order] == c][:36] for c in range(10)]))
    train = _others(test, len(labels))
    arrays = {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
    return _checked("digits", arrays, classes=None, augment=False)


def _fashion_mnist() -> Dataset:
    """Fashion-MNIST from its Debian package or, without one, prepared by tfds."""
    for folder in FASHION_MNIST_FOLDERS:
        if folder.is_dir():
            arrays = {
                f"{split}_{kind}": _idx(folder / f"{prefix}-{kind}-idx{ndim}-ubyte.gz")
                for split, prefix in (("train", "train"), ("test", "t10k"))
                for kind, ndim in (("images", 3), ("labels", 1))
            }
            return _checked("fashion_mnist", arrays, FASHION_MNIST, augment=False)
    return _tfds(
        "fashion_mnist",
        augment=False,
        remedy="On Debian or Ubuntu: apt-get install dataset-fashion-mnist. Else: ",
    )


def _idx(path: pathlib.Path) -> np.ndarray:
    """A gzipped array of bytes: zeros, type 8, rank, big-endian sizes, values."""
    with _reading(str(path), "Install dataset-fashion-mnist again."):
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
    with _reading(f"The data set {name}, prepared by tfds,", remedy), _quiet("absl"):
        for split in ("train", "test"):
            source: Any = tfds.data_source(builder, split=split, download=False)
            images, labels = _records(source, split)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
            classes = source.dataset_info.features["label"].names
    return _checked(name, arrays, classes, augment)


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
    with _reading(name, remedy):
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
    return _checked(name, arrays, classes, augment=False)


@contextlib.contextmanager
def _reading(what: str, remedy: str) -> Iterator[None]:
    """Makes a ``DataError`` of whatever a missing or damaged file raises."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zip, zlib, numpy and tfds raise two dozen kinds
        reason = (str(error).strip("\"' \n") or type(error).__name__).splitlines()[0]
        raise DataError(f"{what} cannot be read: {reason[:200]}\n{remedy}") from error


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


# Checks --------------------------------------------------------------------------


def _checked(
    name: str,
    arrays: dict[str, np.ndarray],
    classes: Sequence[str] | None,
    augment: bool,
) -> Dataset:
    """The data set of these arrays, if they fit together."""
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise DataError(
            f"{name} has no {' and no '.join(missing)}. "
            f"It must hold {', '.join(ARRAYS)}."
        )
    train_images = _checked_images(name, "train_images", arrays["train_images"])
    test_images = _checked_images(name, "test_images", arrays["test_images"])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"Images of {name} are {train_images.shape[1:]} in training and "
            f"{test_images.shape[1:]} in test; wanted one height, width and channels."
        )
    for split, images in (("train", train_images), ("test", test_images)):
        _check_labels(name, f"{split}_labels", arrays[f"{split}_labels"], len(images))
    train_labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    present = np.unique(train_labels).tolist()
    count = len(classes) if classes is not None else present[-1] + 1
    if count < 2:
        raise DataError(f"{name} has {count} class; wanted two or more.")
    for split, labels in (("train", train_labels), ("test", test_labels)):
        if labels.max() >= count:
            raise DataError(
                f"{split}_labels of {name} holds {labels.max()}, but there are "
                f"{count} classes: wanted labels from 0 to {count - 1}."
            )
    if len(present) < count:
        gap = next((i for i, label in enumerate(present) if i != label), len(present))
        raise DataError(
            f"Class {gap} of {name} has no training example. Number the labels "
            "0, 1, 2 … without a gap, or add examples."
        )
    classes = tuple(str(i) for i in range(count)) if classes is None else tuple(classes)
    if len(set(classes)) < count:
        raise DataError(f"classes of {name} repeats a name; wanted {count} names.")
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=test_labels.astype(np.int32),
        classes=classes,
        augment=augment,
    )


def _checked_images(name: str, key: str, images: np.ndarray) -> np.ndarray:
    """The images with a channel axis, if they are uint8 NHWC or NHW."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{key} of {name} has shape {images.shape}; wanted (images, height, "
            "width, channels), or without channels for grey, and at least one image."
        )
    if images.dtype != np.uint8:
        broken = images.dtype.kind == "f" and not all(
            np.isfinite(chunk).all() for chunk in _chunks(images)
        )
        holds = " and holds NaN or infinity" if broken else ""
        raise DataError(
            f"{key} of {name} is {images.dtype}{holds}; wanted uint8, 0 to 255. "
            "Convert values from 0 to 1 with numpy.rint(255 * x).astype('uint8')."
        )
    if images.ndim == 3:
        return images[..., None]
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"{key} of {name} has shape {images.shape}: channels seem to come first. "
            "Put them last with x.transpose(0, 2, 3, 1)."
        )
    return images


def _check_labels(name: str, key: str, labels: np.ndarray, images: int) -> None:
    """Raises unless there is one label, not negative, for every image."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"{key} of {name} is {labels.dtype}; wanted whole numbers.")
    if labels.shape != (images,):
        raise DataError(
            f"{key} of {name} has shape {labels.shape} for {images} images; wanted "
            f"one label an image, ({images},)."
        )
    if labels.min() < 0:
        raise DataError(f"{key} of {name} holds {labels.min()}; labels count from 0.")


def _chunks(images: np.ndarray, limit: int = 2**22) -> Iterator[np.ndarray]:
    """Runs of images of about 4 MB, so that a mapped file never fills the memory."""
    step = max(1, limit // images[0].nbytes)
    for start in range(0, len(images), step):
        yield images[start : start + step]


ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
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
