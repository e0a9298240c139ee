"""What the person at the command line can mend, and is told."""

import contextlib
import sys


class UserError(ValueError):
    """A flag, file or folder that will not do; the message says what to do.

    The command line shows it as a line and ends with exit code 2, whoever raises it.
    """


def say(line: str) -> None:
    """Prints a line on standard error, if that can be written: no run ends for it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with a question mark for what would not print."""
    return "".join(char if char.isprintable() else "?" for char in text)
