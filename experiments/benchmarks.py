"""How long the library's heavy pieces take on this machine, after compilation.

``python -m experiments.benchmarks`` prints a table: the exact global mask and the
singular bases of a ResNet-18, and an unlearning step of the small network. Times are
the least of several repetitions, which is what an idle machine would show.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import rich
import rich.table

from experiments import data
from experiments.classification import evaluation
from experiments.engine import cli, loop
from experiments.models import build
from mujax import correction, methods, saliency, subspace


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the library's heavy pieces on this machine.

    Examples:
      python -m experiments.benchmarks
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, measure, "experiments.benchmarks", arguments)


def measure(config: Config) -> None:
    """Measures and prints."""
    del config
    model = build("resnet18", 10, (32, 32, 3))
    params, _ = model.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    grads = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
    scores = jax.tree.map(jnp.abs, grads)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    correct = jax.jit(
        lambda r, f: correction.correct(r, f, threshold=0.0, forget_weight=1.0)
    )
    table = rich.table.Table("What", "Milliseconds", title=str(jax.devices()[0]))
    for what, run in (
        (
            f"top half of {count:,} scores, exactly",
            lambda: saliency.top_fraction_mask(scores, 0.5),
        ),
        (
            "singular bases of all ResNet-18 kernels",
            lambda: subspace.svd_bases(grads, 0.95),
        ),
        ("corrected gradient of ResNet-18", lambda: correct(grads, scores)),
        ("epoch of SalUn, digits, small_cnn", salun_epoch()),
    ):
        table.add_row(what, f"{1000 * least(run):.1f}")
    rich.print(table)


def salun_epoch() -> Callable[[], Any]:
    """An epoch of SalUn on the digits as one compiled scan."""
    digits = data.load("digits")
    split = data.random_split(digits, 0.1, 0)
    model = build("small_cnn", digits.num_classes, digits.input_shape)
    losses = evaluation.cross_entropy_losses(model, digits)
    feed = loop.Feed(
        {
            "image": jnp.asarray(digits.train_images),
            "label": jnp.asarray(digits.train_labels),
        },
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

    return run


def least(run: Callable[[], Any], repetitions: int = 7) -> float:
    """Seconds of the fastest repetition; the first call compiles and does not count."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    cli.leave(main())
