"""Methods that teach by another model's outputs: SCRUB, Bad Teacher, DELETE, oracles.

They look at logits, not only at a loss. The function that gives them,
:class:`OutputsFn`, also gives the labels: those of the forget set are -1 where a method
reads forget and retain examples and must tell them apart (``data_use.relabel``).
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from mujax._trees import PyTree
from mujax.methods import base


class Outputs(NamedTuple):
    """What a model says of a batch.

    Attributes:
      logits: (B, K).
      labels: (B,), -1 for an example to forget where ``data_use.relabel`` says so.
      weights: (B,), of mean 1; None for equal ones.
      model_state: the model's other state after it.
    """

    logits: jax.Array
    labels: jax.Array
    weights: jax.Array | None
    model_state: PyTree


class OutputsFn(Protocol):
    """A model's outputs for a batch."""

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        batch: PyTree,
        key: jax.Array | None,
        /,
    ) -> Outputs:
        """Returns the ``Outputs``."""
        ...


def mark_forgotten(key: Any, labels: jax.Array, num_classes: int) -> jax.Array:
    """The labels of the forget set for methods that mark it: -1.

    Raises:
      TypeError: the labels' type has no negative numbers.

    Example:
      >>> mark_forgotten(None, jnp.array([3, 4]), 10)
      Array([-1, -1], dtype=int32)
    """
    del key, num_classes
    if not jnp.issubdtype(labels.dtype, jnp.signedinteger):
        raise TypeError(
            f"Got {labels.dtype} labels, wanted signed integers: -1 marks what is to "
            "be forgotten; cast them."
        )
    return jnp.full_like(labels, -1)


def scrub(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    max_steps: float | jax.Array,
    cross_entropy: float | jax.Array = 0.99,
    stay: float | jax.Array = 0.001,
    temperature: float | jax.Array = 4.0,
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Leaves the teacher on the forget set and stays with it on the retain set.

    Steps on :math:`D_f` descend :math:`-KL(t \Vert s)`, and steps on :math:`D_r`
    :math:`\gamma \ell + \alpha KL(t \Vert s)`, with the original as teacher and
    divergences :math:`T^2 KL` of outputs at temperature T.

    Args:
      outputs_fn: outputs in training mode; the statistics move.
      optimizer: any optax transform.
      max_steps: from this step on the forget set's term counts no more; the paper
        leaves the last of five epochs to the retain set.
      cross_entropy: :math:`\gamma`.
      stay: :math:`\alpha`.
      temperature: :math:`T`.
      eval_outputs_fn: the teacher's outputs, in evaluation mode; ``outputs_fn`` if
        None.
      axis_name: mapped axis to average over.

    Returns:
      The method; an epoch reads the forget set and then the retain set.

    Example:
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> scrub(outputs_fn, optax.sgd(0.1), max_steps=4).data_use.passes
      (('forget',), ('retain',))

    Reference:
      `Kurmanji et al. (2023) <https://arxiv.org/abs/2302.09880>`_.
    """

    def rows(student, teacher, labels, step):
        gone = labels < 0
        apart = _divergence(teacher, student, temperature)
        known = optax.softmax_cross_entropy_with_integer_labels(
            student, jnp.where(gone, 0, labels)
        )
        away = jnp.where(step < max_steps, -apart, 0.0)
        return jnp.where(gone, away, cross_entropy * known + stay * apart)

    return _distil(
        rows,
        outputs_fn,
        eval_outputs_fn,
        optimizer,
        base.DataUse(
            passes=((base.FORGET,), (base.RETAIN,)), relabel=mark_forgotten, epochs=5
        ),
        axis_name=axis_name,
    )


def bad_teacher(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    incompetent: tuple[PyTree, PyTree],
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Learns the forget set from a random network, the rest from the original.

    Descends :math:`KL(b \Vert s)` on :math:`D_f` and :math:`KL(t \Vert s)` on
    :math:`D_r`.

    Args:
      outputs_fn: outputs in training mode; the statistics move.
      optimizer: any optax transform.
      incompetent: parameters and model state of the random network.
      eval_outputs_fn: the teachers' outputs, in evaluation mode; ``outputs_fn`` if
        None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads forget and retain set shuffled together.

    Example:
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> random = jnp.zeros(2), ()
      >>> method = bad_teacher(outputs_fn, optax.sgd(1.0), incompetent=random)
      >>> method.data_use.passes
      (('forget', 'retain'),)

    Reference:
      `Chundawat et al. (2023) <https://arxiv.org/abs/2205.08096>`_.
    """
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn

    def rows(student, teacher, labels, step, batch):
        del step
        bad = look(*incompetent, batch, None).logits
        chosen = jnp.where((labels < 0)[:, None], bad, teacher)
        return _divergence(chosen, student, 1.0)

    return _distil(
        rows,
        outputs_fn,
        eval_outputs_fn,
        optimizer,
        base.DataUse(
            passes=((base.FORGET, base.RETAIN),), relabel=mark_forgotten, epochs=5
        ),
        with_batch=True,
        axis_name=axis_name,
    )


def delete(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Learns the original's outputs without the true class (DELETE), on :math:`D_f`.

    Descends :math:`KL(\mathrm{softmax}(t \text{ with } t_y = -\infty) \Vert s)`. Made
    for whole classes: it always drops the true class, which a Retrain often knows.

    Args:
      outputs_fn: outputs in training mode, with true labels; the statistics move.
      optimizer: any optax transform.
      eval_outputs_fn: the teacher's outputs, in evaluation mode; ``outputs_fn`` if
        None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads the forget set alone.

    Example:
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> delete(outputs_fn, optax.sgd(0.1)).data_use.passes
      (('forget',),)

    Reference:
      `Zhou et al. (2025) <https://arxiv.org/abs/2503.23751>`_.
    """

    def rows(student, teacher, labels, step):
        del step
        classes = jnp.arange(teacher.shape[-1])
        others = jnp.where(classes == labels[:, None], -jnp.inf, teacher)
        return _divergence(others, student, 1.0)

    return _distil(
        rows,
        outputs_fn,
        eval_outputs_fn,
        optimizer,
        base.DataUse(passes=((base.FORGET,),), epochs=5),
        axis_name=axis_name,
    )


def oracle_matching(
    outputs_fn: OutputsFn,
    optimizer: optax.GradientTransformation,
    *,
    oracle: tuple[PyTree, PyTree],
    eval_outputs_fn: OutputsFn | None = None,
    axis_name: str | None = None,
) -> base.Method:
    r"""Learns the outputs of a Retrain that exists: a ceiling, not a method to use.

    Descends :math:`KL(o \Vert s)` on :math:`D_f` and :math:`D_r`. What a method could
    reach at most with so many steps, for tables.

    Args:
      outputs_fn: outputs in training mode; the statistics move.
      optimizer: any optax transform.
      oracle: parameters and model state of a model that never saw :math:`D_f`.
      eval_outputs_fn: the oracle's outputs, in evaluation mode; ``outputs_fn`` if None.
      axis_name: mapped axis to average over.

    Returns:
      The method; reads forget and retain set shuffled together.

    Example:
      >>> def outputs_fn(w, model_state, batch, key):
      ...     x, labels = batch
      ...     return Outputs(x @ w, labels, None, model_state)
      >>> method = oracle_matching(outputs_fn, optax.sgd(1.0), oracle=(jnp.eye(2), ()))
      >>> state, batch = method.init(jnp.eye(2)), (jnp.eye(2), jnp.arange(2))
      >>> method.step(state, batch)[1].loss  # it is the oracle already
      Array(0., dtype=float32)

    Reference:
      `Georgiev et al. (2024) <https://arxiv.org/abs/2410.23232>`_.
    """
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn

    def rows(student, teacher, labels, step, batch):
        del teacher, labels, step
        return _divergence(look(*oracle, batch, None).logits, student, 1.0)

    return _distil(
        rows,
        outputs_fn,
        eval_outputs_fn,
        optimizer,
        base.DataUse(passes=((base.FORGET, base.RETAIN),), epochs=5),
        with_batch=True,
        axis_name=axis_name,
    )


def _distil(
    rows,
    outputs_fn: OutputsFn,
    eval_outputs_fn: OutputsFn | None,
    optimizer: optax.GradientTransformation,
    data_use: base.DataUse,
    *,
    with_batch: bool = False,
    axis_name: str | None = None,
) -> base.Method:
    """A method whose loss compares a student with the original.

    ``rows`` is ``(student, teacher, labels, step[, batch]) -> (B,)`` of logits.
    """
    look = outputs_fn if eval_outputs_fn is None else eval_outputs_fn

    def loss_fn(params, fixed, model_state, batch, key):
        original, original_state, step = fixed
        theirs = look(original, original_state, batch, None)
        teacher = theirs.logits.astype(jnp.float32)
        ours = outputs_fn(params, model_state, batch, key)
        given = (ours.logits.astype(jnp.float32), teacher, ours.labels, step)
        losses = rows(*given, *((batch,) if with_batch else ()))
        if ours.weights is not None:
            losses = ours.weights * losses
        return jnp.mean(losses), (ours.model_state, None)

    def start(params, model_state, forget_batches, mask):
        del forget_batches
        return base.Start(params, (params, model_state, jnp.zeros([], jnp.int32)), mask)

    method = base.descend(
        loss_fn,
        optimizer,
        data_use,
        start=start,
        original=lambda fixed: fixed,
        axis_name=axis_name,
    )

    def step(state, batch, **options):
        # The loss is told how far the run is.
        fixed = (*state.fixed[:2], state.step)
        return method.step(state._replace(fixed=fixed), batch, **options)

    return method._replace(step=step)


def _divergence(teacher, student, temperature):
    """Rows of T² KL(teacher‖student) of outputs at a temperature."""
    target = jax.nn.softmax(teacher / temperature)
    theirs = jax.nn.log_softmax(teacher / temperature)
    ours = jax.nn.log_softmax(student / temperature)
    terms = jnp.where(target > 0, target * (jnp.where(target > 0, theirs, 0) - ours), 0)
    return temperature**2 * jnp.sum(terms, axis=-1)
