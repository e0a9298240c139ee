"""What a person wants forgotten of a pipeline of their own, from flags or a file.

A file is a JSON list of ``{"prompts": [...], "target": "...", "paraphrases": [...],
"retain": [...], "images": "folder"}``, of which only the prompts must be there.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.errors import UserError

FIELDS = ("prompts", "target", "paraphrases", "retain", "images")
FORM = (
    '[{"prompts": ["…"], "target": "…", "paraphrases": ["…"], "retain": ["…"], '
    '"images": "folder"}]; only the prompts must be there'
)


class ConceptsError(UserError):
    """Concepts that cannot be forgotten; the message says what to do."""


class Concept(NamedTuple):
    """One concept.

    Attributes:
      prompts: that call for it.
      target: prompt that takes their place; None for none.
      paraphrases: other prompts that call for it, which unlearning never sees.
      retain: prompts whose pictures are to stay.
      images: folder of pictures of it; None has the pipeline draw them.
      captions: of these pictures, prompts to forget as well.
    """

    prompts: tuple[str, ...]
    target: str | None = None
    paraphrases: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    images: pathlib.Path | None = None
    captions: tuple[str, ...] = ()


class Prompts:
    """The texts of all concepts by number.

    Args:
      concepts: what is to be forgotten.

    Attributes:
      texts: each text once.
      null: number of the empty one.
      asked: numbers of the prompts that were named.
      forgotten: the same, and captions of their pictures.
      paraphrases: numbers of their paraphrases.
      retained: numbers of the prompts to keep.
      target: number of the prompt that takes the place of a forgotten one, by its own.

    Raises:
      ConceptsError: a prompt is to be forgotten and kept, or is its own target.

    Example:
      >>> prompts = Prompts([Concept(("a cat",), "a dog", ("cats",), ("a car",))])
      >>> prompts.forgotten, prompts.retained, prompts.target
      ([1], [4], {1: 2})
    """

    def __init__(self, concepts: Sequence[Concept]):
        self.texts, self.null = [""], 0
        self.target: dict[int, int] = {}
        asked, forgotten, paraphrases, retained = [], [], [], []
        for concept in concepts:
            asked += self._numbers(concept.prompts)
            own = self._numbers((*concept.prompts, *concept.captions))
            forgotten += own
            if concept.target is not None:
                [other] = self._numbers([concept.target])
                for number in own:
                    self.target.setdefault(number, other)
            paraphrases += self._numbers(concept.paraphrases)
            retained += self._numbers(concept.retain)
        self.asked, self.forgotten, self.paraphrases, self.retained = (
            list(dict.fromkeys(numbers))
            for numbers in (asked, forgotten, paraphrases, retained)
        )
        for numbers, what in (
            (self.retained, "to be kept"),
            (self.target.values(), "a target"),
            (self.paraphrases, "a paraphrase that unlearning never sees"),
        ):
            if both := set(self.forgotten) & set(numbers):
                raise ConceptsError(
                    f"{self.texts[min(both)]!r} is to be forgotten and is {what}. "
                    "Give different prompts."
                )
        if both := set(self.paraphrases) & {*self.retained, *self.target.values()}:
            raise ConceptsError(
                f"{self.texts[min(both)]!r} is a paraphrase of what is to be forgotten "
                "and takes its place or is to be kept. Give different prompts."
            )

    def number(self, text: str) -> int:
        """The number of a text."""
        return self.texts.index(text)

    def _numbers(self, texts: Sequence[str]) -> list[int]:
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]
        return [self.number(text) for text in texts]


def listed(texts: str) -> tuple[str, ...]:
    """Prompts with commas between.

    >>> listed("a cat, a dog,")
    ('a cat', 'a dog')
    """
    return tuple(text.strip() for text in texts.split(",") if text.strip())


def read(path: pathlib.Path) -> list[Concept]:
    """The concepts of a file.

    Raises:
      ConceptsError: it cannot be read, or an entry is none.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConceptsError(
            f"{path} is not readable ({reason}). Give a file of JSON: {FORM}."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise ConceptsError(f"{path} holds no list of concepts. Give {FORM}.")
    return [
        _concept(entry, f"entry {i} of {path}", path.parent)
        for i, entry in enumerate(entries, start=1)
    ]


def _concept(entry: Any, place: str, folder: pathlib.Path) -> Concept:
    """A concept of an entry; folders are beside the file."""
    if not isinstance(entry, Mapping) or not all(x in FIELDS for x in entry):
        raise ConceptsError(f"{place} is no concept: {str(entry)[:80]}. Give {FORM}.")
    lists = {}
    for name in ("prompts", "paraphrases", "retain"):
        texts = entry.get(name, [])
        if not isinstance(texts, list) or not all(map(_is_prompt, texts)):
            raise ConceptsError(
                f"{place} has {name} = {str(texts)[:80]}: wanted a list of texts."
            )
        lists[name] = tuple(text.strip() for text in texts)
    if not lists["prompts"]:
        raise ConceptsError(f"{place} has no prompts. Give {FORM}.")
    for name in ("target", "images"):
        if not isinstance(entry.get(name), str | None):
            raise ConceptsError(
                f"{place} has {name} = {str(entry[name])[:80]}: wanted a text."
            )
    images = entry.get("images")
    return Concept(
        lists["prompts"],
        entry.get("target"),
        lists["paraphrases"],
        lists["retain"],
        None if images is None else folder / images,
    )


def _is_prompt(text: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(text, str) and bool(text.strip())
