"""A model of one's own with a list of layers, attention and dropout."""

from flax import nnx


class Block(nnx.Module):
    def __init__(self, width, *, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, decode=False, dropout_rate=0.1, rngs=rngs
        )
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.attention(self.norm(x)))


class Net(nnx.Module):
    def __init__(self, num_classes, input_shape, *, rngs):
        height, columns, channels = input_shape
        self.embed = nnx.Linear(columns * channels, 16, rngs=rngs)
        self.place = nnx.Param(rngs.params.normal((height, 16)))
        self.layers = nnx.List([Block(16, rngs=rngs) for _ in range(2)])
        self.logits = nnx.Linear(16 * height, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x.reshape(*x.shape[:2], -1)) + self.place[...]
        for layer in self.layers:
            x = layer(x)
        return self.logits(nnx.relu(x).reshape(len(x), -1))
