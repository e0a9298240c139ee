"""Closed-form edits against least squares and the papers' formula."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import diffusion

RNG = np.random.default_rng(0)
KERNEL, ERASED, TARGETS, KEPT = (
    RNG.normal(size=shape).astype(np.float32)
    for shape in ((6, 5), (4, 6), (4, 6), (9, 6))
)


class EditProjectionTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.5, 1.0, 1.0), (0.1, 3.0, 0.2), (2.0, 0.0, 1.0), (1e-6, 1.0, 0.0)
    )
    def test_is_the_least_squares_solution(self, ridge, erase, preserve):
        weights = np.sqrt(np.repeat([erase, preserve, ridge], [4, 9, 6]))[:, None]
        rows = np.concatenate([ERASED, KEPT, np.eye(6)]).astype(float)
        read = np.concatenate([TARGETS, KEPT, np.eye(6)]) @ KERNEL.astype(float)
        wanted = np.linalg.lstsq(weights * rows, weights * read)[0]
        options = dict(ridge=ridge, erase_weight=erase, preserve_weight=preserve)
        for edit in (diffusion.edit_projection, jax.jit(diffusion.edit_projection)):
            found = edit(KERNEL, ERASED, TARGETS, KEPT, **options)
            np.testing.assert_allclose(found, wanted, atol=1e-4)

    def test_is_the_published_formula(self):
        """W' = (λW + Σ W c* cᵀ + Σ W p pᵀ) (λI + Σ c cᵀ + Σ p pᵀ)⁻¹."""
        w, ridge = KERNEL.T.astype(float), 0.5
        left, right = ridge * w, ridge * np.eye(6)
        for c, new in zip(ERASED, TARGETS, strict=True):
            left, right = left + w @ np.outer(new, c), right + np.outer(c, c)
        for p in KEPT:
            left, right = left + w @ np.outer(p, p), right + np.outer(p, p)
        found = diffusion.edit_projection(KERNEL, ERASED, TARGETS, KEPT)
        np.testing.assert_allclose(found, (left @ np.linalg.inv(right)).T, atol=1e-4)

    def test_a_target_of_its_own_changes_nothing(self):
        found = diffusion.edit_projection(KERNEL, ERASED, ERASED, KEPT)
        np.testing.assert_array_equal(found, KERNEL)
        half = jnp.asarray(KERNEL, jnp.bfloat16)
        self.assertEqual(
            diffusion.edit_projection(half, ERASED, TARGETS).dtype, jnp.bfloat16
        )

    @parameterized.parameters(
        ((4, 5), (4, 6), 0.5, r"states of shape \(4, 5\)"),
        ((4, 6), (3, 6), 0.5, "a target for each"),
        ((4, 6), (4, 6), 0.0, "ridge=0.0"),
    )
    def test_raises(self, states, targets, ridge, message):
        with self.assertRaisesRegex(ValueError, message):
            diffusion.edit_projection(
                KERNEL, jnp.ones(states), jnp.ones(targets), ridge=ridge
            )


if __name__ == "__main__":
    absltest.main()
