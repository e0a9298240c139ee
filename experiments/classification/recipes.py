"""How each method is built, and with which numbers, for each task.

``METHODS`` says how a method is made of a :class:`Recipe`; the files in ``configs``
hold the numbers that a search against a validation Retrain found for each task, beside
the gap that they reached there (``python -m experiments.tune``). A method without a
searched recipe takes ``Recipe``'s defaults, which are close to the published ones.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import optax

from experiments.reporting.report import MethodNote
from mujax import methods


class RecipeError(ValueError):
    """A file of recipes that cannot be read; the message says what to do."""


Difficulty = Literal[
    "confidence", "el2n", "loss", "gradient_norm", "gradient_alignment", "random"
]


def field(default: Any, text: str) -> Any:
    """A field with the help text of its flag."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of one unlearning run; a method reads those that it has a use for."""

    learning_rate: float = field(0.01, "Peak learning rate.")
    epochs: int = field(10, "Epochs, in each curriculum stage.")
    batch_size: int = field(64, "Examples a step.")
    momentum: float = field(0.9, "Momentum of SGD.")
    weight_decay: float = field(5e-4, "Weight decay, coupled as in SGD.")
    cosine: bool = field(
        False,
        "Let the learning rate fall to zero along a cosine.",
    )
    density: float = field(0.5, "SalUn: share of the parameters that may move.")
    exclude_true: bool = field(True, "Relabelling: draw from the other labels only.")
    joint: bool = field(
        False,
        "Relabelling: shuffle forget and retain examples together.",
    )
    retain_share: float = field(0.95, "NegGrad+: weight of the retain loss.")
    energy: float = field(
        0.95,
        "SEMU: share of the squared singular values that the bases reach.",
    )
    rank: int = field(
        0,
        "SEMU: fixed rank of every kernel; 0 takes it from the energy.",
    )
    orthogonal: bool = field(
        True,
        "SEMU: remove the direction of the weights from the gradient first.",
    )
    threshold: float = field(0.45, "UFG: cosine above which the corrector fires.")
    threshold_fall: float = field(
        0.05,
        "UFG: how much the threshold falls every ten epochs.",
    )
    forget_weight: float = field(
        1.0,
        "UFG: weight of the forgetting direction at the start.",
    )
    forget_decay: float = field(0.9, "UFG: factor on that weight every epoch.")
    sampled: bool = field(
        False,
        "UFG: take the forgetting gradient of a batch, not of the whole forget set.",
    )
    stages: int = field(3, "CUFG: number of curriculum stages.")
    difficulty: Difficulty = field("confidence", "CUFG: stages by this.")  # noqa: RUF009


class Losses(NamedTuple):
    """The model's loss in its two modes, each a ``mujax.methods.LossFn``."""

    train: methods.LossFn
    evaluation: methods.LossFn


Build = Callable[[Recipe, Losses, int], methods.Method]
"""``(recipe, losses, steps per epoch) -> method``."""


def sgd(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay."""
    rate: optax.ScalarOrSchedule = recipe.learning_rate
    if recipe.cosine:
        rate = optax.cosine_decay_schedule(recipe.learning_rate, max(steps, 1))
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(rate, momentum=recipe.momentum),
    )


def retrain(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """Training anew, of Retrain and of the original model."""
    return methods.retrain(losses.train, sgd(recipe, steps * recipe.epochs))


def _finetune(recipe, losses, steps):
    return methods.finetune(losses.train, sgd(recipe, steps * recipe.epochs))


def _gradient_ascent(recipe, losses, steps):
    return methods.gradient_ascent(losses.train, sgd(recipe, steps * recipe.epochs))


def _neggrad_plus(recipe, losses, steps):
    optimizer = sgd(recipe, steps * recipe.epochs)
    return methods.neggrad_plus(
        losses.train, optimizer, retain_share=recipe.retain_share
    )


def _relabelling(recipe, losses, steps, *, method, **options):
    return method(
        losses.train,
        sgd(recipe, steps * recipe.epochs),
        exclude_true=recipe.exclude_true,
        joint=recipe.joint,
        **options,
    )


def _salun(recipe, losses, steps, **options):
    return _relabelling(
        recipe,
        losses,
        steps,
        method=methods.salun,
        fraction=recipe.density,
        eval_loss_fn=losses.evaluation,
        **options,
    )


def _salun_soft(recipe, losses, steps):
    return _relabelling(
        recipe,
        losses,
        steps,
        method=methods.salun_soft,
        fraction=recipe.density,
        total_steps=steps * recipe.epochs,
    )


def _semu(recipe, losses, steps, *, method):
    return method(
        losses.train,
        sgd(recipe, steps * recipe.epochs),
        energy=recipe.energy,
        orthogonal=recipe.orthogonal,
        eval_loss_fn=losses.evaluation,
        rank=recipe.rank or None,
    )


def _ufg(recipe, losses, steps, *, method, **options):
    stages = options.get("stages", 1)

    def threshold(step):
        return recipe.threshold - recipe.threshold_fall * (step // (10 * steps))

    return method(
        losses.train,
        sgd(recipe, steps * recipe.epochs * stages),
        threshold=threshold,
        forget_weight=optax.exponential_decay(
            recipe.forget_weight, steps, recipe.forget_decay, staircase=True
        ),
        eval_loss_fn=losses.evaluation,
        sampled=recipe.sampled,
        microbatch_size=None if recipe.sampled else 512,
        **options,
    )


def _cufg(recipe, losses, steps):
    return _ufg(recipe, losses, steps, method=methods.cufg, stages=recipe.stages)


BASELINES: dict[str, Build] = dict.fromkeys(
    ("retrain", "retrain_again", "original"), retrain
)

METHODS: dict[str, Build] = {
    "finetune": _finetune,
    "gradient_ascent": _gradient_ascent,
    "random_label": functools.partial(_relabelling, method=methods.random_label),
    "neggrad_plus": _neggrad_plus,
    "salun": _salun,
    "salun_soft": _salun_soft,
    "semu": functools.partial(_semu, method=methods.semu),
    "semu_retain": functools.partial(_semu, method=methods.semu_retain),
    "ufg": functools.partial(_ufg, method=methods.ufg),
    "cufg": _cufg,
}

NOTES: Mapping[str, MethodNote] = {
    "original": MethodNote(
        "Original", "", "The model trained on everything, before unlearning."
    ),
    "retrain": MethodNote(
        "Retrain", "", "Trained anew without the forget set: exact unlearning."
    ),
    "retrain_again": MethodNote(
        "Retrain again",
        "",
        "A second, independent Retrain: its gap to the first is the noise floor.",
    ),
    "finetune": MethodNote(
        "FT", "arXiv:2108.11577", "Goes on training on the retain set."
    ),
    "gradient_ascent": MethodNote(
        "GA", "arXiv:2109.13398", "Ascends the loss of the forget set."
    ),
    "random_label": MethodNote(
        "RL", "arXiv:1911.04933", "Trains on random labels for the forget set."
    ),
    "neggrad_plus": MethodNote(
        "NegGrad+",
        "arXiv:2302.09880",
        "Descends the retain and ascends the forget loss.",
    ),
    "salun": MethodNote(
        "SalUn", "arXiv:2310.12508", "RL on the weights most salient to the forget set."
    ),
    "salun_soft": MethodNote(
        "SalUn-soft",
        "arXiv:2310.12508",
        "RL that pulls the weights that moved least back to the original.",
    ),
    "semu": MethodNote(
        "SEMU",
        "arXiv:2502.07587",
        "Trains a small core of the forget gradient's singular directions, without "
        "retain data.",
    ),
    "semu_retain": MethodNote(
        "SEMU-retain", "arXiv:2502.07587", "SEMU with the retain set beside."
    ),
    "ufg": MethodNote(
        "UFG", "arXiv:2509.14633", "Retain steps corrected by the forgetting gradient."
    ),
    "cufg": MethodNote(
        "CUFG", "arXiv:2509.14633", "UFG under an easy-to-hard curriculum."
    ),
}

TRAINING: Mapping[str, Recipe] = {
    "digits": Recipe(
        learning_rate=0.1, epochs=30, batch_size=64, weight_decay=5e-4, cosine=True
    ),
    "fashion_mnist": Recipe(
        learning_rate=0.2, epochs=12, batch_size=128, weight_decay=5e-4, cosine=True
    ),
}
"""Recipe of the original model and of Retrain, by data set."""

DEFAULT_TRAINING = Recipe(
    learning_rate=0.1, epochs=182, batch_size=256, weight_decay=5e-4, cosine=True
)

CONFIGS = pathlib.Path(__file__).parent / "configs"
"""Searched recipes, one file a task; ``python -m experiments.tune`` writes them."""


def searched(task: str, path: pathlib.Path | None = None) -> dict[str, Recipe]:
    """The recipe of every method: the searched one, or the defaults.

    Args:
      task: name of a file in ``configs``, which need not exist.
      path: a file of recipes to take instead, which must.

    Raises:
      RecipeError: the file is not one of recipes.
    """
    found: dict[str, Recipe] = {name: Recipe() for name in METHODS}
    source = path or {file.stem: file for file in CONFIGS.glob("*.json")}.get(task)
    if source is None:
        return found
    try:
        entries = json.loads(source.read_text())
        return found | {name: Recipe(**e["recipe"]) for name, e in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(
            f"{source} is not a file of recipes ({error}). Give one that "
            "experiments.tune wrote."
        ) from error
