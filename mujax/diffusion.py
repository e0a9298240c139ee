r"""Diffusion models as pure functions: schedules, losses, guidance, samplers.

DDPM (Ho et al., 2020, arXiv:2006.11239), DDIM (Song et al., 2021, arXiv:2010.02502).

The network is the user's ``predict(params, x_t, t, condition) -> noise``: ``x_t`` and
noise have the shape (N, ...), ``t`` is int32 (N,) in [0, T), ``condition`` a pytree of
arrays (N, ...) such as class indices. Bind the key of a network's own dropout inside
``predict``: the two networks that a loss compares then share their masks. Nothing is
jitted here: jit the step that calls it. Sums are float32, whatever the data's dtype.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax._trees import PyTree, check_like

Predict = Callable[[PyTree, jax.Array, jax.Array, PyTree], jax.Array]
Reduction = Callable[..., jax.Array]


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
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"Got start={start}, end={end}; give numbers in (0, 1).")
    if num_steps < 1:
        raise ValueError(f"Got num_steps={num_steps}; give at least 1.")
    return _schedule(np.linspace(start, end, num_steps))


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
    signal, sigma = _expand(schedule.signal[t], x0), _expand(schedule.sigma[t], x0)
    return (signal * x0 + sigma * noise).astype(x0.dtype)


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
    half = jax.random.randint(key, ((batch_size + 1) // 2,), 0, num_steps)
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
        lambda c, n: jnp.where(_expand(dropped, c), n, c),
        condition,
        _null_like(condition, null),
    )


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
        unconditional = predict(params, x_t, t, _null_like(condition, null))
        return (1 + guidance) * conditional - guidance * unconditional

    return predict_guided


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
) -> jax.Array:
    r"""The training loss: how well the network finds the noise.

    .. math:: L = \sum_i w_i \, \lVert \epsilon_i - \epsilon_\theta(x_{t_i}, t_i, c_i)
       \rVert^2 \, / \sum_i w_i

    Steps are antithetic. Drop conditions first, by :func:`drop_condition`.

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

    Returns:
      A float32 scalar.

    Raises:
      ValueError: The prediction's shape is not that of ``x0``.

    Example:
      >>> schedule, x0 = linear_schedule(), jnp.zeros((4, 2))
      >>> knows = lambda params, x, t, c: x / schedule.sigma[t][:, None]
      >>> print(noise_loss(knows, None, schedule, x0, None, jax.random.key(0)).round(4))
      0.0

    Reference:
      `Ho et al. (2020) <https://arxiv.org/abs/2006.11239>`_, equation 14.
    """
    x_t, t, noise = _diffuse(schedule, x0, key)
    error = _call(predict, params, x_t, t, condition) - noise
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
    weights: jax.Array | None = None,
    pixel_reduction: Reduction = jnp.sum,
) -> jax.Array:
    r"""SalUn's forgetting loss: answer one condition as another is answered.

    .. math:: \lVert \epsilon_\theta(x_t, t, c)
       - \mathrm{sg}[\epsilon_\theta(x_t, t, c')] \rVert^2

    Student and teacher have the same parameters and see the same :math:`x_t` and t;
    gradients pass through the student alone. The released program takes the mean over
    pixels here and the sum in :func:`noise_loss`.

    Args:
      predict: The network.
      params: Its parameters.
      schedule: The schedule.
      x0: Data of the forgotten condition, (N, ...).
      condition: c, the forgotten condition, a pytree of arrays (N, ...).
      target_condition: c', another condition, the same pytree.
      key: A typed key for steps and noise.
      weights: As in :func:`noise_loss`.
      pixel_reduction: As in :func:`noise_loss`.

    Returns:
      A float32 scalar.

    Example:
      >>> predict = lambda params, x, t, c: c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.zeros(4), jnp.full(4, 3.0)
      >>> print(match_loss(predict, None, *data, jax.random.key(0)))
      18.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 7.
    """
    x_t, t, _ = _diffuse(schedule, x0, key)
    teacher = jax.lax.stop_gradient(_call(predict, params, x_t, t, target_condition))
    error = _call(predict, params, x_t, t, condition) - teacher
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

    Returns:
      A float32 scalar.

    Example:
      >>> predict = lambda params, x, t, c: c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.zeros(4), jnp.full(4, 3.0)
      >>> data += (jnp.ones(4, bool), jax.random.key(0))
      >>> print(relabel_loss(predict, None, *data))
      18.0

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 7.
    """
    x_t, t, noise = _diffuse(schedule, x0, key)
    teacher = jax.lax.stop_gradient(_call(predict, params, x_t, t, target_condition))
    target = jnp.where(_expand(relabelled, noise), teacher, noise)
    error = _call(predict, params, x_t, t, condition) - target
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

    Returns:
      A float32 scalar.

    Example:
      >>> predict = lambda params, x, t, c: params * c[:, None] * jnp.ones_like(x)
      >>> data = linear_schedule(), jnp.zeros((4, 2)), jnp.ones(4), 0.0
      >>> print(erase_loss(predict, 1.0, 1.0, *data, jax.random.key(0)))
      8.0

    Reference:
      `Gandikota et al. (2023) <https://arxiv.org/abs/2303.07345>`_, equation 7.
    """
    x_t, t, _ = _diffuse(schedule, x0, key)
    away = guided(predict, -1.0 - strength, null)
    target = jax.lax.stop_gradient(_call(away, frozen_params, x_t, t, condition))
    error = _call(predict, params, x_t, t, condition) - target
    return _mean_square(error, weights, pixel_reduction)


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
    return schedule.betas[t] * _noise_share(schedule, t - 1) / _noise_share(schedule, t)


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


def ddpm_sample(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    key: jax.Array,
    condition: PyTree,
    shape: tuple[int, ...],
    *,
    variance: Callable[[Schedule, jax.Array], jax.Array] = posterior_variance,
    clip: float | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    r"""Draws samples by DDPM: all T steps, each with fresh noise.

    .. math:: x_{t-1} = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t\, \hat x_0
       + \sqrt{1 - \beta_t}\, (1 - \bar\alpha_{t-1})\, x_t}{1 - \bar\alpha_t}
       + \sqrt{v_t}\, z, \qquad
       \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon_\theta}
                       {\sqrt{\bar\alpha_t}}

    One scan; the noise of step t has the key ``fold_in(key, t)``.

    Args:
      predict: The network, or :func:`guided` of it.
      params: Its parameters.
      schedule: The schedule.
      key: A typed key.
      condition: Conditions, a pytree of arrays (N, ...).
      shape: Shape of the samples, (N, ...).
      variance: v, :func:`posterior_variance` or :func:`beta_variance`.
      clip: Keeps :math:`\hat x_0` in [-clip, clip]; None leaves it free.
      dtype: Dtype of the samples and of what ``predict`` receives.

    Returns:
      Samples of the given shape and dtype.

    Raises:
      ValueError: The prediction's shape is not that of the samples.

    Example:
      >>> schedule = linear_schedule(10, 0.01, 0.9)
      >>> def predict(params, x, t, c):  # exact where all data are c
      ...     return ((x.T - schedule.signal[t] * c) / schedule.sigma[t]).T
      >>> classes = jnp.array([3.0, 5.0])
      >>> arguments = predict, None, schedule, jax.random.key(0), classes, (2, 2)
      >>> print(ddpm_sample(*arguments).round(4))
      [[3. 3.]
       [5. 5.]]

    Reference:
      `Ho et al. (2020) <https://arxiv.org/abs/2006.11239>`_, algorithm 2.
    """

    def move(x, x0, t, before):
        beta, share = schedule.betas[t], _noise_share(schedule, before)
        mean = jnp.exp(_log_alpha(schedule, before) / 2) * beta * x0
        mean += jnp.sqrt(1 - beta) * share * x
        return mean / _noise_share(schedule, t), jnp.sqrt(variance(schedule, t))

    t = np.arange(schedule.num_steps, dtype=np.int32)[::-1]
    arguments = predict, params, schedule, key, condition, shape
    return _reverse(*arguments, t, move, clip, dtype)


def ddim_sample(
    predict: Predict,
    params: PyTree,
    schedule: Schedule,
    key: jax.Array,
    condition: PyTree,
    shape: tuple[int, ...],
    *,
    num_steps: int,
    eta: float | jax.Array = 0.0,
    clip: float | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    r"""Draws samples by DDIM: fewer steps, and as much fresh noise as wanted.

    .. math:: x_s = \sqrt{\bar\alpha_s}\, \hat x_0
       + \sqrt{1 - \bar\alpha_s - \tau^2}\, \hat\epsilon + \tau z, \qquad
       \tau^2 = \eta^2\, \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}
       \Bigl(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\Bigr)

    from step t to the next visited step s < t. The visited steps are
    :math:`\lfloor i T / n \rfloor - 1` for i = n ... 1, evenly spaced from T - 1.

    Args:
      predict: The network, or :func:`guided` of it.
      params: Its parameters.
      schedule: The schedule.
      key: A typed key.
      condition: Conditions, a pytree of arrays (N, ...).
      shape: Shape of the samples, (N, ...).
      num_steps: n, evaluations of the network, 1 to T.
      eta: In [0, 1]: 0 draws noise for the start alone; 1 with all T steps is
        :func:`ddpm_sample` with the posterior variance.
      clip: As in :func:`ddpm_sample`.
      dtype: As in :func:`ddpm_sample`.

    Returns:
      Samples of the given shape and dtype.

    Raises:
      ValueError: ``num_steps`` outside 1 to T, or a prediction of another shape.

    Example:
      >>> schedule = linear_schedule()
      >>> def predict(params, x, t, c):  # exact where all data are c
      ...     return ((x.T - schedule.signal[t] * c) / schedule.sigma[t]).T
      >>> classes = jnp.array([3.0, 5.0])
      >>> arguments = predict, None, schedule, jax.random.key(0), classes, (2, 2)
      >>> print(ddim_sample(*arguments, num_steps=10).round(2))
      [[3. 3.]
       [5. 5.]]

    Reference:
      `Song et al. (2021) <https://arxiv.org/abs/2010.02502>`_, equation 12.
    """
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(
            f"Got num_steps={num_steps} for a schedule of {schedule.num_steps} steps; "
            f"give 1 to {schedule.num_steps}."
        )

    def move(x, x0, t, s):
        here, there = _noise_share(schedule, t), _noise_share(schedule, s)
        log_ratio = _log_alpha(schedule, t) - _log_alpha(schedule, s)
        fresh = eta**2 * there / here * -jnp.expm1(log_ratio)
        noise = (x - schedule.signal[t] * x0) / schedule.sigma[t]
        mean = jnp.exp(_log_alpha(schedule, s) / 2) * x0
        return mean + jnp.sqrt(there - fresh) * noise, jnp.sqrt(fresh)

    t = np.arange(num_steps, 0, -1) * schedule.num_steps // num_steps - 1
    arguments = predict, params, schedule, key, condition, shape
    return _reverse(*arguments, t.astype(np.int32), move, clip, dtype)


def frechet_distance(features_a: Any, features_b: Any) -> float:
    r"""Fréchet distance between two samples, each taken as a Gaussian (FID).

    .. math:: \lVert \mu_a - \mu_b \rVert^2
       + \mathrm{tr}\bigl(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}\bigr)

    Computed on the host in float64. Fewer examples than features are allowed, but the
    value falls with the sample size: compare equal sizes only.

    Args:
      features_a: (N, D) features.
      features_b: (M, D) features.

    Returns:
      The squared distance.

    Raises:
      ValueError: Not two matrices of D columns with at least two rows each.

    Example:
      >>> features = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
      >>> print(round(frechet_distance(features, features + 3.0), 6))
      18.0

    Reference:
      `Heusel et al. (2017) <https://arxiv.org/abs/1706.08500>`_.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if not (
        a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] and min(len(a), len(b)) > 1
    ):
        raise ValueError(
            f"Got features of shapes {a.shape} and {b.shape}; give two (N, D) matrices "
            "of equal D, with two rows or more."
        )
    # With A = F Fᵀ and B = G Gᵀ the root's trace is the sum of FᵀG's singular values.
    root_a, root_b = _root(np.cov(a, rowvar=False)), _root(np.cov(b, rowvar=False))
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return float(np.square(a.mean(0) - b.mean(0)).sum() + spread)


def _schedule(betas: np.ndarray) -> Schedule:
    """A schedule in float32 from betas in float64."""
    log_alphas = np.log1p(-betas).cumsum()
    return Schedule(
        jnp.asarray(betas, jnp.float32), jnp.asarray(log_alphas, jnp.float32)
    )


def _log_alpha(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Logarithm of the data's share of variance at step t; t = -1 is clean data."""
    return jnp.where(t < 0, 0.0, schedule.log_alphas_cumprod[t])


def _noise_share(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The noise's share of variance at step t; t = -1 is clean data."""
    return jnp.where(t < 0, 0.0, -jnp.expm1(schedule.log_alphas_cumprod[t]))


def _expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """One value an example, or one for all, with axes of size 1 to broadcast."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def _null_like(condition: PyTree, null: PyTree) -> PyTree:
    """The null condition for every example."""
    one = jax.tree.map(lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), condition)
    check_like(null, one, "null", "one example's condition")
    return jax.tree.map(
        lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), condition, null
    )


def _diffuse(
    schedule: Schedule, x0: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noised data, their antithetic steps and their noise."""
    t_key, noise_key = jax.random.split(key)
    t = antithetic_timesteps(t_key, x0.shape[0], schedule.num_steps)
    noise = jax.random.normal(noise_key, x0.shape)
    return add_noise(schedule, x0, t, noise), t, noise


def _call(predict, params, x_t, t, condition) -> jax.Array:
    """The predicted noise in float32, with its shape checked."""
    noise = predict(params, x_t, t, condition)
    if noise.shape != x_t.shape:
        raise ValueError(
            f"Got noise of shape {noise.shape} from predict for x_t of shape "
            f"{x_t.shape}; return one value for each entry."
        )
    return noise.astype(jnp.float32)


def _mean_square(error, weights, pixel_reduction) -> jax.Array:
    """Squared errors reduced over an example's entries, then the mean over examples."""
    losses = pixel_reduction(jnp.square(error), axis=tuple(range(1, error.ndim)))
    if weights is None:
        return jnp.mean(losses)
    total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total == 0, 1, total)


def _reverse(
    predict, params, schedule, key, condition, shape, steps, move, clip, dtype
) -> jax.Array:
    """Scans over falling steps; ``move`` gives the mean and deviation of a step."""

    def body(x, step):
        t, following = step
        times = jnp.full(shape[:1], t)
        noise = _call(predict, params, x.astype(dtype), times, condition)
        x0 = (x - schedule.sigma[t] * noise) / schedule.signal[t]
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        mean, deviation = move(x, x0, t, following)
        fresh = jax.random.normal(jax.random.fold_in(key, t), shape)
        return mean + deviation * fresh, None

    # No step has the number T, so the start shares its key with none.
    start = jax.random.normal(jax.random.fold_in(key, schedule.num_steps), shape)
    return jax.lax.scan(body, start, (steps, np.append(steps[1:], -1)))[0].astype(dtype)


def _root(covariance: np.ndarray) -> np.ndarray:
    """F with F Fᵀ the covariance; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return vectors * np.sqrt(np.maximum(values, 0))
