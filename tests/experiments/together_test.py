"""Several models as one batch end where each ends by itself."""

import dataclasses
import json
import pathlib
import tempfile
from typing import cast
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.classification import __main__ as classification
from experiments.classification.methods import METHODS
from experiments.engine import loop, together
from mujax import methods
from tests.experiments.programs_test import PARAMS, begun, feed, recipe_of, traced


def begin(name, recipe, seed, **lane):
    """A method, its numbers and one run of it as a lane."""
    method, given = traced(name, recipe)
    data = feed()
    state = begun(method, PARAMS, data)
    parts = state, method.data_use, data, (seed,), given.numbers
    return method, given, together.Lane(*parts, **lane)


def alone(method, given, lane):
    """Where the lane ends by itself."""
    parts = method, lane.state, lane.feed
    return loop.run(*parts, batch_size=5, seed=lane.seed, traced=given)


def end(make, lanes):
    """The last states of lanes that all end well."""
    states = together.run(make, lanes, batch_size=5)
    assert all(isinstance(state, methods.State) for state in states), states
    return cast("list[methods.State]", states)


class TogetherTest(parameterized.TestCase):
    @parameterized.product(name=list(METHODS), count=[2, 9])
    def test_lanes_end_where_each_ends_alone(self, name, count):
        rates = np.linspace(0.01, 0.1, count)
        epochs = [1 + i % 3 for i in range(count)]
        recipes = [
            recipe_of(name, epochs=epochs[i], learning_rate=float(rates[i]))
            for i in range(count)
        ]
        runs = [begin(name, recipe, seed=i) for i, recipe in enumerate(recipes)]
        ended = end(runs[0][1].make, [lane for *_, lane in runs])
        for (method, given, lane), state in zip(runs, ended, strict=True):
            _, _, again = begin(name, recipe_of(name), lane.seed[0])
            single = alone(method, given, lane._replace(state=again.state))
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
                method.finish(state),
                method.finish(single),
            )
            self.assertEqual(state.step, single.step)

    def test_models_lie_over_the_devices(self):
        seen = []
        compiled = together._batched

        def spy(make):
            def call(states, *rest):
                seen.append(states.trained["w"].sharding)
                return compiled(make)(states, *rest)

            return call

        lanes = [begin("finetune", recipe_of("finetune"), i)[2] for i in range(5)]
        make = begin("finetune", recipe_of("finetune"), 0)[1].make
        with mock.patch.object(together, "_batched", spy):
            together.run(make, lanes, batch_size=5)
        self.assertLen(seen[0].device_set, 5)
        self.assertFalse(seen[0].is_fully_replicated)

    def test_a_lane_that_diverges_leaves_the_others_alone(self):
        rates = (0.05, 1e38, 0.05)
        told = [[] for _ in rates]

        def lane(i):
            def note(done, state, loss, seconds):
                told[i].append(done)
                self.assertGreater(seconds, 0)
                self.assertTrue(np.isfinite(loss))

            recipe = dataclasses.replace(
                recipe_of("finetune"), learning_rate=rates[i], epochs=3
            )
            return begin("finetune", recipe, 0, on_epoch=note)[2]

        make = begin("finetune", recipe_of("finetune"), 0)[1].make
        ended = together.run(make, [lane(i) for i in range(3)], batch_size=5)
        self.assertIsInstance(ended[1], loop.DivergedError)
        self.assertEqual(told[0], [1, 2, 3])
        self.assertLess(len(told[1]), 3)
        first, last = (
            state.trained["w"] for state in ended if isinstance(state, methods.State)
        )
        np.testing.assert_array_equal(first, last)
        self.assertTrue(np.isfinite(first).all())

    def test_a_lane_goes_on_from_the_epoch_that_it_had_reached(self):
        recipe = dataclasses.replace(recipe_of("salun"), epochs=3)
        kept = {}
        method, given, whole = begin(
            "salun", recipe, 4, on_epoch=lambda e, s, *_: kept.setdefault(e, s)
        )
        (wanted,) = end(given.make, [whole])
        _, _, other = begin("salun", recipe, 5)
        rest = whole._replace(state=kept[2], start_epoch=2)
        rest = rest._replace(on_epoch=lambda *_: None)
        found, _ = end(given.make, [rest, other])
        np.testing.assert_allclose(
            method.finish(found)[0]["w"], method.finish(wanted)[0]["w"], rtol=1e-6
        )

    @parameterized.parameters(("cpu", 10, 1), ("gpu", 10, 16), ("gpu", 10**7, 1))
    def test_small_models_are_batched_on_accelerators(self, backend, size, count):
        with mock.patch.object(jax, "default_backend", lambda: backend):
            self.assertEqual(together.default(size), count)


@pytest.mark.slow
class StudyTest(absltest.TestCase):
    def test_a_batch_of_seeds_is_the_study_one_by_one(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        tables = []
        for size in (1, 3):
            out = folder / str(size)
            flags = f"--batch-models {size} --workers 1 --seeds 3 --out {out}"
            flags += " --cache None --train.epochs 2 --recipe.epochs 1"
            flags += " --methods random_label,semu,cufg --cufg.learning-rate 0.01"
            self.assertEqual(classification.main(flags.split()), 0)
            tables.append(json.loads((out / "results.json").read_text())["rows"])
        for one, other in zip(*tables, strict=True):
            self.assertEqual(one["method"], other["method"])
            for column in ("ua", "ra", "ta"):
                self.assertAlmostEqual(one[column], other[column], delta=0.8)


if __name__ == "__main__":
    absltest.main()
