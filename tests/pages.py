"""Pages of ``docs/`` as programs: what they show is what runs.

Python runs from top to bottom in one namespace; a block with a title is a file beside
it; ``python -m experiments.…`` in a bash block runs as a command (shell commands in a
block of ``sh`` are shown alone); the text block below is what came out.
``python -m tests.pages docs/tutorials/NAME.md`` runs a page, writes its pictures into
``docs/pictures`` and prints what its text blocks should be.
"""

import contextlib
import importlib
import io
import os
import pathlib
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib

ROOT = pathlib.Path(__file__).parent.parent
FENCE = re.compile(
    r"^```(\w+)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Block(NamedTuple):
    """A fenced block: its language, its title or "", and its lines."""

    language: str
    title: str
    text: str


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(*found) for found in FENCE.findall(page.read_text())]


def run(page: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Runs a page in the present folder; yields what it said and what it shows."""
    matplotlib.use("agg")
    space = {"__name__": page.stem}
    said = ""
    for block in blocks(page):
        if block.language == "text":
            yield said, block.text
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if block.title:
                pathlib.Path(block.title).write_text(block.text)
            elif block.language == "python":
                exec(compile(block.text, page.name, "exec"), space)
            elif block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    command(line)
        said = out.getvalue()


def command(line: str) -> None:
    """Runs a line ``python -m experiments.…``; other lines are for the reader alone."""
    words = shlex.split(line, comments=True)
    if words[:2] != ["python", "-m"] or not words[2].startswith("experiments."):
        return
    room = importlib.import_module(words[2])
    if not hasattr(room, "main"):
        room = importlib.import_module(f"{words[2]}.__main__")
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = room.main(words[3:])
    if code:
        raise AssertionError(f"{line}: exit code {code}: {errors.getvalue()}")


def differences(said: str, shown: str, tolerance: float) -> str:
    """Says where an output is another than the page shows; "" where it is the same."""
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", shown).split():
        return f"shown:\n{shown}\ncame:\n{said}"
    pairs = zip(NUMBER.findall(said), NUMBER.findall(shown), strict=True)
    far = [f"{a} for {b}" for a, b in pairs if abs(float(a) - float(b)) > tolerance]
    return "; ".join(far)


def pictures(page: pathlib.Path) -> list[str]:
    """Names of the pictures that a page shows."""
    return re.findall(r"\]\(\.\./pictures/(.*?)\)", page.read_text())


@contextlib.contextmanager
def elsewhere() -> Iterator[pathlib.Path]:
    """An empty folder to stand in, from which Python imports, too."""
    before, modules = pathlib.Path.cwd(), set(sys.modules)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        sys.path.insert(0, name)
        try:
            yield pathlib.Path(name)
        finally:
            os.chdir(before)
            sys.path.remove(name)
            for module in set(sys.modules) - modules:
                if str(getattr(sys.modules[module], "__file__", "")).startswith(name):
                    del sys.modules[module]


def main(paths: list[str]) -> None:
    """Runs pages, keeps their pictures, and prints what they say."""
    for path in map(pathlib.Path.absolute, map(pathlib.Path, paths)):
        with elsewhere() as folder:
            for said, _ in run(path):
                print(said)
            for name in pictures(path):
                shutil.copy(folder / name, ROOT / "docs" / "pictures" / name)


if __name__ == "__main__":
    main(sys.argv[1:])
