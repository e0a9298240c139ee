"""What an epoch reads, and that an epoch is the same however it runs."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.engine import loop
from mujax import labels, methods

NUM_CLASSES = 3


def make_feed(forget, retain, *, on_host=False, stages=1) -> loop.Feed:
    rng = np.random.default_rng(0)
    total = max(*forget, *retain) + 1
    examples = {
        "image": rng.normal(size=(total, 4)).astype(np.float32),
        "label": rng.integers(NUM_CLASSES, size=total).astype(np.int32),
    }
    if not on_host:
        examples = jax.tree.map(jnp.asarray, examples)
    parts = tuple(np.array_split(np.asarray(forget), stages))
    return loop.Feed(examples, NUM_CLASSES, parts, np.asarray(retain))


def linear_loss(params, model_state, batch, key):
    del key
    logits = batch["image"] @ params["w"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return jnp.mean(batch["weight"] * losses), (model_state, None)


PARAMS = {"w": jnp.zeros((4, NUM_CLASSES))}


class PlanTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=60)
    @given(
        forget=st.integers(1, 40),
        retain=st.integers(1, 40),
        batch_size=st.integers(1, 17),
        joint=st.booleans(),
    )
    def test_an_epoch_reads_every_example_once(self, forget, retain, batch_size, joint):
        feed = make_feed(range(forget), range(forget, forget + retain))
        names = ("forget", "retain")
        passes = (names,) if joint else tuple((name,) for name in names)
        use = methods.DataUse(passes)
        rng = np.random.default_rng(1)
        plan = loop.make_plan(use, feed.forget[0], feed, batch_size, rng)
        np.testing.assert_allclose(plan.weights.mean(1), 1, rtol=1e-6)
        real = plan.indices[plan.weights > 0]
        self.assertCountEqual(real, range(forget + retain))
        if not joint:
            first = real[:forget]
            self.assertCountEqual(first, range(forget))

    def test_a_companion_holds_the_stage_padded_to_the_largest(self):
        feed = make_feed(range(7), range(7, 12), stages=3)
        use = methods.DataUse((("retain",),), companion="whole", stages=3)
        for stage in feed.forget:
            rng = np.random.default_rng(0)
            plan = loop.make_plan(use, stage, feed, 4, rng)
            assert plan.companion_indices is not None
            assert plan.companion_weights is not None
            self.assertLen(plan.companion_indices, 3)
            kept = plan.companion_indices[plan.companion_weights > 0]
            self.assertCountEqual(kept, stage)
            self.assertAlmostEqual(plan.companion_weights.mean(), 1, places=6)

    @parameterized.parameters((7, 2, 8), (7, 16, 7), (8, 4, 8))
    def test_a_companion_fits_the_microbatches(self, count, piece, padded):
        feed = make_feed(range(count), range(count, 20))
        use = methods.DataUse((("retain",),), companion="whole", microbatch_size=piece)
        plan = loop.make_plan(use, feed.forget[0], feed, 4, np.random.default_rng(0))
        self.assertLen(plan.companion_indices, padded)

    def test_a_sampled_companion_comes_with_every_step_from_the_forget_set(self):
        feed = make_feed(range(5), range(5, 30))
        use = methods.DataUse((("retain",),), companion="sampled")
        plan = loop.make_plan(use, feed.forget[0], feed, 4, np.random.default_rng(0))
        assert plan.companion_indices is not None
        self.assertEqual(plan.companion_indices.shape, plan.indices.shape)
        self.assertTrue(set(plan.companion_indices.ravel()) <= set(range(5)))


class RunTest(parameterized.TestCase):
    def run_method(self, method, feed, **options):
        state = method.init(PARAMS, forget_batches=loop.in_order(feed, np.arange(5), 3))
        return loop.run(method, state, feed, batch_size=4, seed=(0, 1), **options)

    @parameterized.named_parameters(
        ("salun", methods.salun),
        ("neggrad_plus", methods.neggrad_plus),
        ("cufg", methods.cufg),
        ("semu", methods.semu),
    )
    def test_an_epoch_is_the_same_scanned_stepwise_and_from_the_host(self, make):
        method = make(linear_loss, optax.sgd(0.1, momentum=0.9))
        method = methods.with_data(method, epochs=2)
        stages = method.data_use.stages
        on_device = make_feed(range(5), range(5, 22), stages=stages)
        on_host = make_feed(range(5), range(5, 22), stages=stages, on_host=True)
        feeds = on_device, dataclasses.replace(on_device, scan=False), on_host
        ends = [self.run_method(method, feed).trained for feed in feeds]
        chex.assert_trees_all_close(*ends, rtol=1e-5)
        moved = max(jnp.abs(x).max() for x in jax.tree.leaves(ends[0]))
        self.assertGreater(moved, 1e-3)

    def test_going_on_from_an_epoch_changes_no_bit(self):
        method = methods.with_data(
            methods.cufg(linear_loss, optax.sgd(0.1, momentum=0.9)), epochs=2
        )
        feed = make_feed(range(5), range(5, 22), stages=3)
        seen = {}

        def keep(epoch, state, loss):
            seen[epoch] = jax.tree.map(jnp.copy, state)

        whole = self.run_method(method, feed, on_epoch=keep)
        self.assertLen(seen, 6)
        for epoch in (1, 3, 5):
            resumed = loop.run(
                method, seen[epoch], feed, batch_size=4, seed=(0, 1), start_epoch=epoch
            )
            chex.assert_trees_all_equal(resumed, whole)

    def test_only_the_forget_set_is_relabelled_and_anew_every_epoch(self):
        feed = make_feed(range(50), range(50, 100))
        seen = []

        def relabel(key, given, num_classes):
            self.assertLen(given, 50)
            new = labels.random_labels(key, given, num_classes)
            seen.append(new)
            return new

        def loss_fn(params, model_state, batch, key):
            changed = batch["label"] != batch["true_label"]
            share = jnp.mean(batch["weight"] * changed)
            return share + 0 * params["w"].sum(), (model_state, None)

        both = (("forget",), ("retain",))
        method = methods.random_label(loss_fn, optax.sgd(0.0))
        method = methods.with_data(method, relabel=relabel, epochs=2)
        losses = []
        loop.run(
            method,
            method.init(PARAMS),
            feed,
            batch_size=25,
            seed=(0,),
            on_epoch=lambda epoch, state, loss: losses.append(loss),
        )
        self.assertEqual(method.data_use.passes, both)
        # Two of four steps are all relabelled, two not at all.
        np.testing.assert_allclose(losses, 0.5)
        self.assertFalse(np.array_equal(*seen))

    def test_a_loss_that_is_not_finite_is_a_divergence(self):
        def loss_fn(params, model_state, batch, key):
            return jnp.log(-1.0 - jnp.abs(params["w"]).sum()), (model_state, None)

        method = methods.finetune(loss_fn, optax.sgd(0.1))
        with self.assertRaisesRegex(loop.DivergedError, "nan after 1 epochs"):
            self.run_method(method, make_feed(range(5), range(5, 9)))

    def test_padding_does_not_move_the_parameters(self):
        # 5 retain examples in batches of 4: the second batch has three of weight 0.
        def loss_fn(params, model_state, batch, key):
            mean = jnp.mean(batch["weight"][:, None] * batch["image"], 0)
            return mean @ params["w"][:, 0], (model_state, None)

        feed = make_feed(range(3), range(3, 8))
        method = methods.with_data(methods.finetune(loss_fn, optax.sgd(1.0)), epochs=1)
        end = self.run_method(method, feed)
        plan = loop.make_plan(
            method.data_use,
            feed.forget[0],
            feed,
            4,
            np.random.default_rng((0, 1, 0)),
        )
        images = np.asarray(feed.examples["image"])
        order = plan.indices[plan.weights > 0]
        expected = -(images[order[:4]].mean(0) + images[order[4:]].mean(0))
        np.testing.assert_allclose(end.trained["w"][:, 0], expected, rtol=1e-5)


class StepsTest(absltest.TestCase):
    def test_counts_what_the_largest_stage_takes(self):
        feed = make_feed(range(9), range(9, 19))
        feed = dataclasses.replace(feed, forget=(np.arange(2), np.arange(2, 9)))
        use = methods.DataUse((("forget",), ("retain",)), stages=2, epochs=3)
        self.assertEqual(loop.steps_per_epoch(use, feed, 4), 2 + 3)
        self.assertEqual(loop.num_epochs(use), 6)


if __name__ == "__main__":
    absltest.main()
