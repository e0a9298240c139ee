"""Forget a concept in a text-to-image pipeline of one's own.

``python -m experiments.text_to_image --pipeline FOLDER --concept "…"`` opens a folder
of the diffusers layout, draws (or reads) pictures of the concept and of what is to be
kept, unlearns it by the chosen methods, and leaves a folder for each that diffusers
opens, with pictures before and after, results and a report. Run again it computes what
is missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.diffusion.recipes import resolve
from experiments.engine import cli
from experiments.engine.devices import Devices
from experiments.errors import UserError, say
from experiments.text_to_image import (
    own_concepts,
    own_pictures,
    own_task,
    pipeline,
    sizes,
)
from experiments.text_to_image.own_concepts import Concept, Prompts
from experiments.text_to_image.own_config import PROG, Config, NoTraining
from experiments.text_to_image.own_study import Study


def asked(arguments: Sequence[str]) -> bool:
    """Whether a command line speaks of a pipeline of one's own."""
    return any(word.partition("=")[0] == "--pipeline" for word in arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(Config, unlearn, PROG, arguments)


def unlearn(config: Config) -> None:
    """Runs what is missing of the methods, and leaves folders and a report."""
    concepts = asked_for(config)
    numbers = resolve(config.changes, NoTraining(), own_task.recipes())
    names = able(config, numbers, Prompts(concepts))
    devices = Devices.choose(config.devices, config.shard_parameters)
    half = jnp.bfloat16 if config.precision == "bfloat16" else None
    assert config.pipeline is not None
    model = pipeline.load(config.pipeline, dtype=half, remat=config.remat)
    size = picture_size(config, model)
    try:
        Study(config, model, concepts, size, devices).run(names, numbers)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(memory_hint(model)) from error
        raise


def asked_for(config: Config) -> list[Concept]:
    """The concepts that the flags or their file name, with captions of pictures."""
    if config.concepts is not None:
        concepts = own_concepts.read(config.concepts)
    else:
        assert config.concept is not None
        concepts = [
            Concept(
                (config.concept.strip(),),
                config.target,
                own_concepts.listed(config.paraphrases),
                own_concepts.listed(config.retain),
                config.images,
            )
        ]
    found = []
    for concept in concepts:
        pictures = own_pictures.captions(concept.images) if concept.images else []
        texts = tuple(text for _, text in pictures if text)
        found.append(concept._replace(captions=texts))
    return found


def able(config: Config, numbers: Mapping[str, Any], prompts: Prompts) -> list[str]:
    """The methods to run: those asked for, or all whose needs are met.

    Raises:
      ConfigError: one that was asked for lacks something, or none is left.
    """
    names, reasons = cli.chosen(config), {}
    for name in names:
        if why := own_task.unmet(name, numbers[name], prompts):
            reasons[name] = f"--methods {name}: {why}."
    if reasons and config.methods not in ("usual", "all"):
        raise cli.ConfigError(next(iter(reasons.values())))
    for why in reasons.values():
        say(f"{PROG}: left out, {why}")
    return [name for name in names if name not in reasons]


def picture_size(config: Config, model: pipeline.Pipeline) -> int:
    """Height and width of the pictures.

    Raises:
      ConfigError: the networks' levels do not divide it.
    """
    size = config.size or model.factor * model.sample_size
    unit = model.factor * model.halvings
    if size < unit or size % unit:
        raise cli.ConfigError(
            f"--size {size}: give a multiple of {unit}, which the networks divide."
        )
    return size


def memory_hint(model: Any) -> str:
    """What training takes, in a line."""
    table = sizes.memory(model.shapes["unet"])
    full, cores = (table[name]["total"] / 1e9 for name in ("full", "cores"))
    return (
        f"There is not enough memory. Training this U-Net takes {full:.2f} GB and "
        f"activations, SEMU's cores {cores:.2f} GB. Give --remat, --precision "
        "bfloat16, a smaller --recipe.batch-size, --draw-at-once or --size, or several "
        "devices with --shard-parameters; what was finished is kept."
    )


if __name__ == "__main__":
    cli.leave(main())
