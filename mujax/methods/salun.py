"""SalUn, and random labelling, which is SalUn without its mask.

Fan et al. (2024), *SalUn: Empowering Machine Unlearning via Gradient-based Weight
Saliency in Both Image Classification and Generation*, arXiv:2310.12508.

The forget set gets random labels, the retain set keeps its own, and only the weights
that matter most to the forget set move. The mask comes last in the update, so a
frozen weight stays bit-identical; the program released with the paper masked only
gradients at first, so that weight decay shrank frozen weights.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mujax import labels, saliency, transforms
from mujax._trees import is_traced
from mujax.methods import base


def random_label(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    exclude_true: bool = True,
    joint: bool = False,
    axis_name: str | None = None,
) -> base.Method:
    r"""Descends :math:`\ell(D_f, y') + \ell(D_r, y)` with random :math:`y'` (RL).

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      exclude_true: draw from the other labels only (the paper) or from all of them
        (the released program).
      joint: shuffle forget and retain examples together, instead of first all of the
        forget set and then all of the retain set.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads forget and retain set, relabels the forget set every epoch.

    Example:
      >>> loss_fn = lambda p, s, b, k: (p, (s, None))
      >>> random_label(loss_fn, optax.sgd(0.1)).data_use.passes
      (('forget',), ('retain',))
      >>> random_label(loss_fn, optax.sgd(0.1), joint=True).data_use.passes
      (('forget', 'retain'),)

    Reference:
      `Golatkar et al. (2020) <https://arxiv.org/abs/1911.04933>`_.
    """
    data_use = _data_use(exclude_true, joint)
    return base.descend(loss_fn, optimizer, data_use, axis_name=axis_name)


def salun(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float = 0.5,
    score: Callable = saliency.gradient_saliency,
    select: Callable = saliency.top_fraction_mask,
    eval_loss_fn: base.LossFn | None = None,
    exclude_true: bool = True,
    joint: bool = False,
    axis_name: str | None = None,
) -> base.Method:
    r"""Random labelling of salient weights alone, :math:`\theta_0 + m \odot \Delta`.

    ``init`` computes the mask from the forget batches, unless it is given one.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      fraction: share of the parameters that may move.
      score: ``(loss_fn, params, batches) -> scores``, from :mod:`mujax.saliency`.
      select: ``(scores, fraction) -> mask``, from :mod:`mujax.saliency`.
      eval_loss_fn: the loss in evaluation mode, for the scores; ``loss_fn`` if None.
      exclude_true: see :func:`random_label`.
      joint: see :func:`random_label`.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads forget and retain set, relabels the forget set every epoch.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = salun(loss_fn, optax.sgd(1.0), fraction=0.5)
      >>> batch = jnp.array([[1.0, 3.0]])
      >>> state = method.init(jnp.zeros(2), forget_batches=[batch])
      >>> method.finish(method.step(state, batch)[0])[0]
      Array([ 0., -3.], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_.
    """
    scoring_loss = loss_fn if eval_loss_fn is None else eval_loss_fn

    def start(params, model_state, forget_batches, mask):
        if mask is None:
            batches = base.need_batches(forget_batches, base.FORGET, "SalUn's saliency")
            scores = score(base.plain_loss(scoring_loss, model_state), params, batches)
            mask = select(scores, fraction)
        return base.Start(params, (), mask)

    data_use = _data_use(exclude_true, joint)
    return base.descend(loss_fn, optimizer, data_use, start=start, axis_name=axis_name)


def salun_soft(
    loss_fn: base.LossFn,
    optimizer: optax.GradientTransformation,
    *,
    total_steps: float | jax.Array,
    fraction: float | jax.Array = 0.5,
    exclude_true: bool = True,
    joint: bool = False,
    axis_name: str | None = None,
) -> base.Method:
    r"""Random labelling that pulls the weights that moved least back to the original.

    The share that is pulled falls linearly, :math:`\rho (1 - t/T)`; see
    :func:`mujax.transforms.soft_threshold_updates`. The distance is measured from the
    original parameters for the whole run; the released program starts anew from the
    current ones every epoch.

    Args:
      loss_fn: ``(params, model_state, batch, key) -> (loss, (model_state, aux))``, in
        training mode; the statistics move.
      optimizer: any optax transform.
      total_steps: :math:`T`, steps of the whole run.
      fraction: :math:`\rho`, the share at the start.
      exclude_true: see :func:`random_label`.
      joint: see :func:`random_label`.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads forget and retain set, relabels the forget set every epoch.

    Example:
      >>> import jax.numpy as jnp
      >>> def loss_fn(w, model_state, batch, key):
      ...     return jnp.mean(batch @ w), (model_state, None)
      >>> method = salun_soft(loss_fn, optax.sgd(1.0), total_steps=2)
      >>> state = method.init(jnp.zeros(2))
      >>> method.finish(method.step(state, jnp.array([[1.0, 3.0]]))[0])[0]
      Array([ 0., -2.], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, SalUn-soft.
    """
    if not is_traced(total_steps) and total_steps < 1:
        raise ValueError(f"Got total_steps={total_steps}, wanted at least 1.")

    def share(count):
        return fraction * (1 - jnp.minimum(count, total_steps) / total_steps)

    return base.descend(
        loss_fn,
        optax.chain(optimizer, transforms.soft_threshold_updates(share)),
        _data_use(exclude_true, joint),
        axis_name=axis_name,
    )


def _data_use(exclude_true: bool, joint: bool) -> base.DataUse:
    """Random labels on the forget set, true ones on the retain set."""
    together = ((base.FORGET, base.RETAIN),)
    in_turn = ((base.FORGET,), (base.RETAIN,))
    return base.DataUse(
        passes=together if joint else in_turn,
        relabel=functools.partial(labels.random_labels, exclude_true=exclude_true),
        epochs=10,
    )
