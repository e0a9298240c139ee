"""Residual networks for small images: ResNet-18 and ResNet-20 (He et al., 2016).

Both have a 3×3 stem of stride 1 and no max-pooling, as is usual at 32×32, so that the
ResNet-18 has 11,173,962 parameters for 10 classes. ResNet-20 follows the paper's
section 4.2: shortcuts without parameters (option A: stride, then zeros for the new
channels) and 269,722 parameters, the paper's 0.27 M. The count 272,474 that one also
meets belongs to projection shortcuts. ``width`` makes either narrower for a CPU,
``stem_stride`` lets ResNet-20 work at half the resolution.

Reference: He, Zhang, Ren and Sun (2016), Deep Residual Learning for Image Recognition,
https://arxiv.org/abs/1512.03385.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.convolution import conv_general_dilated


def resnet18(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    width: int = 64,
    rngs: nnx.Rngs,
) -> "ResNet":
    """ResNet-18: four stages of two blocks, projection shortcuts.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image.
      width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
      rngs: Source of the initial values.

    Returns:
      The network; 11,173,962 parameters at the default width for 10 classes of colour
      images.

    Example:
      >>> model = nnx.eval_shape(lambda: resnet18(10, (32, 32, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      11173962
    """
    return ResNet(
        num_classes, input_shape, (2, 2, 2, 2), width=width, project=True, rngs=rngs
    )


def resnet20(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    width: int = 16,
    stem_stride: int = 1,
    rngs: nnx.Rngs,
) -> "ResNet":
    """ResNet-20: three stages of three blocks, shortcuts without parameters.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image.
      width: Channels of the stem; the stages have 1, 2 and 4 times as many.
      stem_stride: Stride of the stem; 2 takes a quarter of the work, for a CPU.
      rngs: Source of the initial values.

    Returns:
      The network; 269,722 parameters at the default width for 10 classes of colour
      images.

    Example:
      >>> model = nnx.eval_shape(lambda: resnet20(10, (32, 32, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      269722
    """
    return ResNet(
        num_classes,
        input_shape,
        (3, 3, 3),
        width=width,
        project=False,
        stem_stride=stem_stride,
        rngs=rngs,
    )


class ResNet(nnx.Module):
    """A 3×3 stem, stages of residual blocks, a mean over positions, a dense layer.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image.
      blocks: Number of blocks of each stage.
      width: Channels of the first stage; each later stage doubles them.
      project: Shortcuts that change shape: a 1×1 convolution with BatchNorm if true,
        else stride and zeros.
      stem_stride: Stride of the stem.
      rngs: Source of the initial values.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        blocks: Sequence[int],
        *,
        width: int,
        project: bool,
        stem_stride: int = 1,
        rngs: nnx.Rngs,
    ):
        self.stem = _convolution(input_shape[-1], width, 3, stem_stride, rngs)
        self.norm = _norm(width, rngs)
        inputs, layers = width, []
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block(inputs, outputs, stride, project, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.Sequential(*layers)
        self.dense = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (N, num_classes) for images of shape (N, H, W, C)."""
        x = self.blocks(nnx.relu(self.norm(self.stem(x))))
        return self.dense(x.mean(axis=(1, 2)))


class Block(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, project: bool, *, rngs: nnx.Rngs
    ):
        self.conv1 = _convolution(inputs, outputs, 3, stride, rngs)
        self.norm1 = _norm(outputs, rngs)
        self.conv2 = _convolution(outputs, outputs, 3, 1, rngs)
        self.norm2 = _norm(outputs, rngs)
        if project and (stride != 1 or inputs != outputs):
            self.shortcut = nnx.Sequential(
                _convolution(inputs, outputs, 1, stride, rngs), _norm(outputs, rngs)
            )
        else:
            self.shortcut = functools.partial(_thin, stride=stride, channels=outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of shape (N, H / stride, W / stride, outputs)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(self.shortcut(x) + y)


def _thin(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """Every ``stride``-th row and column, with zeros for the missing channels."""
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))


def _convolution(inputs, outputs, size, stride, rngs) -> nnx.Conv:
    """Without a bias, which BatchNorm would cancel; with He's initial values."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def _norm(features, rngs) -> nnx.BatchNorm:
    """BatchNorm with the statistics' usual decay of 0.9."""
    return nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
