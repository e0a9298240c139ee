"""Unlearning with flax NNX, flax Linen and plain dictionaries, by the public API."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import nnx

from mujax import methods, saliency, transforms
from tests import examples
from tests.examples import linen_loop, nnx_loop


def cross_entropy(logits, labels):
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class OwnLoopTest(parameterized.TestCase):
    """The README's loops, and one without any model library."""

    def check(self, before, after, original, unlearned, eval_loss):
        """The threes are gone, the rest stays, half of the weights never moved."""
        self.assertGreater(min(before), 0.97)
        self.assertLess(after[0], 0.1)
        self.assertGreater(after[1], 0.97)

        _, forget, _ = examples.digits()
        scores = saliency.gradient_saliency(eval_loss, original, [forget])
        flat, old, new = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (scores, original, unlearned)
        )
        moved = old.view(np.uint32) != new.view(np.uint32)
        bar = np.sort(flat)[-(flat.size // 2)]
        self.assertFalse(np.any(moved & (flat < bar)))
        self.assertTrue(np.all(moved[(flat > bar) & (flat > 0)]))

    def test_nnx(self):
        before, after, original, unlearned = nnx_loop.main()
        graphdef, params, stats = nnx.split(original, nnx.Param, nnx.BatchStat)
        _, new_params, new_stats = nnx.split(unlearned, nnx.Param, nnx.BatchStat)

        def eval_loss(params, batch):
            model = nnx.merge(graphdef, params, stats, copy=True)
            model.eval()
            return cross_entropy(model(batch[0]), batch[1])

        self.check(before, after, params, new_params, eval_loss)
        for old, new in zip(
            jax.tree.leaves(stats), jax.tree.leaves(new_stats), strict=True
        ):
            self.assertFalse(np.array_equal(old, new))

    def test_linen(self):
        before, after, original, unlearned = linen_loop.main()
        net, stats = linen_loop.Net(), original["batch_stats"]

        def eval_loss(params, batch):
            variables = {"params": params, "batch_stats": stats}
            return cross_entropy(net.apply(variables, batch[0], False), batch[1])

        params, new_params = original["params"], unlearned["params"]
        self.check(before, after, params, new_params, eval_loss)
        for old, new in zip(
            jax.tree.leaves(stats),
            jax.tree.leaves(unlearned["batch_stats"]),
            strict=True,
        ):
            self.assertFalse(np.array_equal(old, new))

    def test_plain_dictionaries(self):
        everything, forget, retain_batches = examples.digits()
        keys = jax.random.split(jax.random.key(0))
        params = {
            "w": jax.random.normal(keys[0], (64, 64)) / 8,
            "v": jax.random.normal(keys[1], (64, 10)) / 8,
        }

        def logits_fn(params, x):
            return jax.nn.relu(x @ params["w"]) @ params["v"]

        def loss_fn(params, batch):
            return cross_entropy(logits_fn(params, batch[0]), batch[1])

        def train(params, tx, batches):
            @jax.jit
            def step(params, opt_state, batch):
                grads = jax.grad(loss_fn)(params, batch)
                away = jax.tree.map(jnp.negative, jax.grad(loss_fn)(params, forget))
                updates, opt_state = tx.update(
                    grads, opt_state, params, forget_grads=away
                )
                return optax.apply_updates(params, updates), opt_state

            opt_state = tx.init(params)
            for batch in batches:
                params, opt_state = step(params, opt_state, batch)
            return params

        adam = optax.with_extra_args_support(optax.adam(1e-2))
        original = train(params, adam, 200 * [everything])
        scores = saliency.gradient_saliency(loss_fn, original, [forget])
        tx = optax.chain(
            transforms.correct_updates(threshold=0.45, forget_weight=1.0),
            optax.add_decayed_weights(5e-4),
            optax.sgd(0.1, momentum=0.9),
            transforms.mask_updates(saliency.top_fraction_mask(scores, 0.5)),
        )
        unlearned = train(original, tx, 5 * retain_batches)
        before, after = (
            examples.report(lambda x, p=p: logits_fn(p, x))
            for p in (original, unlearned)
        )
        self.check(before, after, original, unlearned, loss_fn)


class Net(nnx.Module):
    """A hidden layer with BatchNorm and dropout, so that all kinds of state occur."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.hidden(x)))
        return self.out(self.dropout(x))


class MethodsTest(parameterized.TestCase):
    """The methods on NNX states, random streams and all, jitted and donated."""

    @parameterized.named_parameters(
        ("salun", methods.salun), ("ufg", methods.ufg), ("semu", methods.semu)
    )
    def test_nnx_state(self, factory):
        _, forget, retain_batches = examples.digits()
        model = Net()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss_of(train):
            def loss_fn(params, rest, batch, key):
                del key
                model = nnx.merge(graphdef, params, rest, copy=True)
                model.train() if train else model.eval()
                loss = cross_entropy(model(batch[0]), batch[1])
                return loss, (nnx.split(model, nnx.Param, ...)[2], None)

            return loss_fn

        method = factory(
            loss_of(train=True), optax.sgd(0.1), eval_loss_fn=loss_of(train=False)
        )
        state = method.init(params, rest, [forget])
        step = jax.jit(method.step, donate_argnums=0)
        for batch in retain_batches[:2]:
            state, _ = step(state, batch, forget_batch=forget)
        new_params, new_rest = method.finish(state)
        self.assertEqual(jax.tree.structure(new_params), jax.tree.structure(params))
        nnx.update(model, new_params, new_rest)
        model.eval()
        self.assertTrue(np.isfinite(model(forget[0])).all())
        # SEMU runs in evaluation mode; the others draw a dropout mask a step.
        draws = 0 if factory is methods.semu else 2
        counts = jax.tree.leaves(nnx.state(model, nnx.RngCount))
        self.assertEqual([int(count) for count in counts], [draws])
        self.assertEqual(bool(np.any(model.norm.mean[...])), draws > 0)


if __name__ == "__main__":
    absltest.main()
