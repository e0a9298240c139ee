"""Augmentation against a NumPy formula with the same offsets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.data import augment


def images(count=5, shape=(6, 7, 3), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, *shape)).astype(dtype)


def by_hand(batch, corners, mirrored, padding):
    """Every pixel looked up by itself: zero outside the image."""
    out = np.zeros_like(batch)
    count, height, width, _ = batch.shape
    for n in range(count):
        for i in range(height):
            for j in range(width):
                row = i + corners[n, 0] - padding
                column = j + corners[n, 1] - padding
                if 0 <= row < height and 0 <= column < width:
                    if mirrored[n]:
                        column = width - 1 - column
                    out[n, i, j] = batch[n, row, column]
    return out


class ApplyTest(parameterized.TestCase):
    @parameterized.product(
        padding=(0, 1, 4), dtype=(np.uint8, np.float32), channels=(1, 3)
    )
    def test_is_the_formula(self, padding, dtype, channels):
        batch = images(shape=(6, 7, channels), dtype=dtype)
        rng = np.random.default_rng(padding)
        corners = rng.integers(0, 2 * padding + 1, (len(batch), 2))
        mirrored = np.array([True, False, True, False, True])
        out = augment.apply(batch, jnp.array(corners), jnp.array(mirrored), padding)
        self.assertEqual(out.dtype, dtype)
        np.testing.assert_array_equal(out, by_hand(batch, corners, mirrored, padding))

    def test_every_corner(self):
        batch = images(count=81)
        corners = np.indices((9, 9)).reshape(2, 81).T
        mirrored = np.arange(81) % 2 == 0
        out = augment.apply(batch, jnp.array(corners), jnp.array(mirrored))
        np.testing.assert_array_equal(out, by_hand(batch, corners, mirrored, 4))


class DrawTest(parameterized.TestCase):
    def test_covers_all_places_evenly(self):
        corners, mirrored = augment.draw(jax.random.key(0), 9000, padding=1)
        chex.assert_shape(corners, (9000, 2))
        for axis in (0, 1):
            counts = np.bincount(np.asarray(corners)[:, axis], minlength=3)
            np.testing.assert_allclose(counts, [3000] * 3, atol=250)  # over 5 sigma
        self.assertAlmostEqual(float(mirrored.mean()), 0.5, delta=0.03)

    def test_places_and_mirroring_are_independent(self):
        corners, mirrored = augment.draw(jax.random.key(1), 9000)
        columns = np.concatenate([corners, mirrored[:, None]], axis=1).T
        correlation = np.corrcoef(columns) - np.eye(3)
        self.assertLess(np.abs(correlation).max(), 0.05)

    def test_without_flip_nothing_is_mirrored(self):
        _, mirrored = augment.draw(jax.random.key(0), 1000, flip=False)
        self.assertFalse(mirrored.any())


class CropAndFlipTest(parameterized.TestCase):
    @parameterized.parameters(np.uint8, np.float32, jnp.bfloat16)
    def test_keeps_shape_and_dtype(self, dtype):
        batch = jnp.asarray(images(), dtype)
        out = augment.crop_and_flip(jax.random.key(0), batch)
        chex.assert_equal_shape([out, batch])
        self.assertEqual(out.dtype, batch.dtype)

    def test_applies_what_it_draws(self):
        key, batch = jax.random.key(3), images()
        corners, mirrored = augment.draw(key, len(batch), 2)
        np.testing.assert_array_equal(
            augment.crop_and_flip(key, batch, 2),
            by_hand(batch, np.asarray(corners), np.asarray(mirrored), 2),
        )

    def test_the_key_decides(self):
        batch = images(count=16)
        first = augment.crop_and_flip(jax.random.key(0), batch)
        again = augment.crop_and_flip(jax.random.key(0), batch)
        other = augment.crop_and_flip(jax.random.key(1), batch)
        np.testing.assert_array_equal(first, again)
        self.assertFalse(np.array_equal(first, other))

    def test_images_move_apart_from_each_other(self):
        batch = np.repeat(images(count=1), 16, axis=0)
        out = np.asarray(augment.crop_and_flip(jax.random.key(0), batch))
        self.assertGreater(len({image.tobytes() for image in out}), 10)

    def test_nothing_to_do_changes_nothing(self):
        batch = images()
        out = augment.crop_and_flip(jax.random.key(0), batch, padding=0, flip=False)
        np.testing.assert_array_equal(out, batch)

    def test_jit_vmap_and_scan_agree_with_a_loop(self):
        batch = jnp.asarray(images(count=8))
        keys = jax.random.split(jax.random.key(0), 3)
        loop = np.stack([augment.crop_and_flip(key, batch) for key in keys])
        mapped = jax.jit(jax.vmap(augment.crop_and_flip, (0, None)))(keys, batch)
        _, scanned = jax.lax.scan(
            lambda carry, key: (carry, augment.crop_and_flip(key, batch)), None, keys
        )
        np.testing.assert_array_equal(mapped, loop)
        np.testing.assert_array_equal(scanned, loop)


class NormaliseTest(parameterized.TestCase):
    def test_is_the_formula(self):
        batch, mean, std = (
            images(),
            np.array([0.4, 0.5, 0.6]),
            np.array([0.1, 0.2, 0.3]),
        )
        out = augment.normalise(batch, mean, std)
        self.assertEqual(out.dtype, jnp.float32)
        expected = (batch.astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)

    def test_whitens_its_own_moments(self):
        batch = images(count=50)
        scaled = batch / 255
        out = augment.normalise(batch, scaled.mean((0, 1, 2)), scaled.std((0, 1, 2)))
        np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)

    def test_constant_channel_is_centred(self):
        batch = np.full((2, 3, 3, 1), 51, np.uint8)
        out = augment.normalise(batch, np.array([0.2]), np.array([0.0]))
        np.testing.assert_allclose(out, 0, atol=1e-7)


if __name__ == "__main__":
    absltest.main()
