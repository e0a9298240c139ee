"""Running contenders in turns, and what the clock said in a row.

Contenders run A B A B …, so that a machine that grows slower does so for all of them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

OURS, THEIRS = "mujax", "PyTorch"

Run = Callable[[], Any]
"""Does the work once, and returns when it is done."""


class Timing(NamedTuple):
    """Seconds of a repeated run.

    Attributes:
      low: the first quartile.
      median: the median.
      high: the third quartile.
      times: how often it ran.
    """

    low: float
    median: float
    high: float
    times: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      case: the case that it belongs to.
      what: what was done.
      timings: by contender.
      note: what else was measured, in words, or why nothing was.
      target: what is wanted, in words, if anything is.
    """

    case: str
    what: str
    timings: Mapping[str, Timing] = dataclasses.field(default_factory=dict)
    note: str = ""
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """PyTorch's median over ours: above 1, ours is faster; None without both."""
        if {OURS, THEIRS} <= self.timings.keys():
            return self.timings[THEIRS].median / self.timings[OURS].median
        return None


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
      least: turns at least.
      most: turns at most.
      seconds: no turn beyond the least after this time.
    """

    least: int = 5
    most: int = 31
    seconds: float = 10.0


def timing(seconds: Sequence[float]) -> Timing:
    """Quartiles of repeated runs.

    >>> timing([4.0, 1.0, 2.0, 3.0, 5.0])
    Timing(low=2.0, median=3.0, high=4.0, times=5)
    """
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Timing(low, median, high, len(seconds))


def in_turns(runs: Mapping[str, Run], effort: Effort) -> dict[str, Timing]:
    """Times contenders in turns, after a first round that compiles and warms up."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for turn in range(effort.most):
        if turn >= effort.least and time.perf_counter() - begun > effort.seconds:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: timing(found) for name, found in seconds.items()}


def guarded(case: str, what: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a case; what fails becomes the last of them, and says so."""
    try:
        yield from rows()
    except Exception as error:  # out of memory, an operation that is missing, …
        first = (str(error).strip() or "no message").splitlines()[0]
        note = f"failed: {type(error).__name__}: {first[:200]}"
        yield Row(case, what, note=note)
