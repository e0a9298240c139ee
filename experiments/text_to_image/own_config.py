"""What a person asks of a pipeline of one's own: the flags."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

import numpy as np

from experiments.engine import cli
from experiments.text_to_image.own_task import METHODS

PROG = "experiments.text_to_image"
CONCEPT = ("concept", "target", "paraphrases", "retain", "images")

_UNREAD = {"flag": None}  # a setting of studies that nothing here reads


@dataclasses.dataclass(frozen=True)
class NoTraining:
    """The original is given: no number of its training is a flag."""


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Forget a concept in a text-to-image pipeline of one's own.

    Examples:
      python -m experiments.text_to_image --pipeline stable-diffusion-v1-4 --concept
        "a photo of a cat" --target "a photo of a dog" --retain "a photo of a car"
      python -m experiments.text_to_image --pipeline stable-diffusion-v1-4 --concepts
        concepts.json --methods salun,esd --precision bfloat16 --remat
    """

    HEADING: ClassVar[str] = "pipeline"
    METHODS: ClassVar = METHODS
    TRAINING: ClassVar = NoTraining

    pipeline: pathlib.Path | None = None
    """Folder of the pipeline, in the diffusers layout: Stable Diffusion 1 or 2."""
    concept: str | None = None
    """Prompt that calls for what is to be forgotten."""
    target: str | None = None
    """Prompt that takes its place."""
    paraphrases: str = ""
    """Other prompts that call for it, commas between: drawn for, never trained on."""
    retain: str = ""
    """Prompts whose pictures are to stay, commas between."""
    images: pathlib.Path | None = None
    """Folder of pictures of the concept, with or without a table of captions; None has
    the pipeline draw them."""
    concepts: pathlib.Path | None = None
    """File of JSON instead of these five, for several concepts or for prompts with
    commas: a list of {"prompts": [], "target": "", "paraphrases": [], "retain": [],
    "images": "folder"}."""
    draw: int = 32
    """Pictures that the pipeline draws of each forgotten and each retained prompt."""
    samples: int = 4
    """Pictures drawn before and after for each prompt, to be compared."""
    size: int | None = None
    """Height and width of the pictures; None is what the U-Net was trained for."""
    guidance: float = 7.5
    """Strength of classifier-free guidance; 1 is none."""
    sampling_steps: int = 50
    """DDIM steps of a drawing."""
    draw_at_once: int = 4
    """Pictures in a batch of drawing."""
    remat: bool = False
    """Compute the insides of the U-Net's blocks again in the gradient, which saves
    memory."""
    save_as: Literal["same", "float32"] = "same"
    """Type of the saved weights; the same as in the given files drops changes that
    half precision cannot hold."""

    dataset: str = dataclasses.field(default="", metadata=_UNREAD)
    augment: bool | None = dataclasses.field(default=None, metadata=_UNREAD)
    memory: float = dataclasses.field(default=4.0, metadata=_UNREAD)
    checkpoint: pathlib.Path | None = dataclasses.field(default=None, metadata=_UNREAD)
    seeds: int = dataclasses.field(default=1, metadata=_UNREAD)
    trainings: int = dataclasses.field(default=0, metadata=_UNREAD)
    minutes: float | None = dataclasses.field(default=None, metadata=_UNREAD)
    workers: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    batch_models: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    coordinator: str | None = dataclasses.field(default=None, metadata=_UNREAD)
    processes: int | None = dataclasses.field(default=None, metadata=_UNREAD)
    process: int | None = dataclasses.field(default=None, metadata=_UNREAD)

    def __post_init__(self):
        super().__post_init__()
        if self.pipeline is None:
            raise cli.ConfigError("Give --pipeline FOLDER, in the diffusers layout.")
        given = [name for name in CONCEPT if getattr(self, name) not in (None, "")]
        if self.concepts is not None and given:
            raise cli.ConfigError(
                f"--{given[0]} stands in the file of --concepts. Leave one of them out."
            )
        if self.concepts is None and not (self.concept or "").strip():
            raise cli.ConfigError(
                "Give --concept PROMPT, which calls for what is to be forgotten, or "
                "--concepts FILE.json."
            )
        for name, least in (("draw", 1), ("samples", 2), ("draw_at_once", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise cli.ConfigError(
                    f"--{flag} {getattr(self, name)}: give at least {least}."
                )
        if not 1 <= self.sampling_steps <= 999:
            raise cli.ConfigError(
                f"--sampling-steps {self.sampling_steps}: give 1 to 999."
            )
        if not np.isfinite(self.guidance):
            raise cli.ConfigError(f"--guidance {self.guidance}: give a finite number.")

    @property
    def together(self) -> bool:
        """One process runs it."""
        return False

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        assert self.pipeline is not None
        what = self.concept or pathlib.Path(self.concepts or "").stem
        parts = ("text-to-image", self.pipeline.resolve().name, what)
        return "-".join("".join(c if c.isalnum() else "_" for c in p) for p in parts)
