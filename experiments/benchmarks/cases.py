"""The cases: what a step of unlearning is made of, each beside PyTorch where it can be.

Each is a function of a :class:`Scale` that yields rows as they are measured.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data
from experiments.benchmarks import reference
from experiments.benchmarks.measuring import (
    OURS,
    THEIRS,
    Effort,
    Row,
    Run,
    Timing,
    in_turns,
)
from experiments.classification import evaluation
from experiments.engine import loop
from experiments.models import build
from experiments.models.precision import Precision, computing_in
from mujax import methods, saliency, subspace, transforms


class Scale(NamedTuple):
    """How large the cases are.

    Attributes:
      effort: how long to measure each.
      width: of the ResNet-18's stem; 64 is the network.
      batch: examples of a training step.
      dense: side of the dense kernel.
      rank: that it is cut to.
      product: side of the product that tells the card's peak, 0 for none.
      growth: entries of the growing masks.
      models: sizes of batches of models.
      half: measure bfloat16, too.
      unet: "full" for Stable Diffusion 1's size, "tiny", or None for no U-Net.
    """

    effort: Effort
    width: int
    batch: int
    dense: int
    rank: int
    product: int
    growth: tuple[int, ...]
    models: tuple[int, ...]
    half: bool
    unet: Literal["full", "tiny"] | None


def beside(scale: Scale, ours: Run, theirs: Callable[[], Run]) -> dict[str, Timing]:
    """Times ours, in turns with PyTorch's where torch is installed."""
    runs = {OURS: ready(ours)}
    if reference.available():
        runs[THEIRS] = theirs()
    return in_turns(runs, scale.effort)


def ready(function: Callable[..., Any], *arguments: Any) -> Run:
    """A run that returns when the device has done it."""
    return lambda: jax.block_until_ready(function(*arguments))


def resnet_gradient(scale: Scale) -> tuple[Any, Any]:
    """Parameters of a ResNet-18, and random numbers in their place."""
    model = build("resnet18", 10, (32, 32, 3), width=scale.width)
    params, _ = model.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return params, jax.tree.map(
        lambda p: jax.random.normal(next(keys), p.shape), params
    )


def mask(scale: Scale) -> Iterator[Row]:
    """The exact top half of a ResNet-18's scores."""
    scores = jax.tree.map(jnp.abs, resnet_gradient(scale)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(scores))
    for how, theirs, target in (
        ("a double argsort", reference.mask_by_sorting, "10 times faster"),
        ("kthvalue, ties left out", reference.mask_by_kth_value, "not slower"),
    ):

        def other(theirs=theirs):
            tensors = reference.tensors(jax.tree.leaves(scores))
            return reference.finished(lambda: theirs(tensors, 0.5))

        timings = beside(scale, lambda: saliency.top_fraction_mask(scores, 0.5), other)
        what = f"top half of {count:,} scores, exactly; PyTorch by {how}"
        yield Row("mask", what, timings, target=target)


def bases(scale: Scale) -> Iterator[Row]:
    """Singular bases of all kernels of a ResNet-18."""
    grads = resnet_gradient(scale)[1]
    kernels = [leaf for leaf in jax.tree.leaves(grads) if leaf.ndim > 1]

    def theirs():
        tensors = reference.tensors(kernels)
        return reference.finished(lambda: reference.bases(tensors, 0.95))

    timings = beside(scale, lambda: subspace.svd_bases(grads, 0.95), theirs)
    what = f"bases of a ResNet-18's {len(kernels)} kernels at energy 0.95"
    yield Row("bases", what, timings, target="faster")


def dense(scale: Scale) -> Iterator[Row]:
    """Singular bases of one large kernel, whose spectrum falls as a gradient's does."""
    n = scale.dense
    left, right = jax.random.normal(jax.random.key(0), (2, n, n)) / jnp.sqrt(n)
    kernel = left @ (right / jnp.arange(1.0, n + 1)[:, None])

    def full():
        tensors = reference.tensors([kernel])
        return reference.finished(lambda: reference.bases(tensors, 0.95))

    timings = beside(scale, lambda: subspace.svd_bases({"w": kernel}, 0.95), full)
    yield Row("dense", f"a {n} × {n} kernel at energy 0.95", timings, target="3 times")

    def cut():
        [tensor] = reference.tensors([kernel])
        return reference.finished(lambda: reference.low_rank_basis(tensor, scale.rank))

    def ours():
        return subspace.svd_bases({"w": kernel}, rank=scale.rank, max_rank=scale.rank)

    what = f"a {n} × {n} kernel at rank {scale.rank}; PyTorch by svd_lowrank"
    yield Row("dense", what, beside(scale, ours, cut), target="not slower")


class Step(NamedTuple):
    """A training step of a ResNet-18 and what it needs."""

    run: Run
    flops: float


def training_step(scale: Scale, images, labels, precision: Precision) -> Step:
    """SGD with momentum on cross-entropy, as one compiled program."""
    model = build("resnet18", 10, (32, 32, 3), width=scale.width)
    model = computing_in(model, precision)
    optimizer = optax.sgd(0.01, momentum=0.9)
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def loss_fn(params, model_state):
        logits, moved = model.apply(params, model_state, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), moved

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry):
        params, model_state, state = carry
        grads, model_state = jax.grad(loss_fn, has_aux=True)(params, model_state)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), model_state, state

    params, model_state = model.init(jax.random.key(0))
    carry = [(params, model_state, optimizer.init(params))]
    cost = step.lower(carry[0]).cost_analysis() or {}

    def run():
        carry[0] = jax.block_until_ready(step(carry[0]))

    return Step(run, float(cost.get("flops", 0.0)))


def examples(scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Random images (N, 32, 32, 3) and labels (N,)."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((scale.batch, 32, 32, 3), np.float32)
    return images, rng.integers(0, 10, scale.batch)


def step(scale: Scale) -> Iterator[Row]:
    """A training step of a ResNet-18, which unlearning takes many of."""
    images, labels = examples(scale)
    peak = 0.0
    if scale.product:
        peak, row = matmul_peak(scale)
        yield row
    for precision in ("float32", "bfloat16") if scale.half else ("float32",):
        ours = training_step(scale, images, labels, precision)

        def theirs(half=precision == "bfloat16"):
            return reference.training_step(scale.width, images, labels, half)

        timings = beside(scale, ours.run, theirs)
        seconds = timings[OURS].median
        note = "images/s: " + ", ".join(
            f"{name} {scale.batch / timing.median:,.0f}"
            for name, timing in timings.items()
        )
        if peak and precision == "bfloat16":
            note += f"; {ours.flops / seconds / peak:.0%} of the measured matmul peak"
        what = f"ResNet-18, batch of {scale.batch}, {precision}; PyTorch channels last"
        yield Row("step", what, timings, note, "not slower")


def matmul_peak(scale: Scale) -> tuple[float, Row]:
    """Operations a second of a large product in bfloat16."""
    n = scale.product
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    timings = in_turns({OURS: ready(jax.jit(jnp.dot), a, a)}, scale.effort)
    peak = 2 * n**3 / timings[OURS].median
    note = f"{peak / 1e12:.3g} TFLOP/s"
    return peak, Row("step", f"a bfloat16 product of {n} × {n}", timings, note)


def updates(scale: Scale) -> Iterator[Row]:
    """What masks, bases and the corrector add to a plain update, and to a step."""
    params, grads = resnet_gradient(scale)
    forget = jax.tree.map(jnp.negative, grads)
    mask = saliency.top_fraction_mask(jax.tree.map(jnp.abs, grads), 0.5)
    sgd = optax.sgd(0.01)
    ways = {
        "plain SGD": sgd,
        "masked": optax.chain(sgd, transforms.mask_updates(mask)),
        "projected": optax.chain(
            sgd, transforms.project_updates(subspace.svd_bases(grads, 0.95))
        ),
        "corrected": optax.chain(transforms.correct_updates(-1.0, 1.0), sgd),
    }

    def update(optimizer):
        optimizer = optax.with_extra_args_support(optimizer)

        def moved(params, state, grads, forget):
            found, state = optimizer.update(grads, state, params, forget_grads=forget)
            return optax.apply_updates(params, found), state

        moved = jax.jit(moved)
        state = optimizer.init(params)
        return ready(lambda: moved(params, state, grads, forget))

    runs = {name: update(optimizer) for name, optimizer in ways.items()}
    runs["step"] = training_step(scale, *examples(scale), "float32").run
    timings = in_turns(runs, scale.effort)
    plain, whole = timings["plain SGD"].median, timings.pop("step").median
    for name, timing in timings.items():
        share = f"{timing.median / whole:.1%} of a training step of {scale.batch}"
        more = "" if name == "plain SGD" else f"{timing.median / plain - 1:+.0%}, "
        yield Row(
            "updates", f"{name} update of a ResNet-18", {OURS: timing}, more + share
        )


def epoch(scale: Scale) -> Iterator[Row]:
    """An epoch of SalUn on the digits as one compiled scan."""
    digits = data.load("digits")
    split = data.random_split(digits, 0.1, 0)
    model = build("small_cnn", digits.num_classes, digits.input_shape)
    losses = evaluation.cross_entropy_losses(model, digits)
    arrays = {"image": digits.train_images, "label": digits.train_labels}
    feed = loop.Feed(
        {name: jnp.asarray(array) for name, array in arrays.items()},
        digits.num_classes,
        (split.forget,),
        split.retain,
    )
    method = methods.salun(losses.train, optax.sgd(0.01, momentum=0.9))
    method = methods.with_data(method, epochs=1)
    start = method.init(
        *model.init(jax.random.key(0)),
        forget_batches=loop.in_order(feed, split.forget, 64),
    )

    def run():
        state = jax.tree.map(jnp.copy, start)
        return loop.run(method, state, feed, batch_size=64, seed=(0,))

    timings = in_turns({OURS: ready(run)}, scale.effort)
    yield Row("epoch", "SalUn on digits, small network, one epoch", timings)


def growth(scale: Scale) -> Iterator[Row]:
    """How the mask's time and memory grow with the tree."""
    choose = functools.partial(saliency.top_fraction_mask, fraction=0.5)
    for size in scale.growth:
        scores = [jax.random.uniform(jax.random.key(0), (size // 1000, 1000))]
        compiled = jax.jit(choose).lower(scores).compile()
        used = compiled.memory_analysis()
        whole = sum(leaf.nbytes for leaf in scores)
        note = ""
        if used is not None:
            note = f"works in {used.temp_size_in_bytes / whole:.2f} of the scores' size"

        def theirs(scores=scores):
            tensors = reference.tensors(scores)
            return reference.finished(lambda: reference.mask_by_kth_value(tensors, 0.5))

        timings = beside(scale, functools.partial(choose, scores), theirs)
        yield Row("growth", f"mask of {size:,} scores", timings, note)
        del scores, theirs


def models(scale: Scale) -> Iterator[Row]:
    """A step of several small networks as one batch of models."""
    model = build("small_cnn", 10, (8, 8, 1))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((64, 8, 8, 1), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, 64))

    def loss_fn(params, model_state):
        logits, _ = model.apply(params, model_state, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def one(params, model_state):
        grads = jax.grad(loss_fn)(params, model_state)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    alone = None
    for count in scale.models:
        states = jax.vmap(model.init)(jax.random.split(jax.random.key(0), count))
        run = ready(jax.jit(jax.vmap(one)), *states)
        timings = in_turns({OURS: run}, scale.effort)
        each = timings[OURS].median / count
        alone = alone or each
        note = f"{1e3 * each:.3g} ms a model, {alone / each:.1f} models in one's time"
        yield Row("models", f"step of {count} small networks at once", timings, note)


Case = Callable[[Scale], Iterator[Row]]
CASES: dict[str, Case] = {
    case.__name__: case
    for case in (mask, bases, dense, step, updates, epoch, growth, models)
}


def scale_of(quick: bool, large: bool, accelerator: bool) -> Scale:
    """How large the cases are: tiny, for a CPU, or for an accelerator.

    Args:
      quick: tiny sizes, one turn each.
      large: let masks grow on CPU as far as on an accelerator.
      accelerator: whether there is one.
    """
    if quick:
        return Scale(
            effort=Effort(1, 1),
            width=4,
            batch=4,
            dense=48,
            rank=4,
            product=64,
            growth=(1000, 4000),
            models=(1, 2),
            half=False,
            unet="tiny",
        )
    growth = (1_000_000, 4_000_000, 11_000_000, 25_000_000)
    if accelerator or large:
        growth += (50_000_000, 100_000_000, 200_000_000)
    return Scale(
        effort=Effort(),
        width=64,
        batch=512 if accelerator else 64,
        dense=2048,
        rank=64,
        product=8192 if accelerator else 0,
        growth=growth,
        models=(1, 2, 4, 8, 16, 32, 64),
        half=accelerator,
        unet="full" if accelerator else None,
    )
