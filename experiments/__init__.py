"""Experiment scripts: everything with a side effect lives here, outside the wheel."""

import os

# Read once, by the first import of NumPy: LAPACK on small matrices is faster alone
# than with threads that wait for each other on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
