"""The small pipeline's command line, and the pictures that it names."""

import dataclasses
import re
from typing import ClassVar

from experiments.data import captions, emoji
from experiments.data.captions import Captioned
from experiments.diffusion.optimisation import Optimisation
from experiments.engine import cli
from experiments.text_to_image.methods import METHODS

SCHEDULE_STEPS = 1000
PARTS = {"attn2": True, "not-attn2": False}  # inside of cross-attention or outside


@dataclasses.dataclass(frozen=True)
class Config(cli.StudyConfig):
    """Forget a concept in a text-to-image model, beside Retrain.

    Examples:
      python -m experiments.text_to_image
      python -m experiments.text_to_image --forget "line" --methods salun,semu --seeds 1
      python -m experiments.text_to_image --subjects "bomb,dagger,rose,key" --forget
        "bomb,dagger" --target rose
      python -m experiments.text_to_image --dataset folder:pictures --forget "red car"
      python -m experiments.text_to_image --pipeline FOLDER --help
    """

    HEADING: ClassVar[str] = "text_to_image"
    METHODS: ClassVar = METHODS
    TRAINING: ClassVar = Optimisation

    dataset: str = "emoji"
    """Pictures: emoji, or folder:PATH for images with a table of captions beside them
    (metadata.jsonl, captions.jsonl or metadata.csv: file_name, text)."""
    augment: bool | None = None
    """Learn from pictures moved by a pixel, too; None does not, for it takes longer."""
    seeds: int = 3
    """Number of seeds, from 0."""
    trainings: int = 1
    """Trainings of the original and of each Retrain; 0 redoes them for every seed."""
    forget: str = "cat face"
    """Words of the captions to forget: a thing or a style; several, commas between."""
    target: str | None = None
    """Words of the captions that take its place; None takes those that share most
    words with the forgotten ones."""
    subjects: str = "usual"
    """Emoji to learn: usual, all (for an accelerator), or names with commas between."""
    size: int = 32
    """Height and width of the pictures, a multiple of 8."""
    channels: int = 16
    """Channels of a latent."""
    widths: str = "32,64"
    """Channels of the U-Net's levels, multiples of 16 with commas between."""
    trainable: str = "full"
    """Weights of the U-Net that methods may move: full, attn2 (cross-attention),
    not-attn2, or a regular expression that their names are searched for."""
    guidance: float = 2.0
    """Strength of classifier-free guidance when drawing; Stable Diffusion counts one
    more."""
    sampling_steps: int = 12
    """DDIM steps of a drawing."""
    samples: int = 3
    """Pictures drawn for each remaining prompt."""
    forgotten_samples: int = 16
    """Pictures drawn for each forgotten prompt, and for each of its paraphrases half as
    many."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("samples", "forgotten_samples"):
            if getattr(self, name) < 2:
                flag = name.replace("_", "-")
                raise cli.ConfigError(
                    f"--{flag} {getattr(self, name)}: give at least 2."
                )
        if not 1 <= self.sampling_steps <= SCHEDULE_STEPS:
            raise cli.ConfigError(
                f"--sampling-steps {self.sampling_steps}: give 1 to {SCHEDULE_STEPS}."
            )
        halved = 4 * 2 ** (len(self.levels) - 1)
        if self.size < halved or self.size % halved:
            raise cli.ConfigError(
                f"--size {self.size}: give a multiple of {halved}, which patches and "
                "the U-Net's levels divide."
            )
        if self.channels < 1:
            raise cli.ConfigError(f"--channels {self.channels}: give at least 1.")
        try:
            self.moves("")
        except re.error as error:
            raise cli.ConfigError(
                f"--trainable {self.trainable!r}: {error}; give full, attn2, not-attn2 "
                "or a regular expression."
            ) from None

    @property
    def task(self) -> str:
        """Name of the task, for the default folder."""
        parts = ("text-to-image", self.dataset, self.forget)
        return "-".join("".join(c if c.isalnum() else "_" for c in p) for p in parts)

    def moves(self, name: str) -> bool:
        """Whether methods may move a weight, by its name of ``roles.leaf_names``."""
        if self.trainable == "full":
            return True
        if self.trainable in PARTS:
            inside = "attn2" in name.split("/")
            return inside == PARTS[self.trainable]
        return re.search(self.trainable, name) is not None

    @property
    def levels(self) -> list[int]:
        """The widths as numbers."""
        parts = [part.strip() for part in self.widths.split(",")]
        levels = [int(part) if part.isdecimal() else 0 for part in parts]
        if any(level < 16 or level % 16 for level in levels):
            raise cli.ConfigError(
                f"--widths {self.widths}: give multiples of 16 with commas between."
            )
        return levels


def load_pictures(config: Config) -> Captioned:
    """The pictures that the flags name."""
    kind, _, path = config.dataset.partition(":")
    if kind == "folder" and path:
        if config.subjects != "usual":
            raise cli.ConfigError(
                f"--subjects {config.subjects}: a folder has its own. Leave it out."
            )
        return captions.read_folder(path, config.size)
    if config.dataset != "emoji":
        raise cli.ConfigError(
            f"--dataset {config.dataset!r}: give emoji, or folder:PATH for images with "
            "a table of captions beside them."
        )
    if config.subjects == "usual":
        return emoji.load(size=config.size)
    if config.subjects == "all":
        return emoji.load_all(config.size)
    subjects = [name.strip().lower() for name in config.subjects.split(",")]
    return emoji.load(subjects, config.size)
