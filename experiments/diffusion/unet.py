"""The class-conditional U-Net of diffusion models, from 8×8 digits to CIFAR-10.

DDPM's network (Ho et al., 2020): residual blocks with GroupNorm and SiLU down to a
small image and up again, self-attention at chosen resolutions, and the embedding of the
step, added inside every block. The class embedding is added to it; its last row is
learned for no class at all, as classifier-free guidance needs. The attention's
projections are plain two-axis dense kernels, which subspace methods find by themselves.

Reference: Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models,
https://arxiv.org/abs/2006.11239, appendix B; Ho and Salimans (2022), Classifier-Free
Diffusion Guidance, https://arxiv.org/abs/2207.12598.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError
from experiments.models.convolution import conv_general_dilated

Convolution = Callable[..., jax.Array]
_init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nnx.initializers.zeros_init()


def digits_unet(num_classes: int = 10, *, rngs: nnx.Rngs, **options) -> "UNet":
    """A U-Net for 8×8 grey digits: 32 and 64 channels, one block, attention at 4.

    Args:
      num_classes: Number of classes.
      rngs: Source of the initial values.
      **options: Further arguments of ``UNet``, in place of the values here.

    Returns:
      The network; 702,753 parameters for 10 classes.

    Example:
      >>> model = nnx.eval_shape(lambda: digits_unet(rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      702753
    """
    values = dict(width=32, multipliers=(1, 2), blocks=1, attention=(4,))
    return UNet(num_classes, (8, 8, 1), **{**values, **options}, rngs=rngs)


def cifar_unet(num_classes: int = 10, *, rngs: nnx.Rngs, **options) -> "UNet":
    """DDPM's network for CIFAR-10, with classes.

    Args:
      num_classes: Number of classes.
      rngs: Source of the initial values.
      **options: Further arguments of ``UNet``, in place of the values here.

    Returns:
      The network: the paper's 35.7 million parameters (35,746,307) and 512 for each
      class and the null class.

    Example:
      >>> model = nnx.eval_shape(lambda: cifar_unet(rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      35751939
    """
    values = dict(blocks=2, attention=(16,), dropout=0.1)
    values |= dict(width=128, multipliers=(1, 2, 2, 2))
    return UNet(num_classes, (32, 32, 3), **{**values, **options}, rngs=rngs)


def unet_for(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    width: int | None = None,
    rngs: nnx.Rngs,
) -> "UNet":
    """A U-Net that suits the images: DDPM's from 32 pixels on, small ones below.

    It convolves natively: on CPU that compiles and runs sooner than patches do, but not
    inside ``scan``; train it step by step there.

    Args:
      num_classes: Number of classes.
      input_shape: Shape (H, W, C) of one image.
      width: Channels of the first level; None for 128 from 32 pixels on, 32 from 16
        on, and 16 below.
      rngs: Source of the initial values.

    Returns:
      The network; with ``width=None`` on 32×32×3 that of :func:`cifar_unet`.

    Example:
      >>> model = nnx.eval_shape(lambda: unet_for(10, (8, 8, 1), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      177553
    """
    height = input_shape[0]
    values: dict[str, Any]
    if height >= 32:
        values = dict(width=128, multipliers=(1, 2, 2, 2), blocks=2, dropout=0.1)
        values |= dict(attention=(height // 2,))
    elif height >= 16:
        values = dict(width=32, multipliers=(1, 2, 2), blocks=1)
        values |= dict(attention=(height // 4,))
    else:
        values = dict(width=16, multipliers=(1, 2), blocks=1, attention=(height // 2,))
    if width is not None:
        values["width"] = width
    values["conv_general_dilated"] = jax.lax.conv_general_dilated
    return UNet(num_classes, input_shape, **values, rngs=rngs)


class UNet(nnx.Module):
    """Predicts the noise in an image from the image, the step and the class.

    Args:
      num_classes: Number of classes; the class ``num_classes`` is the null class.
      input_shape: Shape (H, W, C) of one image; every level but the last halves it.
      width: Channels of the first level, a multiple of 4.
      multipliers: Channels of each level, in units of ``width``.
      blocks: Residual blocks of each level on the way down; one more on the way up.
      attention: Resolutions (the image's height) with attention behind each block. The
        smallest image has attention between two blocks in any case.
      dropout: Share of features dropped inside each block in training.
      dtype: Dtype of the computation, such as ``jnp.bfloat16``; None for that of the
        parameters, which are float32 in any case.
      conv_general_dilated: What convolves; ``jax.lax.conv_general_dilated`` will do.
      rngs: Source of the initial values, and of dropout.

    Raises:
      ModelError: If the image cannot be halved so often, no level has a resolution of
        ``attention``, or ``width`` is no multiple of 4.

    Example:
      >>> def noise(x, t, condition):
      ...     model = UNet(3, (8, 8, 1), width=32, rngs=nnx.Rngs(0))
      ...     return model(x, t, condition)
      >>> x, t, condition = jnp.ones((2, 8, 8, 1)), jnp.array([5, 9]), jnp.array([0, 3])
      >>> jax.eval_shape(noise, x, t, condition)
      ShapeDtypeStruct(shape=(2, 8, 8, 1), dtype=float32)
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        dtype: jax.typing.DTypeLike | None = None,
        conv_general_dilated: Convolution = conv_general_dilated,
        rngs: nnx.Rngs,
    ):
        height, columns, channels = input_shape
        _check(height, columns, len(multipliers), width, attention)
        make = _Layers(4 * width, dropout, dtype, conv_general_dilated, rngs)
        self.width = width
        self.embed_step = make.dense(width, 4 * width)
        self.embed_again = make.dense(4 * width, 4 * width)
        self.embed_class = nnx.Embed(num_classes + 1, 4 * width, dtype=dtype, rngs=rngs)
        self.first = make.convolution(channels, width)
        levels = [
            (width * multiplier, height >> level in attention)
            for level, multiplier in enumerate(multipliers)
        ]
        self.level = Level(width, levels, blocks, make)
        self.norm = make.norm(levels[0][0])
        self.last = make.convolution(levels[0][0], channels, kernel_init=_zeros)

    def __call__(self, x: jax.Array, t: jax.Array, condition: jax.Array) -> jax.Array:
        """The noise in images.

        Args:
          x: Noised images, (N, H, W, C).
          t: Steps, (N,), any real numbers of at least 0.
          condition: Classes, int (N,), ``num_classes`` for none.

        Returns:
          The predicted noise, of the shape and dtype of ``x``.
        """
        embedding = self.embed_step(_sinusoids(t, self.width).astype(x.dtype))
        embedding = self.embed_again(nnx.silu(embedding)) + self.embed_class(condition)
        y = self.level(self.first(x), nnx.silu(embedding))
        return self.last(nnx.silu(self.norm(y))).astype(x.dtype)


class Level(nnx.Module):
    """Blocks at one image size, all smaller sizes between them, and blocks again.

    Args:
      inputs: Channels that come in.
      levels: Channels of this level and of each smaller one, and whether its blocks
        have attention.
      blocks: Residual blocks on the way down; one more on the way up.
      make: What makes the layers.
    """

    def __init__(
        self,
        inputs: int,
        levels: Sequence[tuple[int, bool]],
        blocks: int,
        make: "_Layers",
    ):
        (outputs, attend), *smaller = levels
        kept = [inputs] + [outputs] * blocks
        # Sequential serves as the list of modules that flax 0.11 and 0.12 share.
        down = [Block(n, outputs, attend, make) for n in kept[:-1]]
        self.down = nnx.Sequential(*down)
        if smaller:
            inner = smaller[0][0]
            self.shrink = make.convolution(outputs, outputs, strides=2)
            self.inner = Level(outputs, smaller, blocks, make)
            self.grow = make.convolution(inner, inner)
        else:
            inner = outputs
            self.inner = Middle(outputs, make)
        arriving = [inner] + [outputs] * blocks
        pairs = zip(arriving, reversed(kept), strict=True)
        up = [Block(n + skip, outputs, attend, make) for n, skip in pairs]
        self.up = nnx.Sequential(*up)

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Features (N, H, W, outputs) from features (N, H, W, inputs)."""
        kept = [x]
        for block in self.down.layers:
            kept.append(block(kept[-1], embedding))
        if isinstance(self.inner, Level):
            x = self.inner(self.shrink(kept[-1]), embedding)
            x = self.grow(x.repeat(2, axis=1).repeat(2, axis=2))
        else:
            x = self.inner(kept[-1], embedding)
        for block in self.up.layers:
            x = block(jnp.concatenate([x, kept.pop()], axis=-1), embedding)
        return x


class Middle(nnx.Module):
    """Two blocks with attention between them, where the image is smallest."""

    def __init__(self, channels: int, make: "_Layers"):
        self.first = Block(channels, channels, True, make)
        self.last = Block(channels, channels, False, make)

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Features of the shape of ``x``."""
        return self.last(self.first(x, embedding), embedding)


class Block(nnx.Module):
    """Two convolutions beside a shortcut, told the step and class, then attention."""

    def __init__(self, inputs: int, outputs: int, attend: bool, make: "_Layers"):
        self.norm1 = make.norm(inputs)
        self.conv1 = make.convolution(inputs, outputs)
        self.embed = make.dense(make.embedding, outputs)
        self.norm2 = make.norm(outputs)
        self.dropout = make.dropout_layer()
        self.conv2 = make.convolution(outputs, outputs, kernel_init=_zeros)
        self.shortcut = make.dense(inputs, outputs) if inputs != outputs else None
        self.attention = Attention(outputs, make) if attend else None

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Features (N, H, W, outputs) from features (N, H, W, inputs)."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        y = y + self.embed(embedding)[:, None, None]
        y = self.conv2(self.dropout(nnx.silu(self.norm2(y))))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.attention is None else self.attention(y)


class Attention(nnx.Module):
    """Self-attention with one head over the positions, added to its input."""

    def __init__(self, channels: int, make: "_Layers"):
        self.norm = make.norm(channels)
        self.queries_keys_values = make.dense(channels, 3 * channels)
        self.mix = make.dense(channels, channels, kernel_init=_zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of the shape of ``x``, (N, H, W, channels)."""
        n, height, columns, channels = x.shape
        joint = self.queries_keys_values(self.norm(x))
        joint = joint.reshape(n, height * columns, 3, 1, channels)
        q, k, v = jnp.moveaxis(joint, 2, 0)
        return x + self.mix(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class _Layers(NamedTuple):
    """Makes the layers of one network, with what they all share."""

    embedding: int
    dropout: float
    dtype: jax.typing.DTypeLike | None
    conv_general_dilated: Convolution
    rngs: nnx.Rngs

    def dense(self, inputs: int, outputs: int, kernel_init=_init) -> nnx.Linear:
        """A dense layer on the last axis."""
        return nnx.Linear(
            inputs, outputs, kernel_init=kernel_init, dtype=self.dtype, rngs=self.rngs
        )

    def convolution(
        self, inputs: int, outputs: int, strides: int = 1, kernel_init=_init
    ) -> nnx.Conv:
        """A 3×3 convolution."""
        return nnx.Conv(
            inputs,
            outputs,
            (3, 3),
            strides=strides,
            kernel_init=kernel_init,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            rngs=self.rngs,
        )

    def norm(self, channels: int) -> nnx.GroupNorm:
        """GroupNorm of 32 groups, or fewer that keep four channels each."""
        groups = math.gcd(32, channels // 4)
        return nnx.GroupNorm(channels, groups, dtype=self.dtype, rngs=self.rngs)

    def dropout_layer(self) -> nnx.Dropout:
        """Dropout, without random state where nothing is dropped."""
        return nnx.Dropout(self.dropout, rngs=self.rngs if self.dropout else None)


def _sinusoids(t: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of steps (N,) at width / 2 frequencies from 1 to 1/10000."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - 1) * jnp.arange(half))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _check(height, columns, levels, width, attention) -> None:
    """Raises for a shape that the network cannot have, with the way out."""
    factor = 2 ** (levels - 1)
    if height % factor or columns % factor:
        raise ModelError(
            f"Got images of {height}×{columns} for {levels} levels, wanted multiples "
            f"of {factor}; pad the images, or give the U-Net fewer multipliers."
        )
    if width < 4 or width % 4:
        raise ModelError(f"Got width {width}; give a multiple of 4.")
    sizes = [height >> level for level in range(levels)]
    if not set(attention) <= set(sizes):
        raise ModelError(
            f"Got attention at {tuple(attention)}, but the levels have the heights "
            f"{sizes}; choose among these."
        )
