"""Methods on a part of the parameters: as if the rest were constants of the loss."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import methods
from tests import methods_test as small

KEY = jax.random.key(0)


def dense(name: str) -> bool:
    return name.startswith("dense/")


def build(name: str, adapt: Any) -> methods.Method:
    """A method of the table whose losses have been adapted."""
    make = small.METHODS[name]
    options = dict(getattr(make, "keywords", {}))
    if "eval_loss_fn" in options:
        options["eval_loss_fn"] = adapt(small.EVAL)
    make = getattr(make, "func", make)
    return make(adapt(small.TRAIN), small.sgd(), **options)


def with_constants(loss_fn: Any) -> Any:
    """The loss of the dense layer alone; the rest are constants in its closure."""
    rest = small.tiny_params()

    def adapted(part, model_state, batch, key):
        return loss_fn({**rest, **part}, model_state, batch, key)

    return adapted


def run(method: methods.Method, params: Any, mask: Any = None) -> methods.State:
    """Three steps."""
    state = method.init(params, small.tiny_state(), small.forget_batches(), mask=mask)
    for i in range(3):
        batch, forget = small.tiny_batch(10 + i), small.tiny_batch(i)
        companion = forget if method.data_use.companion else None
        state, _ = method.step(state, batch, forget_batch=companion, key=KEY)
    return state


class OnPartTest(parameterized.TestCase):
    @parameterized.parameters("salun", "semu", "ufg", "esd")
    def test_is_the_method_of_a_loss_with_constants(self, name):
        params = small.tiny_params()
        ours = methods.on_part(build(name, methods.loss_on_part), dense)
        state = run(ours, params)
        found, model_state = ours.finish(state)
        theirs = build(name, with_constants)
        plain = run(theirs, {"dense": params["dense"]})
        wanted, wanted_state = theirs.finish(plain)
        chex.assert_trees_all_close(found["dense"], wanted["dense"], atol=1e-6)
        chex.assert_trees_all_close(model_state, wanted_state, atol=1e-6)
        self.assertEqual(small.bits(found["conv"]), small.bits(params["conv"]))
        self.assertNotEqual(small.bits(found["dense"]), small.bits(params["dense"]))
        # All moments, cores and masks are of the part.
        self.assertEqual(
            [leaf.shape for leaf in jax.tree.leaves(state.opt_state)],
            [leaf.shape for leaf in jax.tree.leaves(plain.opt_state)],
        )

    def test_a_mask_is_a_share_of_the_part(self):
        params = small.tiny_params()
        method = methods.salun(
            methods.loss_on_part(small.TRAIN), optax.sgd(0.1), fraction=0.5
        )
        method = methods.on_part(method, dense)
        state = method.init(params, small.tiny_state(), small.forget_batches())
        part, whole = 6 * 4 + 4, 4 * 4 * 2 * 6 + 6 + 6 * 4 + 4
        self.assertEqual(sum(map(np.sum, jax.tree.leaves(state.mask))), part // 2)
        self.assertAlmostEqual(
            methods.trainable_fraction(state, params), part / 2 / whole
        )

    def test_takes_its_part_of_a_mask_of_all(self):
        params, mask = small.tiny_params(), small.random_mask()
        method = build("gradient_ascent", methods.loss_on_part)
        method = methods.on_part(method, dense)
        moved, _ = method.finish(run(method, params, mask))
        mask["conv"] = jax.tree.map(jnp.zeros_like, mask["conv"])
        self.assertEqual(
            small.frozen_bits(mask, moved), small.frozen_bits(mask, params)
        )

    def test_the_original_is_whole_for_a_loss_of_two(self):
        def pair(params, original, model_state, batch, key):
            del batch, key
            chex.assert_trees_all_equal(params["b"], original["b"])
            return params["a"] * original["b"] + original["a"], (model_state, None)

        method = methods.esd(methods.loss_on_part(pair), optax.sgd(1.0))
        method = methods.on_part(method, lambda name: name == "a")
        params = {"a": jnp.array(1.0), "b": jnp.array(3.0)}
        state, info = method.step(method.init(params), None)
        self.assertEqual(info.loss, 4)
        self.assertEqual(method.finish(state)[0], {"a": -2, "b": 3})

    @parameterized.named_parameters(("jit", True), ("eager", False))
    def test_other_containers_come_back(self, jitted):
        def loss_fn(params, model_state, batch, key):
            del batch, key
            return params[0]["w"] @ params[1], (model_state, None)

        tuned = methods.finetune(methods.loss_on_part(loss_fn), optax.sgd(1.0))
        method = methods.on_part(tuned, lambda name: name == "1")
        tiny = np.float32(1e-40)  # subnormal: arithmetic on a CPU would flush it
        params = ({"w": jnp.array([tiny, 2.0])}, jnp.ones(2), None)
        step = jax.jit(method.step) if jitted else method.step
        (first, second, none), _ = method.finish(step(method.init(params), None)[0])
        self.assertEqual(small.bits(first), small.bits(params[0]))
        np.testing.assert_allclose(second, [1, -1])
        self.assertIsNone(none)

    def test_raises_where_no_name_fits(self):
        method = methods.on_part(
            build("finetune", methods.loss_on_part), lambda name: False
        )
        with self.assertRaisesRegex(ValueError, "4 leaves fits.*conv/bias"):
            method.init(small.tiny_params(), small.tiny_state())


if __name__ == "__main__":
    absltest.main()
