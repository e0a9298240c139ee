"""Experiment scripts: everything with a side effect lives here, outside the wheel."""

import os
import sys

# Read once, by the first import of NumPy: LAPACK on small matrices is faster alone
# than with threads that wait for each other on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _stay_quiet(kind, value, trace):
    """Reports an exception, but for Ctrl-C, which is no error of ours."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted: the same command goes on.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, value, trace)


if sys.argv[:1] == ["-m"]:  # a command, whose imports take seconds
    sys.excepthook = _stay_quiet
