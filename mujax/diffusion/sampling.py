"""Samplers that turn noise into data by one scan, and the distance of two samples."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax._meshes import along
from mujax._trees import PyTree
from mujax.diffusion.losses import Predict, call
from mujax.diffusion.schedule import (
    Schedule,
    log_alpha,
    noise_share,
    posterior_variance,
)


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
      >>> from mujax.diffusion import linear_schedule
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
        beta, share = schedule.betas[t], noise_share(schedule, before)
        mean = jnp.exp(log_alpha(schedule, before) / 2) * beta * x0
        mean += jnp.sqrt(1 - beta) * share * x
        return mean / noise_share(schedule, t), jnp.sqrt(variance(schedule, t))

    t = np.arange(schedule.num_steps, dtype=np.int32)[::-1]
    arguments = predict, params, schedule, key, condition, shape
    return _reverse(*arguments, t, move, clip, dtype, None)


def ddim_sample(
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
    eta: float | jax.Array = 0.0,
    clip: float | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    r"""Draws samples by DDIM: fewer steps, and as much fresh noise as wanted.

    .. math:: x_s = \sqrt{\bar\alpha_s}\, \hat x_0
       + \sqrt{1 - \bar\alpha_s - \tau^2}\, \hat\epsilon + \tau z, \qquad
       \tau^2 = \eta^2\, \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}
       \Bigl(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\Bigr)

    from step t to the next visited step s < t, and from the last one to data. By
    default the visited steps are :math:`\lfloor i T / n \rfloor - 1` for i = n ... 1,
    evenly spaced from T - 1.

    Args:
      predict: The network, or :func:`guided` of it.
      params: Its parameters.
      schedule: The schedule.
      key: A typed key.
      condition: Conditions, a pytree of arrays (N, ...).
      shape: Shape of the samples, (N, ...).
      num_steps: n, evaluations of the network, 1 to T.
      steps: The visited steps themselves, falling, instead of ``num_steps``; see
        :func:`leading_steps`.
      last_alpha: :math:`\bar\alpha` where the last step ends, in (0, 1]: 1 is clean
        data; latent diffusion ends at :math:`\bar\alpha_0`.
      start: Noise to start from, of the given shape, instead of one drawn by the key.
      eta: In [0, 1]: 0 draws noise for the start alone; 1 with all T steps is
        :func:`ddpm_sample` with the posterior variance.
      clip: As in :func:`ddpm_sample`.
      dtype: As in :func:`ddpm_sample`.

    Returns:
      Samples of the given shape and dtype.

    Raises:
      ValueError: Steps that the schedule has not, or a start or prediction of another
        shape.

    Example:
      >>> from mujax.diffusion import linear_schedule
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
    visited = visited_steps(schedule, num_steps, steps)
    end = jnp.log(jnp.asarray(last_alpha, jnp.float32))

    def move(x, x0, t, s):
        there = jnp.where(s < 0, -jnp.expm1(end), noise_share(schedule, s))
        log_there = jnp.where(s < 0, end, log_alpha(schedule, s))
        log_ratio = log_alpha(schedule, t) - log_there
        fresh = eta**2 * there / noise_share(schedule, t) * -jnp.expm1(log_ratio)
        noise = (x - schedule.signal[t] * x0) / schedule.sigma[t]
        mean = jnp.exp(log_there / 2) * x0
        return mean + jnp.sqrt(there - fresh) * noise, jnp.sqrt(fresh)

    arguments = predict, params, schedule, key, condition, shape
    return _reverse(*arguments, visited, move, clip, dtype, start)


def leading_steps(schedule: Schedule, num_steps: int, offset: int = 1) -> np.ndarray:
    r"""The steps that Stable Diffusion's samplers visit.

    .. math:: t_i = i\, \lfloor T / n \rfloor + o, \qquad i = n - 1 \dots 0

    Args:
      schedule: The schedule.
      num_steps: n.
      offset: o.

    Returns:
      Falling steps, int32 (n,), for ``steps=`` of the samplers.

    Raises:
      ValueError: n or the first step is outside the schedule.

    Example:
      >>> from mujax.diffusion import scaled_linear_schedule
      >>> print(leading_steps(scaled_linear_schedule(), 5))
      [801 601 401 201   1]
    """
    stride = schedule.num_steps // max(num_steps, 1)
    most = schedule.num_steps
    if not 1 <= num_steps <= most or (num_steps - 1) * stride + offset >= most:
        raise ValueError(
            f"Got num_steps={num_steps} with an offset of {offset} for a schedule of "
            f"{most} steps; give 1 to {most - offset}."
        )
    return (np.arange(num_steps - 1, -1, -1) * stride + offset).astype(np.int32)


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


def _reverse(
    predict, params, schedule, key, condition, shape, steps, move, clip, dtype, start
) -> jax.Array:
    """Scans over falling steps; ``move`` gives the mean and deviation of a step."""

    def body(x, step):
        t, following = step
        times = jnp.full(shape[:1], t)
        noise = call(predict, params, x.astype(dtype), times, condition)
        x0 = (x - schedule.sigma[t] * noise) / schedule.signal[t]
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        mean, deviation = move(x, x0, t, following)
        fresh = jax.random.normal(jax.random.fold_in(key, t), shape, jnp.float32)
        return mean + deviation * fresh, None

    begin = started(schedule, key, condition, shape, start)
    return jax.lax.scan(body, begin, (steps, np.append(steps[1:], -1)))[0].astype(dtype)


def started(schedule, key, condition, shape, start) -> jax.Array:
    """The noise that was given, or drawn, laid out as the conditions are."""
    if start is None:
        # No step has the number T, so the start shares its key with none.
        step_key = jax.random.fold_in(key, schedule.num_steps)
        start = jax.random.normal(step_key, shape, jnp.float32)
    elif start.shape != tuple(shape):
        raise ValueError(
            f"Got a start of shape {start.shape} for samples of shape {tuple(shape)}; "
            "give one number for each entry."
        )
    return along(start.astype(jnp.float32), condition)


def visited_steps(schedule, num_steps, steps) -> np.ndarray:
    """The steps to visit, int32, falling."""
    if (num_steps is None) == (steps is None):
        raise ValueError(
            f"Got num_steps={num_steps} and steps={steps}; give one of them."
        )
    if steps is None:
        if not 1 <= num_steps <= schedule.num_steps:
            raise ValueError(
                f"Got num_steps={num_steps} for a schedule of {schedule.num_steps} "
                f"steps; give 1 to {schedule.num_steps}."
            )
        steps = np.arange(num_steps, 0, -1) * schedule.num_steps // num_steps - 1
    steps = np.asarray(steps)
    inside = steps.size and steps[-1] >= 0 and steps[0] < schedule.num_steps
    if steps.ndim != 1 or not inside or np.any(np.diff(steps) >= 0):
        raise ValueError(
            f"Got steps={steps}; give falling steps of at least 0 and below "
            f"{schedule.num_steps}."
        )
    return steps.astype(np.int32)


def _root(covariance: np.ndarray) -> np.ndarray:
    """F with F Fᵀ the covariance; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return vectors * np.sqrt(np.maximum(values, 0))
