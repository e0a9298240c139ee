"""Experiments: everything with a side effect lives here, outside the wheel.

A kind of experiment is a folder whose ``__main__`` is its story (``classification``,
``diffusion``). Below stand ``engine``, which runs any kind, ``reporting``, ``data`` and
``models``; ``files`` and ``errors`` are for all. Imports run down only.
"""

import io
import logging
import os
import sys

# Read once, by the first import of NumPy: LAPACK on small matrices is faster alone
# than with threads that wait for each other on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Matplotlib takes a temporary folder by itself where it finds no home to write to.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

_report = sys.excepthook


def _report_unless_interrupted(kind, value, trace):
    """Ctrl-C is no error: a line says that it came."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
    else:
        _report(kind, value, trace)


def _open_streams() -> None:
    """Gives closed streams a place, and lets what does not print come out as ``?``."""
    # In this order: each takes the lowest free number, which no file must have.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


if sys.argv[:1] == ["-m"]:  # a command, whose imports take seconds
    sys.excepthook = _report_unless_interrupted
    _open_streams()
