"""The laws that every transform and every method obeys; a new one adds one line."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from mujax import methods, subspace, transforms
from tests import compilations, reference
from tests import methods_test as small

# Transforms: name -> (params -> transform).

TRANSFORMS = {
    "mask": lambda p: transforms.mask_updates(mask_of(p)),
    "correct": lambda p: transforms.correct_updates(-0.5, 0.5),
    "correct_by_tensor": lambda p: transforms.correct_updates(
        0.0, jnp.float32(0.5), per_tensor=True, weighted_norm=True
    ),
    "correct_on_schedule": lambda p: transforms.correct_updates(
        methods.released_threshold(1), methods.released_forget_weight(1)
    ),
    "project_conflicts": lambda p: transforms.project_conflicting_updates(
        optax.linear_schedule(1.0, 0.0, 5)
    ),
    "rectify": lambda p: with_value(transforms.rectify_updates()),
    "separate": lambda p: transforms.separate_updates(
        optax.sgd(0.1, momentum=0.5), optax.sgd(0.2)
    ),
    "blend": lambda p: transforms.blend_updates(0.75),
    "blend_on_schedule": lambda p: transforms.blend_updates(
        optax.linear_schedule(1.0, 0.0, 5)
    ),
    "project": lambda p: transforms.project_updates(subspace.svd_bases(p, rank=2)),
    "project_alone": lambda p: transforms.project_updates(
        subspace.svd_bases(p, rank=2), freeze_rest=True
    ),
    "soft_threshold": lambda p: transforms.soft_threshold_updates(0.3),
    "soft_threshold_on_schedule": lambda p: transforms.soft_threshold_updates(
        optax.linear_schedule(0.5, 0.0, 5)
    ),
}


def with_value(tx: Any) -> Any:
    """A transform that is always given the same loss."""

    def update(updates, state, params=None, **extra_args):
        return tx.update(updates, state, params, **extra_args, value=jnp.float32(0.01))

    return optax.GradientTransformationExtraArgs(tx.init, update)


# Those that hold a tree of their own; the others work on any part of the parameters.
WITH_TREE = ("mask", "project", "project_alone")


class Block(NamedTuple):
    kernel: Any
    bias: Any


def float_(*shape, dtype: Any = jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


half, brain = (functools.partial(float_, dtype=d) for d in (jnp.float16, jnp.bfloat16))
TREES = {
    "float32": {
        "conv": {"kernel": float_(3, 3, 2, 4), "bias": float_(4)},
        "head": (float_(4, 3), float_()),
    },
    "bfloat16": {
        "conv": {"kernel": brain(3, 3, 2, 4), "bias": brain(4)},
        "head": (brain(4, 3), brain()),
    },
    "mixed": {
        "conv": Block(kernel=float_(3, 3, 2, 4), bias=brain(4)),
        "head": (half(4, 3), [float_(), float_(0)]),
    },
}
STEPS = 3


def make(tree: str, seed: int, lead=()) -> Any:
    """A tree filled with normal numbers; equal seeds give equal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(*lead, *x.shape)), x.dtype), TREES[tree]
    )


def mask_of(params: Any) -> Any:
    """About half of the entries, at random."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.5), params)


def at(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def assert_close(first: Any, second: Any, rtol: float = 1e-5) -> None:
    """Equal up to a few roundings of each leaf's own type."""
    chex.assert_trees_all_equal_structs(first, second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        few = 4 * float(jnp.finfo(a.dtype).eps)
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=max(rtol, few), atol=max(rtol, few)
        )


def avals(tree: Any) -> Any:
    """Structure, shape, dtype and weak type of all leaves, which must be arrays."""
    return jax.tree.map(
        lambda x: (jnp.shape(x), jnp.dtype(x.dtype), bool(x.weak_type)), tree
    )


def one_step(tx: Any, params, state, grads, forget_grads):
    """Parameters, updates and state after a step with arguments nobody knows."""
    updates, state = tx.update(
        grads, state, params, forget_grads=forget_grads, nonsense=jnp.ones(2)
    )
    return optax.apply_updates(params, updates), updates, state


@functools.cache
def transform_runs(name: str) -> Any:
    """Three jitted steps on the mixed tree that feed on their own results."""
    params, tx = make("mixed", 0), TRANSFORMS[name](make("mixed", 0))
    grads, forget = make("mixed", 1, (STEPS,)), make("mixed", 2, (STEPS,))
    step = jax.jit(functools.partial(one_step, tx))
    states, moved, all_updates = [tx.init(params)], [params], []
    for i in range(STEPS):
        new, updates, state = step(moved[-1], states[-1], at(grads, i), at(forget, i))
        moved.append(new)
        states.append(state)
        all_updates.append(updates)
    return tx, step, grads, forget, moved, all_updates, states


class TransformTest(parameterized.TestCase):
    @parameterized.product(name=list(TRANSFORMS), tree=list(TREES))
    def test_keeps_structure_shapes_dtypes_and_state(self, name, tree):
        params, grads, forget = (make(tree, seed) for seed in range(3))
        tx = TRANSFORMS[name](params)
        state = jax.eval_shape(tx.init, params)
        self.assertEqual(avals(state), avals(tx.init(params)))
        moved, updates, new_state = jax.eval_shape(
            functools.partial(one_step, tx), params, state, grads, forget
        )
        for found, wanted in ((moved, params), (updates, grads)):
            chex.assert_trees_all_equal_structs(found, wanted)
            chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
        self.assertEqual(avals(new_state), avals(state))

    @parameterized.parameters(*TRANSFORMS)
    def test_jit_equals_eager_and_unknown_arguments_change_nothing(self, name):
        tx, _, grads, forget, moved, all_updates, states = transform_runs(name)
        for i in range(STEPS):
            updates, state = tx.update(
                at(grads, i), states[i], moved[i], forget_grads=at(forget, i)
            )
            assert_close(updates, all_updates[i])
            chex.assert_trees_all_equal(state, states[i + 1])
        chex.assert_tree_all_finite(moved)

    @parameterized.parameters(*TRANSFORMS)
    def test_state_is_steady_arrays(self, name):
        _, step, grads, forget, moved, _, states = transform_runs(name)
        for state in states:
            self.assertEqual(avals(state), avals(states[0]))
            for leaf in jax.tree.leaves(state):
                self.assertIsInstance(leaf, jax.Array)
        leaves, structure = jax.tree.flatten(states[1])
        again = structure.unflatten(leaves)
        found = step(moved[1], again, at(grads, 1), at(forget, 1))[0]
        chex.assert_trees_all_equal(found, moved[2])

    @parameterized.parameters(*TRANSFORMS)
    def test_does_not_recompile(self, name):
        self.assertEqual(transform_runs(name)[1]._cache_size(), 1)

    @parameterized.parameters(*TRANSFORMS)
    def test_scans_and_donates(self, name):
        tx, _, grads, forget, moved, _, states = transform_runs(name)

        def body(carry, pair):
            params, _, state = one_step(tx, *carry, *pair)
            return (params, state), None

        run = jax.jit(lambda c, xs: jax.lax.scan(body, c, xs)[0], donate_argnums=0)
        params = jax.tree.map(jnp.copy, moved[0])
        params, state = run((params, tx.init(params)), (grads, forget))
        assert_close(params, moved[-1])
        self.assertEqual(avals(state), avals(states[-1]))

    @parameterized.parameters(*TRANSFORMS)
    def test_vmap_equals_a_loop(self, name):
        tx, step, grads, forget, *_ = transform_runs(name)
        params = make("mixed", 3, (STEPS,))

        def one(params, grads, forget):
            return step(params, tx.init(params), grads, forget)[0]

        batched = jax.vmap(one)(params, grads, forget)
        for i in range(STEPS):
            assert_close(
                at(batched, i), one(at(params, i), at(grads, i), at(forget, i))
            )

    @parameterized.product(name=list(TRANSFORMS), fault=["missing", "extra", "shape"])
    def test_names_the_leaf_of_a_bad_tree(self, name, fault):
        params, forget = make("mixed", 0), make("mixed", 2)
        tx: Any = TRANSFORMS[name](params)
        bad, path = dict(params), {"missing": r"\['head'\]\[0\]"}.get(fault, "")
        if fault == "missing":
            del bad["head"]
        elif fault == "extra":
            bad["other"], path = jnp.ones(2), r"\['other'\]"
        else:
            bad["conv"] = bad["conv"]._replace(kernel=jnp.ones((3, 3, 4, 2)))
            path = r"\['conv'\].kernel"
        state = tx.init(params)
        with self.assertRaisesRegex(ValueError, path):
            tx.update(bad, state, params, forget_grads=forget)
        with self.assertRaisesRegex(ValueError, path):
            jax.eval_shape(tx.update, bad, state, params, forget_grads=forget)

    @parameterized.parameters(*WITH_TREE)
    def test_a_transform_with_a_tree_checks_the_parameters(self, name):
        params = make("mixed", 0)
        tx = TRANSFORMS[name](params)
        del params["head"]
        with self.assertRaisesRegex(ValueError, r"\['head'\]\[0\]"):
            tx.init(params)

    @parameterized.parameters(*TRANSFORMS)
    def test_in_a_chain_and_after_a_partition(self, name):
        # SGD in two groups is SGD, so that partitioning it must change nothing.
        params, grads, forget = (make("float32", seed) for seed in range(3))
        transform = TRANSFORMS[name](params)
        labels = {"conv": "a", "head": "b"}
        groups = optax.partition({"a": optax.sgd(0.1), "b": optax.sgd(0.1)}, labels)
        found = []
        for inner in (optax.sgd(0.1), groups):
            tx: Any = optax.chain(inner, transform, optax.scale(2.0))
            scaled = jax.tree.map(lambda f: -0.1 * f, forget)
            updates, _ = tx.update(grads, tx.init(params), params, forget_grads=scaled)
            found.append(updates)
        assert_close(*found)

    @parameterized.parameters(*(n for n in TRANSFORMS if n not in WITH_TREE))
    def test_inside_a_partition(self, name):
        params, grads, forget = (make("float32", seed) for seed in range(3))
        transform = TRANSFORMS[name](params)
        tx: Any = optax.partition(
            {"part": transform, "rest": optax.set_to_zero()},
            {"conv": "part", "head": "rest"},
            mask_compatible_extra_args=True,
        )
        updates, _ = tx.update(grads, tx.init(params), params, forget_grads=forget)
        alone, _ = transform.update(
            grads["conv"],
            transform.init(params["conv"]),
            params["conv"],
            forget_grads=forget["conv"],
        )
        assert_close(updates["conv"], alone)
        self.assertFalse(np.any(updates["head"][0]))


class PartitionedMaskTest(parameterized.TestCase):
    def test_a_mask_for_the_part_fits_and_so_does_one_for_the_whole(self):
        params, mask = {"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.array([True, False])

        def partition(mask):
            inner = optax.chain(optax.sgd(1.0), transforms.mask_updates(mask))
            return optax.partition(
                {"part": inner, "rest": optax.sgd(1.0)}, {"a": "part", "b": "rest"}
            )

        for other in (optax.MaskedNode(), mask):
            tx: Any = partition({"a": mask, "b": other})
            updates, _ = tx.update(params, tx.init(params), params)
            np.testing.assert_array_equal(updates["a"], [-1, 0])
            np.testing.assert_array_equal(updates["b"], [-1, -1])
        with self.assertRaisesRegex(ValueError, r"mask has no leaf at \['a'\]"):
            partition({"b": mask}).init(params)


# Methods: name -> (loss, optimiser -> method), on the golden network.

METHODS = {
    "finetune": methods.finetune,
    "retrain": methods.retrain,
    "gradient_ascent": methods.gradient_ascent,
    "random_label": methods.random_label,
    "neggrad_plus": methods.neggrad_plus,
    "salun": methods.salun,
    "salun_soft": functools.partial(methods.salun_soft, total_steps=10),
    "semu": methods.semu,
    "semu_retain": methods.semu_retain,
    "ufg": functools.partial(methods.ufg, threshold=-0.5),
    "cufg": functools.partial(
        methods.cufg, threshold=-0.5, refresh_every=2, microbatch_size=4
    ),
    "esd": small.esd,
    "l1_sparse": methods.l1_sparse,
    "ssd": lambda loss, _: methods.ssd(loss, threshold=0.5),
    "fisher": lambda loss, _: methods.fisher(loss, num_classes=10),
    "scrub": lambda _, optimizer: methods.scrub(outputs_fn, optimizer, max_steps=3),
    "bad_teacher": lambda _, optimizer: methods.bad_teacher(
        outputs_fn,
        optimizer,
        incompetent=(jax.tree.map(jnp.negative, problem()[0]), ()),
    ),
    "delete": lambda _, optimizer: methods.delete(outputs_fn, optimizer),
    "oracle_matching": lambda _, optimizer: methods.oracle_matching(
        outputs_fn,
        optimizer,
        oracle=(jax.tree.map(jnp.negative, problem()[0]), ()),
    ),
    "boundary_shrink": lambda _, optimizer: methods.boundary_shrink(
        outputs_fn,
        optimizer,
        get_inputs=lambda batch: batch[0],
        set_inputs=lambda batch, x: (x, batch[1]),
    ),
    "amun": lambda _, optimizer: methods.amun(
        outputs_fn,
        optimizer,
        get_inputs=lambda batch: batch[0],
        set_inputs=lambda batch, x: (x, batch[1]),
        attack_steps=2,
        radii=2,
    ),
    "gdr_gma": methods.gdr_gma,
    "sfron": lambda _, optimizer: with_retain(
        methods.sfron(outputs_fn, optimizer, optimizer, every=2)
    ),
    "influence": lambda loss, _: with_retain(methods.influence(loss, iterations=5)),
    "ct": methods.ct,
    "msg": lambda *given: with_retain(methods.msg(*given)),
}
# Those that change parameters before the first step.
RESETS = ("ct", "msg", "influence")
METHOD_STEPS = 2


def outputs_fn(params, model_state, batch, key):
    """The golden network's logits."""
    del key
    x, y = batch
    x = x.astype(params["conv1"]["kernel"].dtype)
    return methods.Outputs(reference.apply(params, x), y, None, model_state)


def with_retain(method):
    """A method whose ``init`` has the retain batches and the key that it wants."""
    retain = reference.batches(reference.load("model"), "retain", 8)[:2]
    given = {"retain_batches": retain, "key": jax.random.key(3)}
    return method._replace(init=functools.partial(method.init, **given))


def loss_fn(params, model_state, batch, key):
    """The golden network's loss, in the parameters' dtype."""
    del key
    x, y = batch
    x = x.astype(params["conv1"]["kernel"].dtype)
    return reference.loss(params, (x, y)), (model_state, None)


@functools.cache
def problem() -> Any:
    """Parameters, forget batches, and retain batches stacked for two steps."""
    data = reference.load("model")
    params = reference.tree(data, "param.")
    forget = reference.batches(data, "forget", 8)[:2]
    retain = reference.batches(data, "retain", 8)[:METHOD_STEPS]
    return params, forget, jax.tree.map(lambda *x: jnp.stack(x), *retain)


@functools.cache
def method_runs(name: str) -> Any:
    """Three jitted scans of two steps, under a mask, with AdamW and weight decay."""
    params, forget, retain = problem()
    # A large epsilon, so that the rounding of tiny gradients is not blown up.
    adamw = optax.adamw(0.01, eps=1e-3, weight_decay=0.1)
    # In the oldest form, which would refuse any extra argument.
    optimizer = optax.GradientTransformation(
        adamw.init,
        lambda updates, state, params=None: adamw.update(updates, state, params),
    )
    method = METHODS[name](loss_fn, optimizer)

    @jax.jit
    def run(state, batches, forget_batch, key):
        return jax.lax.scan(
            lambda state, batch: method.step(
                state, batch, forget_batch=forget_batch, key=key, nonsense=jnp.ones(2)
            ),
            state,
            batches,
        )

    states = [method.init(params, (), forget, mask=mask_of(params))]
    all_infos = []
    for i in range(3):
        state, infos = run(states[-1], retain, forget[0], jax.random.key(i))
        states.append(state)
        all_infos.append(infos)
    return method, run, states, all_infos[0]


class MethodTest(parameterized.TestCase):
    @parameterized.parameters(*METHODS)
    def test_keeps_structure_shapes_and_dtypes(self, name):
        method, _, states, infos = method_runs(name)
        params, *_ = problem()
        for state in states:
            finished, model_state = method.finish(state)
            chex.assert_trees_all_equal_structs(finished, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(finished, params)
            chex.assert_tree_all_finite(finished)
            self.assertEqual(model_state, ())
        if name not in RESETS:
            chex.assert_trees_all_equal(method.finish(states[0])[0], params)
        self.assertEqual(infos.loss.shape, (METHOD_STEPS,))
        self.assertEqual(infos.loss.dtype, jnp.float32)
        self.assertEqual(states[-1].step, 3 * METHOD_STEPS)

    @parameterized.parameters(*METHODS)
    def test_a_second_start_compiles_nothing(self, name):
        method, (params, forget, _) = method_runs(name)[0], problem()
        method.init(params, (), forget)
        with compilations.counted() as compiled:
            method.init(params, (), forget)
            self.assertEmpty(compiled)
            jax.jit(lambda x: x + 1)(forget[0][0])
            self.assertNotEmpty(compiled)  # it counts

    @parameterized.product(name=list(METHODS), dtype=[jnp.bfloat16, jnp.float16])
    def test_keeps_low_precision(self, name, dtype):
        params, forget, retain = problem()
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        method = METHODS[name](loss_fn, optax.adamw(0.01))

        def run(params):
            state = method.init(params, (), forget)
            return [
                state := method.step(
                    state, at(retain, i), forget_batch=forget[0], key=jax.random.key(i)
                )[0]
                for i in range(2)
            ]

        first, second = jax.eval_shape(run, params)
        self.assertEqual(avals(first), avals(second))
        for leaf in jax.tree.leaves(jax.eval_shape(method.finish, second)[0]):
            self.assertEqual(leaf.dtype, dtype)

    @parameterized.parameters(*METHODS)
    def test_jit_equals_eager_and_unknown_arguments_change_nothing(self, name):
        method, _, states, infos = method_runs(name)
        _, forget, retain = problem()
        state = states[0]
        for i in range(METHOD_STEPS):
            state, info = method.step(
                state, at(retain, i), forget_batch=forget[0], key=jax.random.key(0)
            )
            np.testing.assert_allclose(info.loss, infos.loss[i], rtol=1e-4)
        assert_close(state.trained, states[1].trained, rtol=1e-4)
        assert_close(method.finish(state)[0], method.finish(states[1])[0], rtol=1e-4)

    @parameterized.parameters(*METHODS)
    def test_does_not_recompile(self, name):
        self.assertEqual(method_runs(name)[1]._cache_size(), 1)

    @parameterized.parameters(*METHODS)
    def test_state_is_steady_arrays(self, name):
        _, _, states, _ = method_runs(name)
        for state in states:
            self.assertEqual(avals(state), avals(states[0]))
            for leaf in jax.tree.leaves(state):
                self.assertIsInstance(leaf, jax.Array)

    @parameterized.parameters(*METHODS)
    def test_a_mask_keeps_frozen_weights_bit_identical(self, name):
        method, _, states, _ = method_runs(name)
        params, *_ = problem()
        finished, _ = method.finish(states[-1])
        moved = 0
        for mask, before, after in zip(
            *(jax.tree.leaves(tree) for tree in (mask_of(params), params, finished)),
            strict=True,
        ):
            mask, before, after = map(np.asarray, (mask, before, after))
            np.testing.assert_array_equal(
                after[~mask].view(np.uint32), before[~mask].view(np.uint32)
            )
            moved += np.sum(after[mask] != before[mask])
        self.assertGreater(moved, 100)

    @parameterized.product(name=list(METHODS), fault=["missing", "shape"])
    def test_names_the_leaf_of_a_bad_mask(self, name, fault):
        params, forget, _ = problem()
        mask = mask_of(params)
        if fault == "missing":
            del mask["fc"]["kernel"]
        else:
            mask["fc"]["kernel"] = mask["fc"]["kernel"].T
        method = METHODS[name](loss_fn, optax.sgd(0.1))
        with self.assertRaisesRegex(ValueError, r"mask.*\['fc'\]\['kernel'\]"):
            method.init(params, (), forget, mask=mask)


if __name__ == "__main__":
    absltest.main()
