"""Eight devices, batches and parameters sharded: all gives what one device gives."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax import correction, saliency, subspace
from mujax.methods import plain_loss
from tests import methods_test as small

LAYOUTS = (("replicated", False), ("by_output_channel", True))


class ShardingTest(parameterized.TestCase):
    """Each test computes on one device and on a mesh of 4 × 2."""

    def setUp(self):
        super().setUp()
        auto = (AxisType.Auto, AxisType.Auto)
        self.mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=auto)

    def split(self, tree):
        """Arrays sharded over examples."""
        return jax.device_put(tree, NamedSharding(self.mesh, P("data")))

    def place(self, tree, by_channel):
        """A tree like the parameters, replicated or sharded by output channel."""

        def put(leaf):
            spec = P(*[None] * (leaf.ndim - 1), "model") if by_channel else P()
            return jax.device_put(leaf, NamedSharding(self.mesh, spec))

        return jax.tree.map(put, tree)

    def assert_placed(self, tree, like):
        """Both trees lie on the devices in the same way."""
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
        for leaf, other in pairs:
            same = leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
            self.assertTrue(same, f"{leaf.sharding} and {other.sharding}")

    @parameterized.product(
        score=(saliency.gradient_saliency, saliency.fisher_saliency),
        by_channel=(False, True),
    )
    def test_saliency(self, score, by_channel):
        params = small.tiny_params()
        loss_fn = plain_loss(small.EVAL, small.tiny_state())
        wanted = score(loss_fn, params, small.forget_batches())
        placed = self.place(params, by_channel)
        scores = score(loss_fn, placed, self.split(small.forget_batches()))
        chex.assert_trees_all_close(scores, wanted, rtol=1e-5, atol=1e-6)
        self.assert_placed(scores, placed)

    @parameterized.product(
        ties=(False, True), by_channel=(False, True), fraction=(0.1, 0.5)
    )
    def test_mask(self, ties, by_channel, fraction):
        scores = small.tiny_params()
        if ties:  # three values: 0, 0.4 and 0.8
            scores = jax.tree.map(lambda s: jnp.round(jnp.clip(s, 0, 1) / 0.4), scores)
        wanted = saliency.top_fraction_mask(scores, fraction)
        placed = self.place(scores, by_channel)
        mask = saliency.top_fraction_mask(placed, fraction)
        chex.assert_trees_all_equal(mask, wanted)
        self.assert_placed(mask, placed)

        # Nothing gathers the parameters, or any other array, in one place.
        lowered = jax.jit(saliency.top_fraction_mask, static_argnums=1).lower(
            placed, fraction
        )
        program = lowered.compile().as_text() or ""
        moves = re.findall(r"all-gather|all-to-all|collective-permute", program)
        self.assertEmpty(moves)
        self.assertEqual("all-reduce" in program, by_channel)

    @parameterized.named_parameters(*LAYOUTS)
    def test_bases_and_projection(self, by_channel):
        params, grads = small.tiny_params(1), small.tiny_params(2)

        @jax.jit
        def descend(params, grads):
            inside = subspace.project(grads, subspace.svd_bases(grads, rank=2))
            return jax.tree.map(lambda p, g: p - g, params, inside)

        wanted = descend(params, grads)
        placed = self.place(params, by_channel)
        moved = descend(placed, self.place(grads, by_channel))
        chex.assert_trees_all_close(moved, wanted, atol=1e-5)
        self.assert_placed(moved, placed)
        bases = subspace.svd_bases(self.place(grads, by_channel), energy=0.7)
        ranks = subspace.svd_bases(grads, energy=0.7)
        for layer in grads:
            chex.assert_trees_all_equal(
                bases[layer]["kernel"].rank, ranks[layer]["kernel"].rank
            )

    @parameterized.named_parameters(*LAYOUTS)
    def test_correct(self, by_channel):
        retain, forget = small.tiny_params(1), small.tiny_params(2)

        def combine(retain, forget):
            return correction.correct(retain, forget, threshold=-1, forget_weight=0.5)

        wanted = combine(retain, forget)
        placed = self.place(retain, by_channel)
        corrected = jax.jit(combine)(placed, self.place(forget, by_channel))
        chex.assert_trees_all_close(corrected, wanted, atol=1e-5)
        self.assert_placed(corrected, placed)

    @parameterized.named_parameters(
        *[(f"{name}_by_output_channel", name, True) for name in small.METHODS],
        *[(f"{k['name']}_replicated", k["name"], False) for k in small.KINDS],
    )
    def test_steps(self, name, by_channel):
        method, mask = small.build(name), small.random_mask()
        batches = [small.tiny_batch(10 + i) for i in range(2)]
        forget = small.tiny_batch(5)
        state = small.started(method, mask=mask)
        state, losses, _ = small.run(method, state, batches, forget)
        params, model_state = method.finish(state)

        placed = self.place(small.tiny_params(), by_channel)
        start = method.init(
            placed,
            jax.device_put(small.tiny_state(), NamedSharding(self.mesh, P())),
            self.split(small.forget_batches()),
            mask=self.place(mask, by_channel),
        )
        end, sharded_losses, _ = small.run(
            method, start, self.split(batches), self.split(forget)
        )
        np.testing.assert_allclose(sharded_losses, losses, atol=1e-5)
        chex.assert_trees_all_close(
            method.finish(end), (params, model_state), atol=1e-5
        )
        self.assert_placed(method.finish(end)[0], placed)
        self.assertEqual(
            small.frozen_bits(mask, method.finish(end)[0]),
            small.frozen_bits(mask, small.tiny_params()),
        )


if __name__ == "__main__":
    absltest.main()
