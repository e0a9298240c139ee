"""A vision transformer of the size "tiny" (Dosovitskiy et al., 2021).

Patches embedded in 192 dimensions, a class token, learned positions, and 12 blocks of
attention (3 heads) and a perceptron, each normalised before: DeiT-Ti's shape. With its
patch of 16 at 224×224 and 1,000 classes it has DeiT-Ti's 5,717,416 parameters; here the
default patch is 4, for 32×32 images (5,362,762 for 10 classes). Every projection is a
plain two-axis dense kernel, queries, keys and values in one, so that subspace methods
find it without a specification. The GELU is exact, as where its weights come from.

Reference: Dosovitskiy et al. (2021), An Image is Worth 16×16 Words,
https://arxiv.org/abs/2010.11929; Touvron et al. (2021), Training data-efficient image
transformers, https://arxiv.org/abs/2012.12877.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError
from experiments.models.convolution import conv_general_dilated

_dense_init = nnx.initializers.truncated_normal(0.02)


class ViT(nnx.Module):
    """A vision transformer that reads its class token.

    Args:
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image; H and W are multiples of ``patch``.
      patch: Side of a square patch, in pixels.
      width: Dimensions of a token, a multiple of ``heads``.
      depth: Number of blocks.
      heads: Attention heads of each block.
      rngs: Source of the initial values.

    Raises:
      ModelError: If patches do not tile the image.

    Example:
      >>> model = nnx.eval_shape(lambda: ViT(10, (32, 32, 3), rngs=nnx.Rngs(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
      5362762
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        rngs: nnx.Rngs,
    ):
        height, columns, channels = input_shape
        if height % patch or columns % patch:
            raise ModelError(
                f"Got images of {height}×{columns}, wanted multiples of the patch "
                f"({patch}); choose another patch or image size."
            )
        tokens = (height // patch) * (columns // patch) + 1
        self.embed = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.token = nnx.Param(_dense_init(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(_dense_init(rngs.params(), (1, tokens, width)))
        blocks = [Block(width, heads, rngs=rngs) for _ in range(depth)]
        self.blocks = nnx.Sequential(*blocks)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dense = _dense(width, num_classes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (N, num_classes) for images of shape (N, H, W, C)."""
        x = self.embed(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...]
        return self.dense(self.norm(self.blocks(x)[:, 0]))


class Block(nnx.Module):
    """Self-attention, then a perceptron of 4 × width, each added to its input."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = _dense(width, 3 * width, rngs)
        self.mix = _dense(width, width, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.expand = _dense(width, 4 * width, rngs)
        self.contract = _dense(4 * width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens of shape (N, tokens, width), as they came."""
        joint = self.queries_keys_values(self.norm1(x))
        q, k, v = jnp.moveaxis(joint.reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v)
        x = x + self.mix(attended.reshape(x.shape))
        return x + self.contract(
            nnx.gelu(self.expand(self.norm2(x)), approximate=False)
        )


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with a transformer's small initial values."""
    return nnx.Linear(inputs, outputs, kernel_init=_dense_init, rngs=rngs)
