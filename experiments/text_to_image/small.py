"""A pipeline that two cores can train: latents of patches, prompts by number, a U-Net.

It stands where Stable Diffusion's parts stand, in small. The autoencoder is a principal
component analysis of patches, half whitened. The text encoder is CLIP's, tiny, with
random weights that nobody trains: original, Retrain and every method read the same
states, as they do with a pretrained one, and no picture has taught it anything. The
U-Net is that of ``unet``, and what its cross-attention makes of the states is all that
is known of a word. A prompt is a number, so that relabelling is a change of numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.captions import Caption, words
from experiments.models import Model, from_nnx
from experiments.text_to_image.layers import Keys, Make
from experiments.text_to_image.text_encoder import TextEncoder
from experiments.text_to_image.unet import UNet

STATES = 64  # entries of a token's state
PLACES = 0.25  # size of what is added for a token's place, beside the token's own
START, END, UNKNOWN = range(3)  # tokens that are no words


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """Images as latents, a patch an entry, and back.

    Attributes:
      mean: of patches, (size · size · 3,).
      basis: orthonormal rows, (channels, size · size · 3).
      scale: what a latent's entry of 1 stands for along each, (channels,).
      size: height and width of a patch.
    """

    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray
    size: int

    def encode(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Latents (N, H / size, W / size, channels) of uint8 images (N, H, W, 3)."""
        n, height, width, _ = images.shape
        rows, columns = height // self.size, width // self.size
        patches = images.reshape(n, rows, self.size, columns, self.size, 3)
        patches = patches.swapaxes(2, 3).reshape(n, rows, columns, -1) / 127.5 - 1
        return jnp.asarray((patches - self.mean) @ self.basis.T / self.scale)

    def decode(self, latents: jax.Array | np.ndarray) -> jax.Array:
        """Images, uint8, of latents."""
        patches = (latents * self.scale) @ self.basis + self.mean
        n, rows, columns, _ = latents.shape
        patches = patches.reshape(n, rows, columns, self.size, self.size, 3)
        x = patches.swapaxes(2, 3).reshape(n, rows * self.size, columns * self.size, 3)
        return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.uint8)


def fit_patches(images: np.ndarray, channels: int, size: int = 4) -> Patches:
    r"""Principal components of the patches of uint8 images (N, H, W, 3).

    Latents have the variances :math:`\sigma_i / \bar\sigma`, one in the mean: white
    ones would be as noisy in what everybody sees as in what nobody does, and unscaled
    ones would hardly show what tells two things apart.

    Args:
      images: all pictures; H and W are multiples of ``size``.
      channels: components to keep, fewer where pictures have fewer.
      size: height and width of a patch.

    Example:
      >>> images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
      >>> patches = fit_patches(images, channels=12, size=2)
      >>> bool((patches.decode(patches.encode(images)) == images).all())
      True
    """
    whole = Patches(np.zeros(1), np.eye(size * size * 3), np.ones(1), size)
    x = np.asarray(whole.encode(images), np.float64).reshape(-1, size * size * 3)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    kept = min(channels, int(np.sum(values > 1e-9 * values[-1])))
    order = np.argsort(-values)[:kept]
    deviation = np.sqrt(values[order])
    scale = np.sqrt(deviation * deviation.mean())
    basis = vectors[:, order].T
    mean, basis, scale = (x.astype(np.float32) for x in (mean, basis, scale))
    return Patches(mean, basis, scale, size)


class Prompts:
    """Texts by number, and their states.

    Number c stands for caption c in any of the wordings that training draws from, the
    number of captions for the empty prompt. Behind them come numbers for one text each.

    Args:
      captions: the captions.
      key: of the text encoder's weights.

    Attributes:
      null: number of the empty prompt, which is the number of captions.
      length: L, tokens of a prompt.
    """

    def __init__(self, captions: Sequence[Caption], key: int = 0):
        self.null = len(captions)
        most = max(len(caption.wordings) for caption in captions)
        cycled = [
            [c.wordings[i % len(c.wordings)] for c in captions] + [""]
            for i in range(most)
        ]
        said = [caption.paraphrases for caption in captions]
        self._paraphrases = [
            (number, text) for number, texts in enumerate(said) for text in texts
        ]
        texts = [text for row in cycled for text in row]
        texts += [text for _, text in self._paraphrases]
        self._texts = texts
        vocabulary = dict.fromkeys(word for text in texts for word in words(text))
        self._numbers = {word: i for i, word in enumerate(vocabulary, UNKNOWN + 1)}
        self.length = 2 + max(len(words(text)) for text in texts)
        self._wordings = most
        self._table = self.tokens(texts)
        config = {
            "hidden_size": STATES,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 2 * STATES,
            "max_position_embeddings": self.length,
            "vocab_size": len(self._numbers) + UNKNOWN + 1,
        }
        encoder = TextEncoder(config, Make(Keys(jax.random.key(key))))
        graph, weights = nnx.split(encoder)
        self.weights = jax.tree.map(np.asarray, nnx.to_pure_dict(weights))
        # A word is nearly the same wherever it stands, which no training has taught.
        places = self.weights["text_model"]["embeddings"]["position_embedding"]
        places["embedding"] = PLACES * places["embedding"]
        self._graph = graph

    def text(self, number: int) -> str:
        """The words of a prompt."""
        return self._texts[number]

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens, int32 (P, L), of texts; a word of no caption is the unknown one."""
        rows = np.full((len(texts), self.length), END, np.int32)
        for row, text in zip(rows, texts, strict=True):
            known = [self._numbers.get(word, UNKNOWN) for word in words(text)]
            ids = [START, *known][: self.length - 1]
            row[: len(ids)] = ids
        return rows

    def states(self, numbers: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """States (N, L, D) of prompts; a key draws a wording for each, else the first.

        Args:
          numbers: of prompts, int (N,).
          key: a typed key, or None.
        """
        if key is not None:
            drawn = jax.random.randint(key, numbers.shape, 0, self._wordings)
            numbers = jnp.where(
                numbers <= self.null, numbers + drawn * (self.null + 1), numbers
            )
        return self.encode(jnp.asarray(self._table)[numbers])

    def spoken(self, numbers: jax.Array | np.ndarray) -> jax.Array:
        """States (W, N, L, D) of captions or of the empty prompt, in each wording."""
        cycle = (self.null + 1) * jnp.arange(self._wordings)[:, None]
        every = jnp.asarray(self._table)[jnp.asarray(numbers) + cycle]
        states = self.encode(every.reshape(-1, self.length))
        return states.reshape(*every.shape, -1)

    def encode(self, tokens: jax.Array | np.ndarray, weights: Any = None) -> jax.Array:
        """States (N, L, D) of tokens (N, L), under other weights where given."""
        weights = self.weights if weights is None else weights
        return nnx.merge(self._graph, weights)(jnp.asarray(tokens))

    def paraphrased(self) -> np.ndarray:
        """Numbers of all paraphrases and of their captions, int32 (n, 2)."""
        first = self._wordings * (self.null + 1)
        pairs = [(first + i, c) for i, (c, _) in enumerate(self._paraphrases)]
        return np.array(pairs, np.int32).reshape(-1, 2)


def text_to_image(prompts: Prompts, channels: int, widths: Sequence[int]) -> Model:
    """A U-Net over latents that reads prompts by number and answers the velocity.

    Args:
      prompts: the prompts; their text encoder stays as it is.
      channels: of a latent.
      widths: channels of each level, multiples of 16.

    Returns:
      A model of ``(x, t, number)``: noised latents (N, h, w, channels), steps (N,) and
      prompts (N,); a key draws wordings in training.

    Example:
      >>> prompts = Prompts([Caption(("a cat",)), Caption(("a dog",))])
      >>> model = text_to_image(prompts, channels=4, widths=(16, 32))
      >>> params, _ = jax.eval_shape(model.init, jax.random.key(0))
      >>> inputs = jnp.ones((2, 8, 8, 4)), jnp.zeros(2, int), jnp.arange(2)
      >>> jax.eval_shape(lambda p: model.apply(p, {}, inputs, train=False)[0], params)
      ShapeDtypeStruct(shape=(2, 8, 8, 4), dtype=float32)
    """
    levels = len(widths)
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "cross_attention_dim": STATES,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * levels,
        "up_block_types": ["CrossAttnUpBlock2D"] * levels,
        "use_linear_projection": True,
    }

    def unet(rngs: nnx.Rngs) -> UNet:
        return UNet(config, Make(rngs))

    inner = from_nnx(unet)

    def apply(params, model_state, x, *, train, key=None):
        noised, t, numbers = x
        states = prompts.states(numbers, key if train else None)
        inputs = noised, t, states
        return inner.apply(params, model_state, inputs, train=train)

    return Model(inner.init, apply)
