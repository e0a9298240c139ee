"""Many requests in one process: nothing stays, nothing compiles twice or goes stale."""

import functools
import gc
import weakref

import equinox
import jax
import jax.numpy as jnp
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from mujax import correction, curriculum, gradients, methods, saliency
from tests import compilations

WEIGHTS, BATCH = jnp.ones(3), jnp.ones((2, 3))


def loss_with(held, params, batch):
    """A loss whose gradient is the first entry of what it holds."""
    return jnp.mean(batch @ params) * held[0]


class Callable:
    def __init__(self, held):
        self.held = held

    def __call__(self, params, batch):
        return loss_with(self.held, params, batch)

    def method(self, params, batch):
        return loss_with(self.held, params, batch)


class Module(equinox.Module):
    held: jax.Array

    def __call__(self, params, batch):
        return loss_with(self.held, params, batch)


LOSSES = {
    "closure": lambda held: lambda params, batch: loss_with(held, params, batch),
    "partial": lambda held: functools.partial(loss_with, held),
    "partial_of_object": lambda held: functools.partial(
        lambda_of_object, Callable(held)
    ),
    "pytree_partial": lambda held: Partial(loss_with, held),
    "object": Callable,
    "bound_method": lambda held: Callable(held).method,
    "equinox_module": Module,
}


def lambda_of_object(function, params, batch):
    return function(params, batch)


def full(loss_fn):
    return lambda p, s, b, k: (loss_fn(p, b), (s, None))


def steps(loss_fn):
    method = methods.ufg(full(loss_fn), optax.sgd(0.1))
    state = method.init(WEIGHTS)
    return jax.jit(method.step)(state, BATCH, forget_batch=BATCH)[0]


REQUESTS = {
    "gradient_saliency": lambda f: saliency.gradient_saliency(f, WEIGHTS, [BATCH]),
    "absolute_saliency": lambda f: saliency.absolute_saliency(f, WEIGHTS, [BATCH]),
    "fisher_saliency": lambda f: saliency.fisher_saliency(f, WEIGHTS, [BATCH]),
    "forgetting": lambda f: correction.forgetting_gradient(f, WEIGHTS, [BATCH]),
    "gradient_norm": lambda f: curriculum.gradient_norm(f, WEIGHTS, BATCH),
    "alignment": lambda f: curriculum.gradient_alignment(f, WEIGHTS, BATCH, WEIGHTS),
    "salun": lambda f: methods.salun(full(f), optax.sgd(0.1)).init(
        WEIGHTS, (), [BATCH]
    ),
    "steps": steps,
}


def slope(loss_fn):
    return float(gradients.mean_gradient(loss_fn, WEIGHTS, [BATCH])[0])


@pytest.mark.slow
class NothingStaysTest(parameterized.TestCase):
    @parameterized.named_parameters(*LOSSES.items())
    def test_what_a_loss_holds_goes_with_it(self, make):
        references = []
        for number, request in enumerate(REQUESTS.values()):
            for _ in range(2):
                held = jnp.full(50, float(number))
                references.append(weakref.ref(held))
                request(make(held))
                del held
        gc.collect()
        self.assertFalse([i for i, held in enumerate(references) if held() is not None])

    def test_a_hundred_requests(self):
        def request(number):
            held = jnp.full(1000, float(number))
            return slope(lambda params, batch: loss_with(held, params, batch))

        request(0)
        gc.collect()
        before = sum(x.nbytes for x in jax.live_arrays())
        self.assertEqual([request(i) for i in range(100)], list(map(float, range(100))))
        gc.collect()
        self.assertLessEqual(sum(x.nbytes for x in jax.live_arrays()), before)


class WhatIsSeenTest(parameterized.TestCase):
    """A program is made anew exactly where its loss sees something else."""

    def test_rebound_variables_attributes_and_entries(self):
        scale, box, thing = 1.0, {"scale": jnp.float32(1)}, Callable(jnp.ones(1))

        def by_variable(params, batch):
            return jnp.mean(batch @ params) * scale

        def by_entry(params, batch):
            return jnp.mean(batch @ params) * box["scale"]

        losses = (by_variable, by_entry, thing, thing.method)
        self.assertEqual([slope(f) for f in losses], [1, 1, 1, 1])
        scale, box["scale"], thing.held = 3.0, jnp.float32(4), jnp.full(1, 5.0)
        self.assertEqual([slope(f) for f in losses], [3, 4, 5, 5])

    def test_rebound_global(self):
        names = {"jnp": jnp, "scale": 2.0}
        exec("def loss(params, batch): return jnp.mean(batch @ params) * scale", names)
        self.assertEqual(slope(names["loss"]), 2)
        names["scale"] = 6.0
        self.assertEqual(slope(names["loss"]), 6)

    def test_traced_values_do_not_outlive_their_trace(self):
        box = {"scale": jnp.float32(1)}

        def loss_fn(params, batch):
            return jnp.mean(batch @ params) * box["scale"]

        def outer(scale, factor):
            box["scale"] = factor * scale
            return gradients.mean_gradient(loss_fn, WEIGHTS, [BATCH])[0]

        self.assertEqual(slope(loss_fn), 1)
        self.assertEqual(jax.jit(lambda s: outer(s, 1))(2.0), 2)
        self.assertEqual(jax.jit(lambda s: outer(s, 10))(2.0), 20)
        mapped = jax.vmap(lambda s: outer(s, 1))(jnp.arange(3.0))
        self.assertEqual(list(mapped), [0, 1, 2])
        self.assertEqual(jax.grad(lambda s: outer(s, 2))(1.0), 2)
        box["scale"] = 7.0
        self.assertEqual(slope(loss_fn), 7)

    @parameterized.named_parameters(
        (name, LOSSES[name]) for name in ("closure", "object", "bound_method")
    )
    def test_the_same_loss_compiles_once(self, make):
        loss_fn = make(jnp.full(7, 2.0))
        slope(loss_fn)
        with compilations.counted() as compiled:
            self.assertEqual([slope(loss_fn) for _ in range(3)], [2, 2, 2])
            self.assertEmpty(compiled)
            slope(make(jnp.full(7, 3.0)))
            self.assertNotEmpty(compiled)  # of another loss, so that it counts


if __name__ == "__main__":
    absltest.main()
