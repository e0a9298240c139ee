"""CLIP's tokenizer from a pipeline's own vocabulary and merges.

Text in composed form (NFC), white space as single spaces, lower case; split into
contractions, words, single digits and runs of other signs; bytes; merged pairs; a mark
at the end of each word. The special tokens count wherever they stand in a prompt, the
padding token among them: Stable Diffusion 2 pads with ``!``, so that there a ``!`` in a
prompt is padding, too. Control characters are bytes like others, and ideographs stay
together, as in the ecosystem's fast tokenizer and unlike its slow one.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.models.border import ModelError

Tokens = Callable[[Sequence[str]], np.ndarray]

_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def load(folder: pathlib.Path, length: int, entries: int) -> Tokens:
    """The tokenizer of a folder ``tokenizer/``.

    Args:
      folder: Has ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``, and
        ``tokenizer_config.json`` or ``special_tokens_map.json``.
      length: L, tokens of a prompt; what is longer is cut, as everywhere with CLIP.
      entries: Tokens that the text encoder knows.

    Returns:
      A function from P prompts to tokens, int32 (P, L).

    Raises:
      ModelError: The package ``tokenizers`` is missing, or files are missing, damaged
        or of another kind; the message is a line.
    """
    try:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ModelError(
            "Prompts need the package tokenizers: pip install 'mujax[text-to-image]'."
        ) from error
    vocabulary, merges = _vocabulary(folder)
    start, end, pad = _specials(folder, vocabulary)
    if max(vocabulary.values()) >= entries:
        raise ModelError(
            f"{folder} has tokens up to {max(vocabulary.values())}, but the text "
            f"encoder knows {entries}; give a pipeline whose parts belong together."
        )
    try:
        model = models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix="</w>")
    except Exception as error:  # the package raises plain exceptions
        raise ModelError(f"{folder} has merges without a token: {error}.") from error
    tokenizer: Any = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    specials = dict.fromkeys((start, end, pad))
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(x, normalized=False, special=True) for x in specials]
    )

    def tokens(prompts: Sequence[str]) -> np.ndarray:
        if isinstance(prompts, str):
            raise ModelError(f"Got the prompt {prompts!r}; give a list of prompts.")
        rows = np.full((len(prompts), length), vocabulary[pad], np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids[: length - 2]
            ids = [vocabulary[start], *ids, vocabulary[end]]
            row[: len(ids)] = ids
        return rows

    return tokens


def _vocabulary(folder: pathlib.Path) -> tuple[dict[str, int], list[Any]]:
    """Tokens by text, and merges in their order."""
    try:
        if (folder / "vocab.json").exists():
            vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
            lines = (folder / "merges.txt").read_text("utf-8").split("\n")
            if lines[0].startswith("#version"):
                lines = lines[1:]
            merges = [tuple(line.split()) for line in lines if line.strip()]
        else:
            model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
            vocabulary, merges = model["vocab"], model["merges"]
            merges = [tuple(x.split(" ") if isinstance(x, str) else x) for x in merges]
        if not vocabulary or any(len(pair) != 2 for pair in merges):
            raise ValueError("its merges are not pairs")
        if not all(isinstance(x, int) for x in vocabulary.values()):
            raise ValueError("its tokens have no numbers")
    except FileNotFoundError as error:
        missing = pathlib.Path(error.filename).name
        raise ModelError(
            f"{folder} has no {missing}; wanted vocab.json and merges.txt, or "
            "tokenizer.json."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder} has no readable vocabulary: {error}.") from error
    return vocabulary, merges


def _specials(folder: pathlib.Path, vocabulary: dict[str, int]) -> list[str]:
    """The tokens that start, end and pad a prompt."""
    given: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            try:
                given |= json.loads((folder / name).read_text("utf-8"))
            except (OSError, ValueError, TypeError) as error:
                raise ModelError(f"{folder / name} is not readable: {error}.") from (
                    error
                )
    added = given.get("added_tokens_decoder", {}).values()
    found = []
    for name, default in (
        ("bos_token", "<|startoftext|>"),
        ("eos_token", "<|endoftext|>"),
        ("pad_token", given.get("eos_token") or "<|endoftext|>"),
    ):
        found.append(_text(given.get(name) or default))
    for token in [*found, *map(_text, added)]:
        if token not in vocabulary:
            raise ModelError(
                f"{folder} names a token {token!r} that its vocabulary has not; only "
                "tokens of the vocabulary are read."
            )
    return found


def _text(token: Any) -> str:
    """A special token's text, which stands alone or beside how it is matched."""
    return token["content"] if isinstance(token, dict) else token
