"""JAX's modes change nothing: without jit, in 64 bits, and where it is strict.

Functions and data are those of the mesh tests; each is held to what it gives without
the mode.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from mujax import correction, curriculum, saliency
from tests import sharding_test as shared

MODES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": functools.partial(jax.debug_nans, True),
    "rank_promotion": functools.partial(jax.numpy_rank_promotion, "raise"),
    "dtype_promotion": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "transfer_guard": functools.partial(jax.transfer_guard_device_to_host, "disallow"),
    "enable_x64": functools.partial(jax.enable_x64, True),
}
RUNS = shared.LIKE_PARAMS | shared.OTHERS
QUICK = ("by_leaf", "soft", "corrected", "blended", "fisher_saliency", "gradient_norm")
ADAM = ("masked_adamw", "salun", "salun_soft", "ufg_pieces", "ufg_small_pieces")
"""Runs with an optimiser whose own code mixes dtypes."""


def check(run, mode):
    wanted = shared.one_device(run)
    with mode():
        found = shared.one_device(run)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    chex.assert_trees_all_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
class ModesTest(parameterized.TestCase):
    @parameterized.product(name=QUICK, mode=list(MODES))
    def test_a_mode_changes_nothing(self, name, mode):
        check(RUNS[name], MODES[mode])

    @parameterized.product(name=sorted({*RUNS} - {*QUICK}), mode=list(MODES))
    @pytest.mark.slow
    def test_a_mode_changes_nothing_anywhere(self, name, mode):
        if mode != "dtype_promotion" or name not in ADAM:
            check(RUNS[name], MODES[mode])

    def test_zeros_make_no_nan_on_the_way(self):
        params = shared.mlp_params()
        zeros = jax.tree.map(jnp.zeros_like, params)
        batch = shared.mlp_batch()
        with jax.debug_nans(True):
            corrected = correction.correct(
                zeros, zeros, threshold=-1, forget_weight=1.0
            )
            cosines = correction.conflict(zeros, params)
            freed = correction.project_conflicts(zeros, zeros)
            norms = curriculum.gradient_norm(
                lambda p, b: 0 * shared.loss_fn(p, b), params, batch
            )
            mask = saliency.top_fraction_mask(zeros, 0.5)
        chex.assert_trees_all_equal((corrected, freed), (zeros, zeros))
        self.assertFalse(norms.any() or any(jax.tree.leaves(cosines)))
        self.assertEqual(sum(m.sum() for m in jax.tree.leaves(mask)), 24)

    def test_wide_parameters_keep_their_digits(self):
        with jax.enable_x64(True):
            params = jnp.float64(1) / 3

            def loss_fn(w, x):
                return jnp.mean(w * x)

            batches = [jnp.array([1.0]), jnp.array([1e-12])]
            score = saliency.gradient_saliency(loss_fn, params, batches)
            self.assertEqual(score.dtype, jnp.float64)
            self.assertAlmostEqual(float(score - 1), 1e-12, delta=1e-15)


if __name__ == "__main__":
    absltest.main()
