"""One's own training loops, as the README shows them, and digits to run them on."""

import jax.numpy as jnp
from sklearn.datasets import load_digits

FORGOTTEN = 3


def digits():
    """All digits, the threes, and the others in batches, as ``(images, labels)``."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    is_forgotten = labels == FORGOTTEN
    forget, retain = (
        (images[part], labels[part]) for part in (is_forgotten, ~is_forgotten)
    )
    cuts = range(0, len(retain[0]) - 255, 256)
    batches = [(retain[0][i : i + 256], retain[1][i : i + 256]) for i in cuts]
    return (images, labels), forget, batches


def report(logits_fn):
    """Prints and returns the accuracy on the threes and on the others."""
    (images, labels), _, _ = digits()
    right = logits_fn(images).argmax(-1) == labels
    is_forgotten = labels == FORGOTTEN
    forget, retain = right[is_forgotten].mean(), right[~is_forgotten].mean()
    print(f"accuracy: threes {forget:.3f}, other digits {retain:.3f}")
    return float(forget), float(retain)
