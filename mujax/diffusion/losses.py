"""Losses that train a noise network, and that make it forget."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mujax._trees import PyTree
from mujax.diffusion.schedule import (
    Schedule,
    add_noise,
    antithetic_timesteps,
    expand,
    noise_of_velocity,
    null_like,
)

Predict = Callable[[PyTree, jax.Array, jax.Array, PyTree], jax.Array]
Reduction = Callable[..., jax.Array]
Target = Callable[[Schedule, jax.Array, jax.Array, jax.Array], jax.Array]
Timesteps = Callable[[jax.Array, int, int], jax.Array]


def guided(predict: Predict, guidance: float | jax.Array, null: PyTree) -> Predict:
    r"""Classifier-free guidance: a network that exaggerates its condition.

    .. math:: \hat\epsilon = (1 + w)\, \epsilon_\theta(x_t, t, c)
       - w\, \epsilon_\theta(x_t, t, \varnothing)

    Args:
      predict: The network.
      guidance: w; 0 gives the conditional network, -1 the unconditional one.
      null: The null condition of one example, as in :func:`drop_condition`.

    Returns:
      A network with the arguments and result of ``predict``.

    Example:
      >>> predict = lambda params, x, t, c: c[:, None] * jnp.ones_like(x)
      >>> stronger = guided(predict, 2.0, null=0.0)
      >>> print(stronger(None, jnp.zeros((2, 1)), jnp.zeros(2, int), jnp.arange(2.0)))
      [[0.]
       [3.]]

    Reference:
      `Ho and Salimans (2022) <https://arxiv.org/abs/2207.12598>`_.
    """

    # Two calls take the processor time of one on a doubled batch (digits U-Net on CPU,
    # batches of 10, 100 and 500: within 10 %), and they neither join a batch that lies
    # sharded nor give the two conditions different dropout masks.
    def predict_guided(params, x_t, t, condition):
        conditional = predict(params, x_t, t, condition)
        unconditional = predict(params, x_t, t, null_like(condition, null))
        return (1 + guidance) * conditional - guidance * unconditional

    return predict_guided


def from_velocity(predict: Predict, schedule: Schedule) -> Predict:
    r"""The noise network that a v-prediction network is, for samplers and losses.

    .. math:: \epsilon_\theta = \sqrt{\bar\alpha_t}\, v_\theta(x_t, t, c)
       + \sqrt{1 - \bar\alpha_t}\, x_t

    An error in the noise is :math:`\sqrt{\bar\alpha_t}` times one in v: to train as the
    network was trained, give the network itself and ``target=velocity`` to the losses.

    Args:
      predict: A network that answers v.
      schedule: The schedule.

    Returns:
      A network with the arguments of ``predict`` that answers the noise.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> schedule = linear_schedule(2, 0.36, 0.75)
      >>> noise = from_velocity(lambda params, x, t, c: 0 * x, schedule)
      >>> print(noise(None, jnp.ones((1, 1)), jnp.array([0]), None).round(3))
      [[0.6]]

    Reference:
      `Salimans and Ho (2022) <https://arxiv.org/abs/2202.00512>`_, appendix D.
    """

    def predict_noise(params, x_t, t, condition):
        return noise_of_velocity(schedule, x_t, t, predict(params, x_t, t, condition))

    return predict_noise


def true_noise(
    schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
    """What a noise network is trained to answer; beside :func:`velocity`.

    Args:
      schedule: Not read.
      x0: Not read.
      t: Not read.
      noise: The noise.

    Returns:
      The noise.

    Example:
      >>> true_noise(None, None, None, 3.0)
      3.0
    """
    del schedule, x0, t
    return noise


def noise_loss(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    x0: jax.Array,
    condition: PyTree,
    key: jax.Array,
    *,
    weights: jax.Array | None = None,
    pixel_reduction: Reduction = jnp.sum,
    target: Target = true_noise,
    timesteps: Timesteps = antithetic_timesteps,
) -> jax.Array:
    r"""The training loss: how well the network finds the noise.

    .. math:: L = \sum_i w_i \, \lVert \epsilon_i - \epsilon_\theta(x_{t_i}, t_i, c_i)
       \rVert^2 \, / \sum_i w_i

    Drop conditions first, by :func:`drop_condition`.

    Args:
      predict: The network, or :func:`guided` of it.
      params: Its parameters.
      schedule: The schedule.
      x0: Data, (N, ...).
      condition: Conditions, a pytree of arrays (N, ...).
      key: A typed key for steps and noise.
      weights: Weights of the examples, (N,), 0 for padding; all equal by default.
      pixel_reduction: What joins the squared errors of an example: ``jnp.sum``, or
        ``jnp.mean``, which is smaller by the number of an example's entries.
      target: What the network is to answer: :func:`true_noise` or, if it answers v,
        :func:`velocity`.
      timesteps: How steps are drawn, ``(key, N, T) -> t``: :func:`antithetic_timesteps`
        or :func:`uniform_timesteps`.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: The prediction's shape is not that of ``x0``.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> schedule, x0 = linear_schedule(), jnp.zeros((4, 2))
      >>> knows = lambda params, x, t, c: x / schedule.sigma[t][:, None]
      >>> print(noise_loss(knows, None, schedule, x0, None, jax.random.key(0)).round(4))
      0.0

    Reference:
      `Ho et al. (2020) <https://arxiv.org/abs/2006.11239>`_, equation 14.
    """
    x_t, t, noise = _diffuse(schedule, x0, key, timesteps)
    aim = target(schedule, x0, t, noise)
    error = call(predict, params, x_t, t, condition) - aim
    return _mean_square(error, weights, pixel_reduction)


def match_loss(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    x0: jax.Array,
    condition: PyTree,
    target_condition: PyTree,
    key: jax.Array,
    *,
    teacher_params: PyTree | None = None,
    weights: jax.Array | None = None,
    pixel_reduction: Reduction = jnp.sum,
    timesteps: Timesteps = antithetic_timesteps,
) -> jax.Array:
    r"""SalUn's forgetting loss: answer one condition as another is answered.

    .. math:: \lVert \epsilon_\theta(x_t, t, c)
       - \mathrm{sg}[\epsilon_{\theta'}(x_t, t, c')] \rVert^2

    Student and teacher see the same :math:`x_t` and t, and have the same parameters,
    :math:`\theta' = \theta`, or the teacher has its own, such as the original's (with
    c' = c the student is then held to its answers). Gradients pass through the student
    alone. The released program takes the mean over pixels here and the sum in
    :func:`noise_loss`.

    Args:
      predict: The network.
      params: Its parameters.
      schedule: The schedule.
      x0: Data of the forgotten condition, (N, ...).
      condition: c, the forgotten condition, a pytree of arrays (N, ...).
      target_condition: c', another condition, the same pytree.
      key: A typed key for steps and noise.
      teacher_params: :math:`\theta'`; None takes ``params``.
      weights: As in :func:`noise_loss`.
      pixel_reduction: As in :func:`noise_loss`.
      timesteps: As in :func:`noise_loss`.

    Returns:
      A float32 scalar.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> predict = lambda params, x, t, c: c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.zeros(4), jnp.full(4, 3.0)
      >>> print(match_loss(predict, None, *data, jax.random.key(0)))
      18.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 7.
    """
    x_t, t, _ = _diffuse(schedule, x0, key, timesteps)
    if teacher_params is None:
        teacher_params = params
    target = call(predict, teacher_params, x_t, t, target_condition)
    error = call(predict, params, x_t, t, condition) - jax.lax.stop_gradient(target)
    return _mean_square(error, weights, pixel_reduction)


def relabel_loss(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    x0: jax.Array,
    condition: PyTree,
    target_condition: PyTree,
    relabelled: jax.Array,
    key: jax.Array,
    *,
    weights: jax.Array | None = None,
    pixel_reduction: Reduction = jnp.sum,
    target: Target = true_noise,
    timesteps: Timesteps = antithetic_timesteps,
) -> jax.Array:
    r"""Random labels for a diffusion model, beside examples that keep their own.

    .. math:: \lVert \epsilon_\theta(x_t, t, c) - y \rVert^2, \qquad
       y = \begin{cases} \mathrm{sg}[\epsilon_\theta(x_t, t, c')] &
       \text{relabelled} \\ \epsilon & \text{otherwise} \end{cases}

    :func:`match_loss` where an example is relabelled and :func:`noise_loss` where it
    is not, for the price of one network that learns and one that only answers.

    Args:
      predict: The network.
      params: Its parameters.
      schedule: The schedule.
      x0: Data, (N, ...).
      condition: c, the examples' own conditions, a pytree of arrays (N, ...).
      target_condition: c', the same pytree; read where an example is relabelled.
      relabelled: Which examples are, bool (N,).
      key: A typed key for steps and noise.
      weights: As in :func:`noise_loss`.
      pixel_reduction: As in :func:`noise_loss`.
      target: As in :func:`noise_loss`.
      timesteps: As in :func:`noise_loss`.

    Returns:
      A float32 scalar.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> predict = lambda params, x, t, c: c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.zeros(4), jnp.full(4, 3.0)
      >>> data += (jnp.ones(4, bool), jax.random.key(0))
      >>> print(relabel_loss(predict, None, *data))
      18.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 7.
    """
    x_t, t, noise = _diffuse(schedule, x0, key, timesteps)
    teacher = jax.lax.stop_gradient(call(predict, params, x_t, t, target_condition))
    own = target(schedule, x0, t, noise)
    aim = jnp.where(expand(relabelled, own), teacher, own)
    error = call(predict, params, x_t, t, condition) - aim
    return _mean_square(error, weights, pixel_reduction)


def erase_loss(
    predict: Predict,
    params: PyTree,
    frozen_params: PyTree,
    schedule: Schedule,
    x0: jax.Array,
    condition: PyTree,
    null: PyTree,
    key: jax.Array,
    *,
    strength: float | jax.Array = 1.0,
    weights: jax.Array | None = None,
    pixel_reduction: Reduction = jnp.sum,
    timesteps: Timesteps = antithetic_timesteps,
) -> jax.Array:
    r"""ESD's loss: answer a condition as the original, guided away from it, would.

    .. math:: \lVert \epsilon_\theta(x_t, t, c) - \epsilon_0(x_t, t, \varnothing)
       + \eta\, [\epsilon_0(x_t, t, c) - \epsilon_0(x_t, t, \varnothing)] \rVert^2

    Args:
      predict: The network.
      params: Its parameters.
      frozen_params: The original parameters; no gradient reaches them.
      schedule: The schedule.
      x0: Data of the condition, real or drawn from the original, (N, ...).
      condition: c, the erased condition, a pytree of arrays (N, ...).
      null: The null condition of one example, as in :func:`drop_condition`.
      key: A typed key for steps and noise.
      strength: :math:`\eta`, how far to go beyond the null condition.
      weights: As in :func:`noise_loss`.
      pixel_reduction: As in :func:`noise_loss`.
      timesteps: As in :func:`noise_loss`.

    Returns:
      A float32 scalar.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> predict = lambda params, x, t, c: params * c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.ones(4), 0.0
      >>> print(erase_loss(predict, 1.0, 1.0, *data, jax.random.key(0)))
      8.0

    Reference:
      `Gandikota et al. (2023) <https://arxiv.org/abs/2303.07345>`_, equation 7.
    """
    x_t, t, _ = _diffuse(schedule, x0, key, timesteps)
    away = guided(predict, -1.0 - strength, null)
    target = jax.lax.stop_gradient(call(away, frozen_params, x_t, t, condition))
    error = call(predict, params, x_t, t, condition) - target
    return _mean_square(error, weights, pixel_reduction)


def call(predict, params, x_t, t, condition) -> jax.Array:
    """The network's answer in float32, with its shape checked."""
    noise = predict(params, x_t, t, condition)
    if noise.shape != x_t.shape:
        raise ValueError(
            f"Got noise of shape {noise.shape} from predict for x_t of shape "
            f"{x_t.shape}; return one value for each entry."
        )
    return noise.astype(jnp.float32)


def _diffuse(
    schedule: Schedule, x0: jax.Array, key: jax.Array, timesteps: Timesteps
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noised data, their steps and their noise."""
    t_key, noise_key = jax.random.split(key)
    t = timesteps(t_key, x0.shape[0], schedule.num_steps)
    noise = jax.random.normal(noise_key, x0.shape, jnp.result_type(x0, jnp.float32))
    return add_noise(schedule, x0, t, noise), t, noise


def _mean_square(error, weights, pixel_reduction) -> jax.Array:
    """Squared errors reduced over an example's entries, then the mean over examples."""
    losses = pixel_reduction(jnp.square(error), axis=tuple(range(1, error.ndim)))
    if weights is None:
        return jnp.mean(losses)
    total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total == 0, 1, total)
