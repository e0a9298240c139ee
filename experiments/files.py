"""Files that appear in one step, and strict JSON."""

import json
import os
import pathlib
from typing import Any


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside its place, then moves it there in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
