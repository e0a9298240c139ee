"""What XLA compiles inside of a block."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """A list that grows by one with each compilation."""
    found = []

    def compiled(event: str, *args, **kwargs) -> None:
        del args, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield found
    finally:
        jax.monitoring.clear_event_listeners()
