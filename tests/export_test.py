"""Everything that runs on an accelerator lowers for TPU and CUDA, here on a CPU."""

import functools

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized
from jax import export

from mujax import correction, saliency, subspace
from mujax.methods import plain_loss
from tests import methods_test as small

PLATFORMS = ("tpu", "cuda")


def shapes(tree):
    """A tree's shapes and dtypes, without its numbers."""
    return jax.eval_shape(lambda: tree)


class ExportTest(parameterized.TestCase):
    """Lowering needs shapes alone, so no test here computes a step."""

    def check(self, function, *arguments):
        for platform in PLATFORMS:
            exported = export.export(jax.jit(function), platforms=[platform])
            exported = exported(*shapes(arguments))
            self.assertEqual(exported.platforms, (platform,))
            self.assertIn("func.func public @main", exported.mlir_module())
            wanted = jax.tree.leaves(jax.eval_shape(function, *arguments))
            self.assertEqual(
                [(aval.shape, aval.dtype) for aval in exported.out_avals],
                [(leaf.shape, leaf.dtype) for leaf in wanted],
            )

    @parameterized.product(name=list(small.METHODS), dtype=(jnp.float32, jnp.bfloat16))
    def test_steps(self, name, dtype):
        method = small.build(name)

        def step(state, batch, forget_batch, key):
            return method.step(state, batch, forget_batch=forget_batch, key=key)

        state = method.init(
            small.tiny_params(dtype=dtype),
            small.tiny_state(dtype),
            small.forget_batches(),
            mask=small.random_mask(),
        )
        batches = small.tiny_batch(0), small.tiny_batch(1)
        self.check(step, state, *batches, jax.random.key(0))
        self.check(method.finish, state)

    @parameterized.named_parameters(
        ("sum", saliency.gradient_saliency),
        ("absolute", saliency.absolute_saliency),
        ("fisher", saliency.fisher_saliency),
    )
    def test_saliency_and_mask(self, score):
        def mask(params, model_state, batches):
            loss_fn = plain_loss(small.EVAL, model_state)
            return saliency.top_fraction_mask(score(loss_fn, params, batches), 0.5)

        params, model_state = small.tiny_params(), small.tiny_state()
        self.check(mask, params, model_state, small.forget_batches())

    @parameterized.named_parameters(
        ("small", {"conv": (3, 3, 4, 8), "dense": (16, 8), "bias": (8,)}, {"rank": 3}),
        ("by_energy", {"conv": (3, 3, 4, 8), "dense": (16, 8)}, {"energy": 0.9}),
        ("large", {"dense": (256, 128)}, {"rank": 3}),
        ("randomised", {"dense": (256, 128)}, {"rank": 3, "max_rank": 4}),
    )
    def test_bases_and_projection(self, tree, options):
        tree = {name: jnp.zeros(shape) for name, shape in tree.items()}

        def restrict(grads, params):
            bases = subspace.svd_bases(grads, orthogonal_to=params, **options)
            cores = subspace.init_cores(bases)
            return subspace.project(subspace.apply_cores(params, bases, cores), bases)

        self.check(restrict, tree, tree)

    def test_correct(self):
        params = small.tiny_params()
        combine = functools.partial(
            correction.correct, threshold=0.45, forget_weight=0.9
        )
        self.check(combine, params, params)
        self.check(correction.project_conflicts, params, params)


if __name__ == "__main__":
    absltest.main()
