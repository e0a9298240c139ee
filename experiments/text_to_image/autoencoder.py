"""The autoencoder between images and the latents that are diffused.

Images become the mean and log-variance of latents eight times smaller, and latents
images again. The diffusion sees latents times ``scaling_factor``; here they are as the
encoder leaves them. Every attribute has the name that the weight files give it.

Reference: Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion
Models, https://arxiv.org/abs/2112.10752.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError
from experiments.text_to_image.layers import (
    Attention,
    Downsampler,
    Make,
    Numbered,
    Resnet,
    Upsampler,
    check_settings,
    need,
)

WHERE = "vae/config.json"
_READ = {"in_channels", "out_channels", "latent_channels", "block_out_channels"}
_READ |= {"layers_per_block", "norm_num_groups", "down_block_types", "up_block_types"}
_READ |= {"sample_size", "scaling_factor", "force_upcast"}
_FIXED = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": (None, 0),
}
_EPSILON = 1e-6
_BEHIND = ((0, 1), (0, 1))  # the encoder pads below and to the right alone


class Autoencoder(nnx.Module):
    """An encoder and a decoder; call one of their methods.

    Args:
      config: The settings of a file ``vae/config.json``.
      make: What makes the layers.

    Raises:
      ModelError: For settings that are not built here.
    """

    def __init__(self, config: Mapping[str, Any], make: Make):
        check_settings(config, WHERE, _READ, _FIXED)
        names = "block_out_channels", "down_block_types", "up_block_types"
        channels, down, up = need(config, WHERE, *names)
        [layers] = need(config, WHERE, "layers_per_block")
        levels = len(channels)
        if down != ["DownEncoderBlock2D"] * levels or up != (
            ["UpDecoderBlock2D"] * levels
        ):
            raise ModelError(
                f"{WHERE} has blocks {down} and {up} for {levels} numbers of channels; "
                "wanted DownEncoderBlock2D and UpDecoderBlock2D, one for each."
            )
        self.factor = 2 ** (levels - 1)
        self.latent_channels = config.get("latent_channels", 4)
        groups, latent = config.get("norm_num_groups", 32), self.latent_channels
        shared = channels, layers, groups, make
        self.encoder = Encoder(config.get("in_channels", 3), 2 * latent, *shared)
        self.quant_conv = make.convolution(2 * latent, 2 * latent, size=1)
        self.post_quant_conv = make.convolution(latent, latent, size=1)
        self.decoder = Decoder(latent, config.get("out_channels", 3), *shared)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of latents.

        Args:
          images: (N, H, W, 3) in [-1, 1]; H and W are multiples of 8.

        Returns:
          Two arrays (N, H / 8, W / 8, 4); the second is in [-30, 20].
        """
        if images.ndim != 4 or any(n % self.factor for n in images.shape[1:3]):
            raise ModelError(
                f"Got images of shape {images.shape}, wanted (N, H, W, channels) with "
                f"H and W multiples of {self.factor}; crop or resize them."
            )
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images (N, 8 h, 8 w, 3), about [-1, 1], from latents (N, h, w, 4)."""
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nnx.Module):
    """Images to moments: residual blocks, halved between levels."""

    def __init__(self, inputs, outputs, channels, layers, groups, make: Make):
        self.conv_in = make.convolution(inputs, channels[0])
        blocks, x = [], channels[0]
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            samplers = [] if last else [Downsampler(width, _BEHIND, make)]
            arriving = [x] + [width] * (layers - 1)
            blocks.append(Level(arriving, width, groups, make, downsamplers=samplers))
            x = width
        self.down_blocks = Numbered(blocks)
        self.mid_block = Middle(x, groups, make)
        self.conv_norm_out = make.group_norm(x, groups, _EPSILON)
        self.conv_out = make.convolution(x, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (N, H / 8, W / 8, outputs)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to images: residual blocks, doubled between levels."""

    def __init__(self, inputs, outputs, channels, layers, groups, make: Make):
        x = channels[-1]
        self.conv_in = make.convolution(inputs, x)
        self.mid_block = Middle(x, groups, make)
        blocks = []
        for level, width in reversed(list(enumerate(channels))):
            samplers = [Upsampler(width, make)] if level else []
            arriving = [x] + [width] * layers
            blocks.append(Level(arriving, width, groups, make, upsamplers=samplers))
            x = width
        self.up_blocks = Numbered(blocks)
        self.conv_norm_out = make.group_norm(x, groups, _EPSILON)
        self.conv_out = make.convolution(x, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (N, 8 h, 8 w, outputs)."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Level(nnx.Module):
    """Residual blocks of one image size, then one that halves or doubles it."""

    def __init__(
        self, arriving, outputs, groups, make: Make, downsamplers=(), upsamplers=()
    ):
        shared = outputs, groups, _EPSILON, 0, make
        self.resnets = Numbered([Resnet(inputs, *shared) for inputs in arriving])
        self.downsamplers = Numbered(downsamplers)
        self.upsamplers = Numbered(upsamplers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of the next level."""
        for module in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = module(x)
        return x


class Middle(nnx.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, channels: int, groups: int, make: Make):
        shared = channels, channels, groups, _EPSILON, 0, make
        self.resnets = Numbered([Resnet(*shared), Resnet(*shared)])
        self.attentions = Numbered([PixelAttention(channels, groups, make)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of the shape of ``x``."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class PixelAttention(Attention):
    """Attention of one head among pixels, added to them."""

    def __init__(self, channels: int, groups: int, make: Make):
        super().__init__(channels, 1, make, bias=True)
        self.group_norm = make.group_norm(channels, groups, _EPSILON)

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore
        """Features of the shape of ``x``, (N, H, W, channels)."""
        tokens = self.group_norm(x).reshape(len(x), -1, x.shape[-1])
        return x + super().__call__(tokens).reshape(x.shape)
