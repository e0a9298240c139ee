"""A convolutional network that learns CIFAR-10 in seconds on an accelerator.

A 2×2 stem of 24 channels, then three groups of [3×3 convolution, max-pooling,
BatchNorm, ReLU, 3×3 convolution, BatchNorm, ReLU], a max over the 3×3 positions that
are left and one dense layer: the shape of airbench, with plain layers throughout (every
kernel and scale is trained, none is frozen or whitened), so that masks and cores see
what they see in any network. A forward pass of a 32×32 image takes 54 million
multiplications, a tenth of ResNet-18's: a bank of models is affordable.

Reference: Jordan (2024), 94% on CIFAR-10 in 3.29 Seconds on a Single GPU,
https://arxiv.org/abs/2404.00498.
"""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from experiments.models.convolution import conv_general_dilated


class FastCNN(nnx.Module):
    """A stem and three groups of ``width``, 2·``width`` and 2·``width`` channels.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image, of at least 16 by 16 pixels.
      width: Channels of the first group.
      rngs: Source of the initial values.

    Example:
      >>> model = nnx.eval_shape(lambda: FastCNN(10, (32, 32, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      569642
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        width: int = 64,
        rngs: nnx.Rngs,
    ):
        self.stem = _convolution(input_shape[-1], 24, (2, 2), "VALID", rngs)
        widths = (24, width, 2 * width, 2 * width)
        self.groups = nnx.Sequential(*_groups(widths, rngs))
        self.dense = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (N, num_classes) for images of shape (N, H, W, C)."""
        x = self.groups(nnx.relu(self.stem(x)))
        return self.dense(x.max(axis=(1, 2)))


class Group(nnx.Module):
    """Two convolutions; the pooling halves rows and columns."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.conv1 = _convolution(inputs, outputs, (3, 3), "SAME", rngs)
        self.norm1 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.conv2 = _convolution(outputs, outputs, (3, 3), "SAME", rngs)
        self.norm2 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of shape (N, H / 2, W / 2, outputs), rounded down."""
        x = nnx.max_pool(self.conv1(x), (2, 2), (2, 2))
        x = nnx.relu(self.norm1(x))
        return nnx.relu(self.norm2(self.conv2(x)))


def _groups(widths: Sequence[int], rngs: nnx.Rngs) -> list[Group]:
    return [Group(*pair, rngs=rngs) for pair in itertools.pairwise(widths)]


def _convolution(inputs, outputs, size, padding, rngs) -> nnx.Conv:
    """Without a bias, which the BatchNorm behind it would cancel."""
    return nnx.Conv(
        inputs,
        outputs,
        size,
        padding=padding,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )
