"""Labelled images, and the checks that every data set passes."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from experiments.errors import UserError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class DataError(UserError):
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
            chunks(self.train_images),
            chunks(self.test_images),
        ):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        # Sums of integers are exact, so every machine gets the same bits.
        total = squares = np.zeros(self.input_shape[-1], np.int64)
        for chunk in chunks(self.train_images):
            total = total + chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            square = np.square(chunk, dtype=np.uint16)
            squares = squares + square.sum(axis=(0, 1, 2), dtype=np.int64)
        count = self.train_images.size // self.input_shape[-1]
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


@contextlib.contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Makes a ``DataError`` of whatever a missing or damaged file raises."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zip, zlib, numpy and tfds raise two dozen kinds
        reason = (str(error).strip("\"' \n") or type(error).__name__).splitlines()[0]
        raise DataError(f"{what} cannot be read: {reason[:200]}\n{remedy}") from error


def checked(
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
            f"Class {gap} of {name} has no training example, of {count} classes from 0 "
            f"to {count - 1}. Number the labels 0, 1, 2 … without a gap, add examples, "
            "or leave out images that have no class."
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
            np.isfinite(chunk).all() for chunk in chunks(images)
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


def chunks(images: np.ndarray, limit: int = 2**22) -> Iterator[np.ndarray]:
    """Runs of images of about 4 MB, so that a mapped file never fills the memory."""
    step = max(1, limit // images[0].nbytes)
    for start in range(0, len(images), step):
        yield images[start : start + step]
