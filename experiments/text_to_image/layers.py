"""Layers that the U-Net and the autoencoder share, under the names of their files.

Attributes are named as the ecosystem's weight files name them, ``resnets.0.conv1``, so
that a parameter's path is its name. Images are NHWC, parameters float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError

SAME = ((1, 1), (1, 1))  # both sides, as the files' networks were trained


class Numbered(nnx.Module):
    """Modules by number: a list, or a mapping where numbers are left out."""

    def __init__(self, modules: Sequence[nnx.Module] | Mapping[int, nnx.Module]):
        if not isinstance(modules, Mapping):
            modules = dict(enumerate(modules))
        self.numbers = tuple(modules)
        for number, module in modules.items():
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator[Any]:
        """The modules in their order."""
        return (self[number] for number in self.numbers)

    def __getitem__(self, number: int) -> Any:
        """The module of that number."""
        return getattr(self, str(number))


class Keys:
    """A key for each layer; ``nnx.Rngs`` takes ten times as long to trace."""

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class Make(NamedTuple):
    """Makes the layers of one network, with what they all share.

    Attributes:
      rngs: source of the initial values, :class:`Keys` or ``nnx.Rngs``.
      dtype: of the computation; None for that of the parameters.
      convolve: ``jax.lax.conv_general_dilated``, or what stands for it.
    """

    rngs: Any
    dtype: jax.typing.DTypeLike | None = None
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated

    def dense(self, inputs: int, outputs: int, bias: bool = True) -> nnx.Linear:
        """A dense layer on the last axis."""
        return nnx.Linear(
            inputs, outputs, use_bias=bias, dtype=self.dtype, rngs=self.rngs
        )

    def convolution(
        self, inputs: int, outputs: int, size: int = 3, strides: int = 1, padding=SAME
    ) -> nnx.Conv:
        """A square convolution; of size 1 it has no padding."""
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=strides,
            padding=padding if size > 1 else "VALID",
            dtype=self.dtype,
            conv_general_dilated=self.convolve,
            rngs=self.rngs,
        )

    def group_norm(self, channels: int, groups: int, epsilon: float) -> nnx.GroupNorm:
        """A GroupNorm."""
        if channels % groups:
            raise ModelError(
                f"Got norm_num_groups={groups} for {channels} channels; give a divisor."
            )
        return nnx.GroupNorm(
            channels, groups, epsilon=epsilon, dtype=self.dtype, rngs=self.rngs
        )

    def layer_norm(self, channels: int, epsilon: float = 1e-5) -> nnx.LayerNorm:
        """A LayerNorm."""
        return nnx.LayerNorm(
            channels, epsilon=epsilon, dtype=self.dtype, rngs=self.rngs
        )


class Resnet(nnx.Module):
    """Two convolutions beside a shortcut, told the step in between if there is one.

    Args:
      inputs: Channels in.
      outputs: Channels out.
      groups: Of its norms.
      epsilon: Of its norms.
      embedding: Entries of the step's embedding; 0 for none.
      make: What makes the layers.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        epsilon: float,
        embedding: int,
        make: Make,
    ):
        self.norm1 = make.group_norm(inputs, groups, epsilon)
        self.conv1 = make.convolution(inputs, outputs)
        if embedding:
            self.time_emb_proj = make.dense(embedding, outputs)
        self.norm2 = make.group_norm(outputs, groups, epsilon)
        self.conv2 = make.convolution(outputs, outputs)
        self.shortened = inputs != outputs
        if self.shortened:
            self.conv_shortcut = make.convolution(inputs, outputs, size=1)

    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Features (N, H, W, outputs) from features (N, H, W, inputs)."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        if embedding is not None:
            y = y + self.time_emb_proj(nnx.silu(embedding))[:, None, None]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if self.shortened else x)


class Attention(nnx.Module):
    """Attention of tokens to a context, or to themselves.

    Args:
      channels: Entries of a token, a multiple of ``heads``.
      heads: Heads.
      make: What makes the layers.
      context: Entries of a token of the context; None for those of the tokens.
      bias: Whether queries, keys and values have one.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        make: Make,
        *,
        context: int | None = None,
        bias: bool = False,
    ):
        if channels % heads:
            raise ModelError(
                f"Got {heads} attention heads for {channels} channels; give a divisor."
            )
        self.heads = heads
        context = channels if context is None else context
        self.to_q = make.dense(channels, channels, bias)
        self.to_k = make.dense(context, channels, bias)
        self.to_v = make.dense(context, channels, bias)
        self.to_out = Numbered([make.dense(channels, channels)])

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        maps: list[jax.Array] | None = None,
    ) -> jax.Array:
        """Tokens of the shape of ``x``, (N, tokens, channels).

        ``maps`` is given the probabilities, (N, heads, tokens, context's tokens).
        """
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        if maps is not None:
            logits = jnp.einsum("nqhd,nkhd->nhqk", q, k).astype(jnp.float32)
            maps.append(jax.nn.softmax(logits / q.shape[-1] ** 0.5))
        mixed = jax.nn.dot_product_attention(q, k, v)
        return self.to_out[0](mixed.reshape(x.shape))


class Downsampler(nnx.Module):
    """Halves the image by a convolution; its padding is the network's."""

    def __init__(self, channels: int, padding, make: Make):
        self.conv = make.convolution(channels, channels, strides=2, padding=padding)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (N, H / 2, W / 2, channels)."""
        return self.conv(x)


class Upsampler(nnx.Module):
    """Doubles the image, each pixel four times, then a convolution."""

    def __init__(self, channels: int, make: Make):
        self.conv = make.convolution(channels, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (N, 2 H, 2 W, channels)."""
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


def check_settings(
    config: Mapping[str, Any], where: str, read: set[str], fixed: Mapping[str, Any]
) -> None:
    """Raises for a setting that would change the network and is not built here.

    Args:
      config: The settings of a file.
      where: The file, for the message.
      read: Names that the network reads itself, or that change nothing.
      fixed: The one value, or the values, that other names may have.

    Raises:
      ModelError: It names the setting, its value and what was wanted.
    """
    for name, value in config.items():
        if name.startswith("_") or name in read:
            continue
        allowed = fixed.get(name, (None, False))
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if value not in allowed:
            raise ModelError(
                f"{where} has {name} = {value!r}, which is not built here; wanted "
                f"{' or '.join(map(repr, allowed))}, as Stable Diffusion 1 and 2 have."
            )


def need(config: Mapping[str, Any], where: str, *names: str) -> list[Any]:
    """The values of settings that must be there.

    Raises:
      ModelError: One is missing; it names it.
    """
    for name in names:
        if config.get(name) is None:
            raise ModelError(f"{where} has no {name}; it is no file of this network.")
    return [config[name] for name in names]
