"""A sampler that remembers what the network answered before."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mujax._trees import PyTree
from mujax.diffusion.losses import Predict, call
from mujax.diffusion.sampling import started, visited_steps
from mujax.diffusion.schedule import Schedule, log_alpha

# Weights of the newest answer and of those before it, by the number of the call.
_WEIGHTS = (
    (1, 0, 0, 0),
    (1 / 2, 1 / 2, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms_sample(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    key: jax.Array,
    condition: PyTree,
    shape: tuple[int, ...],
    *,
    num_steps: int | None = None,
    steps: Sequence[int] | None = None,
    last_alpha: float | jax.Array = 1.0,
    start: jax.Array | None = None,
    to_noise: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    r"""Draws samples by PLMS: DDIM's step on a mixture of the last four answers.

    .. math:: \hat\epsilon = \tfrac{1}{24}
       (55 \epsilon_t - 59 \epsilon_{t+1} + 37 \epsilon_{t+2} - 9 \epsilon_{t+3})

    with the steps counted as they are visited, and fewer terms at the start:
    :math:`\tfrac{1}{2}(3, -1)`, then :math:`\tfrac{1}{12}(23, -16, 5)`. The first step
    is taken twice, the second time with the mean of the answers at both of its ends.

    Args:
      predict: The network, or :func:`guided` of it.
      params: Its parameters.
      schedule: The schedule.
      key: A typed key.
      condition: Conditions, a pytree of arrays (N, ...).
      shape: Shape of the samples, (N, ...).
      num_steps: n, as in :func:`ddim_sample`; the network is evaluated n + 1 times.
      steps: As in :func:`ddim_sample`.
      last_alpha: As in :func:`ddim_sample`.
      start: As in :func:`ddim_sample`.
      to_noise: ``(x_t, t, answer) -> noise``, for a network that answers something
        else, whose answers are then mixed as they are; with v it is
        ``functools.partial(noise_of_velocity, schedule)``.
      dtype: As in :func:`ddpm_sample`.

    Returns:
      Samples of the given shape and dtype.

    Raises:
      ValueError: As :func:`ddim_sample`.

    Example:
      >>> from mujax.diffusion import linear_schedule
      >>> schedule = linear_schedule()
      >>> def predict(params, x, t, c):  # exact where all data are c
      ...     return ((x.T - schedule.signal[t] * c) / schedule.sigma[t]).T
      >>> classes = jnp.array([3.0, 5.0])
      >>> arguments = predict, None, schedule, jax.random.key(0), classes, (2, 2)
      >>> print(plms_sample(*arguments, num_steps=50).round(1))
      [[3. 3.]
       [5. 5.]]

    Reference:
      `Liu et al. (2022) <https://arxiv.org/abs/2202.09778>`_, without Runge-Kutta.
    """
    visited = visited_steps(schedule, num_steps, steps)
    ends = np.append(visited[1:], -1)
    # The first step is taken twice, unless it is the only one.
    twice = [0, *([0] if len(visited) > 1 else []), *range(1, len(visited))]
    sources, targets = visited[twice], ends[twice]
    times = np.where(np.arange(len(twice)) == 1, targets, sources)
    again = np.arange(len(twice)) == 1
    rows = [_WEIGHTS[min(i, len(_WEIGHTS) - 1)] for i in range(len(twice))]
    end = jnp.log(jnp.asarray(last_alpha, jnp.float32))

    def body(carry, step):
        x, earlier, answers = carry
        time, source, target, row, back = step
        times = jnp.full(shape[:1], time)
        answer = call(predict, params, x.astype(dtype), times, condition)
        known = jnp.concatenate([answer[None], answers])
        mixture = jnp.tensordot(row, known, 1, precision="highest")
        origin = jnp.where(back, earlier, x)
        noise = mixture if to_noise is None else to_noise(origin, source, mixture)
        x0 = (origin - schedule.sigma[source] * noise) / schedule.signal[source]
        log_there = jnp.where(target < 0, end, log_alpha(schedule, target))
        moved = jnp.exp(log_there / 2) * x0 + jnp.sqrt(-jnp.expm1(log_there)) * noise
        return (moved, x, jnp.where(back, answers, known[:3])), None

    x = started(schedule, key, condition, shape, start)
    carry = x, x, jnp.stack([jnp.zeros_like(x)] * 3)
    calls = times, sources, targets, np.array(rows, np.float32), again
    return jax.lax.scan(body, carry, calls)[0][0].astype(dtype)
