"""Complex, 16-bit and odd leaves: right numbers, or an error that names the leaf."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import correction, gradients, methods, saliency

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
TARGET = jnp.array([1 + 2j, -1j, 0.5], jnp.complex64)


def complex_loss(params, batch):
    """Least squares towards a complex target."""
    return jnp.mean(jnp.abs(batch @ (params["w"] - TARGET)) ** 2)


def full(loss_fn):
    return lambda p, s, b, k: (loss_fn(p, b), (s, None))


class ComplexTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("finetune", methods.finetune),
        ("salun", lambda *a: methods.salun(*a, fraction=1.0)),
    )
    def test_steps_descend(self, make):
        method = make(full(complex_loss), optax.sgd(0.1))
        state = method.init({"w": jnp.zeros(3, jnp.complex64)}, (), [X])
        for _ in range(400):
            state, _ = jax.jit(method.step)(state, X)
        found = method.finish(state)[0]["w"]
        self.assertEqual(found.dtype, jnp.complex64)
        np.testing.assert_allclose(found, TARGET, atol=2e-3)

    def test_pieces_keep_the_imaginary_part(self):
        params = {"w": jnp.ones(3, jnp.complex64)}
        ends = []
        for size in (None, 2):
            make = methods.ufg(
                full(complex_loss), optax.sgd(0.1), threshold=-2.0, microbatch_size=size
            )
            state, _ = make.step(make.init(params), X, forget_batch=X + 1)
            ends.append(make.finish(state)[0])
        chex.assert_trees_all_close(*ends, rtol=1e-5)
        self.assertTrue(jnp.any(jnp.abs(ends[0]["w"].imag) > 1e-3))

    def test_scores_are_magnitudes(self):
        params = {"w": jnp.zeros(3, jnp.complex64)}
        wanted = np.abs(jax.grad(complex_loss)(params, X)["w"])
        score = saliency.gradient_saliency(complex_loss, params, [X])["w"]
        np.testing.assert_allclose(score, wanted, rtol=1e-6)
        self.assertEqual(score.dtype, jnp.float32)


class SixteenBitTest(parameterized.TestCase):
    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_salun_keeps_the_dtype(self, dtype):
        def loss_fn(params, batch):
            return jnp.mean((batch.astype(dtype) @ params["w"] - 1) ** 2)

        method = methods.salun(full(loss_fn), optax.adam(0.01), fraction=0.5)
        state = method.init({"w": jnp.ones((3, 2), dtype)}, (), [X, X[:2]])
        state, info = jax.jit(method.step)(state, X)
        chex.assert_tree_all_finite((state, info.loss))
        self.assertEqual(method.finish(state)[0]["w"].dtype, dtype)

    @parameterized.named_parameters(
        ("gradient", saliency.gradient_saliency),
        ("absolute", saliency.absolute_saliency),
        ("fisher", saliency.fisher_saliency),
        ("forgetting", correction.forgetting_gradient),
    )
    def test_overflow_names_the_leaf(self, function):
        def loss_fn(params, batch):
            return jnp.mean(batch) * jnp.sum(params["a"]) + jnp.sum(
                params["b"] * jnp.mean(batch).astype(jnp.float16) * jnp.float16(300)
            ).astype(jnp.float32)

        params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.float16)}
        function(loss_fn, params, [jnp.ones(2)])
        with self.assertRaisesRegex(ValueError, r"params\['b'\].*not finite"):
            function(loss_fn, params, [jnp.ones(2), jnp.full(2, 300.0)])


class LeavesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("integer", jnp.arange(2)),
        ("boolean", jnp.ones(2, bool)),
        ("key", jax.random.key(0)),
        ("python_integer", 3),
    )
    def test_what_has_no_gradient_is_refused_by_name(self, leaf):
        params = {"w": jnp.ones(3), "odd": leaf}
        for function in (gradients.mean_gradient, saliency.fisher_saliency):
            with self.assertRaisesRegex(ValueError, r"params\['odd'\] is "):
                function(lambda p, x: jnp.mean(x @ p["w"]), params, [X])

    def test_python_numbers_are_parameters(self):
        mean = gradients.mean_gradient(lambda w, x: w * jnp.mean(x), 2.0, [jnp.ones(2)])
        self.assertEqual((float(mean), mean.dtype), (1.0, jnp.float32))

    @parameterized.named_parameters(
        ("differ", {"x": jnp.ones((4, 3)), "key": jnp.zeros(2)}),
        ("scalar", {"x": jnp.ones((4, 3)), "key": jnp.float32(1)}),
        ("empty", {"x": jnp.ones((0, 3))}),
    )
    def test_a_batch_without_one_example_axis_is_refused(self, batch):
        with self.assertRaisesRegex(ValueError, "batch.*(leading axis|one example)"):
            gradients.mean_gradient(lambda w, b: jnp.mean(b["x"] @ w), X[0], [batch])


if __name__ == "__main__":
    absltest.main()
