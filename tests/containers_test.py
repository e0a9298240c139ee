"""Trees meet by the paths of their leaves, whatever holds them, in everybody's loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from flax import nnx
from flax.core import FrozenDict
from flax.training import train_state

from mujax import methods, subspace, transforms, wrappers

RNG = np.random.default_rng(0)
SHAPES = {
    "first": {"kernel": (4, 3), "bias": (3,)},
    "last": {"kernel": (3, 3), "bias": (3,)},
}


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and not hasattr(node, "_fields")


def normal(*_: Any) -> Any:
    """A plain tree of normal numbers."""
    return jax.tree.map(
        lambda s: jnp.asarray(RNG.normal(size=s), jnp.float32), SHAPES, is_leaf=is_shape
    )


PARAMS, RETAIN, FORGET = normal(), normal(), normal()
PARAMS["first"]["bias"] = PARAMS["first"]["bias"].at[0].set(-0.0)
MASK = jax.tree.map(lambda x: x > 0, normal())
MASK["first"]["bias"] = jnp.array([False, True, True])
MASK["last"]["bias"] = jnp.array([True, False, True])
BASES = subspace.svd_bases(FORGET, rank=2)

# Containers: name -> plain tree -> the same in another form.


class Layer(NamedTuple):
    kernel: Any
    bias: Any


class Pair(NamedTuple):
    last: Any
    first: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["last", "first"],
    meta_fields=["name"],
)
@dataclasses.dataclass
class Record:
    last: Any
    first: Any
    name: str = "record"


class Linear(eqx.Module):
    kernel: Any
    bias: Any
    scale: Any = None
    act: Callable[..., Any] = eqx.field(static=True, default=jax.nn.relu)


class Network(eqx.Module):
    first: Linear
    last: Linear
    spare: Any = None
    rate: float = eqx.field(static=True, default=0.5)


class Model(nnx.Module):
    """Two layers in NNX, made of a plain tree."""

    def __init__(self, tree):
        self.first, self.last = (
            nnx.Linear(*tree[n]["kernel"].shape, rngs=nnx.Rngs(0)) for n in tree
        )
        nnx.update(self, tree)


def variables(tree: Any) -> Any:
    """A State of Variables, whatever the leaves are."""
    state = nnx.state(Model(PARAMS), nnx.Param)
    structure = jax.tree.structure(state)
    order = jax.tree.structure(nnx.to_pure_dict(state))
    return structure.unflatten(order.flatten_up_to(tree))


def boxed(tree: Any) -> Any:
    return {
        layer: {
            "kernel": nn.Partitioned(leaves["kernel"], names=(None, None)),
            "bias": leaves["bias"],
        }
        for layer, leaves in tree.items()
    }


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda tree: tree,
    "frozen_dict": FrozenDict,
    "nnx_variables": variables,
    "nnx_pure": nnx.State,
    "equinox": lambda t: Network(Linear(**t["first"]), Linear(**t["last"])),
    "dataclass": lambda t: Record(last=t["last"], first=Layer(**t["first"])),
    "named_tuple": lambda t: Pair(Layer(**t["last"]), Layer(**t["first"])),
    "boxed": boxed,
}


def is_basis(node: Any) -> bool:
    return isinstance(node, subspace.Basis)


def plain(tree: Any) -> Any:
    """The plain tree again, by the names on the path to each leaf."""
    found: Any = {"first": {}, "last": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        text = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        found[text[0]][text[1]] = leaf
    return found


def assert_equal(found: Any, wanted: Any) -> None:
    """Equal leaves, to the bit."""
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


class ContainersTest(parameterized.TestCase):
    @parameterized.product(held=list(CONTAINERS), given=list(CONTAINERS))
    def test_mask_forget_gradients_bases_and_anchor(self, held, given):
        hold, give = CONTAINERS[held], CONTAINERS[given]
        for ours in (
            lambda hold: transforms.mask_updates(hold(MASK)),
            lambda hold: transforms.project_updates(hold(BASES), freeze_rest=True),
            lambda _: transforms.blend_updates(0.25),
            lambda _: transforms.correct_updates(-1.0, 0.5),
            lambda _: transforms.project_conflicting_updates(),
            lambda _: transforms.soft_threshold_updates(0.4),
        ):
            wanted, _ = ours(lambda tree: tree).update(
                RETAIN,
                ours(lambda tree: tree).init(PARAMS),
                PARAMS,
                forget_grads=FORGET,
            )
            tx = ours(hold)
            found, _ = tx.update(
                give(RETAIN),
                tx.init(hold(PARAMS)),
                hold(PARAMS),
                forget_grads=hold(FORGET),
            )
            self.assertEqual(
                jax.tree.structure(found), jax.tree.structure(give(RETAIN))
            )
            assert_equal(plain(found), wanted)

    @parameterized.product(held=list(CONTAINERS), fault=["missing", "extra", "shape"])
    def test_a_tree_that_differs_is_named(self, held, fault):
        other = {name: dict(layer) for name, layer in PARAMS.items()}
        if fault == "missing":
            del other["last"]["bias"]
        elif fault == "extra":
            other["last"]["more"] = jnp.ones(2)
        else:
            other["last"]["bias"] = jnp.ones(2)
        tx = transforms.mask_updates(CONTAINERS[held](MASK))
        where = "more" if fault == "extra" else "bias"
        with self.assertRaisesRegex(ValueError, rf"last.*{where}"):
            tx.update(other, tx.init(PARAMS))

    @parameterized.parameters(*CONTAINERS)
    def test_leaves_of_equal_shape_are_not_swapped(self, held):
        # Both biases are (3,): they meet by name, in whatever order the leaves come.
        tree = jax.tree.map(lambda m: jnp.zeros_like(m), MASK)
        tree["first"]["bias"] = jnp.ones(3, bool)
        tx: Any = transforms.mask_updates(CONTAINERS[held](tree))
        updates, _ = tx.update(RETAIN, tx.init(PARAMS))
        self.assertTrue(np.all(updates["first"]["bias"]))
        self.assertFalse(np.any(updates["last"]["bias"]))
        renamed = {"first": MASK["first"], "other": MASK["last"]}
        with self.assertRaisesRegex(ValueError, r"mask has no leaf at .*last"):
            transforms.mask_updates(renamed).init(CONTAINERS[held](PARAMS))

    def test_lists_tuples_and_keys_of_digits(self):
        layers = [jnp.ones(2), jnp.ones(2)]
        forms = [
            lambda x: {"layers": list(x)},
            lambda x: {"layers": tuple(x)},
            lambda x: {"layers": dict(enumerate(x))},
            lambda x: {"layers": {str(i): leaf for i, leaf in enumerate(x)}},
            lambda x: nnx.State({"layers": {i: nnx.Param(v) for i, v in enumerate(x)}}),
        ]
        mask = [np.array([True, False]), np.array([False, True])]
        for hold in forms:
            for give in forms:
                tx = transforms.mask_updates(hold(mask))
                updates, _ = tx.update(give(layers), tx.init(give(layers)))
                found = np.stack(jax.tree.leaves(updates))
                np.testing.assert_array_equal(found, [[1, 0], [0, 1]])

    def test_a_node_without_names(self):
        tree: Any = Bag(jnp.ones(2), jnp.ones(2))
        tx = transforms.mask_updates(Bag(np.array([True, False]), np.zeros(2, bool)))
        updates, _ = tx.update(tree, tx.init(tree))
        np.testing.assert_array_equal(jax.tree.leaves(updates), [[1, 0], [0, 0]])
        with self.assertRaisesRegex(ValueError, r"mask has no leaf at \['a'\]"):
            tx.update({"a": jnp.ones(2), "b": jnp.ones(2)}, optax.EmptyState())


@jax.tree_util.register_pytree_node_class
class Bag:
    """A node whose leaves have positions and no names."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten(self):
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


# Loops: one chain, one problem, the numbers of the plain dictionary.

X, Y = jnp.asarray(RNG.normal(size=(2, 8, 4))), jnp.asarray(RNG.normal(size=(2, 8, 3)))
STEPS = 3


def forward(params: Any, x: jax.Array) -> jax.Array:
    """The network on anything with the right attributes or keys."""

    def get(node, name):
        return node[name] if hasattr(node, "keys") else getattr(node, name)

    for name in ("first", "last"):
        layer = get(params, name)
        x = jnp.tanh(x @ get(layer, "kernel") + get(layer, "bias"))
    return x


def retain_loss(params: Any, apply: Any = forward) -> jax.Array:
    return jnp.mean((apply(params, X[0]) - Y[0]) ** 2)


def forget_loss(params: Any, apply: Any = forward) -> jax.Array:
    return -jnp.mean((apply(params, X[1]) - Y[1]) ** 2)


def ends(hold: Callable[[Any], Any] = lambda tree: tree) -> tuple[Any, Any, Any]:
    """CUFG's corrector, SEMU's projector and SalUn's mask."""
    return (
        transforms.correct_updates(-1.0, 0.5),
        transforms.project_updates(hold(BASES)),
        transforms.mask_updates(hold(MASK)),
    )


def chain(hold: Callable[[Any], Any] = lambda tree: tree) -> Any:
    correct, project, mask = ends(hold)
    adamw = optax.adamw(0.01, weight_decay=0.1)
    return optax.chain(correct, adamw, project, mask)


def by_hand(tx: Any, params: Any) -> Any:
    """A hand-written loop, on any tree that `forward` takes."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            jax.grad(retain_loss)(params),
            state,
            params,
            forget_grads=jax.grad(forget_loss)(params),
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


@functools.cache
def wanted() -> Any:
    return by_hand(chain(), PARAMS)


@pytest.mark.slow
class LoopsTest(parameterized.TestCase):
    def check(self, found: Any) -> None:
        """The plain run's numbers, and frozen weights bit-identical."""
        for old, new, want, moves in zip(
            *map(jax.tree.leaves, (PARAMS, plain(found), wanted(), MASK)), strict=True
        ):
            np.testing.assert_allclose(new, want, rtol=1e-5, atol=1e-6)
            frozen = ~np.asarray(moves)
            old, new = (np.asarray(x).view(np.uint32) for x in (old, new))
            np.testing.assert_array_equal(new[frozen], old[frozen])
            self.assertTrue(np.any(new != old))

    @parameterized.parameters("dict", "frozen_dict", "dataclass", "named_tuple")
    def test_hand_written(self, name):
        self.check(by_hand(chain(), CONTAINERS[name](PARAMS)))

    @parameterized.parameters("dict", "nnx_variables", "nnx_pure")
    def test_nnx_optimizer(self, held):
        model = Model(PARAMS)
        tx = chain(CONTAINERS[held])
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads, away = (nnx.grad(f)(model, call) for f in (retain_loss, forget_loss))
            optimizer.update(model, grads, forget_grads=away)

        for _ in range(STEPS):
            step(model, optimizer)
        self.check(nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    def test_nnx_optimizer_with_the_state_of_its_own_gradients(self):
        model = Model(PARAMS)
        grads = nnx.grad(forget_loss)(model, call)
        bases = subspace.svd_bases(grads, rank=2)
        mask = jax.tree.map(lambda g: g > 0, grads)
        last = transforms.project_updates(bases), transforms.mask_updates(mask)
        optimizer = nnx.Optimizer(
            model, optax.chain(optax.sgd(0.1), *last), wrt=nnx.Param
        )
        optimizer.update(model, grads)
        moved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        for old, new, moves in zip(
            *map(jax.tree.leaves, (PARAMS, moved, mask)), strict=True
        ):
            np.testing.assert_array_equal(new[~moves], old[~moves])
            self.assertTrue(np.any(new != old))

    def test_nnx_model_and_optimizer(self):
        both = nnx.ModelAndOptimizer(Model(PARAMS), chain(), wrt=nnx.Param)

        @nnx.jit
        def step(both):
            grads, away = (
                nnx.grad(f)(both.model, call) for f in (retain_loss, forget_loss)
            )
            both.update(grads, forget_grads=away)

        for _ in range(STEPS):
            step(both)
        self.check(nnx.to_pure_dict(nnx.state(both.model, nnx.Param)))

    @parameterized.parameters(True, False)
    def test_linen_train_state(self, frozen):
        params = FrozenDict(PARAMS) if frozen else PARAMS
        state = train_state.TrainState.create(
            apply_fn=forward, params=params, tx=chain()
        )

        @jax.jit
        def step(state):
            grads, away = (
                jax.grad(f)(state.params) for f in (retain_loss, forget_loss)
            )
            both = wrappers.TwoGradients(grads, away)
            return state.apply_gradients(grads=both)

        for _ in range(STEPS):
            state = step(state)
        self.check(state.params)

    @parameterized.parameters("dict", "equinox")
    def test_equinox(self, held):
        model, tx = CONTAINERS["equinox"](PARAMS), chain(CONTAINERS[held])

        @eqx.filter_jit
        def step(model, state):
            grads, away = (
                eqx.filter_grad(f)(model) for f in (retain_loss, forget_loss)
            )
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, state = tx.update(grads, state, params, forget_grads=away)
            return eqx.apply_updates(model, updates), state

        state = tx.init(eqx.filter(model, eqx.is_inexact_array))
        for _ in range(STEPS):
            model, state = step(model, state)
        self.check(eqx.filter(model, eqx.is_array))

    @parameterized.named_parameters(
        (
            "named_chain",
            lambda c, o, p, m: optax.named_chain(
                ("c", c), ("o", o), ("p", p), ("m", m)
            ),
        ),
        (
            "partition",
            lambda c, o, p, m: optax.chain(c, groups(optax.partition, o, p, m)),
        ),
        (
            "multi_transform",
            lambda c, o, p, m: optax.chain(c, groups(optax.multi_transform, o, p, m)),
        ),
        (
            "masked",
            lambda c, o, p, m: optax.chain(
                c, *(optax.masked(optax.chain(o, p, m), half) for half in HALVES)
            ),
        ),
        (
            "masked_with_extra_args",
            lambda c, o, p, m: optax.chain(
                optax.masked(c, ALL, mask_compatible_extra_args=True), o, p, m
            ),
        ),
    )
    def test_combinators(self, make):
        correct, project, mask = ends()
        adamw = optax.adamw(0.01, weight_decay=0.1)
        self.check(by_hand(make(correct, adamw, project, mask), PARAMS))

    @parameterized.parameters("nnx", "linen", "equinox")
    def test_accumulation_of_both_gradients(self, library):
        # Each gradient comes twice, so that two steps of half the data are one.
        tx = wrappers.with_both_gradients(lambda tx: optax.MultiSteps(tx, 2), chain())

        if library == "nnx":
            model = Model(PARAMS)
            optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
            for _ in range(2 * STEPS):
                grads, away = (
                    nnx.grad(f)(model, call) for f in (retain_loss, forget_loss)
                )
                optimizer.update(model, grads, forget_grads=away)
            found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        elif library == "linen":
            state = train_state.TrainState.create(
                apply_fn=forward, params=PARAMS, tx=tx
            )
            for _ in range(2 * STEPS):
                both = (jax.grad(f)(state.params) for f in (retain_loss, forget_loss))
                state = state.apply_gradients(grads=wrappers.TwoGradients(*both))
            found = state.params
        else:
            found = CONTAINERS["equinox"](PARAMS)
            state = tx.init(found)
            for _ in range(2 * STEPS):
                grads, away = (
                    eqx.filter_grad(f)(found) for f in (retain_loss, forget_loss)
                )
                updates, state = tx.update(grads, state, found, forget_grads=away)
                found = eqx.apply_updates(found, updates)
        self.check(found)


ALL = jax.tree.map(lambda _: True, PARAMS)
HALVES = [{"first": True, "last": False}, {"first": False, "last": True}]


def groups(combine: Any, *transforms_: Any) -> Any:
    """Each layer a group with the same chain."""
    tx = optax.chain(*transforms_)
    return combine({"a": tx, "b": tx}, {"first": "a", "last": "b"})


def call(model: Any, x: jax.Array) -> jax.Array:
    """The network, of an NNX module."""
    return jnp.tanh(model.last(jnp.tanh(model.first(x))))


@pytest.mark.slow
class MethodsTest(parameterized.TestCase):
    """Methods take parameters in any container and give them back in it."""

    @parameterized.product(
        method=["salun", "salun_soft", "semu", "ufg"],
        given=["frozen_dict", "nnx_variables", "equinox"],
        held=["dict", None],
    )
    def test_equals_the_run_on_a_dictionary(self, method, given, held):
        found, wanted = (method_run(method, name, held) for name in (given, "dict"))
        structure = jax.tree.structure(CONTAINERS[given](PARAMS))
        self.assertEqual(jax.tree.structure(found), structure)
        for a, b in zip(*map(jax.tree.leaves, (plain(found), wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@functools.cache
def method_run(method: str, given: str, held: str | None) -> Any:
    """Parameters after two steps of a method, with or without a mask of a container."""

    def loss_fn(params, model_state, batch, key):
        del key
        x, y = batch
        return jnp.mean((forward(plain(params), x) - y) ** 2), (model_state, None)

    options: dict[str, Any] = {"total_steps": 4} if method == "salun_soft" else {}
    made = getattr(methods, method)(loss_fn, optax.sgd(0.1, momentum=0.9), **options)
    forget = X[1], Y[1]
    mask = None if held is None else CONTAINERS[held](MASK)
    state = made.init(CONTAINERS[given](PARAMS), (), [forget], mask=mask)
    step = jax.jit(made.step)
    for _ in range(2):
        state, _ = step(state, (X[0], Y[0]), forget_batch=forget)
    return made.finish(state)[0]


if __name__ == "__main__":
    absltest.main()
