"""What is the same compiles once: recipes' numbers are values that programs read."""

import contextlib
import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments.classification import __main__ as classification
from experiments.classification.methods import METHODS, cufg
from experiments.classification.optimisation import Losses
from experiments.engine import loop, programs
from mujax import methods


def linear_loss(params, model_state, batch, key):
    del key
    logits = batch["image"] @ params["w"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return jnp.mean(batch["weight"] * losses), (model_state, None)


def linear_outputs(params, model_state, batch, key):
    del key
    weights = jnp.broadcast_to(params["w"], (batch["image"].shape[1], 3))
    logits = batch["image"] @ weights
    return methods.Outputs(logits, batch["label"], batch["weight"], model_state)


PARAMS = {"w": jnp.full((4, 3), 0.1)}
LOSSES = Losses(
    *(linear_loss, linear_loss, linear_outputs, linear_outputs),
    lambda key: ({"w": jnp.array([[-0.2, 0.1, 0.3]])}, ()),
    3,
)


# Steps of these change nothing: their numbers are read before.
DONE_AT_START = ("influence",)


def feed(retain=20):
    rng = np.random.default_rng(0)
    examples = {
        "image": jnp.asarray(rng.normal(size=(40, 4)), jnp.float32),
        "label": jnp.asarray(rng.integers(3, size=40), jnp.int32),
    }
    return loop.Feed(examples, 3, (np.arange(6),), np.arange(6, 6 + retain))


def recipe_of(name, **changes):
    """A short recipe of one stage."""
    recipe, changes = METHODS[name].Recipe(), {"epochs": 1, "stages": 1, **changes}
    # What changes at the end alone must depend on the examples.
    changes |= {"ssd": {"threshold": 0.5}, "fisher": {"cap": 1.0}}.get(name, {})
    known = {field.name for field in dataclasses.fields(recipe)}
    return dataclasses.replace(
        recipe, **{k: v for k, v in changes.items() if k in known}
    )


def traced(name, recipe, steps=4):
    """A method, and the same as a function of its numbers."""
    build = METHODS[name].build
    numbers, rest = programs.split(recipe)

    def make(values):
        values = dict(values)
        steps = values.pop("steps")
        return build(dataclasses.replace(rest, **values), LOSSES, steps)

    method = methods.with_data(build(recipe, LOSSES, steps), epochs=recipe.epochs)
    return method, programs.Traced(make, numbers | {"steps": float(steps)})


def begun(method, params, feed, count=6, size=6):
    """The state to begin with, on the first examples to forget."""
    options: dict[str, Any] = {}
    if method.data_use.retain_at_start:
        retain = loop.in_order(feed, feed.retain[:count], size)
        options |= {"retain_batches": retain, "key": jax.random.key(5)}
    return method.init(
        params, (), loop.in_order(feed, np.arange(count), size), **options
    )


def run(method, given, **options):
    """The weights after the method's epochs."""
    state = begun(method, PARAMS, feed())
    state = loop.run(
        method, state, feed(**options), batch_size=5, seed=(0,), traced=given
    )
    return method.finish(state)[0]["w"]


class ProgramsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        loop.clear_cache()

    def test_numbers_and_the_rest_make_the_recipe(self):
        recipe = cufg.Recipe(learning_rate=0.3, epochs=7, stages=2, cosine=True)
        numbers, rest = programs.split(recipe)
        self.assertEqual(numbers["learning_rate"], 0.3)
        self.assertEqual((numbers["epochs"], numbers["cosine"]), (7, 1))
        self.assertEqual((rest.stages, rest.batch_size), (2, 64))
        self.assertEqual(rest, programs.split(dataclasses.replace(recipe, epochs=2))[1])
        self.assertEqual(dataclasses.replace(rest, **numbers), recipe)

    @parameterized.parameters(*METHODS)
    def test_a_method_of_traced_numbers_is_the_method(self, name):
        recipe = recipe_of(name, learning_rate=0.05, cosine=True)
        method, given = traced(name, recipe)
        np.testing.assert_allclose(
            run(method, given), run(method, None), rtol=2e-5, atol=1e-6
        )

    @parameterized.parameters(*METHODS)
    def test_other_numbers_and_lengths_are_the_same_program(self, name):
        method, given = traced(name, recipe_of(name))
        first = run(method, given)
        count = programs.count()
        numbers = {k: 0.5 * v for k, v in given.numbers.items()} | {"steps": 3.0}
        other = run(method, given._replace(numbers=numbers), retain=17)
        self.assertEqual(programs.count(), count)
        if name not in DONE_AT_START:
            self.assertFalse(np.array_equal(first, other))

    def test_methods_of_one_step_share_its_program(self):
        for name in ("finetune", "random_label"):
            run(*traced(name, recipe_of(name)))
        self.assertEqual(programs.count(), 1)

    @parameterized.parameters((0.1, 10, True), (0.2, 1, True), (0.3, 5, False))
    def test_the_cosine_is_optaxs(self, rate, steps, falls):
        ours = programs.cosine_rate(rate, steps, falls)
        wanted = optax.cosine_decay_schedule(rate, steps) if falls else lambda _: rate
        for count in (0, 1, steps // 2, steps, steps + 3):
            np.testing.assert_allclose(ours(count), wanted(count), rtol=1e-6, atol=1e-9)


MODEL = """
from flax import nnx
class Net(nnx.Module):
    def __init__(self, num_classes, input_shape, *, rngs):
        self.hidden = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.logits = nnx.Linear(8, num_classes, rngs=rngs)
    def __call__(self, x):
        return self.logits(nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1)))))
"""


@pytest.mark.slow
class StudyTest(absltest.TestCase):
    def test_all_methods_compile_as_many_programs_for_any_number_of_seeds(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        rng = np.random.default_rng(0)
        labels = np.arange(120) % 3
        images = rng.integers(0, 90, (120, 4, 4, 1), np.uint8)
        images += (60 * labels[:, None, None, None]).astype(np.uint8)
        arrays: dict[str, Any] = dict(train_images=images, train_labels=labels)
        np.savez(folder / "own.npz", **arrays, test_images=images, test_labels=labels)
        (folder / "tiny_net.py").write_text(MODEL)
        loop.clear_cache()
        counts = []
        with contextlib.chdir(folder):
            for seeds in (1, 3):
                flags = f"--dataset npz:own.npz --model tiny_net:Net --seeds {seeds}"
                flags += " --train.epochs 1 --train.batch-size 64 --recipe.epochs 1"
                flags += " --cache None --out out"
                self.assertEqual(classification.main(flags.split()), 0)
                counts.append(programs.count())
        # One for originals, Retrains, FT and RL, one for both SEMUs, and one each for
        # GA, NegGrad+, SalUn, SalUn-soft, UFG and CUFG.
        self.assertEqual(counts, [8, 8])


if __name__ == "__main__":
    absltest.main()
