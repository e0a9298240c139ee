"""The conditional U-Net of latent diffusion, Stable Diffusion 1 and 2.

Residual blocks down to a small latent and up again, each told the step, with
transformers that attend to the prompt's states behind them. A file's ``config.json``
says how many. Every attribute has the name that the weight files give it, traps and
all: ``attention_head_dim`` is the *number* of heads, one for all levels or one a level.

Reference: Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion
Models, https://arxiv.org/abs/2112.10752.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError
from experiments.text_to_image.layers import (
    SAME,
    Attention,
    Downsampler,
    Make,
    Numbered,
    Resnet,
    Upsampler,
    check_settings,
    need,
)

WHERE = "unet/config.json"
_READ = {"in_channels", "out_channels", "block_out_channels", "layers_per_block"}
_READ |= {"attention_head_dim", "num_attention_heads", "cross_attention_dim"}
_READ |= {"down_block_types", "up_block_types", "norm_num_groups", "norm_eps"}
_READ |= {"use_linear_projection", "sample_size", "upcast_attention"}
_READ |= {"addition_embed_type_num_heads"}
_FIXED = {
    "act_fn": ("silu", "swish"),
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dropout": 0,
    "resnet_out_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
}
_ATTENDS = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnUpBlock2D": True,
    "UpBlock2D": False,
}


class UNet(nnx.Module):
    """Answers the noise, or the velocity, in latents, given the step and a prompt.

    Args:
      config: The settings of a file ``unet/config.json``.
      make: What makes the layers.
      remat: Whether a gradient computes the inside of each block again instead of
        keeping it: less memory for a third more time.

    Raises:
      ModelError: For settings that are not built here.
    """

    def __init__(self, config: Mapping[str, Any], make: Make, remat: bool = False):
        check_settings(config, WHERE, _READ, _FIXED)
        names = "block_out_channels", "down_block_types", "up_block_types"
        channels, down, up = need(config, WHERE, *names)
        layers, context = need(config, WHERE, "layers_per_block", "cross_attention_dim")
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        heads = heads if isinstance(heads, list) else [heads] * len(channels)
        if not len(channels) == len(down) == len(up) == len(heads) or not {
            *down,
            *up,
        } <= set(_ATTENDS):
            raise ModelError(
                f"{WHERE} has blocks {down} and {up} of {channels} channels with heads "
                f"{heads}; wanted as many of each, blocks among {', '.join(_ATTENDS)}."
            )
        if not isinstance(layers, int) or not isinstance(context, int):
            raise ModelError(
                f"{WHERE} has layers_per_block = {layers} and cross_attention_dim = "
                f"{context}; wanted one number for all levels."
            )
        self.remat = remat
        self.width, self.levels = channels[0], len(channels)
        self.in_channels = config.get("in_channels", 4)
        self.out_channels = config.get("out_channels", 4)
        groups, epsilon = (
            config.get("norm_num_groups", 32),
            config.get("norm_eps", 1e-5),
        )
        linear = bool(config.get("use_linear_projection"))

        def resnets(arriving, outputs):
            shared = outputs, groups, epsilon, 4 * self.width, make
            return [Resnet(inputs, *shared) for inputs in arriving]

        def attentions(number, channels, heads):
            shared = channels, heads, context, groups, linear, make
            return [Transformer(*shared) for _ in range(number)]

        self.time_embedding = TimeEmbedding(self.width, 4 * self.width, make)
        self.conv_in = make.convolution(self.in_channels, self.width)
        downs, ups, x, kept = [], [], self.width, [self.width]
        for level, outputs in enumerate(channels):
            last = level == self.levels - 1
            block = Block(
                resnets([x] + [outputs] * (layers - 1), outputs),
                attentions(layers * _ATTENDS[down[level]], outputs, heads[level]),
                downsamplers=[] if last else [Downsampler(outputs, SAME, make)],
            )
            downs.append(block)
            kept += [outputs] * (layers + (not last))
            x = outputs
        middle = Block(resnets([x, x], x), attentions(1, x, heads[-1]))
        for level, outputs in reversed(list(enumerate(channels))):
            arriving = [x] + [outputs] * layers
            block = Block(
                resnets([n + kept.pop() for n in arriving], outputs),
                attentions((layers + 1) * _ATTENDS[up[~level]], outputs, heads[level]),
                upsamplers=[Upsampler(outputs, make)] if level else [],
            )
            ups.append(block)
            x = outputs
        self.down_blocks, self.mid_block = Numbered(downs), middle
        self.up_blocks = Numbered(ups)
        self.conv_norm_out = make.group_norm(self.width, groups, epsilon)
        self.conv_out = make.convolution(self.width, self.out_channels)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        maps: list[jax.Array] | None = None,
    ) -> jax.Array:
        """The network's answer.

        Args:
          x: Noised latents, (N, h, w, in_channels); h and w are multiples of what the
            levels halve.
          t: Steps, (N,).
          context: A prompt's states, (N, L, cross_attention_dim).
          maps: Is given the probabilities of every attention to the prompt, from the
            first to the last, each (N, heads, pixels, L).

        Returns:
          Noise or velocity, (N, h, w, out_channels), of the dtype of ``x``.
        """
        factor = 2 ** (self.levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ModelError(
                f"Got latents of shape {x.shape}, wanted (N, h, w, channels) with h "
                f"and w multiples of {factor}."
            )

        def run(module, *arguments):
            if self.remat and maps is None:
                return nnx.remat(type(module).__call__)(module, *arguments)
            return module(*arguments)

        def through(block, number, y):
            y = run(block.resnets[number], y, embedding)
            if number in block.attentions.numbers:
                y = run(block.attentions[number], y, context, maps)
            return y

        embedding = self.time_embedding(_sinusoids(t, self.width))
        y = self.conv_in(x)
        kept = [y]
        for block in self.down_blocks:
            for number in block.resnets.numbers:
                y = through(block, number, y)
                kept.append(y)
            for downsample in block.downsamplers:
                y = downsample(y)
                kept.append(y)
        for number in self.mid_block.resnets.numbers:
            y = through(self.mid_block, number, y)
        for block in self.up_blocks:
            for number in block.resnets.numbers:
                y = jnp.concatenate([y, kept.pop()], axis=-1)
                y = through(block, number, y)
            for upsample in block.upsamplers:
                y = upsample(y)
        return self.conv_out(nnx.silu(self.conv_norm_out(y))).astype(x.dtype)


class Block(nnx.Module):
    """The modules of a level; an attention follows the resnet of its number."""

    def __init__(self, resnets, attentions, downsamplers=(), upsamplers=()):
        self.resnets = Numbered(resnets)
        self.attentions = Numbered(attentions)
        self.downsamplers = Numbered(downsamplers)
        self.upsamplers = Numbered(upsamplers)


class TimeEmbedding(nnx.Module):
    """Two dense layers on the sinusoids of a step."""

    def __init__(self, inputs: int, outputs: int, make: Make):
        self.linear_1 = make.dense(inputs, outputs)
        self.linear_2 = make.dense(outputs, outputs)

    def __call__(self, sinusoids: jax.Array) -> jax.Array:
        """Embeddings (N, outputs) of sinusoids (N, inputs)."""
        return self.linear_2(nnx.silu(self.linear_1(sinusoids)))


class Transformer(nnx.Module):
    """Attention of a latent's pixels to each other and to the prompt, added to them.

    Args:
      channels: Channels in and out.
      heads: Heads of both attentions.
      context: Entries of a prompt's states.
      groups: Of its norm.
      linear: Whether its projections are dense, as in Stable Diffusion 2, or
        convolutions of size 1.
      make: What makes the layers.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int,
        groups: int,
        linear: bool,
        make: Make,
    ):
        def projection():
            if linear:
                return make.dense(channels, channels)
            return make.convolution(channels, channels, size=1)

        self.norm = make.group_norm(channels, groups, 1e-6)
        self.proj_in = projection()
        self.transformer_blocks = Numbered(
            [TransformerBlock(channels, heads, context, make)]
        )
        self.proj_out = projection()

    def __call__(self, x, context, maps=None) -> jax.Array:
        """Features of the shape of ``x``, (N, h, w, channels)."""
        # A convolution of size 1 and a dense layer are one map on the last axis.
        tokens = self.proj_in(self.norm(x)).reshape(len(x), -1, x.shape[-1])
        for block in self.transformer_blocks:
            tokens = block(tokens, context, maps)
        return x + self.proj_out(tokens.reshape(x.shape))


class TransformerBlock(nnx.Module):
    """Attention to itself, attention to the prompt, and a gated perceptron."""

    def __init__(self, channels: int, heads: int, context: int, make: Make):
        self.norm1 = make.layer_norm(channels)
        self.attn1 = Attention(channels, heads, make)
        self.norm2 = make.layer_norm(channels)
        self.attn2 = Attention(channels, heads, make, context=context)
        self.norm3 = make.layer_norm(channels)
        self.ff = FeedForward(channels, make)

    def __call__(self, x, context, maps=None) -> jax.Array:
        """Tokens of the shape of ``x``, (N, tokens, channels)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, maps)
        return x + self.ff(self.norm3(x))


class FeedForward(nnx.Module):
    """A perceptron with 4 × channels inside, gated by a GELU (GEGLU)."""

    def __init__(self, channels: int, make: Make):
        self.net = Numbered(
            {
                0: Gated(channels, 4 * channels, make),
                2: make.dense(4 * channels, channels),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens of the shape of ``x``."""
        return self.net[2](self.net[0](x))


class Gated(nnx.Module):
    """Half of a dense layer's outputs times the exact GELU of the other half."""

    def __init__(self, inputs: int, outputs: int, make: Make):
        self.proj = make.dense(inputs, 2 * outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (..., outputs)."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nnx.gelu(gate, approximate=False)


def _sinusoids(t: jax.Array, width: int) -> jax.Array:
    """Cosines, then sines, of steps (N,) at width / 2 frequencies from 1 down."""
    half = width // 2
    frequencies = jnp.exp(
        -math.log(10_000) / half * jnp.arange(half, dtype=jnp.float32)
    )
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
