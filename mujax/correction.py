"""Correcting the retain gradient by the forgetting gradient (UFG, CUFG).

CUFG: *CUFG: Curriculum Unlearning Guided by the Forgetting Gradient*,
arXiv:2509.14633.

The forgetting gradient points where forgetting leads, the retain gradient where
fine-tuning leads. Where they agree enough in some tensor, the corrector walks along
their sum of unit vectors; elsewhere the retain gradient stays as it is. All functions
take two trees whose leaves match by path; norms and cosines are float32 and safe at
zero. A complex tensor counts as its real and imaginary parts. What is not finite in
either gradient is not finite in what comes of them.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from mujax import gradients
from mujax._trees import PyTree, match, widened


def forgetting_gradient(
    loss_fn: gradients.LossFn, params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""The gradient that ascends the loss of the forget set.

    .. math:: g_f = \nabla_\theta \left( -\ell(\theta; D_f) \right)

    Every example counts alike, also when the batches have different sizes.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch in evaluation
        mode.
      params: the current parameters.
      batches: batches of the forget set, or of the current stage.

    Returns:
      A float32 tree of the structure and shapes of ``params``.

    Raises:
      ValueError: there is no batch.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> forgetting_gradient(loss_fn, jnp.float32(1), [jnp.array([2.0, 4.0])])
      Array(-3., dtype=float32)
    """
    mean = gradients.mean_gradient(loss_fn, params, batches)
    return jax.tree.map(jnp.negative, mean)


def conflict(retain_grads: PyTree, forget_grads: PyTree) -> PyTree:
    r"""Cosine of the two gradients, tensor by tensor.

    .. math:: c_l = \langle \hat g_r^l, \hat g_f^l \rangle

    A tensor whose norm is zero in either tree gives 0.

    Args:
      retain_grads: gradients of the retain loss.
      forget_grads: forgetting gradients, of the same structure and shapes.

    Returns:
      A tree of float32 scalars in [-1, 1].

    Raises:
      ValueError: the trees differ; the message names the leaf.

    Example:
      >>> conflict({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([3.0, 4.0])})
      {'w': Array(0.6, dtype=float32)}
    """
    forget_grads = match(forget_grads, retain_grads, "forget_grads", "retain_grads")
    return jax.tree.map(
        # Rounding takes the cosine of parallel vectors above 1 every other time.
        lambda r, f: jnp.clip(_dot(_unit(r), _unit(f)), -1, 1),
        retain_grads,
        forget_grads,
    )


def correct(
    retain_grads: PyTree,
    forget_grads: PyTree,
    *,
    threshold: jax.typing.ArrayLike,
    forget_weight: jax.typing.ArrayLike,
    per_tensor: bool = False,
    weighted_norm: bool = False,
) -> PyTree:
    r"""Bends the retain gradient towards the forgetting gradient.

    If any tensor has :math:`c_l > \tau`, every tensor becomes

    .. math::
      u^l = \frac{\hat g_r^l + \lambda \hat g_f^l}
                 {\lVert \hat g_r^l + \hat g_f^l \rVert + 10^{-8}}

    with hats for unit norm; otherwise :math:`u = g_r`.

    Args:
      retain_grads: gradients of the retain loss.
      forget_grads: forgetting gradients, of the same structure and shapes.
      threshold: :math:`\tau`; ``-inf`` always combines, 1 never does.
      forget_weight: :math:`\lambda`.
      per_tensor: let each tensor decide for itself instead of any for all.
      weighted_norm: divide by the norm of the weighted sum,
        :math:`\lVert \hat g_r^l + \lambda \hat g_f^l \rVert + 10^{-8}`.

    Returns:
      A tree of the structure, shapes and dtypes of ``retain_grads``.

    Raises:
      ValueError: the trees differ; the message names the leaf.

    Example:
      >>> correct(
      ...     {"w": jnp.array([2.0, 0.0])},
      ...     {"w": jnp.array([0.0, 5.0])},
      ...     threshold=-0.1,
      ...     forget_weight=1.0,
      ... )["w"].round(3)
      Array([0.707, 0.707], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_, gradient corrector.
    """
    forget_grads = match(forget_grads, retain_grads, "forget_grads", "retain_grads")
    # Not c > τ, or what is not finite would count as no conflict and go unseen.
    fires = jax.tree.map(
        lambda c: ~(c <= threshold), conflict(retain_grads, forget_grads)
    )
    if not per_tensor:
        anywhere = jnp.any(jnp.array(jax.tree.leaves(fires)))
        fires = jax.tree.map(lambda _: anywhere, fires)

    def corrected(fire, retain, forget):
        r, f = _unit(retain), _unit(forget)
        combined = r + forget_weight * f
        norm = _norm(combined if weighted_norm else r + f)
        return jnp.where(fire, (combined / (norm + 1e-8)).astype(retain.dtype), retain)

    return jax.tree.map(corrected, fires, retain_grads, forget_grads)


def project_conflicts(
    retain_grads: PyTree,
    forget_grads: PyTree,
    *,
    forget_weight: jax.typing.ArrayLike = 1.0,
    retain_weight: jax.typing.ArrayLike = 1.0,
) -> PyTree:
    r"""PCGrad's rule in place of the corrector: drop what opposes the other gradient.

    Where :math:`\langle g_r, g_f \rangle < 0` in a tensor, each gradient loses its
    component along the other; the result is :math:`\kappa g_r' + \lambda g_f'`.

    Args:
      retain_grads: gradients of the retain loss.
      forget_grads: forgetting gradients, of the same structure and shapes.
      forget_weight: :math:`\lambda`.
      retain_weight: :math:`\kappa`.

    Returns:
      A tree of the structure, shapes and dtypes of ``retain_grads``.

    Raises:
      ValueError: the trees differ; the message names the leaf.

    Example:
      >>> project_conflicts(jnp.array([1.0, 0.0]), jnp.array([-1.0, 1.0]))
      Array([0.5, 1.5], dtype=float32)

    Reference:
      `Yu et al. (2020) <https://arxiv.org/abs/2001.06782>`_, algorithm 1.
    """
    forget_grads = match(forget_grads, retain_grads, "forget_grads", "retain_grads")

    def project(retain, forget):
        r, f = widened(retain), widened(forget)
        r_free = r - jnp.minimum(_dot(r, _unit(f)), 0) * _unit(f)
        f_free = f - jnp.minimum(_dot(f, _unit(r)), 0) * _unit(r)
        total = retain_weight * r_free + forget_weight * f_free
        return total.astype(retain.dtype)

    return jax.tree.map(project, retain_grads, forget_grads)


def _unit(x: jax.Array) -> jax.Array:
    """Unit vector in float32; zero stays zero, and tiny entries do not underflow."""
    x = widened(x)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0))
    x = x / jnp.where(largest > 0, largest, 1)
    norm = _norm(x)
    return x / jnp.where(norm > 0, norm, 1)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Real inner product; flattening would gather a sharded leaf."""
    return jnp.sum(jnp.real(jnp.conj(x) * y))


def _norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of all entries."""
    squares = _dot(x, x)
    # The root of zero has an infinite derivative, which would turn into NaN.
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
