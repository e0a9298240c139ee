"""Forget a concept in a text-to-image model, beside Retrain.

``python -m experiments.text_to_image`` trains a small latent pipeline on emoji in three
styles and two Retrains that never saw the concept, unlearns it by every method, draws
for the forgotten prompts, for paraphrases of them and for the others, and leaves a
folder with results, image grids, checkpoints and a report. Run again it computes what
is missing; trained models are kept for other studies. With ``--pipeline FOLDER`` it
unlearns in a pipeline of one's own; see ``own``.
"""

import sys
from collections.abc import Sequence

from experiments.diffusion.recipes import resolve
from experiments.engine import bench, cli
from experiments.text_to_image import concept, own, recipes
from experiments.text_to_image.config import Config, load_pictures
from experiments.text_to_image.task import TextToImage


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if own.asked(arguments):
        return own.main(arguments)
    return cli.main(Config, unlearn, "experiments.text_to_image", arguments)


def unlearn(config: Config) -> None:
    """Runs the study that a configuration describes, or what of it is missing."""
    chosen = cli.chosen(config)
    pictures = load_pictures(config)
    wanted = concept.concept(pictures, config.forget, config.target)
    numbers = resolve(config.changes, recipes.TRAINING, recipes.own())
    task = TextToImage(config, pictures, wanted)
    bench.run_study("experiments.text_to_image", config, task, numbers, chosen)


if __name__ == "__main__":
    cli.leave(main())
