"""Files that appear in one step, and strict JSON."""

import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside its place, then moves it there in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed file of arrays by name; makes its folder."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def to_json(value: Any) -> str:
    r"""Strict JSON, indented: not finite becomes null, arrays lists, the rest text.

    Example:
      >>> print(to_json({"loss": float("nan"), "out": pathlib.PurePosixPath("runs")}))
      {
        "loss": null,
        "out": "runs"
      }
    """
    text = json.dumps(value, default=lambda x: getattr(x, "tolist", x.__str__)())
    plain = json.loads(text, parse_constant=lambda _: None)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    # A path that is not UTF-8 has lone surrogates, which only an escape can hold.
    return text.encode(errors="backslashreplace").decode()
