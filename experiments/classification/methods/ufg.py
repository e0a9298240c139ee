"""UFG: retain steps corrected by the forgetting gradient."""

import dataclasses
from typing import Any

from experiments.classification import optimisation
from experiments.classification.optimisation import Losses, Optimisation, Trial
from experiments.engine.recipes import FINITE, NOT_NEGATIVE, SWITCH, field
from experiments.reporting.report import MethodNote
from mujax import methods

NOTE = MethodNote(
    "UFG", "arXiv:2509.14633", "Retain steps corrected by the forgetting gradient."
)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimisation):
    """Numbers of UFG."""

    threshold: float = field(0.45, "Cosine above which the corrector fires.", FINITE)
    threshold_fall: float = field(
        0.05, "How much the threshold falls every ten epochs.", FINITE
    )
    forget_weight: float = field(
        1.0, "Weight of the forgetting direction at the start.", NOT_NEGATIVE
    )
    forget_decay: float = field(0.9, "Factor on that weight every epoch.", FINITE)
    sampled: bool = field(
        False,
        "Take the forgetting gradient of a batch, not of the whole forget set.",
        SWITCH,
    )

    def corrector(self, losses: Losses, epoch_steps: int) -> dict[str, Any]:
        """The options of ``mujax.methods.ufg`` that these numbers stand for."""

        def threshold(step):
            return self.threshold - self.threshold_fall * (step // (10 * epoch_steps))

        def forget_weight(step):
            return self.forget_weight * self.forget_decay ** (step // epoch_steps)

        return dict(
            threshold=threshold,
            forget_weight=forget_weight,
            eval_loss_fn=losses.evaluation,
            sampled=self.sampled,
            microbatch_size=None if self.sampled else 512,
        )


def build(recipe: Recipe, losses: Losses, steps: int) -> methods.Method:
    """The method; ``steps`` are those of an epoch."""
    return methods.ufg(
        losses.train, recipe.sgd(steps), **recipe.corrector(losses, steps)
    )


def suggest(trial: Trial, epochs: int) -> dict[str, Any]:
    """Numbers to try, with runs of at most so many epochs."""
    return optimisation.suggest(trial, epochs, 1e-4, 0.1) | {
        "threshold": trial.suggest_float("threshold", -1.0, 0.45),
        "forget_weight": trial.suggest_float("forget_weight", 0.01, 2.0, log=True),
        "forget_decay": trial.suggest_float("forget_decay", 0.5, 1.0),
    }
