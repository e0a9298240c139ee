"""What latent diffusion adds: its schedule, velocities, uniform steps and PLMS."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from mujax import diffusion

KEY = jax.random.key(0)
SCHEDULE = diffusion.scaled_linear_schedule()
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)
START = jax.random.normal(KEY, (2, 3))
CONDITION = jnp.array([0.5, -1.0])


def network(params, x, t, condition):
    """Any smooth network with one parameter."""
    return jnp.tanh(params * x + 0.002 * t[:, None] + condition[:, None])


def in_numpy(x, t):
    """The same, in float64."""
    return np.tanh(0.7 * x + 0.002 * t + np.asarray(CONDITION, np.float64)[:, None])


def step(x, noise, t, s, last_alpha):
    """From step t to step s in the form of the PNDM paper, in float64."""
    a, b = ALPHAS[t], ALPHAS[s] if s >= 0 else last_alpha
    bottom = a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b)
    return np.sqrt(b / a) * x - (b - a) * noise / bottom


def plms(steps, last_alpha, to_noise):
    """PLMS as a loop that keeps a list of what was answered."""
    x, answers = np.asarray(START, np.float64), []
    steps = [*steps, -1]
    for i, (t, s) in enumerate(itertools.pairwise(steps)):
        answers.append(in_numpy(x, t))
        e = answers[::-1]
        mixture = [
            e[0],
            i > 0 and (3 * e[0] - e[1]) / 2,
            i > 1 and (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12,
            i > 2 and (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24,
        ][min(i, 3)]
        moved = step(x, to_noise(x, t, mixture), t, s, last_alpha)
        if i == 0 and s >= 0:
            mean = (e[0] + in_numpy(moved, s)) / 2
            moved = step(x, to_noise(x, t, mean), t, s, last_alpha)
        x = moved
    return x


class ScheduleTest(parameterized.TestCase):
    def test_scaled_linear(self):
        np.testing.assert_allclose(SCHEDULE.betas, BETAS, rtol=1e-6)
        np.testing.assert_allclose(SCHEDULE.alphas_cumprod, ALPHAS, rtol=3e-6)

    @parameterized.parameters((0, 0.1, 0.2), (10, 0.0, 0.1), (10, 0.1, 1.0))
    def test_refuses(self, *arguments):
        with self.assertRaisesRegex(ValueError, "^Got .*; give "):
            diffusion.scaled_linear_schedule(*arguments)

    def test_velocity_and_noise_are_one_rotation(self):
        x0, noise = jax.random.normal(KEY, (2, 4, 3))
        t = jnp.array([0, 10, 500, 999])
        x_t = diffusion.add_noise(SCHEDULE, x0, t, noise)
        v = diffusion.velocity(SCHEDULE, x0, t, noise)
        np.testing.assert_allclose(x_t**2 + v**2, x0**2 + noise**2, rtol=1e-4)
        found = diffusion.noise_of_velocity(SCHEDULE, x_t, t, v)
        np.testing.assert_allclose(found, noise, atol=1e-5)
        answers = diffusion.from_velocity(lambda p, x, t, c: p * v, SCHEDULE)
        np.testing.assert_allclose(answers(1.0, x_t, t, None), noise, atol=1e-5)

    def test_uniform_steps_are_uniform_and_independent(self):
        t = np.asarray(diffusion.uniform_timesteps(KEY, 40_000, 10))
        self.assertEqual(t.dtype, np.int32)
        counts = np.histogram2d(t[:20_000], t[20_000:], bins=10)[0]
        np.testing.assert_allclose(counts, 200, atol=5 * np.sqrt(200))


class LossTest(parameterized.TestCase):
    def test_velocity_and_steps_enter_every_loss(self):
        x0, t = jax.random.normal(KEY, (4, 3)), jnp.array([0, 10, 500, 999])
        seen = []

        def record(params, x, t, c):
            seen.append((x, t))
            return network(params, x, t, c)

        shared = record, 0.7, SCHEDULE, x0, jnp.ones(4)
        options: dict[str, Any] = dict(
            timesteps=lambda key, n, total: t, target=diffusion.velocity
        )
        loss = diffusion.noise_loss(*shared, KEY, **options)
        [(x, steps)] = seen
        np.testing.assert_array_equal(steps, t)
        signal, sigma = np.sqrt([ALPHAS[t], 1 - ALPHAS[t]])[..., None]
        v = signal * (np.asarray(x) - signal * x0) / sigma - sigma * x0
        error = np.asarray(network(0.7, x, t, jnp.ones(4))) - v
        np.testing.assert_allclose(loss, (error**2).sum(1).mean(), rtol=1e-4)
        marked = jnp.zeros(4, bool)
        relabel = diffusion.relabel_loss(*shared, jnp.zeros(4), marked, KEY, **options)
        np.testing.assert_allclose(relabel, loss, rtol=1e-6)
        seen.clear()
        options.pop("target")
        diffusion.match_loss(*shared, jnp.zeros(4), KEY, **options)
        diffusion.erase_loss(
            record, 0.7, 0.7, SCHEDULE, x0, jnp.ones(4), 0.0, KEY, **options
        )
        for _, steps in seen:
            np.testing.assert_array_equal(steps, t)
        self.assertLen(seen, 5)


class SamplerTest(parameterized.TestCase):
    def draw(self, sampler, predict=network, **options):
        shared = predict, 0.7, SCHEDULE, KEY, CONDITION, START.shape
        return sampler(*shared, **{"start": START, **options})

    def test_leading_steps(self):
        found = diffusion.leading_steps(SCHEDULE, 50)
        np.testing.assert_array_equal(found, np.arange(981, 0, -20))
        self.assertEqual(diffusion.leading_steps(SCHEDULE, 999)[0], 999)

    @parameterized.parameters(0, -1, 1000, 1001)
    def test_leading_steps_stay_inside(self, num_steps):
        with self.assertRaisesRegex(ValueError, "^Got .*; give 1 to 999"):
            diffusion.leading_steps(SCHEDULE, num_steps)

    @parameterized.parameters(1.0, 0.9991)
    def test_ddim_follows_given_steps(self, last_alpha):
        steps = [901, 500, 7]
        found = self.draw(diffusion.ddim_sample, steps=steps, last_alpha=last_alpha)
        x = np.asarray(START, np.float64)
        for t, s in zip(steps, [*steps[1:], -1], strict=True):
            x = step(x, in_numpy(x, t), t, s, last_alpha)
        np.testing.assert_allclose(found, x, rtol=1e-4)

    @parameterized.product(count=(1, 2, 3, 4, 7), velocity=(False, True))
    def test_plms_is_the_papers(self, count, velocity):
        steps = diffusion.leading_steps(SCHEDULE, count)
        to_noise = functools.partial(diffusion.noise_of_velocity, SCHEDULE)
        found = self.draw(
            diffusion.plms_sample, steps=steps, last_alpha=0.9991,
            to_noise=to_noise if velocity else None,
        )  # fmt: skip

        def exact(x, t, e):
            return np.sqrt(ALPHAS[t]) * e + np.sqrt(1 - ALPHAS[t]) * x

        wanted = plms(steps, 0.9991, exact if velocity else lambda x, t, e: e)
        np.testing.assert_allclose(found, wanted, rtol=2e-4)

    def test_plms_calls_the_network_once_more_than_it_steps(self):
        times = []

        def recording(params, x, t, c):
            jax.debug.callback(lambda t: times.append(int(t)), t[0], ordered=True)
            return network(params, x, t, c)

        self.draw(diffusion.plms_sample, recording, steps=[801, 601, 401, 201, 1])
        jax.effects_barrier()
        self.assertEqual(times, [801, 601, 601, 401, 201, 1])

    @parameterized.parameters(diffusion.ddim_sample, diffusion.plms_sample)
    def test_steps_by_number_and_noise_by_key(self, sampler):
        by_number = self.draw(sampler, num_steps=4, start=None)
        noise = jax.random.normal(jax.random.fold_in(KEY, 1000), START.shape)
        given = self.draw(sampler, steps=[999, 749, 499, 249], start=noise)
        np.testing.assert_array_equal(by_number, given)

    @parameterized.product(
        sampler=(diffusion.ddim_sample, diffusion.plms_sample),
        options=(
            dict(num_steps=1001),
            dict(steps=[]),
            dict(steps=[5, 5]),
            dict(steps=[1000, 5]),
            dict(steps=[5, -1]),
            dict(steps=[5], num_steps=1),
            dict(),
            dict(num_steps=2, start=START[:1]),
        ),
    )
    def test_refuses(self, sampler, options):
        with self.assertRaisesRegex(ValueError, "^Got .*; give "):
            self.draw(sampler, **options)


if __name__ == "__main__":
    absltest.main()
