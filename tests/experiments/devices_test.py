"""Several devices give what one gives: examples, batches and models placed by rule."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from experiments.classification import __main__ as classification
from experiments.classification.methods import METHODS
from experiments.diffusion import __main__ as diffusion
from experiments.engine import loop
from experiments.engine.checkpoints import load_checkpoint
from experiments.engine.devices import Devices
from tests import command_line
from tests.experiments import generation_test, programs_test
from tests.experiments.classification_test import tiny_npz

LAYOUTS = {
    "one": Devices(),
    "replicated": Devices.choose(8, False),
    "sharded": Devices.choose(8, True),
}
PARAMS = {"w": np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)}


def spec(array):
    return array.sharding.spec


class RulesTest(parameterized.TestCase):
    def test_one_device_places_nothing(self):
        tree, one = {"a": np.ones(8)}, Devices.choose(1, False)
        self.assertIsNone(one.mesh)
        for rule in (one.everywhere, one.split, one.place):
            self.assertIs(rule(tree), tree)

    @parameterized.parameters(
        ((8, 3), P("data")), ((16,), P("data")), ((7, 8), P()), ((), P()), ((0,), P())
    )
    def test_a_batch_is_split_along_examples_that_divide(self, shape, wanted):
        devices = LAYOUTS["replicated"]
        batch = jnp.arange(float(np.prod(shape, dtype=int))).reshape(shape)
        self.assertEqual(spec(devices.split(batch)), wanted)
        inside = jax.jit(devices.split)(devices.everywhere(batch))
        self.assertEqual(spec(inside), wanted)
        np.testing.assert_array_equal(inside, batch)

    @parameterized.parameters(
        ((8, 32, 3), P(None, "data")),
        ((24, 16), P("data")),
        ((3, 5), P()),
        ((), P()),
        ((9, 64), P(None, "data")),
    )
    def test_a_model_is_split_along_its_largest_axis_that_divides(self, shape, wanted):
        leaf = jnp.zeros(shape)
        self.assertEqual(spec(LAYOUTS["sharded"].place(leaf)), wanted)
        self.assertEqual(spec(LAYOUTS["replicated"].place(leaf)), P())

    def test_a_device_is_given_its_own_examples_only(self):
        asked = []

        class Images(np.ndarray):
            def __getitem__(self, index):
                asked.append(np.size(index))
                return np.asarray(self)[index]

        images = np.arange(120.0).reshape(40, 3).view(Images)
        order = np.random.default_rng(0).permutation(40)[:16]
        batch = LAYOUTS["replicated"].gather(images, order)
        np.testing.assert_array_equal(batch, np.asarray(images)[order])
        self.assertEqual(asked, [2] * 8)

    @parameterized.parameters(
        ("--devices 9", "--devices 9: there are 8 devices here"),
        ("--devices 0", "--devices 0: there are 8 devices here"),
        ("--devices 1 --shard-parameters", "--shard-parameters: .* is 1 device"),
        ("--devices 2 --workers 3", "--workers 3: .* 2 devices go one by one"),
        ("--devices 2 --shard-parameters --batch-models 4", "--batch-models 4 lays"),
    )
    def test_what_cannot_be_is_refused_in_a_line(self, flags, words):
        with tempfile.TemporaryDirectory() as folder:
            data = tiny_npz(pathlib.Path(folder) / "own.npz")
            given = [*flags.split(), "--dataset", data, "--out", folder]
            code, _, err = command_line.run(classification.main, *given)
        self.assertEqual((code, err.count("\n")), (2, 1), err)
        self.assertRegex(err, words)


class LoopTest(parameterized.TestCase):
    """Epochs of a method over the devices, of examples there or on the host."""

    def feed(self, devices, on_host):
        rng = np.random.default_rng(0)
        examples = {
            "image": rng.normal(size=(60, 16)).astype(np.float32),
            "label": rng.integers(3, size=60).astype(np.int32),
        }
        if not on_host:
            examples = devices.everywhere(jax.tree.map(jnp.asarray, examples))
        forget = (np.arange(11),)  # whole beside a step, it does not divide
        return loop.Feed(examples, 3, forget, np.arange(11, 60), devices=devices)

    def end(self, name, devices, on_host=False):
        recipe = dataclasses.replace(programs_test.recipe_of(name), batch_size=8)
        method, given = programs_test.traced(name, recipe)
        feed = self.feed(devices, on_host)
        placed = devices.place(PARAMS)
        state = devices.place(programs_test.begun(method, placed, feed, 11, 8))
        state = loop.run(method, state, feed, batch_size=8, seed=(0,), traced=given)
        return state, method.finish(state)[0]

    @parameterized.product(name=list(METHODS), layout=["replicated", "sharded"])
    @pytest.mark.slow
    def test_every_method_ends_where_one_device_ends(self, name, layout):
        devices = LAYOUTS[layout]
        one, wanted = self.end(name, LAYOUTS["one"])
        state, found = self.end(name, devices)
        chex.assert_trees_all_close(found, wanted, rtol=2e-5, atol=2e-6)
        for leaf, like in zip(
            jax.tree.leaves(state), jax.tree.leaves(devices.place(one)), strict=True
        ):
            self.assertTrue(leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim))

    @parameterized.product(name=["ufg", "salun"], layout=["replicated", "sharded"])
    def test_examples_on_the_host_are_the_same(self, name, layout):
        _, wanted = self.end(name, LAYOUTS["one"])
        _, found = self.end(name, LAYOUTS[layout], on_host=True)
        chex.assert_trees_all_close(found, wanted, rtol=2e-5, atol=2e-6)

    def test_each_device_computes_its_part_of_a_batch(self):
        seen = []
        split = Devices.split

        def spy(devices, batch):
            batch = split(devices, batch)
            if devices.mesh is not None and isinstance(batch["image"], Tracer):
                jax.debug.inspect_array_sharding(batch["image"], callback=seen.append)
            return batch

        with mock.patch.object(Devices, "split", spy):
            loop.clear_cache()
            self.end("finetune", LAYOUTS["sharded"])
        self.assertNotEmpty(seen)
        for sharding in seen:
            self.assertEqual(sharding.shard_shape((8, 16)), (1, 16))


@pytest.mark.slow
class StudyTest(parameterized.TestCase):
    """Whole studies: the rows, and the parameters that they end with."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_same(self, run, flags):
        rows = {}
        for layout in ("--devices 1", "--devices 8", "--devices 8 --shard-parameters"):
            out = self.folder / layout.replace(" ", "")
            given = f"{flags} {layout} --seeds 1 --cache None --out {out}"
            code, *_, err = run(*given.split())
            self.assertEqual(code, 0, err)
            results = json.loads((out / "results.json").read_text())
            rows[out] = {row["method"]: row for row in results["rows"]}
        one, *others = rows
        for other in others:
            self.assertEqual(rows[other].keys(), rows[one].keys())
            for method, row in rows[one].items():
                found = rows[other][method]
                self.assertEqual(found["status"], row["status"], found)
                for column, value in row.items():
                    if isinstance(value, float) and column != "seconds":
                        np.testing.assert_allclose(
                            found[column],
                            value,
                            rtol=0.02,
                            atol=1.1,
                            err_msg=f"{method} {column}",
                        )
                path = f"checkpoints/{method}/seed_0"
                chex.assert_trees_all_close(
                    load_checkpoint(other / path)["params"],
                    load_checkpoint(one / path)["params"],
                    rtol=1e-2,
                    atol=2e-3,
                )

    def test_classification_of_every_method(self):
        data = tiny_npz(self.folder / "own.npz")
        flags = f"--dataset {data} --train.epochs 2 --recipe.epochs 1 "
        flags += "--train.batch-size 16 --recipe.batch-size 16 --forget-fraction 0.25"
        run = functools.partial(command_line.run, classification.main)
        self.assert_same(run, flags)

    def test_diffusion(self):
        path = self.folder / "own.npz"
        flags = f"--dataset {generation_test.own_images(path)} --forget-class 1 "
        flags += "--train.epochs 2 --recipe.epochs 1 --samples 8 --sampling-steps 4 "
        flags += "--forgotten-samples 8 --methods salun,semu_retain,esd,ufg"
        self.assertIn("ufg", diffusion.METHODS)
        self.assert_same(generation_test.run, flags)


if __name__ == "__main__":
    absltest.main()
