"""What the person at the command line can mend."""


class UserError(ValueError):
    """A flag, file or folder that will not do; the message says what to do.

    The command line shows it as a line and ends with exit code 2, whoever raises it.
    """


def printable(text: str) -> str:
    """The text with a question mark for what would not print."""
    return "".join(char if char.isprintable() else "?" for char in text)
