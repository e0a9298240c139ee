"""Noise schedules, noising, and which steps and conditions a training batch gets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mujax._meshes import along
from mujax._trees import PyTree, match


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    r"""How much noise each of T steps adds; a pytree of two arrays.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon,
       \qquad \bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \quad t = 0 \dots T - 1

    Attributes:
      betas: float32 (T,), variance added by each step.
      log_alphas_cumprod: float32 (T,), :math:`\log \bar\alpha_t`, which unlike
        :math:`\bar\alpha_t` is precise in float32 at both ends of the schedule.
    """

    betas: jax.Array
    log_alphas_cumprod: jax.Array

    @property
    def num_steps(self) -> int:
        """T."""
        return self.betas.shape[0]

    @property
    def alphas_cumprod(self) -> jax.Array:
        r""":math:`\bar\alpha_t`, float32 (T,)."""
        return jnp.exp(self.log_alphas_cumprod)

    @property
    def signal(self) -> jax.Array:
        r""":math:`\sqrt{\bar\alpha_t}`, the factor of the data, float32 (T,)."""
        return jnp.exp(0.5 * self.log_alphas_cumprod)

    @property
    def sigma(self) -> jax.Array:
        r""":math:`\sqrt{1 - \bar\alpha_t}`, the factor of the noise, float32 (T,)."""
        return jnp.sqrt(-jnp.expm1(self.log_alphas_cumprod))


def linear_schedule(
    num_steps: int = 1000, start: float = 1e-4, end: float = 0.02
) -> Schedule:
    r"""Betas that rise linearly, computed in float64 on the host.

    Args:
      num_steps: T, at least 1. The default ends suit 1,000 steps; with fewer, scale
        them by 1000 / T, or the last step still shows the data.
      start: :math:`\beta_0`, in (0, 1).
      end: :math:`\beta_{T-1}`, in (0, 1).

    Returns:
      The schedule.

    Raises:
      ValueError: T < 1, or an end outside (0, 1).

    Example:
      >>> print(np.asarray(linear_schedule(4).alphas_cumprod).round(4))
      [0.9999 0.9932 0.9799 0.9603]

    Reference:
      `Ho et al. (2020) <https://arxiv.org/abs/2006.11239>`_, section 4.
    """
    _check_ends(num_steps, start, end)
    return _schedule(np.linspace(start, end, num_steps))


def scaled_linear_schedule(
    num_steps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> Schedule:
    r"""Betas whose roots rise linearly, as latent diffusion has them.

    .. math:: \sqrt{\beta_t} = \sqrt{\beta_0}
       + \frac{t}{T - 1} \bigl(\sqrt{\beta_{T-1}} - \sqrt{\beta_0}\bigr)

    Args:
      num_steps: T, at least 1.
      start: :math:`\beta_0`, in (0, 1); Stable Diffusion's by default.
      end: :math:`\beta_{T-1}`, in (0, 1).

    Returns:
      The schedule.

    Raises:
      ValueError: T < 1, or an end outside (0, 1).

    Example:
      >>> print(np.asarray(scaled_linear_schedule(3, 0.04, 0.36).betas).round(4))
      [0.04 0.16 0.36]

    Reference:
      `Rombach et al. (2022) <https://arxiv.org/abs/2112.10752>`_.
    """
    _check_ends(num_steps, start, end)
    return _schedule(np.linspace(start**0.5, end**0.5, num_steps) ** 2)


def cosine_schedule(num_steps: int = 1000, offset: float = 0.008) -> Schedule:
    r"""Betas for which the signal's variance falls like a squared cosine.

    .. math:: \beta_t = \min\{1 - f(t + 1) / f(t),\, 0.999\}, \qquad
       f(t) = \cos^2 \Bigl( \frac{t / T + s}{1 + s} \frac\pi2 \Bigr)

    Args:
      num_steps: T, at least 1.
      offset: s, at least 0, keeps the first betas from vanishing.

    Returns:
      The schedule.

    Raises:
      ValueError: T < 1 or a negative offset.

    Example:
      >>> print(np.asarray(cosine_schedule(4).alphas_cumprod).round(3))
      [0.847 0.494 0.144 0.   ]

    Reference:
      `Nichol and Dhariwal (2021) <https://arxiv.org/abs/2102.09672>`_, section 3.2.
    """
    if num_steps < 1 or offset < 0:
        raise ValueError(
            f"Got num_steps={num_steps}, offset={offset}; give at least 1 and 0."
        )
    time = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)
    f = np.cos(time * np.pi / 2) ** 2
    return _schedule(np.minimum(1 - f[1:] / f[:-1], 0.999))


def add_noise(
    schedule: Schedule, x0: jax.Array, t: jax.typing.ArrayLike, noise: jax.Array
) -> jax.Array:
    r"""Carries data to step t at once.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon

    Args:
      schedule: The schedule.
      x0: Data, (N, ...).
      t: Steps in [0, T), (N,) or a scalar.
      noise: Standard normal noise of the shape of ``x0``.

    Returns:
      :math:`x_t`, of the shape and dtype of ``x0``.

    Example:
      >>> schedule, x0 = linear_schedule(2, 0.36, 0.75), jnp.ones((2, 1))
      >>> print(np.asarray(add_noise(schedule, x0, jnp.arange(2), 0 * x0)).round(3))
      [[0.8]
       [0.4]]
    """
    signal, sigma = expand(schedule.signal[t], x0), expand(schedule.sigma[t], x0)
    return (signal * x0 + sigma * noise).astype(x0.dtype)


def velocity(
    schedule: Schedule, x0: jax.Array, t: jax.typing.ArrayLike, noise: jax.Array
) -> jax.Array:
    r"""What a v-prediction network is trained to answer for :math:`x_t`.

    .. math:: v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0

    Args:
      schedule: The schedule.
      x0: Data, (N, ...).
      t: Steps in [0, T), (N,) or a scalar.
      noise: Standard normal noise of the shape of ``x0``.

    Returns:
      The velocity, of the shape and dtype of ``x0``.

    Example:
      >>> schedule, x0 = linear_schedule(2, 0.36, 0.75), jnp.ones((2, 1))
      >>> print(np.asarray(velocity(schedule, x0, jnp.arange(2), x0)).round(3))
      [[ 0.2  ]
       [-0.517]]

    Reference:
      `Salimans and Ho (2022) <https://arxiv.org/abs/2202.00512>`_, appendix D.
    """
    signal, sigma = expand(schedule.signal[t], x0), expand(schedule.sigma[t], x0)
    return (signal * noise - sigma * x0).astype(x0.dtype)


def noise_of_velocity(
    schedule: Schedule, x_t: jax.Array, t: jax.typing.ArrayLike, v: jax.Array
) -> jax.Array:
    r"""The noise that a velocity stands for.

    .. math:: \epsilon = \sqrt{\bar\alpha_t}\, v + \sqrt{1 - \bar\alpha_t}\, x_t

    Args:
      schedule: The schedule.
      x_t: Noised data, (N, ...).
      t: Steps in [0, T), (N,) or a scalar.
      v: The velocity at ``x_t``.

    Returns:
      The noise, of the shape and dtype of ``v``.

    Example:
      >>> schedule, x0 = linear_schedule(2, 0.36, 0.75), jnp.ones((2, 1))
      >>> t, noise = jnp.arange(2), jnp.array([[3.0], [5.0]])
      >>> x_t = add_noise(schedule, x0, t, noise)
      >>> v = velocity(schedule, x0, t, noise)
      >>> print(np.asarray(noise_of_velocity(schedule, x_t, t, v)).round(3))
      [[3.]
       [5.]]
    """
    signal, sigma = expand(schedule.signal[t], v), expand(schedule.sigma[t], v)
    return (signal * v + sigma * x_t).astype(v.dtype)


def uniform_timesteps(key: jax.Array, batch_size: int, num_steps: int) -> jax.Array:
    """Independent uniform steps, as the programs of text-to-image models draw them.

    Args:
      key: A typed key.
      batch_size: N.
      num_steps: T.

    Returns:
      Steps in [0, T), int32 (N,).

    Example:
      >>> t = uniform_timesteps(jax.random.key(0), 4, 1000)
      >>> t.shape, bool(jnp.all((0 <= t) & (t < 1000)))
      ((4,), True)
    """
    return jax.random.randint(key, (batch_size,), 0, num_steps, jnp.int32)


def antithetic_timesteps(key: jax.Array, batch_size: int, num_steps: int) -> jax.Array:
    """Uniform steps in mirrored pairs, which lower the variance of the loss.

    The first h = ⌈N/2⌉ steps are independent; step h + i is T - 1 minus step i. For an
    odd N, step h - 1 stays without its mirror.

    Args:
      key: A typed key.
      batch_size: N.
      num_steps: T.

    Returns:
      Steps in [0, T), int32 (N,).

    Example:
      >>> t = antithetic_timesteps(jax.random.key(0), 4, 1000)
      >>> print(t[:2] + t[2:])
      [999 999]
    """
    shape = ((batch_size + 1) // 2,)
    half = jax.random.randint(key, shape, 0, num_steps, jnp.int32)
    return jnp.concatenate([half, num_steps - 1 - half])[:batch_size]


def drop_condition(
    key: jax.Array, condition: PyTree, probability: jax.typing.ArrayLike, null: PyTree
) -> PyTree:
    """Replaces the condition of random examples by the null condition.

    All leaves of an example drop together: pass two conditions as a pair to drop both
    alike.

    Args:
      key: A typed key.
      condition: A pytree of arrays (N, ...).
      probability: Chance of an example to be dropped, in [0, 1].
      null: The null condition of one example: the same pytree, of arrays (...).

    Returns:
      A pytree of the structure, shapes and dtypes of ``condition``.

    Raises:
      ValueError: ``null`` is no condition of one example; the message names the leaf.

    Example:
      >>> print(drop_condition(jax.random.key(1), jnp.arange(6), 0.5, null=10))
      [10  1 10 10  4  5]
    """
    size = jax.tree.leaves(condition)[0].shape[0]
    dropped = jax.random.bernoulli(key, probability, (size,))
    return jax.tree.map(
        lambda c, n: jnp.where(expand(dropped, c), n, c),
        condition,
        null_like(condition, null),
    )


def posterior_variance(schedule: Schedule, t: jax.typing.ArrayLike) -> jax.Array:
    r"""The smaller of DDPM's variances, that of :math:`x_{t-1}` when the data is known.

    .. math:: v_t = \beta_t (1 - \bar\alpha_{t-1}) / (1 - \bar\alpha_t)

    Args:
      schedule: The schedule.
      t: Steps in [0, T), of any shape.

    Returns:
      Variances, float32, of the shape of ``t``.

    Example:
      >>> variance = posterior_variance(linear_schedule(2, 0.36, 0.75), np.arange(2))
      >>> print(np.asarray(variance).round(3))
      [0.    0.321]
    """
    t = jnp.asarray(t)
    return schedule.betas[t] * noise_share(schedule, t - 1) / noise_share(schedule, t)


def beta_variance(schedule: Schedule, t: jax.typing.ArrayLike) -> jax.Array:
    r"""The larger of DDPM's variances, :math:`\beta_t`, and 0 for the last step, t = 0.

    Args:
      schedule: The schedule.
      t: Steps in [0, T), of any shape.

    Returns:
      Variances, float32, of the shape of ``t``.

    Example:
      >>> print(beta_variance(linear_schedule(2, 0.36, 0.75), np.arange(2)))
      [0.   0.75]
    """
    t = jnp.asarray(t)
    return jnp.where(t == 0, 0.0, schedule.betas[t])


def log_alpha(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Logarithm of the data's share of variance at step t; t = -1 is clean data."""
    return jnp.where(t < 0, 0.0, schedule.log_alphas_cumprod[t])


def noise_share(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The noise's share of variance at step t; t = -1 is clean data."""
    return jnp.where(t < 0, 0.0, -jnp.expm1(schedule.log_alphas_cumprod[t]))


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """One value an example, or one for all, with axes of size 1 to broadcast."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def null_like(condition: PyTree, null: PyTree) -> PyTree:
    """The null condition for every example."""
    one = jax.tree.map(lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), condition)
    null = match(null, one, "null", "one example's condition")

    def repeated(c, n):
        return along(jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), c)

    return jax.tree.map(repeated, condition, null)


def _check_ends(num_steps: int, start: float, end: float) -> None:
    """Raises for betas outside (0, 1), or none."""
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"Got start={start}, end={end}; give numbers in (0, 1).")
    if num_steps < 1:
        raise ValueError(f"Got num_steps={num_steps}; give at least 1.")


def _schedule(betas: np.ndarray) -> Schedule:
    """A schedule in float32 from betas in float64."""
    log_alphas = np.log1p(-betas).cumsum()
    return Schedule(
        jnp.asarray(betas, jnp.float32), jnp.asarray(log_alphas, jnp.float32)
    )
