"""The golden vectors' small network, in this project's layout.

The files under ``tests/golden`` hold numbers that the released PyTorch programs
produced (images NCHW, convolution kernels OIHW, dense kernels out × in).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

GOLDEN = pathlib.Path(__file__).parent / "golden"
LAYERS = ("conv1", "conv2", "fc")


def load(name: str) -> dict[str, np.ndarray]:
    """Reads ``tests/golden/<name>.npz``."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def kernel(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, out × in to in × out."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def tree(data: dict[str, np.ndarray], prefix: str) -> dict[str, dict[str, jax.Array]]:
    """Parameters ``{layer: {"kernel", "bias"}}`` from the entries under a prefix."""
    return {
        layer: {
            "kernel": jnp.asarray(kernel(data[f"{prefix}{layer}.weight"])),
            "bias": jnp.asarray(data[f"{prefix}{layer}.bias"]),
        }
        for layer in LAYERS
    }


def images(data: dict[str, np.ndarray], split: str) -> jax.Array:
    """Images of a split of ``model.npz``, NHWC."""
    return jnp.asarray(data[f"{split}_images"].transpose(0, 2, 3, 1))


def batches(data, split: str, size: int = 64) -> list[tuple[jax.Array, jax.Array]]:
    """Batches of a split in order; the last one may be smaller."""
    x, y = images(data, split), jnp.asarray(data[f"{split}_labels"])
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def apply(params, x: jax.Array) -> jax.Array:
    """Logits of the golden network."""

    def conv(x, layer, stride):
        y = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(y + layer["bias"])

    x = conv(conv(x, params["conv1"], 1), params["conv2"], 2)
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


def loss(params, batch) -> jax.Array:
    """Mean cross-entropy of a batch ``(images, labels)``."""
    x, y = batch
    logits = apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
