"""Steps on eight replicas that average over an axis, against one device.

Each replica sees an eighth of every batch; the network's running mean is synchronised
over the axis, as a BatchNorm with an axis name is. The single device sees it all.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mujax import methods
from tests import methods_test as small

REPLICAS = 8


def replicated_method(name):
    """A method of the table that averages over the axis ``batch``."""
    loss_fn = small.tiny_loss(train=True, axis_name="batch")
    return small.METHODS[name](loss_fn, small.sgd(), axis_name="batch")


@functools.cache
def data():
    """Three batches and a forget set that all divide by the replicas."""
    return [small.tiny_batch(10 + i, 32) for i in range(3)], small.tiny_batch(1, 64)


@functools.cache
def single_device(name):
    """Parameters, model state and losses after three steps on one device."""
    method = small.build(name)
    state = small.started(method, mask=small.random_mask())
    state, losses, _ = small.run(method, state, *data())
    return method.finish(state), losses


class ReplicasTest(parameterized.TestCase):
    """The same numbers from eight replicas as from one device."""

    def check(self, name, finished, losses):
        wanted, wanted_losses = single_device(name)
        np.testing.assert_allclose(losses, wanted_losses, atol=1e-5)
        chex.assert_trees_all_close(finished, wanted, atol=1e-5)
        mask = small.random_mask()
        self.assertEqual(
            small.frozen_bits(mask, finished[0]),
            small.frozen_bits(mask, small.tiny_params()),
        )

    @parameterized.named_parameters(small.BY_METHOD)
    def test_pmap(self, name):
        method = replicated_method(name)
        state = small.started(method, mask=small.random_mask())
        state = jax.tree.map(lambda x: jnp.stack(REPLICAS * [x]), state)

        def shard(batch):
            return jax.tree.map(lambda x: x.reshape(REPLICAS, -1, *x.shape[1:]), batch)

        batches, forget = data()
        step = jax.pmap(
            lambda s, b, f: method.step(s, b, forget_batch=f),
            axis_name="batch",
            donate_argnums=0,
        )
        losses = []
        for batch in batches:
            state, info = step(state, shard(batch), shard(forget))
            losses.append(float(info.loss[0]))
            self.assertLen(set(small.bits(list(info.loss))), 1)
        replicas = [
            jax.tree.map(lambda x, i=i: np.asarray(x)[i], state)
            for i in range(REPLICAS)
        ]
        for replica in replicas[1:]:
            self.assertEqual(small.bits(replica), small.bits(replicas[0]))
        self.check(name, method.finish(replicas[0]), losses)

    def test_statistics_of_each_replica_are_averaged(self):
        def loss_fn(params, model_state, batch, key):
            del key
            new_state = {"mean": batch.mean(), "count": model_state["count"] + 1}
            return params * batch.mean(), (new_state, None)

        method = methods.finetune(loss_fn, small.sgd(), axis_name="batch")
        state = method.init(jnp.float32(1), {"mean": jnp.float32(0), "count": 0})
        step = jax.pmap(method.step, axis_name="batch", in_axes=(None, 0))
        state, _ = step(state, jnp.arange(16.0).reshape(REPLICAS, 2))
        np.testing.assert_allclose(state.model_state["mean"], REPLICAS * [7.5])
        np.testing.assert_array_equal(state.model_state["count"], REPLICAS * [1])

    @parameterized.named_parameters(
        *[dict(kind, check=True) for kind in small.KINDS],
        *[
            dict(testcase_name=f"{name}_unchecked", name=name, check=False)
            for name in ("semu", "ufg")
        ],
    )
    def test_shard_map(self, name, check):
        method = replicated_method(name)
        mesh = jax.make_mesh((REPLICAS,), ("batch",), axis_types=(AxisType.Auto,))

        def local_step(state, batch, forget_batch):
            state, info = method.step(state, batch, forget_batch=forget_batch)
            return state, info.loss, info.aux

        step = jax.jit(
            jax.shard_map(
                local_step,
                mesh=mesh,
                in_specs=(P(), P("batch"), P("batch")),
                out_specs=(P(), P(), P("batch")),
                check_vma=check,
            ),
        )
        state, losses = small.started(method, mask=small.random_mask()), []
        batches, forget = data()
        for batch in batches:
            state, loss, logits = step(state, batch, forget)
            losses.append(float(loss))
            self.assertEqual(logits.shape, (32, 4))  # of the whole batch
        self.check(name, method.finish(state), losses)


if __name__ == "__main__":
    absltest.main()
