"""Pictures with captions, and which captions speak of a concept.

A person's own are a folder of images with ``metadata.jsonl``, ``captions.jsonl`` or
``metadata.csv`` beside them: a ``file_name`` and a ``text`` for each image, as image
folders have them everywhere; a line of JSON may add a list of ``paraphrases``, which
training never sees and unlearning is asked about. ``emoji`` makes pictures of its own.
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image

from experiments.data.dataset import DataError, reading

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv")


@dataclasses.dataclass(frozen=True)
class Caption:
    """What pictures are called.

    Attributes:
      wordings: texts that training draws from; the first one stands for all.
      paraphrases: texts that training never sees.
      subject: what is shown.
      style: how it is shown; empty where nothing is known of it.
    """

    wordings: tuple[str, ...]
    paraphrases: tuple[str, ...] = ()
    subject: str = ""
    style: str = ""

    @property
    def text(self) -> str:
        """The wording that stands for all."""
        return self.wordings[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures with captions.

    Attributes:
      name: of the data.
      images: uint8 (N, size, size, 3).
      numbers: of their captions, int32 (N,).
      captions: each with a picture, no two with the same first wording.
      credit: whose pictures they are, and under which licence.
    """

    name: str
    images: np.ndarray
    numbers: np.ndarray
    captions: tuple[Caption, ...]
    credit: str = ""

    @property
    def fingerprint(self) -> str:
        """Tells these pictures and captions from any others."""
        digest = hashlib.sha256(repr(self.captions).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.numbers).data)
        return digest.hexdigest()[:16]


def read_folder(path: str | pathlib.Path, size: int = 32) -> Captioned:
    r"""Pictures of a folder with the captions that lie beside them.

    Args:
      path: the folder; images may lie in folders below it.
      size: height and width of the pictures; others are fitted onto white.

    Returns:
      The pictures in the order of the table; a caption is a text, however many
      pictures it has, and its subject.

    Raises:
      DataError: there is no table, or a line or an image of it cannot be used.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> table = "file_name,text\na.png,a cat\na.png,a red cat\n"
    >>> _ = (folder / "metadata.csv").write_text(table)
    >>> PIL.Image.new("RGB", (8, 8)).save(folder / "a.png")
    >>> [caption.text for caption in read_folder(folder, 4).captions]
    ['a cat', 'a red cat']
    """
    folder = pathlib.Path(path)
    table = next((folder / name for name in TABLES if (folder / name).exists()), None)
    if table is None:
        raise DataError(
            f"{folder} has no table of captions; put one of {', '.join(TABLES)} beside "
            "the images, with a file_name and a text for each."
        )
    captions: dict[str, Caption] = {}
    images, numbers = [], []
    for place, row in rows(table):
        name, text = row.get("file_name"), row.get("text")
        others = row.get("paraphrases", [])
        if (
            not isinstance(name, str)
            or not isinstance(text, str)
            or not words(text)
            or not isinstance(others, list)
            or not all(isinstance(other, str) and words(other) for other in others)
        ):
            raise DataError(
                f"{place} holds {str(row)[:80]}: wanted a file_name and a text with a "
                "word in it, and of paraphrases, if there are any, a list of texts."
            )
        text = " ".join(text.split())
        known = captions.setdefault(text, Caption((text,), (), text))
        if others:
            merged = tuple(dict.fromkeys([*known.paraphrases, *others]))
            captions[text] = dataclasses.replace(known, paraphrases=merged)
        remedy = "Mend it, or remove its line."
        with (
            reading(f"The image {name!r} of {place}", remedy),
            PIL.Image.open(folder / name) as image,
        ):
            images.append(fitted(image, size))
        numbers.append(list(captions).index(text))
    if len(captions) < 2:
        raise DataError(
            f"{table} has {len(captions)} caption; wanted two or more, so that "
            "something is left when one is forgotten."
        )
    return Captioned(
        folder.name,
        np.stack(images),
        np.array(numbers, np.int32),
        tuple(captions.values()),
    )


def fitted(image: PIL.Image.Image, size: int) -> np.ndarray:
    """An image as uint8 (size, size, 3), as large as fits, on white."""
    image = image.convert("RGBA")
    scale = size / max(image.size)
    shape = [max(1, round(side * scale)) for side in image.size]
    if tuple(shape) != image.size:
        image = image.resize((shape[0], shape[1]), PIL.Image.Resampling.LANCZOS)
    canvas = PIL.Image.new("RGBA", (size, size), "white")
    corner = (size - image.width) // 2, (size - image.height) // 2
    canvas.alpha_composite(image, corner)
    return np.asarray(canvas.convert("RGB"))


def words(text: str) -> list[str]:
    """The words of a text, lower case, with each sign as a word of its own.

    >>> words("Cat face, FLAT picture")
    ['cat', 'face', ',', 'flat', 'picture']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def speaking_of(captions: Sequence[Caption], concepts: str) -> np.ndarray:
    """Numbers of the captions that speak of a concept.

    Args:
      captions: all there are.
      concepts: a word or some words in a row, or several such with commas between.

    Returns:
      int32, sorted.

    Raises:
      DataError: no caption speaks of one of them, or every caption does of one.

    >>> captions = [Caption((text,)) for text in ("a red cat", "a red car", "a cat")]
    >>> speaking_of(captions, "cat").tolist(), speaking_of(captions, "red car").tolist()
    ([0, 2], [1])
    """
    found: set[int] = set()
    for concept in concepts.split(","):
        wanted = words(concept)
        some = {i for i, c in enumerate(captions) if _holds(words(c.text), wanted)}
        if not some:
            texts = "; ".join(caption.text for caption in captions[:4])
            raise DataError(
                f"No caption speaks of {concept.strip()!r}. Give words of captions "
                f"such as: {texts}."
            )
        found |= some
    if len(found) == len(captions):
        raise DataError(
            f"Every caption speaks of {concepts!r}: nothing would be left. Give words "
            "that some captions lack."
        )
    return np.array(sorted(found), np.int32)


def nearest(captions: Sequence[Caption], number: int, among: Iterable[int]) -> list:
    """Numbers of the captions that share most words with one, in turn from it on.

    For a cat in a style these are the other things in that style; for a style, the same
    thing in the others.

    >>> captions = [Caption((t,)) for t in ("flat cat", "flat car", "big car", "big")]
    >>> nearest(captions, 0, [1, 2, 3]), nearest(captions, 2, [0, 1, 3])
    ([1], [3, 1])
    """
    own = set(words(captions[number].text))
    others = sorted(set(among) - {number})
    shared = [len(own & set(words(captions[other].text))) for other in others]
    best = [other for other, n in zip(others, shared, strict=True) if n == max(shared)]
    return sorted(best, key=lambda other: (other - number) % len(captions))


def _holds(text: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether words stand in a text, in a row."""
    count = len(wanted)
    starts = range(len(text) - count + 1)
    return count > 0 and any(list(text[i : i + count]) == wanted for i in starts)


def rows(table: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Entries of a table, each with its place for messages."""
    with reading(f"The table {table}", "Give one object or row an image."):
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line holds no object")
    return [(f"entry {i} of {table}", row) for i, row in enumerate(rows, start=1)]
