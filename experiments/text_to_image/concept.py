"""Forgetting a concept in the small pipeline: what is fed, drawn and judged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.classification.optimisation import Optimisation
from experiments.data import DataError, Dataset
from experiments.data.captions import Captioned, nearest, speaking_of
from experiments.diffusion import generation
from experiments.engine import loop
from experiments.engine.cache import Cache
from experiments.engine.devices import Devices
from experiments.text_to_image.small import Patches, Prompts, fit_patches

SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # pixels; a picture is this many
JUDGING = Optimisation(learning_rate=0.1, epochs=25, cosine=True)
VIEWS = {"train": 30, "test": 6}  # of a picture, for the judge


class Concept(NamedTuple):
    """What is to be forgotten, as numbers of captions.

    Attributes:
      forgotten: captions that speak of it, int32 sorted.
      retained: the others.
      instead: for every forgotten caption, those that may take its place.
      own: for every caption, its number in the domain of the concept: what is shown, or
        how where a style is forgotten.
      other: the same in the other domain; all 0 where there is none.
    """

    forgotten: np.ndarray
    retained: np.ndarray
    instead: Mapping[int, Sequence[int]]
    own: np.ndarray
    other: np.ndarray


def concept(pictures: Captioned, words: str, target: str | None = None) -> Concept:
    """What some words stand for among captions.

    Args:
      pictures: the captions.
      words: in every caption to forget; several concepts have commas between them.
      target: words of the captions that take its place; None takes the captions that
        share most words: other things in the same style, or the thing in other styles.

    Raises:
      DataError: no caption speaks of it, every one does, or the target is no other.
    """
    captions = pictures.captions
    forgotten = speaking_of(captions, words)
    retained = np.setdiff1d(np.arange(len(captions)), forgotten).astype(np.int32)
    among = retained if target is None else speaking_of(captions, target)
    among = np.setdiff1d(among, forgotten).tolist()
    if not among:
        raise DataError(
            f"Every caption of {target!r} speaks of {words!r}, too: nothing can take "
            "its place. Give another target."
        )
    instead = {c: nearest(captions, c, among) for c in forgotten.tolist()}
    subjects, styles = (
        np.unique([getattr(c, name) for c in captions], return_inverse=True)[1]
        for name in ("subject", "style")
    )
    shared = np.intersect1d(subjects[forgotten], subjects[retained])
    domains = (styles, subjects) if len(shared) else (subjects, styles)
    return Concept(forgotten, retained, instead, *domains)


def relabelling(
    instead: Mapping[int, Sequence[int]], first: bool
) -> Callable[..., jax.Array]:
    """Puts another caption in the place of each: the first that may, or any of them."""
    size = 1 + max(instead)
    counts = np.array([len(instead.get(c, "-")) for c in range(size)])
    table = np.tile(np.arange(size)[:, None], max(counts))  # others stay themselves
    for number, row in instead.items():
        table[number, : len(row)] = row

    def relabel(key, labels, num_classes):
        del num_classes
        draw = jax.random.uniform(key, labels.shape)
        columns = jnp.int32(0 * draw if first else draw * jnp.asarray(counts)[labels])
        return jnp.asarray(table, labels.dtype)[labels, columns]

    return relabel


def others(retained: np.ndarray) -> Callable[..., jax.Array]:
    """Draws any retained caption but the example's own."""

    def draw(key, labels, null):
        del null
        drawn = jax.random.randint(key, labels.shape, 0, len(retained))
        found = jnp.asarray(retained)[drawn]
        again = jnp.asarray(retained)[(drawn + 1) % len(retained)]
        return jnp.where(found == labels, again, found)

    return draw


def shifted(images: np.ndarray, shifts: Sequence[tuple[int, int]]) -> np.ndarray:
    """Each image moved down and right by each shift, white behind it: (N · n, ...)."""
    reach = max(max(map(abs, shift)) for shift in shifts)
    size = images.shape[1:3]
    sides = (reach, reach)
    padded = np.pad(images, ((0, 0), sides, sides, (0, 0)), constant_values=255)
    moved = [
        padded[:, reach - y : reach - y + size[0], reach - x : reach - x + size[1]]
        for y, x in shifts
    ]
    return np.stack(moved, axis=1).reshape(-1, *images.shape[1:])


def judge_data(pictures: Captioned) -> Dataset:
    """Views of real pictures, for the judge to learn from and to be tested on.

    Each view is shifted, fainter or stronger, and noisy; the test's are others.
    """
    rng = np.random.default_rng(0)
    reach = range(-2, 3)
    every = [(y, x) for y in reach for x in reach]
    arrays = {}
    for split, count in VIEWS.items():
        views = []
        for _ in range(count):
            moved = shifted(pictures.images, [every[rng.integers(len(every))]])
            contrast = rng.uniform(0.8, 1.1, (len(moved), 1, 1, 1))
            noise = rng.normal(0, rng.uniform(0, 40), moved.shape)
            seen = 255 - contrast * (255.0 - moved) + noise
            views.append(np.clip(np.rint(seen), 0, 255).astype(np.uint8))
        arrays[f"{split}_images"] = np.concatenate(views)
        arrays[f"{split}_labels"] = np.tile(pictures.numbers, count)
    texts = tuple(caption.text for caption in pictures.captions)
    return Dataset(pictures.name, **arrays, classes=texts, augment=False)


class Judge:
    """Who says what was drawn: a network trained on real pictures, and the nearest one.

    Args:
      pictures: the real ones.
      cache: where the network is kept.
      devices: where it computes.
    """

    def __init__(self, pictures: Captioned, cache: Cache, devices: Devices):
        dataset = judge_data(pictures)
        examples: dict[str, Any] = {
            "image": jnp.asarray(dataset.train_images),
            "label": jnp.asarray(dataset.train_labels),
        }
        self._classifier = generation.Classifier(
            dataset, devices.everywhere(examples), cache, devices, recipe=JUDGING
        )
        self.test_accuracy = self._classifier.test_accuracy
        self.see = self._classifier.see
        self._real = shifted(pictures.images, SHIFTS).reshape(
            len(pictures.images) * len(SHIFTS), -1
        )
        self._numbers = np.repeat(pictures.numbers, len(SHIFTS))

    def nearest(self, images: np.ndarray) -> np.ndarray:
        """Captions (N,) of the real pictures that lie nearest in their pixels."""
        drawn, real = (x.reshape(len(x), -1) / 255 for x in (images, self._real))
        squares = np.sum(real**2, axis=1) - 2 * drawn @ real.T
        return self._numbers[np.argmin(squares, axis=1)]


class Material(NamedTuple):
    """The pictures as the pipeline reads them.

    Attributes:
      patches: makes latents of pictures, and pictures of latents.
      prompts: captions by number.
      feed: latents with the numbers of their captions.
    """

    patches: Patches
    prompts: Prompts
    feed: loop.Feed


def material(
    pictures: Captioned, wanted: Concept, channels: int, move: bool, devices: Devices
) -> Material:
    """Latents, prompts and what is forgotten of them.

    Args:
      pictures: the pictures.
      wanted: the concept.
      channels: of a latent.
      move: learn from pictures moved by a pixel.
      devices: where they lie.
    """
    patches = fit_patches(pictures.images, channels)
    # Examples of one picture differ by their noise alone where none is moved.
    shifts = SHIFTS if move else SHIFTS[:1] * len(SHIFTS)
    labels = np.repeat(pictures.numbers, len(shifts))
    latents = np.asarray(patches.encode(shifted(pictures.images, shifts)))
    examples = {
        "image": latents.astype(np.float32),
        "label": labels,
        "index": np.arange(len(labels), dtype=np.int32),
    }
    forgotten = np.isin(labels, wanted.forgotten)
    feed = loop.Feed(
        devices.everywhere(jax.tree.map(jnp.asarray, examples)),
        len(pictures.captions),
        forget=(np.flatnonzero(forgotten).astype(np.int32),),
        retain=np.flatnonzero(~forgotten).astype(np.int32),
        scan=jax.default_backend() != "cpu",  # native convolutions are slow in loops
        devices=devices,
    )
    return Material(patches, Prompts(pictures.captions), feed)
