"""Wrong labels for the forget set (SalUn, SEMU and the random-label baseline).

SalUn: Fan et al. (2024), arXiv:2310.12508. SEMU: arXiv:2502.07587.

Training on D_f with labels that are not its own makes a classifier forget it. The
labels are drawn anew each epoch: pass a key folded with the epoch. Everything here
works on labels of any shape, under ``jit`` (``num_classes`` static) and ``vmap``. A
label that is no class, such as the 255 or −1 of what a loss ignores, stays as it is.
"""

import jax
import jax.numpy as jnp

from mujax._checks import in_range
from mujax._meshes import zeros_along


def random_labels(
    key: jax.Array,
    labels: jax.typing.ArrayLike,
    num_classes: int,
    *,
    exclude_true: bool = True,
) -> jax.Array:
    r"""Draws a label for every example, by default any but its own.

    .. math:: y' \sim \mathrm{Uniform}(\{0, \dots, K-1\} \setminus \{y\})

    Args:
      key: a typed PRNG key.
      labels: true labels, integers of any shape; those outside [0, K) are kept.
      num_classes: :math:`K`, at least 2.
      exclude_true: True draws from the other classes (the paper's rule); False draws
        from all of them, so that one in K keeps its label (the released program's).

    Returns:
      Labels in [0, K), of the shape and dtype of ``labels``; where these are no class,
      themselves.

    Raises:
      ValueError: there are fewer than 2 classes, or more than the dtype can hold.
      TypeError: the labels are not integers.

    Example:
      >>> random_labels(jax.random.key(0), jnp.array([0, 1, 0]), 2)
      Array([1, 0, 1], dtype=int32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    labels = _check(labels, num_classes)
    if exclude_true:
        # Every other class lies between 1 and K − 1 steps further round the circle.
        steps = jax.random.randint(key, labels.shape, 1, num_classes, jnp.int32)
        return _advance(labels, steps, num_classes)
    drawn = jax.random.randint(key, labels.shape, 0, num_classes, jnp.int32)
    drawn = drawn.astype(labels.dtype) + zeros_along(labels, labels.dtype)
    return jnp.where(in_range(labels, num_classes), drawn, labels)


def next_label(labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    r"""Moves every label to the next class.

    .. math:: y' = (y + 1) \bmod K

    Args:
      labels: true labels, integers of any shape; those outside [0, K) are kept.
      num_classes: :math:`K`, at least 2.

    Returns:
      Labels in [0, K), none of them the true one, of the shape and dtype of
      ``labels``; where these are no class, themselves.

    Raises:
      ValueError: there are fewer than 2 classes, or more than the dtype can hold.
      TypeError: the labels are not integers.

    Example:
      >>> next_label(jnp.array([0, 1, 2]), 3)
      Array([1, 2, 0], dtype=int32)

    Reference:
      The fixed wrong label of the released diffusion programs of
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    labels = _check(labels, num_classes)
    return _advance(labels, 1, num_classes)


def _advance(
    labels: jax.Array, steps: jax.typing.ArrayLike, num_classes: int
) -> jax.Array:
    """Steps round the circle of classes; what is no class stays outside of it."""
    # In int32, as a small dtype may not hold K.
    moved = ((labels.astype(jnp.int32) + steps) % num_classes).astype(labels.dtype)
    return jnp.where(in_range(labels, num_classes), moved, labels)


def _check(labels: jax.typing.ArrayLike, num_classes: int) -> jax.Array:
    """Labels as an array, if they are integers that can name so many classes."""
    labels = jnp.asarray(labels)
    if num_classes < 2:
        raise ValueError(f"Got num_classes={num_classes}, wanted at least 2.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"Got {labels.dtype} labels, wanted integers; cast them.")
    if num_classes - 1 > jnp.iinfo(labels.dtype).max:
        raise ValueError(
            f"Got {labels.dtype} labels for {num_classes} classes, more than it can "
            "hold; cast them to int32."
        )
    return labels
