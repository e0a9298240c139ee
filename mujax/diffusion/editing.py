"""Closed-form edits of what cross-attention makes of a text."""

import jax
import jax.numpy as jnp
import numpy as np

from mujax._trees import is_traced


def edit_projection(
    kernel: jax.Array | np.ndarray,
    states: jax.Array | np.ndarray,
    targets: jax.Array | np.ndarray,
    preserved: jax.Array | np.ndarray | None = None,
    *,
    ridge: float | jax.Array = 0.5,
    erase_weight: float | jax.Array = 1.0,
    preserve_weight: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Unified concept editing (UCE) of one key or value projection.

    With the kernel :math:`K` of :math:`c \mapsto c K`, states :math:`c_i` that are to
    be read as the targets :math:`c^*_i`, and states :math:`p_j` that are to be read as
    before, it minimises

    .. math:: s_E \sum_i \|c_i K' - c^*_i K\|^2 + s_P \sum_j \|p_j (K' - K)\|^2
       + \lambda \|K' - K\|^2 ,

    .. math:: K' = K + s_E A^{-1} C^\top (C^* - C) K , \quad
       A = \lambda I + s_E C^\top C + s_P P^\top P .

    Computed in float32 at the highest matmul precision. Differentiable, and free of
    the host: jit it, or map it over the kernels of a network.

    Args:
      kernel: (D, out), as in a flax ``Dense``: the transpose of the papers' matrix.
      states: (N, D), of the text to erase.
      targets: (N, D), of the text that takes its place.
      preserved: (M, D), of other text; None for none.
      ridge: :math:`\lambda > 0`, released 0.5.
      erase_weight: :math:`s_E \ge 0`.
      preserve_weight: :math:`s_P \ge 0`.

    Returns:
      The edited kernel, of the kernel's shape and dtype.

    Raises:
      ValueError: the shapes do not fit, or the ridge is not positive.

    Example:
      >>> kernel = jnp.array([[1.0], [2.0]])
      >>> cat, dog = jnp.eye(2)
      >>> edited = edit_projection(kernel, cat[None], dog[None], ridge=1e-3)
      >>> edited.round(2)  # a cat is read as a dog
      Array([[2.],
             [2.]], dtype=float32)

    Reference:
      `Gandikota et al. (2024) <https://arxiv.org/abs/2308.14761>`_.
    """
    size = kernel.shape[0]
    rows = {"states": states, "targets": targets}
    if preserved is not None:
        rows["preserved"] = preserved
    for name, x in rows.items():
        if kernel.ndim != 2 or x.ndim != 2 or x.shape[1] != size:
            raise ValueError(
                f"Got {name} of shape {x.shape} and a kernel of shape {kernel.shape}, "
                "wanted (N, D) and (D, out)."
            )
    if states.shape != targets.shape:
        raise ValueError(
            f"Got states of shape {states.shape} and targets of {targets.shape}, "
            "wanted a target for each."
        )
    if not is_traced(ridge) and not ridge > 0:
        raise ValueError(f"Got ridge={ridge}, wanted a positive number.")
    kept = jnp.zeros((0, size)) if preserved is None else preserved
    with jax.default_matmul_precision("highest"):
        k, c, new, p = (
            jnp.asarray(x, jnp.float32) for x in (kernel, states, targets, kept)
        )
        # By orthogonal factors: normal equations would lose half of the digits.
        rows = [jnp.sqrt(erase_weight) * c, jnp.sqrt(preserve_weight) * p]
        q, r = jnp.linalg.qr(jnp.concatenate([*rows, jnp.sqrt(ridge) * jnp.eye(size)]))
        wanted = jnp.sqrt(erase_weight) * ((new - c) @ k)
        change = jax.scipy.linalg.solve_triangular(r, q[: len(c)].T @ wanted)
        return (k + change).astype(kernel.dtype)
