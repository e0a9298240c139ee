"""Runs at once: the order they may take, errors, interruptions, and equal results."""

import json
import pathlib
import tempfile
import threading
import time
from unittest import mock

import jax
import pytest
from absl.testing import absltest, parameterized

from experiments.classification import __main__ as classification
from experiments.engine import stopwatch, workers
from experiments.engine.workers import Job


class WorkTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 5)
    def test_jobs_come_after_those_that_they_need(self, count):
        done = []
        needs = {3: (1, 2), 0: (), 1: (0,), 2: (0, 9), 4: ()}
        jobs = [Job([i], needs[i], lambda i=i: done.append(i)) for i in needs]
        workers.work(jobs, count)
        self.assertCountEqual(done, needs)
        for job in jobs:
            for need in set(job.needs) & set(needs):
                self.assertLess(done.index(need), done.index(job.names[0]))

    def test_jobs_run_at_once(self):
        together = threading.Barrier(3, timeout=30)
        workers.work([Job([i], (), together.wait) for i in range(3)], 3)

    @parameterized.parameters(1, 2)
    def test_nothing_begins_after_the_time(self, count):
        done = []
        jobs = [Job([i], [i - 1], lambda i=i: done.append(i)) for i in range(4)]
        with mock.patch.object(workers.time, "monotonic", lambda: float(len(done))):
            workers.work(jobs, count, seconds=1.5)
        self.assertEqual(done, [0, 1])

    def test_an_error_stops_the_others_and_is_raised(self):
        begun = threading.Event()

        def fail():
            begun.wait(30)
            raise ValueError("broken")

        def go_on():
            begun.set()
            while True:
                workers.check()
                time.sleep(0.001)

        never = mock.Mock()
        jobs = [Job([0], (), fail), Job([1], (), go_on), Job([2], [0], never)]
        with self.assertRaisesRegex(ValueError, "broken"):
            workers.work(jobs, 2)
        never.assert_not_called()

    def test_an_interruption_reaches_every_thread(self):
        stopped = []

        def go_on():
            try:
                while True:
                    workers.check()
                    time.sleep(0.001)
            except workers.StoppedError:
                stopped.append(True)
                raise

        with (
            mock.patch.object(threading.Thread, "join", _interrupted(2)),
            self.assertRaises(KeyboardInterrupt),
        ):
            workers.work([Job([i], (), go_on) for i in range(2)], 2)
        self.assertLen(stopped, 2)

    def test_one_thread_does_not_count_what_another_compiles(self):
        watch = stopwatch.Stopwatch()
        watch.start()
        other = threading.Thread(target=lambda: stopwatch.leave_out(1000.0))
        other.start()
        other.join()
        time.sleep(0.01)
        self.assertGreater(watch.stop(), 0.005)

    @parameterized.parameters(("cpu", 10, True), ("cpu", 10**7, False), ("gpu", 10, 0))
    def test_small_models_on_cpu_run_one_a_core(self, backend, size, several):
        with (
            mock.patch.object(jax, "default_backend", lambda: backend),
            mock.patch.object(workers.os, "sched_getaffinity", lambda _: {0, 1, 2}),
        ):
            self.assertEqual(workers.default(size), 3 if several else 1)


def _interrupted(after):
    """``Thread.join`` that raises an interruption at one of its calls."""
    join, calls = threading.Thread.join, []

    def interrupted(self, timeout=None):
        calls.append(timeout)
        if len(calls) == after:
            raise KeyboardInterrupt
        return join(self, timeout)

    return interrupted


@pytest.mark.slow
class StudyTest(absltest.TestCase):
    def test_workers_change_no_row_and_not_their_order(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        tables = []
        for count in (1, 3):
            out = folder / str(count)
            flags = f"--workers {count} --seeds 2 --trainings 1 --out {out} --cache"
            flags += f" {out}/cache --train.epochs 2 --recipe.epochs 1"
            flags += " --methods salun,semu,cufg"
            self.assertEqual(classification.main(flags.split()), 0)
            rows = json.loads((out / "results.json").read_text())["rows"]
            for row in rows:
                del row["seconds"]
            tables.append(rows)
        self.assertEqual(*tables)


if __name__ == "__main__":
    absltest.main()
