"""Models as people write them: a study runs, goes on, and takes its own checkpoint."""

import json
import pathlib
import tempfile
from typing import Any
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen, nnx

from experiments.classification import __main__ as classification
from experiments.engine.checkpoints import load_checkpoint
from experiments.engine.store import Store
from tests import command_line
from tests.examples import own_attention

MODULE = "tests.experiments.own_models_test"


class Boxed(linen.Module):
    """Partitioned parameters and statistics."""

    num_classes: int
    input_shape: tuple[int, ...]

    @linen.compact
    def __call__(self, x, train: bool = False):
        init = linen.with_partitioning(
            linen.initializers.lecun_normal(), (None, "model")
        )
        x = linen.Dense(8, kernel_init=init)(x.reshape(len(x), -1))
        seen: Any = self.variable(
            "counts", "seen", lambda: linen.Partitioned(jnp.int32(0), names=())
        )
        if train and not self.is_initializing():
            seen.value = seen.value + 1
        return linen.Dense(self.num_classes)(linen.relu(x))


class Nested(linen.Module):
    """A parameter that is a tree: lists, integer keys, None and empty dictionaries."""

    num_classes: int
    input_shape: tuple[int, ...]

    @linen.compact
    def __call__(self, x, train: bool = False):
        def init(key):
            return {"scale": [jnp.ones(8), {10: jnp.ones(8), 9: None}], "empty": {}}

        tree = self.param("tree", init)
        x = linen.Dense(8)(x.reshape(len(x), -1)) * tree["scale"][0]
        return linen.Dense(self.num_classes)(linen.relu(x) * tree["scale"][1][10])


class Note(nnx.Variable):
    """A kind of variable that no library knows."""


class Odd(nnx.Module):
    """A list of layers, and state of every type: keys, complex, half, integer, none."""

    def __init__(self, num_classes, input_shape, *, rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(int(np.prod(input_shape)), 8, rngs=rngs),
                nnx.Dropout(0.1, rngs=rngs),
                nnx.BatchNorm(8, rngs=rngs),
                nnx.Linear(8, num_classes, use_bias=False, rngs=rngs),
            ]
        )
        self.key = Note(jax.random.key(3))
        self.wave = Note(jnp.ones(2, jnp.complex64))
        self.half = Note(jnp.ones((), jnp.bfloat16))
        self.steps = Note(jnp.int32(0))
        self.flag = Note(jnp.array(True))
        self.nothing = Note(jnp.zeros((0, 3)))
        self.none = Note(None)
        self.pair = Note((jnp.ones(1), jnp.ones(2)))
        self.array = nnx.data(jnp.ones(3))

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = layer(x)
        self.steps[...] += 1
        self.key[...] = jax.random.fold_in(self.key[...], 0)
        return x


class Stateless(nnx.Module):
    """No state at all, and half of the parameters in half precision."""

    def __init__(self, num_classes, input_shape, *, rngs):
        size = int(np.prod(input_shape))
        half = nnx.Linear(size, 8, param_dtype=jnp.bfloat16, rngs=rngs)
        whole = nnx.Linear(8, num_classes, rngs=rngs)
        self.layers = nnx.Sequential(half, nnx.relu, whole)

    def __call__(self, x):
        return self.layers(x.reshape(len(x), -1)).astype(jnp.float32)


Attention = own_attention.Net


@pytest.mark.slow
class OwnModelTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        labels = np.arange(80) % 2
        images = np.random.default_rng(0).integers(0, 255, (80, 4, 4, 1), np.uint8)
        np.savez(
            self.folder / "own.npz",
            train_images=images,
            train_labels=labels,
            test_images=images[:20],
            test_labels=labels[:20],
        )

    def run_study(self, model, out, *flags):
        return command_line.run(
            classification.main,
            *("--dataset", f"npz:{self.folder / 'own.npz'}"),
            *("--model", f"{MODULE}:{model}", "--seeds", "1", "--keep-every", "0"),
            *("--train.epochs", "2", "--recipe.epochs", "2"),
            *("--cache", str(self.folder / "cache"), "--out", str(self.folder / out)),
            *flags,
        )

    @parameterized.parameters("Boxed", "Nested", "Odd", "Stateless", "Attention")
    def test_a_study_runs_goes_on_and_takes_its_own_checkpoint(self, model):
        save, load, resumed = Store.save_progress, Store.load_progress, []

        def interrupt(store, method, seed, epoch, *rest):
            save(store, method, seed, epoch, *rest)
            if (method, epoch) == ("salun", 1):
                raise KeyboardInterrupt

        def note(store, method, *rest):
            found = load(store, method, *rest)
            resumed.extend([method] if found else [])
            return found

        with mock.patch.object(Store, "save_progress", interrupt):
            code, _, said = self.run_study(model, "out", "--methods", "salun")
        self.assertEqual(code, 130, said)
        with mock.patch.object(Store, "load_progress", note):
            code, _, said = self.run_study(model, "out", "--methods", "salun,finetune")
        self.assertEqual((code, resumed), (0, ["salun"]), said)

        # Begun anew, with what --cache has kept, it ends with the same bits.
        code, _, said = self.run_study(model, "whole", "--methods", "salun")
        self.assertEqual(code, 0, said)
        trees = [
            load_checkpoint(self.folder / out / "checkpoints" / "salun" / "seed_0")
            for out in ("out", "whole")
        ]
        chex.assert_trees_all_equal(*trees)

        original = self.folder / "out" / "checkpoints" / "original" / "seed_0"
        given = ("--methods", "salun", "--checkpoint", str(original))
        code, _, said = self.run_study(model, "given", *given)
        self.assertEqual(code, 0, said)
        self.assertNotIn("From --checkpoint", said)
        uas = [self.row(out)["ua"] for out in ("out", "given")]
        self.assertEqual(*uas)

    def row(self, out):
        rows = json.loads((self.folder / out / "results.json").read_text())["rows"]
        return next(row for row in rows if row["method"] == "salun")

    def test_a_state_that_grows_is_refused(self):
        code, _, said = self.run_study("Growing", "out", "--methods", "finetune")
        self.assertEqual((code, said.count("\n")), (2, 1), said)
        self.assertIn("losses.sum.1 is absent before a training step", said)


class Growing(linen.Module):
    """What it sows is one longer after every step."""

    num_classes: int
    input_shape: tuple[int, ...]

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Dense(self.num_classes)(x.reshape(len(x), -1))
        self.sow("losses", "sum", x.sum())
        return x


if __name__ == "__main__":
    absltest.main()
