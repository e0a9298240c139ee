"""Controls of SalUn's mask have its density, and nothing else of it."""

import dataclasses

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.classification.methods import METHODS
from experiments.engine import loop
from tests.experiments.programs_test import LOSSES, feed

NAMES = ("salun", "random_mask", "smallest_mask")


def mask_of(name, density=0.5, forget=6):
    """The mask, as one array of bools, that a method makes for a forget set."""
    recipe = dataclasses.replace(METHODS[name].Recipe(), density=density)
    method = METHODS[name].build(recipe, LOSSES, 4)
    params = {"w": np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)}
    state = method.init(params, (), loop.in_order(feed(), np.arange(forget), 4))
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.mask)])


class MasksTest(parameterized.TestCase):
    @parameterized.product(name=NAMES, density=[0.0, 0.25, 0.5, 1.0])
    def test_as_many_weights_may_move(self, name, density):
        self.assertEqual(mask_of(name, density).sum(), density * 12)

    def test_the_least_salient_are_the_others(self):
        np.testing.assert_array_equal(mask_of("smallest_mask"), ~mask_of("salun"))

    def test_a_random_mask_is_another_for_another_forget_set_and_no_other(self):
        masks = [mask_of("random_mask", forget=n) for n in (3, 4, 5, 6)]
        self.assertGreater(len({mask.tobytes() for mask in masks}), 1)
        np.testing.assert_array_equal(mask_of("random_mask"), masks[-1])
        self.assertFalse(np.array_equal(masks[-1], mask_of("salun")))


if __name__ == "__main__":
    absltest.main()
