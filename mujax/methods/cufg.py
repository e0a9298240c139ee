"""UFG and CUFG: retain steps corrected by the forgetting gradient.

*CUFG: Curriculum Unlearning Guided by the Forgetting Gradient*, arXiv:2509.14633.

Every retain step also looks at the forgetting gradient of the whole forget set and
bends towards it where the two agree. CUFG adds a curriculum: the forget set is split
by difficulty into stages, forgotten from easy to hard. The retain batch runs in
training mode and the forgetting gradient in evaluation mode; the released program
stays in evaluation mode after its first forgetting gradient, which passing one
evaluation loss for both reproduces.
"""

import jax.numpy as jnp
import optax

from mujax import transforms
from mujax.methods import base


def ufg(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    threshold: transforms.Scalar = 0.45,
    forget_weight: transforms.Scalar = 1.0,
    combine: optax.GradientTransformation | None = None,
    eval_loss_fn: base.LossFn | None = None,
    sampled: bool = False,
    refresh_every: int = 1,
    microbatch_size: int | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_r)`, corrected by the forgetting gradient.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move with the retain batch alone.
      optimizer: any optax transform; it is given the corrected gradient.
      threshold: :math:`\tau`, a number or a schedule of the step; see
        :func:`released_threshold`.
      forget_weight: :math:`\lambda`, a number or a schedule of the step; see
        :func:`released_forget_weight`.
      combine: another rule in place of the corrector, such as
        :func:`mujax.transforms.project_conflicting_updates`.
      eval_loss_fn: the loss in evaluation mode, for the forgetting gradient;
        ``loss_fn`` if None.
      sampled: estimate the forgetting gradient on one batch of the forget set instead
        of all of it; cheaper, and no longer exact.
      refresh_every: recompute it every so many steps; 1 is exact.
      microbatch_size: compute it in pieces of this many examples, for memory.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the retain set with the forget set beside every step.

    Example:
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = ufg(loss_fn, optax.sgd(1.0), threshold=-0.5)
      >>> retain, forget = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, -3.0]])
      >>> state, _ = method.step(method.init(jnp.zeros(2)), retain, forget_batch=forget)
      >>> method.finish(state)[0].round(3)
      Array([-0.707, -0.707], dtype=float32)

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_.
    """
    if combine is None:
        combine = transforms.correct_updates(threshold, forget_weight)
    return base.descend(
        loss_fn,
        optax.chain(combine, optimizer),
        base.DataUse(
            passes=((base.RETAIN,),),
            companion="sampled" if sampled else "whole",
            epochs=10,
            microbatch_size=microbatch_size,
        ),
        forget_loss_fn=loss_fn if eval_loss_fn is None else eval_loss_fn,
        refresh_every=refresh_every,
        axis_name=axis_name,
    )


def cufg(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    stages: int = 3,
    **options,
) -> base.Method:
    """UFG under a curriculum of stages, from easy to hard.

    The difficulty and the parts come from :mod:`mujax.curriculum`; give the step the
    current stage's part as ``forget_batch``.

    Args:
      loss_fn: see :func:`ufg`.
      optimizer: see :func:`ufg`.
      stages: number of parts of the forget set.
      **options: see :func:`ufg`.

    Returns:
      The method; as :func:`ufg`, for ``data_use.epochs`` epochs in each stage.

    Example:
      >>> loss_fn = lambda p, s, b, k: (p, (s, None))
      >>> cufg(loss_fn, optax.sgd(0.1), stages=4).data_use.stages
      4

    Reference:
      `CUFG (2025) <https://arxiv.org/abs/2509.14633>`_.
    """
    if stages < 1:
        raise ValueError(f"Got stages={stages}, wanted at least 1.")
    return base.with_data(ufg(loss_fn, optimizer, **options), stages=stages)


def released_threshold(steps_per_epoch: int) -> optax.Schedule:
    r"""The released schedule :math:`\tau_e = 0.45 - 0.05 \lfloor e / 10 \rfloor`.

    Example:
      >>> schedule = released_threshold(steps_per_epoch=2)
      >>> [round(float(schedule(step)), 2) for step in (0, 19, 20)]
      [0.45, 0.45, 0.4]
    """
    return lambda step: 0.45 - 0.05 * jnp.floor_divide(step, 10 * steps_per_epoch)


def released_forget_weight(steps_per_epoch: int) -> optax.Schedule:
    r"""The released schedule :math:`\lambda_e = 0.9^e`.

    Example:
      >>> schedule = released_forget_weight(steps_per_epoch=2)
      >>> [round(float(schedule(step)), 2) for step in (0, 1, 2, 4)]
      [1.0, 1.0, 0.9, 0.81]
    """
    return optax.exponential_decay(1.0, steps_per_epoch, 0.9, staircase=True)
