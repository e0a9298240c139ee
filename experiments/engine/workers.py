"""Several runs at once, each on a thread of its own.

A step of a small model leaves most of a CPU idle, and so do compiling, measuring and
writing: runs that do not wait for each other fill the gaps. Programs of JAX release
Python's lock while they run.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax

SMALL = 1_000_000
"""Parameters of a model whose steps do not fill a CPU."""


class Job(NamedTuple):
    """Something to do.

    Attributes:
      names: of what it does.
      needs: what is to be done before, if there is a job that does it.
      run: does it.
    """

    names: Sequence[Hashable]
    needs: Sequence[Hashable]
    run: Callable[[], Any]


class StoppedError(Exception):
    """This run ends since another one failed, or a person interrupted them all."""


def default(num_params: int) -> int:
    """Runs at once of a model of this size: one a core for small ones on CPU, else one.

    An accelerator runs one program at a time, and a large model's step fills a CPU.
    """
    if jax.default_backend() != "cpu" or num_params > SMALL:
        return 1
    return min(len(os.sched_getaffinity(0)), 8)


def work(jobs: Sequence[Job], count: int, seconds: float = math.inf) -> None:
    """Does all jobs, so many at once, each after those that it needs.

    Of those that can be done the first is begun, and none after so many seconds. If
    one fails, the others stop at their next :func:`check`, and its error is raised
    here.
    """
    until = time.monotonic() + seconds
    waiting, undone = list(jobs), {name for job in jobs for name in job.names}
    errors: list[BaseException] = []
    stop, changed = threading.Event(), threading.Condition()

    def ready() -> Job | None:
        for job in waiting:
            if undone.isdisjoint(set(job.needs) - set(job.names)):
                waiting.remove(job)
                return job
        return None

    if count <= 1:
        while time.monotonic() <= until and (job := ready()) is not None:
            job.run()
            undone.difference_update(job.names)
        return

    def take() -> Job | None:
        with changed:
            while waiting and not stop.is_set() and time.monotonic() <= until:
                if (job := ready()) is not None:
                    return job
                changed.wait()
        return None

    def serve() -> None:
        _here.stop = stop
        while (job := take()) is not None:
            try:
                job.run()
            except BaseException as error:
                errors.append(error)
                stop.set()
            with changed:
                undone.difference_update(job.names)
                changed.notify_all()

    threads = [threading.Thread(target=serve) for _ in range(min(count, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():  # with a limit, or a signal would have to wait
                thread.join(0.1)
    except BaseException:
        stop.set()
        with changed:
            changed.notify_all()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]


def check() -> None:
    """Ends this thread's job if all are to stop.

    Raises:
      StoppedError: another one failed, or a person interrupted them.
    """
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise StoppedError


_here = threading.local()
