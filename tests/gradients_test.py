"""Gradients over batches: weights, float32 accumulation, compilations."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from mujax import gradients
from tests import reference

SIZES = (5, 3, 1, 7)


def quadratic(params, batch):
    """Mean of (x·w + b − y)², whose gradients the tests write out in NumPy."""
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def numpy_gradients(params, x, y):
    """Gradient of the quadratic loss of every example, (n, 3) and (n,)."""
    residual = x @ np.asarray(params["w"]) + float(params["b"]) - y
    return 2 * residual[:, None] * x, 2 * residual


def split(arrays, sizes):
    ends = np.cumsum(sizes)[:-1]
    return list(zip(*(np.split(a, ends) for a in arrays), strict=True))


class ValuesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(sum(SIZES), 3)).astype(np.float32)
        self.y = rng.normal(size=sum(SIZES)).astype(np.float32)
        self.params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.25)}
        self.batches = split((self.x, self.y), SIZES)
        self.by_example = numpy_gradients(self.params, self.x, self.y)

    def assert_close(self, tree, w, b):
        chex.assert_trees_all_close(tree, {"w": w, "b": b}, rtol=1e-5, atol=1e-6)
        for leaf in jax.tree.leaves(tree):
            self.assertEqual(leaf.dtype, jnp.float32)

    def test_mean_over_unequal_batches_is_the_full_batch_gradient(self):
        mean = gradients.mean_gradient(quadratic, self.params, iter(self.batches))
        w, b = self.by_example
        self.assert_close(mean, w.mean(0), b.mean())
        full = jax.grad(quadratic)(self.params, (self.x, self.y))
        chex.assert_trees_all_close(mean, full, rtol=1e-5)

    @parameterized.named_parameters(
        ("identity", jnp.asarray, np.asarray),
        ("magnitude", jnp.abs, np.abs),
        ("square", jnp.square, np.square),
    )
    def test_sum_adds_the_batches_means(self, transform, numpy_transform):
        total = gradients.sum_gradients(
            quadratic, self.params, self.batches, transform=transform
        )
        w, b = (
            sum(numpy_transform(g.mean(0)) for g in np.split(gs, np.cumsum(SIZES)[:-1]))
            for gs in self.by_example
        )
        self.assert_close(total, w, b)

    def test_mean_squared_is_a_loop_over_examples(self):
        squares = gradients.mean_squared_gradient(quadratic, self.params, self.batches)
        w, b = self.by_example
        self.assert_close(squares, (w**2).mean(0), (b**2).mean())
        whole = [(self.x, self.y)]
        chex.assert_trees_all_close(
            gradients.mean_squared_gradient(quadratic, self.params, whole),
            squares,
            rtol=1e-5,
        )

    def test_example_gradients_are_the_gradients_of_examples(self):
        each = gradients.example_gradients(quadratic, self.params, (self.x, self.y))
        self.assert_close(each, *self.by_example)

    @hypothesis.settings(deadline=None, max_examples=15)
    @hypothesis.given(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=5))
    def test_any_division_into_batches_gives_the_same_mean(self, sizes):
        n = sum(sizes)
        batches = split((self.x[:n], self.y[:n]), sizes) if n <= len(self.x) else []
        hypothesis.assume(batches)
        w, b = numpy_gradients(self.params, self.x[:n], self.y[:n])
        self.assert_close(
            gradients.mean_gradient(quadratic, self.params, batches),
            w.mean(0),
            b.mean(),
        )
        self.assert_close(
            gradients.mean_squared_gradient(quadratic, self.params, batches),
            (w**2).mean(0),
            (b**2).mean(),
        )

    def test_golden_network(self):
        model = reference.load("model")
        params = reference.tree(model, "param.")
        total = gradients.sum_gradients(
            reference.loss, params, reference.batches(model, "forget")
        )
        golden = reference.load("semu")
        for layer in reference.LAYERS:
            wanted = reference.kernel(golden[f"grad.{layer}.weight"])
            np.testing.assert_allclose(
                total[layer]["kernel"], wanted, rtol=1e-5, atol=1e-5
            )

    def test_inside_jit_and_vmap(self):
        def all_three(params):
            return [
                function(quadratic, params, self.batches)
                for function in (
                    gradients.sum_gradients,
                    gradients.mean_gradient,
                    gradients.mean_squared_gradient,
                )
            ]

        eager = all_three(self.params)
        chex.assert_trees_all_close(jax.jit(all_three)(self.params), eager, rtol=1e-5)
        twice = jax.tree.map(lambda p: jnp.stack([p, -p]), self.params)
        first = jax.tree.map(lambda g: g[0], jax.vmap(all_three)(twice))
        chex.assert_trees_all_close(first, eager, rtol=1e-5)

    def test_mixed_containers_and_empty_leaves(self):
        params = {"a": (jnp.ones(2), jnp.ones((0, 3))), "b": [jnp.float32(1)]}

        def loss(params, x):
            return jnp.mean(x) * sum(jnp.sum(p) for p in jax.tree.leaves(params))

        for function in (
            gradients.sum_gradients,
            gradients.mean_gradient,
            gradients.mean_squared_gradient,
        ):
            result = function(loss, params, [jnp.ones(4)])
            chex.assert_trees_all_equal_structs(result, params)
            chex.assert_trees_all_equal(result, params)  # every gradient is 1


class PrecisionTest(parameterized.TestCase):
    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_low_precision_parameters_accumulate_in_float32(self, dtype):
        # In bfloat16 256 + 1 is 256: a low-precision total would stand still.
        params = jnp.ones(3, dtype)

        def loss(params, x):
            return jnp.mean(x) * jnp.sum(params).astype(jnp.float32)

        batches = [256 * jnp.ones(1)] + [jnp.ones(1)] * 16
        total = gradients.sum_gradients(loss, params, batches)
        np.testing.assert_array_equal(total, np.full(3, 272, np.float32))
        mean = gradients.mean_gradient(loss, params, batches)
        np.testing.assert_allclose(mean, 272 / 17, rtol=1e-6)
        squares = gradients.mean_squared_gradient(loss, params, batches)
        np.testing.assert_allclose(squares, (256**2 + 16) / 17, rtol=1e-6)
        for result in (total, mean, squares):
            self.assertEqual(result.dtype, jnp.float32)


class CompilationTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("sum", gradients.sum_gradients),
        ("mean", gradients.mean_gradient),
        ("mean_squared", gradients.mean_squared_gradient),
    )
    def test_a_loss_is_traced_once_for_each_shape(self, function):
        traces = []

        def loss(params, x):
            traces.append(x.shape)
            return jnp.mean(params * x)

        for scale in (1.0, 2.0):
            function(loss, jnp.float32(scale), [jnp.ones(4)] * 3)
        self.assertLen(traces, 1)
        function(loss, jnp.float32(0), [jnp.ones(4), jnp.ones(2)])
        self.assertLen(traces, 2)

    def test_bound_arrays_do_not_compile_anew(self):
        traces = []

        def loss(shift, params, x):
            traces.append(None)
            return jnp.mean((params - shift) * x)

        for shift in (1.0, 2.0, 3.0):
            bound = Partial(loss, jnp.float32(shift))
            total = gradients.mean_gradient(bound, jnp.float32(0), [jnp.ones(2)] * 2)
            self.assertEqual(total, 1)
        self.assertLen(traces, 1)


class ErrorsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("sum", gradients.sum_gradients),
        ("mean", gradients.mean_gradient),
        ("mean_squared", gradients.mean_squared_gradient),
    )
    def test_no_batch_raises(self, function):
        for empty in ([], iter(())):
            with self.assertRaisesRegex(ValueError, "no batch, wanted at least one"):
                function(quadratic, {"w": jnp.ones(3), "b": jnp.ones(())}, empty)

    def test_num_examples(self):
        self.assertEqual(gradients.num_examples({"x": jnp.ones((5, 2))}), 5)


class EmptyBatchTest(parameterized.TestCase):
    @parameterized.parameters(
        gradients.sum_gradients,
        gradients.mean_gradient,
        gradients.mean_squared_gradient,
    )
    def test_a_batch_of_no_example_is_refused_by_name(self, function):
        def loss(w, batch):
            return jnp.mean(batch["x"] @ w)

        for run in (function, jax.jit(function, static_argnums=0)):
            with self.assertRaisesRegex(ValueError, r"\['x'\].*\(0, 3\).*example"):
                run(
                    loss,
                    jnp.ones(3),
                    [{"x": jnp.ones((2, 3))}, {"x": jnp.ones((0, 3))}],
                )


if __name__ == "__main__":
    absltest.main()
