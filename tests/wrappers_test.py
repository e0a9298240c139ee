"""Every transform and wrapper of the installed optax with every transform of ours.

A law holds, or ours refuses, or the guide has a rule: `TRANSFORMS` and `WRAPPERS` say
which, the walk holds them to it, and the guide's table is made of them. What optax has
and the tables do not fails here until it is put in.
"""

import functools
import inspect
import math
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from optax import contrib

from mujax import correction, subspace, transforms, wrappers

GUIDE = pathlib.Path(__file__).parent.parent / "docs" / "composing.md"
STEPS = 4
SHARE = 0.5

# What takes a gradient transformation or returns one, and is none to put in a chain.
NOT_TRANSFORMS = {"apply_updates", "init_empty_state", "WrappedSchedule"}


class Alone(NamedTuple):
    """A transform of optax that wraps no other.

    Attributes:
      make: makes it.
      mask: "last" if a frozen weight's gradient cannot change what the others do,
        "first and last" if it can.
      needs: names of extra arguments, from :func:`extra`.
      heavy: compiled once, since it costs seconds op by op.
    """

    make: Callable[[], Any]
    mask: str = "last"
    needs: tuple[str, ...] = ()
    heavy: bool = False


def _made(*names: str, by: Any = (), mask: str = "last") -> dict[str, Alone]:
    """Those that are made of the same arguments."""
    found = (getattr(optax, n, None) or getattr(contrib, n) for n in names)
    return {
        name: Alone(functools.partial(make, *by), mask)
        for name, make in zip(names, found, strict=True)
    }


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def quietly(make: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Makes what optax has deprecated."""

    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(*args)

    return call


BOTH = "first and last"
SEARCH = ("value", "grad", "value_fn")
TRANSFORMS: dict[str, Alone] = {
    **_made(
        *("acprop", "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax"),
        *("adamaxw", "adamw", "adan", "ademamix", "adopt", "amsgrad", "cocob"),
        *("dadapt_adamw", "lion", "madgrad", "nadam", "nadamw"),
        *("optimistic_adam_v2", "optimistic_gradient_descent"),
        *("prodigy", "radam", "rmsprop", "rprop", "scale_by_learning_rate"),
        *("scale_by_madgrad", "scale_by_rprop", "schedule_free_adamw"),
        *("schedule_free_sgd", "sgd", "sign_sgd", "signum", "simplified_ademamix"),
        "yogi",
        by=(0.1,),
    ),
    **_made("fromage", "lamb", "lars", "novograd", "sm3", by=(0.1,), mask=BOTH),
    **_made(
        *("identity", "keep_params_nonnegative", "scale_by_acprop"),
        *("scale_by_adadelta", "scale_by_adam", "scale_by_adamax", "scale_by_adan"),
        *("scale_by_ademamix", "scale_by_adopt", "scale_by_amsgrad", "scale_by_belief"),
        *("scale_by_cocob", "scale_by_factored_rms", "scale_by_lion"),
        *("scale_by_optimistic_gradient", "scale_by_param_block_norm"),
        *("scale_by_param_block_rms", "scale_by_radam", "scale_by_rms", "scale_by_rss"),
        *("scale_by_sign", "scale_by_simplified_ademamix", "scale_by_stddev"),
        *("scale_by_yogi", "set_to_zero", "zero_nans"),
    ),
    **_made(
        *("centralize", "dog", "dowg", "normalize", "normalize_by_update_norm"),
        *("scale_by_distance_over_gradients", "scale_by_novograd", "scale_by_sm3"),
        "scale_by_trust_ratio",
        mask=BOTH,
    ),
    "adaptive_grad_clip": Alone(lambda: optax.adaptive_grad_clip(0.1), BOTH),
    "add_decayed_weights": Alone(lambda: optax.add_decayed_weights(0.1)),
    "add_noise": Alone(lambda: optax.add_noise(0.1, 0.5, 0)),
    "apply_every": Alone(lambda: optax.apply_every(2)),
    "clip": Alone(lambda: optax.clip(0.5)),
    "clip_by_block_rms": Alone(lambda: optax.clip_by_block_rms(0.1), BOTH),
    "clip_by_global_norm": Alone(lambda: optax.clip_by_global_norm(0.5), BOTH),
    "ema": Alone(lambda: optax.ema(0.9)),
    "freeze": Alone(lambda: optax.freeze({"w": False, "b": True})),
    "galore": Alone(lambda: contrib.galore(0.1), BOTH, heavy=True),
    "hutchinson_estimator_diag_hessian": Alone(
        contrib.hutchinson_estimator_diag_hessian, "last", ("obj_fn",), heavy=True
    ),
    "lbfgs": Alone(optax.lbfgs, BOTH, SEARCH, heavy=True),
    "measure_with_ema": Alone(
        lambda: optax.monitor({"norm": optax.measure_with_ema(norm, 0.9)})
    ),
    "momo": Alone(contrib.momo, BOTH, ("value",)),
    "momo_adam": Alone(contrib.momo_adam, "last", ("value",)),
    "monitor": Alone(lambda: optax.monitor({"norm": norm})),
    "muon": Alone(lambda: contrib.muon(0.1), BOTH, heavy=True),
    "noisy_sgd": Alone(lambda: optax.noisy_sgd(0.1, key=0)),
    "optimistic_adam": Alone(quietly(optax.optimistic_adam, 0.1)),
    "polyak_sgd": Alone(optax.polyak_sgd, BOTH, ("value",)),
    "reduce_on_plateau": Alone(
        contrib.reduce_on_plateau, "last", ("value",), heavy=True
    ),
    "scale": Alone(lambda: optax.scale(-0.1)),
    "scale_by_backtracking_linesearch": Alone(
        lambda: optax.chain(
            optax.scale(-0.1), optax.scale_by_backtracking_linesearch(5)
        ),
        *(BOTH, SEARCH, True),
    ),
    "scale_by_galore": Alone(contrib.scale_by_galore, BOTH, heavy=True),
    "scale_by_lbfgs": Alone(optax.scale_by_lbfgs, BOTH, heavy=True),
    "scale_by_muon": Alone(
        lambda: optax.masked(
            contrib.scale_by_muon(
                weight_dimension_numbers={
                    "w": contrib.MuonDimensionNumbers(),
                    "b": optax.MaskedNode(),
                }
            ),
            {"w": True, "b": False},
        ),
        *(BOTH, (), True),
    ),
    "scale_by_polyak": Alone(optax.scale_by_polyak, BOTH, ("value",)),
    "scale_by_schedule": Alone(lambda: optax.scale_by_schedule(lambda step: 0.1)),
    "scale_by_zoom_linesearch": Alone(
        lambda: optax.chain(optax.scale(-0.1), optax.scale_by_zoom_linesearch(5)),
        *(BOTH, SEARCH, True),
    ),
    "snapshot": Alone(lambda: optax.snapshot("norm", norm)),
    "sophia": Alone(lambda: contrib.sophia(0.1), "last", ("obj_fn",), heavy=True),
    "stateless": Alone(
        lambda: optax.stateless(lambda u, p: jax.tree.map(jnp.negative, u))
    ),
    "stateless_with_tree_map": Alone(
        lambda: optax.stateless_with_tree_map(lambda u, p: jnp.negative(u))
    ),
    "trace": Alone(lambda: optax.trace(0.9)),
}


def public() -> set[str]:
    """Names of all that takes or gives a gradient transformation in optax."""
    found = set()
    for space in (optax, optax.transforms, contrib):
        for name in set(dir(space)) | set(getattr(space, "__all__", ())):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what moved to contrib
                thing = getattr(space, name)
            if name.startswith("_") or not callable(thing):
                continue
            function = getattr(thing, "func", thing)  # of a functools.partial
            if inspect.isclass(function):
                takes = hasattr(function, "init") and hasattr(function, "update")
                takes = takes and not issubclass(function, optax.GradientTransformation)
                takes = takes and not getattr(function, "_is_protocol", False)
            elif inspect.isfunction(function):
                takes = "GradientTransformation" in inspect.getsource(function)
            else:
                takes = False
            if takes:
                found.add(name)
    return found - NOT_TRANSFORMS


PARAMS = {
    "w": np.array(
        [[1, -2, 0.5], [-0.0, 3, -1], [0.25, 2, -0.5], [1e-3, 4, 1]], np.float32
    ),
    "b": np.array([0.0, -0.0, 1.5, -0.75, 2], np.float32),
}
MASK = {
    "w": np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 1, 0]], bool),
    "b": np.array([0, 0, 1, 0, 1], bool),
}
TRUE = jax.tree.map(np.ones_like, MASK)


def noise(seed: int) -> Any:
    """Gradients, or anything else in the parameters' shapes."""
    rng = np.random.default_rng(seed)
    return {
        k: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for k, p in PARAMS.items()
    }


RETAIN, FORGET = [noise(i) for i in range(STEPS)], [noise(9 + i) for i in range(STEPS)]
BASES = subspace.svd_bases(noise(20), rank=1)
# Each rule as a transform, and the gradients that come of it.
RULES: dict[str, tuple[Callable[[], Any], list]] = {
    "correct": (
        lambda: transforms.correct_updates(0.0, 0.7),
        [
            correction.correct(r, f, threshold=0.0, forget_weight=0.7)
            for r, f in zip(RETAIN, FORGET, strict=True)
        ],
    ),
    "project_conflicts": (
        lambda: transforms.project_conflicting_updates(0.7),
        [
            correction.project_conflicts(r, f, forget_weight=0.7)
            for r, f in zip(RETAIN, FORGET, strict=True)
        ],
    ),
    "blend": (
        lambda: transforms.blend_updates(0.25),
        [
            jax.tree.map(lambda r, f: 0.25 * r + 0.75 * f, *pair)
            for pair in zip(RETAIN, FORGET, strict=True)
        ],
    ),
}


def objective(params: Any) -> jax.Array:
    return sum((jnp.sum(jnp.cos(p)) for p in jax.tree.leaves(params)), jnp.zeros(()))


def extra(needs: tuple[str, ...], params: Any, grads: Any) -> dict[str, Any]:
    """The extra arguments that a transform needs."""
    functions = {"value_fn": objective, "obj_fn": objective, "grad": grads}
    return {
        name: objective(params) if name == "value" else functions[name]
        for name in needs
    }


@functools.cache
def made(name: str) -> optax.GradientTransformationExtraArgs:
    """A transform of optax with its extra arguments filled in."""
    case = TRANSFORMS[name]
    tx = optax.with_extra_args_support(case.make())

    def update(updates, state, params=None):
        return tx.update(updates, state, params, **extra(case.needs, params, updates))

    if case.heavy:
        update = jax.jit(update)
    return optax.GradientTransformationExtraArgs(
        tx.init, lambda updates, state, params=None, **_: update(updates, state, params)
    )


def walk(tx: Any, grads: list, params: Any = None, forget: list | None = None) -> list:
    """Parameters at the start and after each step."""
    params = jax.tree.map(jnp.asarray, PARAMS if params is None else params)
    state, path = tx.init(params), [params]
    for i, now in enumerate(grads):
        more = {} if forget is None else {"forget_grads": forget[i]}
        updates, state = tx.update(now, state, params, **more)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def same_bits(first: Any, second: Any, where: Any = None) -> bool:
    """Whether two trees agree to the bit, where a mask is true."""
    where = (
        jax.tree.map(lambda x: np.ones(np.shape(x), bool), first)
        if (where is None)
        else where
    )
    return all(
        np.array_equal(
            np.asarray(a).view(np.uint32)[m], np.asarray(b).view(np.uint32)[m]
        )
        for a, b, m in zip(
            *(jax.tree.leaves(tree) for tree in (first, second, where)), strict=True
        )
    )


def pulled(params: Any, updates: Any, anchor: Any, share: float) -> Any:
    """Where SalUn-soft leads, in numpy: the nearest go back, the others shrink."""
    ends = {k: np.asarray(params[k] + updates[k]) - anchor[k] for k in params}
    flat = np.sort(np.concatenate([np.abs(d).ravel() for d in ends.values()]))
    gamma = flat[math.floor(share * flat.size) - 1]
    return {
        k: anchor[k] + np.sign(d) * np.maximum(np.abs(d) - gamma, 0)
        for k, d in ends.items()
    }


def close(first: Any, second: Any, atol: float = 1e-5) -> bool:
    return all(
        np.allclose(a, b, rtol=1e-4, atol=atol)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


@pytest.mark.slow
class TransformsTest(parameterized.TestCase):
    def test_the_tables_hold_all_that_optax_has(self):
        known = set(TRANSFORMS) | {name.split("(")[0] for name in WRAPPERS} | set(NOTES)
        self.assertEqual(public() - known, set())

    @parameterized.parameters(*TRANSFORMS)
    def test_a_mask_freezes_and_all_true_changes_nothing(self, name):
        tx = made(name)
        loud = [
            {k: jnp.where(MASK[k], g, 3 * g) for k, g in grads.items()}
            for grads in RETAIN
        ]

        def masked(mask, first=False):
            last = transforms.mask_updates(mask)
            return optax.chain(*([last] if first else []), tx, last)

        frozen = jax.tree.map(np.logical_not, MASK)
        quiet = walk(masked(MASK), RETAIN)[-1]
        self.assertTrue(same_bits(quiet, PARAMS, frozen))
        self.assertTrue(same_bits(walk(masked(TRUE), RETAIN)[-1], walk(tx, RETAIN)[-1]))
        apart = same_bits(quiet, walk(masked(MASK), loud)[-1], MASK)
        self.assertEqual("last" if apart else BOTH, TRANSFORMS[name].mask)
        if not apart:
            quiet, other = (walk(masked(MASK, True), g)[-1] for g in (RETAIN, loud))
            self.assertTrue(same_bits(quiet, PARAMS, frozen))
            self.assertTrue(same_bits(quiet, other, MASK))

    @parameterized.product(name=list(TRANSFORMS), rule=list(RULES))
    def test_two_gradients_in_front(self, name, rule):
        ours, combined = RULES[rule]
        found = walk(optax.chain(ours(), made(name)), RETAIN[:2], forget=FORGET)
        chex.assert_trees_all_equal(found, walk(made(name), combined[:2]))

    @parameterized.parameters(*TRANSFORMS)
    def test_projection_and_soft_threshold_behind(self, name):
        tx, params = made(name), jax.tree.map(jnp.asarray, PARAMS)
        project = optax.chain(tx, transforms.project_updates(BASES))
        soft = optax.chain(tx, transforms.soft_threshold_updates(SHARE))
        states = [t.init(params) for t in (tx, project, soft)]
        for grads in RETAIN[:2]:
            (free, s0), (inside, s1), (near, s2) = (
                t.update(grads, state, params)
                for t, state in zip((tx, project, soft), states, strict=True)
            )
            states = [s0, s1, s2]
            chex.assert_trees_all_equal(inside, subspace.project(free, BASES))
            wanted = pulled(params, free, PARAMS, SHARE)
            self.assertTrue(close(optax.apply_updates(params, near), wanted))
            params = optax.apply_updates(params, free)


class Wrapper(NamedTuple):
    """A wrapper of optax, and where ours may stand.

    Inside is ``wrapper(optax.chain(…))`` with ours in that chain, where it stands
    without a wrapper; outside is ``optax.chain`` of the wrapper and ours, which is in
    front for two gradients and behind for the rest.

    Attributes:
      make: the wrapper.
      mask, two, project, soft: where the law holds, of "inside" and "outside"; that it
        does not hold elsewhere is tested too.
      refused: transform and position -> what the error says.
      why: the reason of what does not hold.
      settles: steps after which SalUn-soft's law must hold; the other ones are left
        as they are.
      both: forget_grads are not handed on, so that TwoGradients are the updates.
      groups: the corrector, which asks all tensors, asks those of a group inside.
      cond: it branches, so that its update is compiled, once.
      params: the parameters that it takes.
    """

    make: Callable[[Any], Any]
    mask: str = "inside or outside"
    two: str = "inside or outside"
    project: str = "inside or outside"
    soft: str = "inside or outside"
    refused: dict[str, str] = {}  # noqa: RUF012
    why: str = ""
    settles: Callable[[int], bool] = lambda step: True
    both: bool = False
    groups: bool = False
    cond: bool = False
    params: Callable[[Any], Any] = lambda tree: tree


def odd(step: int) -> bool:
    """Every second step, counted from 0."""
    return step % 2 == 1


def even(step: Any, **extra_args: Any) -> Any:
    """The other ones; of a traced step too."""
    del extra_args
    return step % 2 == 0


def unless_large(updates, gradient_step, params):
    """Skips the second gradient of RETAIN, the largest."""
    del gradient_step, params
    return norm(updates) > 9, ()


ZEROS = "a step that is left out is +0.0 and turns a frozen −0.0 into 0.0"
AGAIN = "outside, SalUn-soft's schedule counts the steps that move nothing"
INNER = {"w": True, "b": False}
WRAPPERS: dict[str, Wrapper] = {
    "MultiSteps": Wrapper(
        lambda tx: optax.MultiSteps(tx, 2),
        cond=True,
        two="outside",
        refused={"two inside": "MultiSteps sees only .*with_both_gradients"},
        why="`with_both_gradients` averages both gradients; outside each microbatch is "
        f"combined by itself; {AGAIN}",
        settles=odd,
    ),
    "MultiSteps(should_skip_update_fn)": Wrapper(
        lambda tx: optax.MultiSteps(tx, 1, should_skip_update_fn=unless_large),
        cond=True,
        mask="outside",
        two="outside",
        refused={"two inside": "MultiSteps sees only .*with_both_gradients"},
        why=f"{ZEROS}; `with_both_gradients` looks at both; {AGAIN}",
        settles=lambda step: step != 1,
    ),
    "apply_if_finite": Wrapper(
        lambda tx: optax.apply_if_finite(tx, 9),
        cond=True,
        mask="outside",
        two="outside",
        refused={"two inside": "apply_if_finite sees only .*with_both_gradients"},
        why=f"{ZEROS}; `with_both_gradients` looks at both; {AGAIN}",
        settles=lambda step: step != 1,
    ),
    "chain": Wrapper(optax.chain),
    "named_chain": Wrapper(lambda tx: optax.named_chain(("inner", tx))),
    "conditionally_mask": Wrapper(
        lambda tx: optax.conditionally_mask(tx, even),
        cond=True,
        mask="outside",
        why=f"{ZEROS}; {AGAIN}",
        settles=even,
    ),
    "conditionally_transform": Wrapper(
        lambda tx: optax.conditionally_transform(tx, even),
        cond=True,
        mask="outside",
        two="outside",
        project="outside",
        soft="outside",
        why="in the other steps the gradient passes as it comes",
    ),
    "flatten": Wrapper(
        optax.flatten,
        mask="outside",
        two="outside",
        project="outside",
        refused={
            "mask inside": "mask has no leaf at the root",
            "two inside": "forget_grads has no leaf at the root",
            "project inside": "bases",
        },
        why="inside there are no leaves any more",
    ),
    "inject_hyperparams": Wrapper(
        lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx))(rate=1.0),
        why="ours can be made by it as well: `inject_hyperparams(correct_updates)`",
    ),
    "inject_stateful_hyperparams": Wrapper(
        lambda tx: quietly(
            optax.inject_stateful_hyperparams, lambda rate: optax.chain(tx)
        )()(rate=1.0)
    ),
    "lookahead": Wrapper(
        lambda tx: optax.lookahead(tx, 2, 0.5),
        mask="outside",
        two="outside",
        project="inside or outside",
        soft="",
        refused={"two inside": "forget_grads=None", "soft outside": "put it inside"},
        why="outside, mask and bases are `LookaheadParams(mask, mask)`; inside, the "
        "slow weights round; a sync takes thresholded weights half-way back",
        params=lambda tree: optax.LookaheadParams(tree, tree),
    ),
    "masked": Wrapper(
        lambda tx: optax.masked(tx, INNER),
        mask="outside",
        two="outside",
        project="outside",
        soft="outside",
        why="inside it sees the leaves of the mask alone; the others pass",
    ),
    "partition": Wrapper(
        lambda tx: optax.partition({"a": tx, "b": tx}, {"w": "a", "b": "b"}),
        soft="outside",
        groups=True,
        why="inside, corrector and threshold look at each group by itself",
    ),
    "multi_transform": Wrapper(
        lambda tx: optax.multi_transform({"a": tx, "b": tx}, {"w": "a", "b": "b"}),
        soft="outside",
        groups=True,
        why="the former name of `partition`",
    ),
    "selective_transform": Wrapper(
        lambda tx: optax.selective_transform(tx, freeze_mask={"w": False, "b": True}),
        mask="outside",
        soft="outside",
        groups=True,
        why="a frozen leaf gets +0.0, which turns −0.0 into 0.0; else as `partition`",
    ),
    "with_extra_args_support": Wrapper(optax.with_extra_args_support),
    "mechanize": Wrapper(
        lambda tx: contrib.mechanize(tx, s_init=0.1),
        cond=True,
        mask="outside",
        two="outside",
        soft="outside",
        refused={
            "two inside": "mechanize uses the first .* in front",
            "soft inside": "mechanize .* put it behind",
        },
        why="it weighs the gradient itself and scales what comes out",
    ),
    "sam": Wrapper(
        lambda tx: contrib.sam(tx, optax.chain(contrib.normalize(), optax.sgd(0.05))),
        mask="outside",
        two="outside",
        project="outside",
        soft="inside",
        refused={"two inside": "sam uses the first .* in front"},
        why="adversarial steps do not pass the inner chain, and must not be pulled; it "
        "takes no `forget_grads`: give `TwoGradients`; with `opaque_mode` combine them "
        "in `grad_fn`",
        settles=odd,
        both=True,
    ),
    "schedule_free": Wrapper(
        lambda tx: contrib.schedule_free(tx, 0.1),
        mask="outside",
        project="outside",
        soft="outside",
        refused={"soft inside": "schedule_free .* put it behind"},
        why="inside, the interpolation rounds what is frozen; evaluation weights need "
        "`keep_frozen`, and are not thresholded",
    ),
    "split_real_and_imaginary": Wrapper(
        contrib.split_real_and_imaginary,
        two="outside",
        refused={"two inside": "forget_grads=None"},
        why="complex leaves want masks and bases outside too, and refuse them inside",
    ),
}
# Rows of the guide that are tested by themselves.
NOTES = {
    "differentially_private_aggregate": "takes gradients by example: mask last; two "
    "gradients are refused in front and combine behind, where the second one is not "
    "private",
    "dpsgd": "as `differentially_private_aggregate`",
}


class WrappersTest(parameterized.TestCase):
    """Each law, inside and outside of each wrapper, holds just where it is said to."""

    def check(self, name: str, ours: str, law: Callable[[str], bool], rule="") -> None:
        wrapper = WRAPPERS[name]
        for position in ("inside", "outside"):
            key = f"{ours} {position}"
            holds = position in getattr(wrapper, ours)
            if ours == "two" and wrapper.groups and rule == "correct":
                holds = position == "outside"
            with self.subTest(key):
                if key in wrapper.refused:
                    with self.assertRaisesRegex(ValueError, wrapper.refused[key]):
                        law(position)
                else:
                    self.assertEqual(law(position), holds)

    def chained(self, name, position, inner, first=None, last=None):
        """The wrapper around an optimiser, with ours at one end of either chain."""
        make = WRAPPERS[name].make
        before, after = ([] if tx is None else [tx] for tx in (first, last))
        if position == "inside":
            return self.ready(name, make(optax.chain(*before, inner, *after)))
        outer = self.ready(name, make(inner))
        return self.ready(name, optax.chain(*before, outer, *after))

    def ready(self, name, tx):
        """With extra arguments, and compiled if it branches."""
        if isinstance(tx, optax.MultiSteps):
            tx = tx.gradient_transformation()
        tx = optax.with_extra_args_support(tx)
        return tx._replace(update=jax.jit(tx.update)) if WRAPPERS[name].cond else tx

    def grads(self, name, grads=RETAIN):
        """Gradients of which one is to be skipped, where something skips."""
        if name == "apply_if_finite":
            broken = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads[1])
            return [grads[0], broken, *grads[2:]]
        if name == "MultiSteps(should_skip_update_fn)":
            return [grads[0], jax.tree.map(lambda g: 9 * g, grads[1]), *grads[2:]]
        return grads

    @parameterized.parameters(*WRAPPERS)
    def test_mask(self, name):
        wrapper = WRAPPERS[name]
        params = wrapper.params(PARAMS)

        def law(position):
            def run(mask):
                held = wrapper.params(mask) if position == "outside" else mask
                last = None if mask is None else transforms.mask_updates(held)
                adamw = optax.adamw(0.1, weight_decay=0.1)
                tx = self.chained(name, position, adamw, last=last)
                return walk(tx, self.grads(name), params)[-1]

            found, free = run(MASK), run(None)
            self.assertTrue(same_bits(run(TRUE), free))
            self.assertFalse(close(found, params))
            frozen = jax.tree.map(np.logical_not, wrapper.params(MASK))
            return same_bits(found, params, frozen)

        self.check(name, "mask", law)

    @parameterized.product(name=list(WRAPPERS), rule=list(RULES))
    def test_two_gradients(self, name, rule):
        wrapper = WRAPPERS[name]
        params, (ours, combined) = wrapper.params(PARAMS), RULES[rule]
        wanted = walk(self.ready(name, wrapper.make(optax.sgd(0.1))), combined, params)

        def law(position):
            tx = self.chained(name, position, optax.sgd(0.1), first=ours())
            if wrapper.both:
                pairs = list(map(wrappers.TwoGradients, RETAIN, FORGET))
                return close(walk(tx, pairs, params), wanted)
            return close(walk(tx, RETAIN, params, FORGET), wanted)

        self.check(name, "two", law, rule)

    @parameterized.parameters(*WRAPPERS)
    def test_project(self, name):
        wrapper = WRAPPERS[name]
        params = wrapper.params(PARAMS)

        def law(position):
            held = wrapper.params(BASES) if position == "outside" else BASES
            last = transforms.project_updates(held, freeze_rest=True)
            tx = self.chained(name, position, optax.sgd(0.1), last=last)
            path = walk(tx, self.grads(name), params)
            self.assertFalse(close(path[-1], params))
            deltas = [jax.tree.map(lambda a, b: a - b, p, params) for p in path]
            return all(
                close(subspace.project(delta, wrapper.params(BASES)), delta)
                # The bias, which has no basis.
                and not np.any(jax.tree.leaves(delta)[0])
                for delta in deltas
            )

        self.check(name, "project", law)

    @parameterized.parameters(*WRAPPERS)
    def test_soft_threshold(self, name):
        wrapper = WRAPPERS[name]
        grads = self.grads(name)

        def law(position):
            last = transforms.soft_threshold_updates(SHARE)
            tx = self.chained(name, position, optax.sgd(0.1), last=last)
            path = walk(tx, grads, wrapper.params(PARAMS))
            plain = self.ready(name, wrapper.make(optax.sgd(0.1)))
            state = plain.init(path[0])
            for i, now in enumerate(grads):
                updates, state = plain.update(now, state, path[i])
                wanted = optax.apply_updates(path[i], updates)
                several = isinstance(wanted, optax.LookaheadParams)
                if wrapper.settles(i) and not several:
                    wanted = pulled(path[i], updates, PARAMS, SHARE)
                if not close(path[i + 1], wanted):
                    return False
            return True

        self.check(name, "soft", law)


class BothGradientsTest(parameterized.TestCase):
    """`with_both_gradients` shows a wrapper what it would not see."""

    def chain(self):
        return optax.chain(transforms.blend_updates(0.25), optax.sgd(0.1))

    @parameterized.named_parameters(
        ("mean", lambda tx: optax.MultiSteps(tx, 2), 2.0),
        ("sum", lambda tx: optax.MultiSteps(tx, 2, use_grad_mean=False), 1.0),
        ("schedule", lambda tx: optax.MultiSteps(tx, lambda step: 2), 2.0),
    )
    def test_accumulates_both(self, wrapper, divisor):
        tx: Any = wrappers.with_both_gradients(wrapper, self.chain())
        tx: Any = tx._replace(update=jax.jit(tx.update))
        path = walk(tx, RETAIN, forget=FORGET)
        wanted = PARAMS
        for i in range(STEPS):
            if i % 2:
                wanted = {
                    k: wanted[k]
                    - 0.1
                    * (
                        0.25 * (RETAIN[i - 1][k] + RETAIN[i][k])
                        + 0.75 * (FORGET[i - 1][k] + FORGET[i][k])
                    )
                    / divisor
                    for k in wanted
                }
            self.assertTrue(close(path[i + 1], wanted))

    @parameterized.product(
        wrapper=[
            lambda tx: optax.apply_if_finite(tx, 5),
            lambda tx: optax.MultiSteps(
                tx, 1, should_skip_update_fn=optax.transforms.skip_not_finite
            ),
        ],
        which=["retain", "forget"],
    )
    def test_a_guard_looks_at_both(self, wrapper, which):
        tx: Any = wrappers.with_both_gradients(wrapper, self.chain())
        broken = jax.tree.map(lambda g: g.at[0].set(jnp.inf), RETAIN[0])
        retain, forget = RETAIN[0], FORGET[0]
        pair = (broken, forget) if which == "retain" else (retain, broken)
        params = jax.tree.map(jnp.asarray, PARAMS)
        update = jax.jit(tx.update)
        _, state = (
            skipped := update(pair[0], tx.init(params), params, forget_grads=pair[1])
        )
        self.assertFalse(np.any(skipped[0]["w"]))
        updates, _ = update(wrappers.TwoGradients(retain, forget), state, params)
        wanted = jax.tree.map(lambda c: -0.1 * c, RULES["blend"][1][0])
        self.assertTrue(close(updates, wanted))

    @parameterized.parameters(*RULES)
    def test_what_stands_in_front_sees_both(self, rule):
        # With the keyword a mask in front would see the first gradient alone.
        ours, scale = RULES[rule][0](), optax.scale(2.0)
        mask, project = transforms.mask_updates(MASK), transforms.project_updates(BASES)
        tx: Any = optax.chain(scale, mask, project, ours)
        both = wrappers.TwoGradients(RETAIN[0], FORGET[0])
        found, _ = tx.update(both, tx.init(PARAMS))
        front = optax.chain(scale, mask, project)
        seen = [front.update(g, front.init(PARAMS))[0] for g in both]
        wanted, _ = ours.update(seen[0], ours.init(PARAMS), forget_grads=seen[1])
        chex.assert_trees_all_equal(found, wanted)
        self.assertFalse(close(seen[1], FORGET[0]))

    def test_scans_vmaps_and_donates(self):
        tx: Any = wrappers.with_both_gradients(
            lambda tx: optax.MultiSteps(tx, 2), self.chain()
        )
        grads, away = (
            jax.tree.map(lambda *g: jnp.stack(g), *g) for g in (RETAIN, FORGET)
        )

        def body(carry, pair):
            params, state = carry
            updates, state = tx.update(pair[0], state, params, forget_grads=pair[1])
            return (optax.apply_updates(params, updates), state), None

        def run(params, state, sign):
            pairs = jax.tree.map(lambda g: sign * g, (grads, away))
            return jax.lax.scan(body, (params, state), pairs)[0]

        params = jax.tree.map(jnp.asarray, PARAMS)
        seeds = jax.tree.map(lambda x: jnp.stack([x, x]), (params, tx.init(params)))
        runs = jax.jit(jax.vmap(run), donate_argnums=(0, 1))
        moved, state = runs(*seeds, jnp.array([1.0, 0.0]))
        wanted = walk(tx, RETAIN, forget=FORGET)[-1]
        self.assertTrue(close(jax.tree.map(lambda x: x[0], moved), wanted))
        self.assertTrue(close(jax.tree.map(lambda x: x[1], moved), PARAMS))
        np.testing.assert_array_equal(state.gradient_step, [2, 2])

    def test_extra_arguments_go_through_wrappers_that_know_none(self):
        plain = lambda tx: optax.GradientTransformation(tx.init, tx.update)  # noqa: E731
        tx = wrappers.with_both_gradients(plain, self.chain())
        updates, _ = tx.update(
            RETAIN[0], tx.init(PARAMS), PARAMS, forget_grads=FORGET[0], value=1.0
        )
        wanted = jax.tree.map(lambda c: -0.1 * c, RULES["blend"][1][0])
        self.assertTrue(close(updates, wanted))

    def test_what_changes_the_tree_is_refused(self):
        tx: Any = wrappers.with_both_gradients(optax.flatten, self.chain())
        with self.assertRaisesRegex(
            ValueError, "TwoGradients: put what changes the tree"
        ):
            tx.init(PARAMS)

    @parameterized.parameters(*RULES)
    def test_one_sided_wrappers_are_refused_however_they_run(self, rule):
        ours: Any = RULES[rule][0]()
        compiled = ours._replace(update=jax.jit(ours.update))
        state = compiled.init(PARAMS)
        compiled.update(RETAIN[0], state, forget_grads=FORGET[0])  # traced, and kept
        for inner in (ours, compiled):
            tx: Any = optax.MultiSteps(optax.chain(inner, optax.sgd(0.1)), 2)
            for init in (
                tx.init,
                jax.jit(tx.init),
                jax.vmap(tx.init, axis_size=2, in_axes=None),
            ):
                with self.assertRaisesRegex(ValueError, "with_both_gradients"):
                    init(jax.tree.map(jnp.asarray, PARAMS))
        # A state from elsewhere, as after a restart.
        tx: Any = optax.MultiSteps(optax.chain(ours, optax.sgd(0.1)), 2)
        state = optax.MultiSteps(optax.sgd(0.1), 2).init(PARAMS)
        inner_state = (ours.init(PARAMS), optax.sgd(0.1).init(PARAMS))
        state = state._replace(inner_opt_state=inner_state)
        with jax.disable_jit(), self.assertRaisesRegex(ValueError, "with_both_grad"):
            tx.update(RETAIN[0], state, PARAMS, forget_grads=FORGET[0])
        with self.assertRaisesRegex(ValueError, "with_both_gradients"):
            jax.jit(tx.update)(RETAIN[0], state, PARAMS, forget_grads=FORGET[0])


class RulesTest(parameterized.TestCase):
    """What the guide says beyond the table's cells."""

    def test_evaluation_weights_of_schedule_free(self):
        mask: Any = transforms.mask_updates(MASK)
        tx: Any = optax.chain(contrib.schedule_free(optax.sgd(0.5), 0.5), mask)
        params = jax.tree.map(jnp.asarray, PARAMS)
        state = tx.init(params)
        for grads in RETAIN:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        averaged = contrib.schedule_free_eval_params(state[0], params)
        frozen = jax.tree.map(np.logical_not, MASK)
        self.assertFalse(close(averaged["w"][frozen["w"]], PARAMS["w"][frozen["w"]]))
        kept = wrappers.keep_frozen(MASK, averaged, PARAMS)
        self.assertTrue(same_bits(kept, PARAMS, frozen))
        self.assertTrue(same_bits(kept, averaged, MASK))

    def test_hyperparameters_of_ours(self):
        ours = optax.inject_hyperparams(transforms.correct_updates)(
            threshold=optax.linear_schedule(1.0, -1.0, 1), forget_weight=np.float64(0.7)
        )
        tx: Any = optax.chain(ours, optax.sgd(0.1))
        path = walk(tx._replace(update=jax.jit(tx.update)), RETAIN[:2], forget=FORGET)
        first = optax.tree.add_scale(PARAMS, -0.1, RETAIN[0])
        self.assertTrue(close(path[1], first))
        second = correction.correct(
            RETAIN[1], FORGET[1], threshold=-1.0, forget_weight=0.7
        )
        self.assertTrue(close(path[2], optax.tree.add_scale(first, -0.1, second)))

    @parameterized.parameters(jnp.asarray, np.asarray, dict)
    def test_a_mask_as_a_hyperparameter(self, kind):
        mask, params = kind(MASK["b"]) if kind is not dict else MASK, PARAMS
        params = params if kind is dict else params["b"]
        make = optax.inject_hyperparams(
            lambda rate, mask: optax.chain(
                optax.adamw(rate), transforms.mask_updates(mask)
            )
        )
        tx, grads = (
            make(0.1, mask),
            RETAIN if kind is dict else [g["b"] for g in RETAIN],
        )
        moved = walk(tx._replace(update=jax.jit(tx.update)), grads, params)[-1]
        frozen = jax.tree.map(np.logical_not, MASK if kind is dict else MASK["b"])
        self.assertTrue(same_bits(moved, params, frozen))
        self.assertFalse(close(moved, params))

    @parameterized.named_parameters(
        ("chain", lambda tx: tx),
        ("multi_steps", lambda tx: optax.MultiSteps(tx, 2).gradient_transformation()),
        ("partition", lambda tx: optax.partition({"a": tx}, {"w": "a", "b": "a"})),
        ("inject", lambda tx: optax.inject_hyperparams(lambda _: tx)(1.0)),
    )
    def test_states_map_over_parameters(self, wrapper):
        inner = optax.chain(
            optax.adamw(0.1),
            transforms.project_updates(BASES),
            transforms.soft_threshold_updates(SHARE),
            transforms.mask_updates(MASK),
        )
        tx: Any = wrapper(inner)
        state = tx.init(jax.tree.map(jnp.asarray, PARAMS))
        doubled = optax.tree.map_params(tx, lambda leaf: 2 * leaf, state)
        anchor = optax.tree.get(doubled, "anchor")
        self.assertTrue(close(anchor, jax.tree.map(lambda p: 2 * p, PARAMS)))
        for old, new in zip(*map(jax.tree.leaves, (state, doubled)), strict=True):
            wanted = old if jnp.ndim(old) == 0 else 2 * old
            np.testing.assert_array_equal(new, wanted)
        moved = optax.tree.set(state, anchor=RETAIN[0])
        chex.assert_trees_all_equal(optax.tree.get(moved, "anchor"), RETAIN[0])

    def test_lookahead_that_resets_would_lose_the_anchor(self):
        inner = optax.chain(optax.sgd(0.1), transforms.soft_threshold_updates(SHARE))
        tx: Any = optax.lookahead(inner, 2, 0.5, reset_state=True)
        params = optax.LookaheadParams.init_synced(PARAMS)
        with self.assertRaisesRegex(ValueError, "give reset_state=False"):
            tx.update(RETAIN[0], tx.init(params), params)

    @parameterized.parameters(*RULES)
    def test_gradients_by_example(self, rule):
        private = contrib.differentially_private_aggregate(1e9, 0.0, jax.random.key(0))
        several = jax.tree.map(lambda *g: jnp.stack(g), *RETAIN)
        mean = jax.tree.map(lambda g: jnp.mean(g, 0), several)
        params = jax.tree.map(jnp.asarray, PARAMS)
        ours: Any = RULES[rule][0]()
        tx: Any = optax.chain(private, ours, transforms.mask_updates(MASK))
        updates, _ = tx.update(several, tx.init(params), params, forget_grads=FORGET[0])
        wanted, _ = ours.update(mean, ours.init(params), forget_grads=FORGET[0])
        wanted, _ = transforms.mask_updates(MASK).update(wanted, optax.EmptyState())
        self.assertTrue(close(updates, wanted))
        tx: Any = optax.chain(ours, private)
        with self.assertRaisesRegex(
            ValueError, r"forget_grads\['b'\] has shape \(5,\)"
        ):
            tx.update(several, tx.init(params), params, forget_grads=FORGET[0])

    def test_complex_leaves_outside_of_their_parts(self):
        params = {"z": jnp.array([1 - 2j, complex(-0.0, 3)], jnp.complex64)}
        mask = {"z": jnp.array([True, False])}
        split: Any = contrib.split_real_and_imaginary
        last = transforms.mask_updates(mask)
        tx: Any = optax.chain(split(optax.adamw(0.1)), last)
        moved = walk(tx, [params] * 3, params)[-1]
        bits = [np.asarray(tree["z"]).view(np.uint64) for tree in (moved, params)]
        np.testing.assert_array_equal(np.equal(*bits), [False, True])
        with self.assertRaisesRegex(ValueError, r"mask has no leaf at \['z'\].real"):
            split(optax.chain(optax.adamw(0.1), last)).init(params)


ZERO = np.zeros((3,), jax.dtypes.float0)


class LeavesTest(parameterized.TestCase):
    """Leaves of every kind: the number is right, they pass, or are refused by name."""

    @parameterized.product(
        params=[jnp.float32, jnp.bfloat16, jnp.float16],
        forget=[jnp.float32, jnp.bfloat16],
        rule=list(RULES),
    )
    def test_the_dtype_is_that_of_the_updates(self, params, forget, rule):
        retain = {"w": jnp.array([1.0, 2.0], params)}
        away = {"w": jnp.array([2.0, -1.0], forget)}
        ours: Any = RULES[rule][0]()
        mixed, _ = ours.update(retain, ours.init(retain), forget_grads=away)
        self.assertEqual(mixed["w"].dtype, params)
        exact, _ = ours.update(
            *(jax.tree.map(jnp.float32, retain), ours.init(retain)),
            forget_grads=jax.tree.map(jnp.float32, away),
        )
        np.testing.assert_allclose(np.float32(mixed["w"]), exact["w"], rtol=1e-2)

    def test_numbers_and_numpy(self):
        retain, forget = (
            {"a": 1.0, "b": np.array([2, 3], np.float32)},
            {"a": 3.0, "b": np.ones(2)},
        )
        tx: Any = optax.chain(
            transforms.blend_updates(0.5),
            optax.sgd(1.0),
            transforms.soft_threshold_updates(0.0),
            transforms.mask_updates({"a": True, "b": np.array([True, False])}),
        )
        updates, _ = tx.update(retain, tx.init(retain), retain, forget_grads=forget)
        self.assertTrue(
            close(updates, {"a": -2.0, "b": np.array([-1.5, 0.0], np.float32)})
        )
        for rule, _ in RULES.values():
            ours = rule()
            moved, _ = ours.update(retain, ours.init(retain), forget_grads=forget)
            self.assertEqual(jax.tree.map(jnp.shape, moved), {"a": (), "b": (2,)})

    @parameterized.named_parameters(
        ("int32", np.array([1, 2, 3], np.int32)), ("float0", ZERO)
    )
    def test_integers_pass_a_mask_and_are_refused_elsewhere(self, leaf):
        grads = {"n": leaf, "w": jnp.ones(3)}
        some = np.array([True, False, True])
        mask: Any = transforms.mask_updates({"n": some, "w": some})
        updates, _ = mask.update(grads, mask.init(grads))
        np.testing.assert_array_equal(updates["w"], [1, 0, 1])
        self.assertEqual(updates["n"].dtype, leaf.dtype)
        for rule, _ in RULES.values():
            with self.assertRaisesRegex(
                ValueError, r"updates\['n'\] is .*wanted float"
            ):
                ours = rule()
                ours.update(grads, ours.init(grads), forget_grads=grads)
        soft: Any = transforms.soft_threshold_updates(SHARE)
        with self.assertRaisesRegex(ValueError, r"params\['n'\] is .*wanted float"):
            soft.init(grads)

    def test_double_precision(self):
        with jax.enable_x64(True):
            rng = np.random.default_rng(0)
            params = {"w": jnp.zeros(101, jnp.float64)}
            steps = {"w": jnp.asarray(rng.normal(size=101))}
            self.assertEqual(steps["w"].dtype, jnp.float64)
            # The k-th smallest rounds down for some shares, and up for others.
            for count in (10, 30, 50, 70, 90):
                tx: Any = transforms.soft_threshold_updates((count + 0.5) / 101)
                pulled, _ = tx.update(steps, tx.init(params), params)
                self.assertEqual(pulled["w"].dtype, jnp.float64)
                self.assertEqual(np.sum(np.asarray(pulled["w"]) == 0), count)
            mask: Any = transforms.mask_updates({"w": steps["w"] > 0})
            kept, _ = mask.update(steps, mask.init(params))
            np.testing.assert_array_equal(kept["w"], np.maximum(steps["w"], 0))

    def test_complex_leaves_count_by_magnitude(self):
        retain = jnp.array([3 + 4j, 1j, 1.0], jnp.complex64)
        tx: Any = transforms.soft_threshold_updates(1 / 3 + 1e-3)
        near, _ = tx.update(retain, tx.init(0 * retain), 0 * retain)
        np.testing.assert_allclose(near, [4 * (0.6 + 0.8j), 0, 0], rtol=1e-6)
        tx = transforms.blend_updates(0.5)
        mixed, _ = tx.update(retain, tx.init(retain), forget_grads=1j * retain)
        np.testing.assert_allclose(mixed, (1 + 1j) / 2 * np.asarray(retain), rtol=1e-6)
        tx = transforms.mask_updates(np.array([True, False, True]))
        kept, _ = tx.update(retain, tx.init(retain))
        np.testing.assert_array_equal(kept, [3 + 4j, 0, 1])

    @parameterized.parameters(np.float64(0.57), np.float32(0.57), 0.57, "schedule")
    def test_a_share_counts_the_same_compiled_or_not(self, share):
        share = (lambda step: jnp.float32(0.57)) if share == "schedule" else share
        tx: Any = transforms.soft_threshold_updates(share)
        params, steps = jnp.zeros(100), jnp.arange(1.0, 101)
        eager, _ = tx.update(steps, tx.init(params), params)
        compiled, _ = jax.jit(tx.update)(steps, tx.init(params), params)
        np.testing.assert_array_equal(eager, compiled)


def table() -> str:
    """The guide's table."""

    def listed(mask):
        return ", ".join(
            f"`{n}`" for n in sorted(TRANSFORMS) if TRANSFORMS[n].mask == mask
        )

    lines = [
        "| Mask | Of optax |",
        "| :-- | :-- |",
        f"| last | {listed('last')} |",
        f"| first and last | {listed(BOTH)} |",
        "",
        "| Wrapper | Mask | Two gradients | Projection | Soft threshold | Why |",
        "| :-- | :-- | :-- | :-- | :-- | :-- |",
    ]
    for name, wrapper in sorted(WRAPPERS.items(), key=lambda item: item[0].lower()):
        cells = [
            getattr(wrapper, n) or "no" for n in ("mask", "two", "project", "soft")
        ]
        if wrapper.groups:
            cells[1] = "outside, or inside for each group by itself"
        lines.append(
            "| " + " | ".join([f"`{name}`", *cells, wrapper.why or "–"]) + " |"
        )
    lines += [
        f"| `{name}` | outside | behind | outside | outside | {why} |"
        for name, why in NOTES.items()
    ]
    return "\n".join(lines)


class GuideTest(absltest.TestCase):
    def test_holds_the_table(self):
        self.assertIn(table(), GUIDE.read_text(), f"docs/composing.md wants\n{table()}")

    def test_its_code_runs(self):
        blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
        space: Any = {"__name__": "guide"}
        for block in blocks:
            exec(block, space)
        params, mask = space["params"], space["mask"]
        frozen = jax.tree.map(np.logical_not, mask)
        for name in ("by_nnx", "by_linen", "by_equinox"):
            self.assertTrue(close(space[name], space["by_hand"]), name)
        for name in (
            "by_hand",
            "by_nnx",
            "by_linen",
            "by_equinox",
            "averaged",
            "globally",
        ):
            self.assertTrue(same_bits(space[name], params, frozen), name)
            self.assertFalse(close(space[name], params), name)


if __name__ == "__main__":
    absltest.main()
