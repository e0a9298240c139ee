"""Run time without compilation: a method's cost, not that of the first seed."""

import threading
import time

import jax

_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class _Compiled(threading.local):
    """Seconds that this thread has spent compiling, or waiting for another's."""

    seconds = 0.0


_compiled = _Compiled()


def leave_out(seconds: float) -> None:
    """Leaves seconds that have just passed out of the times of this thread."""
    _compiled.seconds += seconds


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Adds up the seconds that JAX spent compiling."""
    del kwargs
    if event in _COMPILING:
        leave_out(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_count)


class Stopwatch:
    """Adds up the seconds between ``start`` and ``stop``, less those of compilation.

    Block on what was computed before stopping: JAX runs ahead.

    Attributes:
      seconds: the total so far.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self._started: tuple[float, float] | None = None

    def start(self) -> None:
        """Starts, or starts again."""
        self._started = time.perf_counter(), _compiled.seconds

    def stop(self) -> float:
        """Stops and returns the total."""
        assert self._started is not None, "start the stopwatch first"
        clock, compiled = self._started
        passed = time.perf_counter() - clock - (_compiled.seconds - compiled)
        self.seconds += max(passed, 0.0)
        self._started = None
        return self.seconds
