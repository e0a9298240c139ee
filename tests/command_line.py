"""Running an experiment's command line inside a test."""

import contextlib
import io
from collections.abc import Callable, Sequence


def run(main: Callable[[Sequence[str]], int], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a script's ``main``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    return int(code or 0), out.getvalue(), err.getvalue()
