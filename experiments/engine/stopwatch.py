"""Run time without compilation: a method's cost, not that of the first seed."""

import time

import jax

_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compiled = 0.0


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Adds up the seconds that JAX spent compiling."""
    global _compiled
    del kwargs
    if event in _COMPILING:
        _compiled += duration_secs


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
        self._started = time.perf_counter(), _compiled

    def stop(self) -> float:
        """Stops and returns the total."""
        assert self._started is not None, "start the stopwatch first"
        clock, compiled = self._started
        passed = time.perf_counter() - clock - (_compiled - compiled)
        self.seconds += max(passed, 0.0)
        self._started = None
        return self.seconds
