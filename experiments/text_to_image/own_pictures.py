"""Pictures of a concept as latents: drawn by the pipeline itself, or of a folder.

What was drawn or encoded once is kept in a file that is named by all it depends on:
weights, prompt, size, sampler. The next study, and the next method, read it.
"""

import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps

from experiments.data.captions import TABLES, rows
from experiments.data.dataset import DataError, reading
from experiments.diffusion import generation
from experiments.engine import study
from experiments.engine.devices import ONE, Devices
from experiments.engine.loop import DivergedError
from experiments.files import write_npz
from experiments.text_to_image.pipeline import Networks, Params

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Artist:
    """Draws for prompts by number, and goes from pictures to latents and back.

    Args:
      model: the pipeline's networks.
      params: its parameters; the autoencoder's are read.
      states: of all prompts, (P, L, D).
      null: number of the empty prompt.
      size: height and width of a picture.
      steps: DDIM steps.
      guidance: as Stable Diffusion counts it, 1 for none.
      at_once: pictures in a batch.
      devices: each draws its part of a batch.
    """

    def __init__(
        self,
        model: Networks,
        params: Params,
        states: np.ndarray,
        null: int,
        *,
        size: int,
        steps: int,
        guidance: float,
        at_once: int,
        devices: Devices = ONE,
    ):
        self.size, self._at_once = size, at_once
        self._shape = (size // model.factor, size // model.factor, 4)
        vae = devices.everywhere({"vae": params["vae"]})
        self._vae, self._devices = jax.tree.map(jnp.asarray, vae), devices

        @jax.jit
        def draw(unet, numbers, start):
            numbers, start = devices.split((numbers, start))
            x = model.draw(
                {"unet": unet},
                jnp.asarray(states)[numbers],
                jnp.asarray(states[null : null + 1]),
                start,
                steps=steps,
                guidance=guidance,
            )
            return devices.everywhere((x, jnp.isfinite(x).all()))

        @jax.jit
        def decode(vae, latents):
            images = model.decode(vae, devices.split(latents) / model.scaling)
            return devices.everywhere(generation.to_images(images))

        @jax.jit
        def encode(vae, images):
            mean, _ = model.encode(vae, generation.to_signal(devices.split(images)))
            return devices.everywhere(mean * model.scaling)

        self._draw, self._decode, self._encode = draw, decode, encode

    def draw(self, unet: Any, numbers: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Latents, as the U-Net sees them, of prompts (N,) from noise (N, h, w, 4).

        Raises:
          DivergedError: what the U-Net answers is not finite.
        """
        here = jax.tree.map(jnp.asarray, self._devices.place(unet))

        def one(numbers, start):
            latents, finite = self._draw(here, numbers, start)
            if not finite:
                raise DivergedError("The drawn latents are no longer finite.")
            return latents

        return self._batches(one, np.asarray(numbers, np.int32), start)

    def noise(self, name: str, count: int) -> np.ndarray:
        """Noise to start from, (count, h, w, 4); more begins like less."""
        key = study.random_key(name, 0)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))
        draw = jax.vmap(lambda key: jax.random.normal(key, self._shape))
        return np.asarray(draw(keys(jnp.arange(count))))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures, uint8, of latents."""
        return self._batches(functools.partial(self._decode, self._vae), latents)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents of pictures: the mean that the autoencoder gives, one for each."""
        return self._batches(functools.partial(self._encode, self._vae), images)

    def _batches(self, function: Callable, *arrays: np.ndarray) -> np.ndarray:
        """A function of batches of one size, the last one filled up."""
        size, found = self._at_once, []
        for start in range(0, len(arrays[0]), size):
            parts = [array[start : start + size] for array in arrays]
            count = len(parts[0])
            full = [np.resize(part, (size, *part.shape[1:])) for part in parts]
            found.append(np.asarray(function(*full))[:count])
        return np.concatenate(found)


def kept(folder: pathlib.Path, identity: Any, make: Callable[[], np.ndarray]):
    """Latents of a file that is named by what they depend on; made if it is not there.

    A damaged file is made anew.
    """
    name = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
    path = folder / f"{name}.npz"
    try:
        # Opened here: np.load leaves the file open where the archive is damaged.
        with path.open("rb") as file, np.load(file) as data:
            return data["latents"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        latents = make()
        write_npz(path, {"latents": latents})
        return latents


def captions(folder: pathlib.Path) -> list[tuple[pathlib.Path, str | None]]:
    """The pictures of a folder, each with its caption where there is a table of them.

    Raises:
      DataError: there is no such folder, no picture in it, or a line of the table is
        not a file's name and a text.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give one of pictures.")
    table = next((folder / name for name in TABLES if (folder / name).exists()), None)
    found: list[tuple[pathlib.Path, str | None]] = []
    if table is None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        found = [(path, None) for path in paths]
    else:
        for place, row in rows(table):
            name, text = row.get("file_name"), row.get("text")
            if not (isinstance(name, str) and isinstance(text, str) and text.strip()):
                raise DataError(f"{place} holds no file_name and text. Mend it.")
            found.append((folder / name, text.strip()))
    if not found:
        raise DataError(
            f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}). Put some into "
            "it, or leave it out: the pipeline then draws them itself."
        )
    return found


def load(paths: Sequence[pathlib.Path], size: int) -> np.ndarray:
    """Pictures as uint8 (N, size, size, 3): the middle, as large as it goes.

    Raises:
      DataError: one cannot be read.
    """
    images = []
    for path in paths:
        with reading(f"The image {path}", "Mend or remove it."):
            with PIL.Image.open(path) as image:
                upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
            bicubic = PIL.Image.Resampling.BICUBIC
            images.append(np.asarray(PIL.ImageOps.fit(upright, (size, size), bicubic)))
    return np.stack(images)
