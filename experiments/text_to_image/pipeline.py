"""A text-to-image pipeline as pure functions, from a folder and back into one.

``load(folder)`` opens a folder of the diffusers layout and gives ``params``, a
dictionary of three trees (``text_encoder``, ``unet``, ``vae``), and pure functions on
them; each reads only its own tree, so ``{"unet": tree}`` is enough for ``predict``.
Images and latents are NHWC. Everything may be jitted, differentiated and sharded.
"""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.engine.formats import first_line
from experiments.models.border import ModelError, flatten
from experiments.text_to_image import tokenizer, weights
from experiments.text_to_image.autoencoder import Autoencoder
from experiments.text_to_image.layers import Keys, Make, need
from experiments.text_to_image.text_encoder import TextEncoder
from experiments.text_to_image.unet import UNet
from mujax import diffusion

Params = dict[str, Any]

STEMS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_SCHEDULES = {
    "scaled_linear": diffusion.scaled_linear_schedule,
    "linear": diffusion.linear_schedule,
}
_ONE_AT_THE_END = {"DDIMScheduler"}  # whose files may leave set_alpha_to_one out


class Networks:
    """The three networks and the schedule of a pipeline, as pure functions.

    Args:
      configs: The settings of ``text_encoder/config.json``, ``unet/config.json``,
        ``vae/config.json`` and ``scheduler/scheduler_config.json``, by the folder's
        name.
      dtype: Of the computation of U-Net and text encoder, such as ``jnp.bfloat16``;
        the autoencoder computes in float32.
      remat: Whether a gradient computes the U-Net's blocks again; see ``UNet``.
      convolve: What convolves in the U-Net; see ``experiments.models.convolution``.

    Attributes:
      shapes: The parameters' shapes, a dictionary of three trees.
      schedule: The noise schedule.
      prediction: What the U-Net answers, ``"epsilon"`` or ``"v_prediction"``.
      scaling: Latents as the U-Net sees them are the autoencoder's times this.
      factor: Pixels of an image along a side of one of its latents.
      length: L, tokens of a prompt.
      sample_size: Height and width of the latents that the U-Net was trained for.
      halvings: What divides height and width of latents.

    Raises:
      ModelError: For settings that are not built here, or that do not fit together.
    """

    def __init__(
        self,
        configs: Mapping[str, Mapping[str, Any]],
        *,
        dtype: jax.typing.DTypeLike | None = None,
        remat: bool = False,
        convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
    ):
        def text_encoder(rngs):
            return TextEncoder(configs["text_encoder"], Make(rngs, dtype))

        def unet(rngs):
            return UNet(configs["unet"], Make(rngs, dtype, convolve), remat)

        def vae(rngs):
            return Autoencoder(configs["vae"], Make(rngs))

        self._make = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
        self._graphs, self.shapes = {}, {}
        for name, make in self._make.items():
            skeleton = _skeleton(name, make)
            graph, state = nnx.split(skeleton, nnx.Param)
            self._graphs[name] = graph
            self.shapes[name] = nnx.to_pure_dict(state)
        scheduler = configs["scheduler"]
        self.schedule, self.prediction, self._last_alpha = _schedule(scheduler)
        self.scaling = configs["vae"].get("scaling_factor") or 0.18215
        self.factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        self.length = configs["text_encoder"]["max_position_embeddings"]
        self.sample_size = configs["unet"].get("sample_size") or 64
        self.halvings = 2 ** (len(configs["unet"]["block_out_channels"]) - 1)
        _check_fit(configs)

    def init(self, key: jax.Array) -> Params:
        """Random parameters, equal for equal keys."""
        keys = jax.random.split(key, len(self._make))
        return {
            name: nnx.to_pure_dict(nnx.state(make(Keys(own)), nnx.Param))
            for own, (name, make) in zip(keys, self._make.items(), strict=True)
        }

    def text(self, params: Params, tokens: jax.typing.ArrayLike) -> jax.Array:
        """States (P, L, D), float32, of tokens, int (P, L)."""
        states = self._module("text_encoder", params)(jnp.asarray(tokens))
        return states.astype(jnp.float32)

    def predict(
        self, params: Params, x: jax.Array, t: jax.Array, context: jax.Array
    ) -> jax.Array:
        """What the U-Net answers: noise, or velocity.

        Args:
          params: The parameters; ``unet`` is read.
          x: Noised latents, (N, h, w, 4).
          t: Steps, (N,).
          context: States of N prompts, (N, L, D).

        Returns:
          (N, h, w, 4), of the dtype of ``x``.
        """
        return self._module("unet", params)(x, t, context)

    def predict_with_maps(
        self, params: Params, x: jax.Array, t: jax.Array, context: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """:meth:`predict`, and the probabilities of each attention to the prompt.

        These are (N, heads, pixels, L), from the first layer to the last.
        """
        maps: list[jax.Array] = []
        answer = self._module("unet", params)(x, t, context, maps)
        return answer, maps

    def encode(self, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance (N, h, w, 4) of images (N, H, W, 3) in [-1, 1]."""
        return self._module("vae", params).encode(images)

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Images (N, H, W, 3) of latents (N, h, w, 4), not scaled.

        What the U-Net sees and :meth:`draw` returns is to be divided by ``scaling``.
        """
        return self._module("vae", params).decode(latents)

    def draw(
        self,
        params: Params,
        context: jax.Array,
        null_context: jax.Array,
        start: jax.Array,
        *,
        steps: int,
        guidance: float | jax.Array = 7.5,
        method: Literal["ddim", "plms"] = "ddim",
    ) -> jax.Array:
        r"""Draws latents for prompts, with classifier-free guidance.

        .. math:: \hat\epsilon = \epsilon_\varnothing
           + s\, (\epsilon_c - \epsilon_\varnothing)

        Args:
          params: The parameters; ``unet`` is read.
          context: States of N prompts, (N, L, D).
          null_context: States of the empty prompt, of that shape or (1, L, D).
          start: Standard normal noise, (N, h, w, 4).
          steps: Steps to take, 1 to 999; PLMS asks the network once more.
          guidance: s, as Stable Diffusion counts it: 1 is none. It is 1 + w for
            :func:`mujax.diffusion.guided`.
          method: The sampler.

        Returns:
          Latents as the U-Net sees them, (N, h, w, 4): divide them by ``scaling`` for
          :meth:`decode`.

        Raises:
          ModelError: Another method, or prompts and noise of different numbers.
          ValueError: Steps that the schedule has not.
        """
        if method not in ("ddim", "plms"):
            raise ModelError(f"Got method {method!r}; give 'ddim' or 'plms'.")
        if len(context) != len(start):
            raise ModelError(
                f"Got states of {len(context)} prompts and noise for {len(start)} "
                "latents; give as many of each."
            )

        def guided(params, x, t, conditions):
            own, none = (self.predict(params, x, t, c) for c in conditions)
            return none + guidance * (own - none)

        null = jnp.broadcast_to(null_context, context.shape)
        visited = diffusion.leading_steps(self.schedule, steps)
        # Where a stride is one step, the one before the first visited is step 0.
        strided = self.schedule.num_steps // steps > 1
        first = self.schedule.alphas_cumprod[0]
        options: dict[str, Any] = dict(
            steps=visited,
            last_alpha=self._last_alpha if self._last_alpha and strided else first,
            start=start,
        )
        shared = params, self.schedule, jax.random.key(0), (context, null), start.shape
        velocity = self.prediction == "v_prediction"
        if method == "plms":
            if velocity:
                to_noise = functools.partial(diffusion.noise_of_velocity, self.schedule)
                options["to_noise"] = to_noise
            return diffusion.plms_sample(guided, *shared, **options)
        noise = diffusion.from_velocity(guided, self.schedule) if velocity else guided
        return diffusion.ddim_sample(noise, *shared, **options)

    def _module(self, name: str, params: Params) -> Any:
        """A network with its parameters in it."""
        if name not in params:
            raise ModelError(f"Got parameters without {name!r}; give that tree, too.")
        wanted, leaves = flatten(self.shapes[name]), flatten(params[name])
        if wanted.keys() != leaves.keys():
            [first, *_] = sorted(wanted.keys() ^ leaves.keys())
            verb = "lack" if first in wanted else "have an unknown"
            raise ModelError(
                f"The parameters of {name} {verb} {'.'.join(first)}; give those of "
                "this pipeline."
            )
        tree = jax.tree.unflatten(
            jax.tree.structure(self.shapes[name]), [leaves[path] for path in wanted]
        )
        return nnx.merge(self._graphs[name], tree)


class Pipeline(Networks):
    """A pipeline with its parameters and its tokenizer; see :func:`load`.

    Attributes:
      params: A dictionary of three trees, float32.
      tokens: ``tokens(prompts) -> int32 (P, L)``.
    """

    def __init__(self, folder: pathlib.Path, **options: Any):
        self._folder = folder
        configs = _read_configs(folder)
        super().__init__(configs, **options)
        self.tokens: tokenizer.Tokens = tokenizer.load(
            folder / "tokenizer", self.length, configs["text_encoder"]["vocab_size"]
        )
        self.params: Params = {}
        self._files: dict[str, weights.Files] = {}
        for name, stem in STEMS.items():
            self.params[name], self._files[name] = weights.read(
                folder / name, stem, self.shapes[name]
            )

    def save(
        self,
        folder: str | os.PathLike,
        params: Params,
        *,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> None:
        """Writes a folder like the one that was loaded, with other parameters.

        Settings, tokenizer and what else the pipeline has are copied; of the three
        networks only the files that were read are written, so that no other file keeps
        the old weights. The folder appears whole or not at all.

        Args:
          folder: Where; it must not be there.
          params: The dictionary of three trees.
          dtype: Of all tensors. By default each is rounded to the dtype in which it
            came, and equals its old bytes where it has not moved: half precision drops
            changes of less than about 0.05 %, bfloat16 of less than 0.4 %.

        Raises:
          ModelError: The folder is there or cannot be written, or parameters do not
            fit; the message is a line.
        """
        target = pathlib.Path(folder)
        if target.exists():
            raise ModelError(f"{target} is there already; give a new folder.")
        if set(params) != set(STEMS):
            raise ModelError(
                f"Got trees {', '.join(sorted(params))}; give {', '.join(STEMS)}."
            )
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            _copy_the_rest(self._folder, part)
            for name, files in self._files.items():
                weights.write(part / name, params[name], files, dtype)
            part.rename(target)
        except OSError as error:
            raise ModelError(f"{target} cannot be written: {error}.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def load(
    folder: str | os.PathLike,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    remat: bool = False,
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
) -> Pipeline:
    """Opens a Stable Diffusion 1 or 2 pipeline in the diffusers layout.

    Args:
      folder: Has ``model_index.json`` and the folders that it names, with weights in
        safetensors of float32, float16 or bfloat16, in one file or in shards.
      dtype: See :class:`Networks`.
      remat: See :class:`Networks`.
      convolve: See :class:`Networks`.

    Returns:
      The pipeline.

    Raises:
      ModelError: A file is missing, damaged, a pickle, or of a model that is not built
        here; the message is a line that names it.
    """
    return Pipeline(pathlib.Path(folder), dtype=dtype, remat=remat, convolve=convolve)


def _skeleton(name: str, make: Callable[[Keys], nnx.Module]) -> nnx.Module:
    """A network of shapes without numbers."""
    try:
        return nnx.eval_shape(lambda: make(Keys(jax.random.key(0))))
    except ModelError:
        raise
    except Exception as error:  # settings of any type reach the layers
        raise ModelError(
            f"{name}/config.json gives no network: {first_line(error)}; give the file "
            "as it was published."
        ) from error


def _read_configs(folder: pathlib.Path) -> dict[str, Any]:
    """The settings of a pipeline's parts."""
    index = _read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ModelError(
            f"{folder} is a {kind}; wanted a StableDiffusionPipeline, version 1 or 2."
        )
    places = {name: folder / name / "config.json" for name in STEMS}
    places["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    return {name: _read_json(place) for name, place in places.items()}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object of JSON."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{path} is not readable ({reason}); give a folder in the diffusers layout."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no object; give a folder as it was published.")
    return content


def _schedule(
    config: Mapping[str, Any],
) -> tuple[diffusion.Schedule, str, float | None]:
    """The schedule, what the network answers, and ᾱ at the end if it is no step's."""
    where = "scheduler/scheduler_config.json"
    kind = config.get("beta_schedule", "linear")
    prediction = config.get("prediction_type", "epsilon")
    if (
        kind not in _SCHEDULES
        or prediction not in ("epsilon", "v_prediction")
        or config.get("trained_betas") is not None
        or config.get("rescale_betas_zero_snr")
    ):
        raise ModelError(
            f"{where} has beta_schedule = {kind!r}, prediction_type = {prediction!r}, "
            f"trained_betas = {config.get('trained_betas')}, rescale_betas_zero_snr = "
            f"{config.get('rescale_betas_zero_snr')}; wanted scaled_linear or linear, "
            "epsilon or v_prediction, and neither of the others."
        )
    names = "num_train_timesteps", "beta_start", "beta_end"
    try:
        schedule = _SCHEDULES[kind](*need(config, where, *names))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} gives no schedule: {first_line(error)}.") from error
    default = config.get("_class_name") in _ONE_AT_THE_END
    one = config.get("set_alpha_to_one", default)
    return schedule, prediction, 1.0 if one else None


def _check_fit(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises for networks that do not belong together."""
    unet, vae = configs["unet"], configs["vae"]
    latent = vae.get("latent_channels", 4)
    channels = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels != (latent, latent):
        raise ModelError(
            f"The U-Net takes {channels[0]} channels and answers {channels[1]} where "
            f"latents have {latent}; wanted a text-to-image model, not one that fills "
            "in or enlarges."
        )
    width = configs["text_encoder"]["hidden_size"]
    if unet["cross_attention_dim"] != width:
        raise ModelError(
            f"The U-Net attends to states of {unet['cross_attention_dim']} entries, "
            f"the text encoder's have {width}; give parts of one pipeline."
        )


def _copy_the_rest(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a pipeline without its networks' weights."""
    index = _read_json(source / "model_index.json")
    names = [name for name in index if pathlib.PurePath(name).name == name]
    folders = [name for name in names if (source / name).is_dir()]
    for place in (source, *(source / x for x in folders)):
        inside = target / place.relative_to(source)
        inside.mkdir(exist_ok=True)
        ours = place == source or place.name in STEMS
        for path in place.iterdir():
            old = path.suffix in weights.SUFFIXES or ".index" in path.suffixes
            if path.is_file() and not (ours and old):
                shutil.copyfile(path, inside / path.name)
