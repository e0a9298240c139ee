"""VGG-16 with BatchNorm for small images (Simonyan and Zisserman, 2015).

The paper's configuration D: thirteen 3×3 convolutions, here each with BatchNorm, and
five poolings that halve the image. At 32×32 one position of 512 channels remains, and
the form used on CIFAR ends in one dense layer in place of the paper's three: 14,728,266
parameters for 10 classes, biases of the convolutions included (the literature's
14.7 M).

Reference: Simonyan and Zisserman (2015), Very Deep Convolutional Networks for
Large-Scale Image Recognition, https://arxiv.org/abs/1409.1556.
"""

import jax
from flax import nnx

from experiments.models.convolution import conv_general_dilated

# Convolutions between two poolings, as channels in units of the width.
_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG16(nnx.Module):
    """Thirteen 3×3 convolutions with BatchNorm, five poolings, one dense layer.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image.
      width: Channels of the first convolution; 64 is VGG-16.
      rngs: Source of the initial values.

    Example:
      >>> model = nnx.eval_shape(lambda: VGG16(10, (32, 32, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      14728266
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        width: int = 64,
        rngs: nnx.Rngs,
    ):
        inputs, layers = input_shape[-1], []
        for stage in _STAGES:
            for multiple in stage:
                outputs = multiple * width
                layers += [
                    _convolution(inputs, outputs, rngs),
                    nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs),
                    nnx.relu,
                ]
                inputs = outputs
            layers.append(_halve)
        self.features = nnx.Sequential(*layers)
        self.dense = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (N, num_classes) for images of shape (N, H, W, C)."""
        return self.dense(self.features(x).mean(axis=(1, 2)))


def _convolution(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Conv:
    """3×3 with a bias, which the published count includes."""
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def _halve(x: jax.Array) -> jax.Array:
    """2×2 max-pooling that rounds up, so that any image size works."""
    return nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
