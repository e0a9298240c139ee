"""What a person sees while a study runs: the task, the time left, the table so far."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """A live table over a progress bar on a terminal, or a line a run elsewhere.

    Args:
      total: steps of the whole study.
      table: draws the table of the rows so far.
      console: where to; standard error by default.
    """

    def __init__(
        self,
        total: int,
        table: Callable[[], RenderableType],
        console: Console | None = None,
    ):
        self._console = console or Console(stderr=True)
        self._table = table
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("starting", total=max(total, 1))
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._begun = time.monotonic()
        self._running: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Starts drawing, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        """Stops drawing."""
        self._live.stop()

    def running(self, what: str) -> None:
        """Names what runs now on this thread."""
        self._running[threading.get_ident()] = what
        self._describe()

    def advance(self, steps: int) -> None:
        """Counts steps as done."""
        self._progress.advance(self._task, steps)

    def finished(self, what: str) -> None:
        """Says that a run has ended, with the time gone and left."""
        self._running.pop(threading.get_ident(), None)
        self._describe()
        if self._console.is_terminal:
            return
        task = self._progress.tasks[0]
        gone = time.monotonic() - self._begun
        left = gone * (task.total or 0) / max(task.completed, 1) - gone
        with contextlib.suppress(OSError):  # a terminal that is gone stops no study
            self._console.print(
                f"{what}  [{gone:.0f} s gone, about {max(left, 0):.0f} s left]",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _describe(self) -> None:
        """Writes what runs before the bar."""
        what = "; ".join(list(self._running.values()))
        self._progress.update(self._task, description=what or "ending")

    def _draw(self) -> Group:
        """The table so far over the progress bar."""
        return Group(self._table(), self._progress)
