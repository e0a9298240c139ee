"""Diffusion: NumPy formulas, and Gaussian data, whose exact noise network is known."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from absl.testing import parameterized
from jax.sharding import PartitionSpec

from mujax import diffusion

KEY = jax.random.key(0)
# The standard 1,000 steps in 200: the last step keeps 0.6 % of the data's amplitude.
SCHEDULE = diffusion.linear_schedule(200, 5e-4, 0.1)
MEANS = np.array([[1.0, -0.5], [-2.0, 0.3]])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.9]])
VARIANCES, BASIS = np.linalg.eigh(COVARIANCE)
GAUSSIAN = {
    "means": jnp.asarray(MEANS, jnp.float32),
    "variances": jnp.asarray(VARIANCES, jnp.float32),
    "basis": jnp.asarray(BASIS, jnp.float32),
}


def predict(params, x, t, condition):
    """Exact noise of data N(means[condition], covariance), linear in x."""
    signal, sigma = SCHEDULE.signal[t][:, None], SCHEDULE.sigma[t][:, None]
    spread = signal**2 * params["variances"] + sigma**2
    residual = (x - signal * params["means"][condition]) @ params["basis"]
    return (sigma * (residual / spread) @ params["basis"].T).astype(x.dtype)


def cheap(params, x, t, condition):
    """Any smooth network with one parameter."""
    times, condition = 0.01 * t, condition + 0.5
    shift = (times * condition).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(params * x + shift).astype(x.dtype)


def record(calls, fn=cheap):
    """``fn`` that also keeps its arguments; for eager calls."""

    def recording(params, x, t, condition):
        calls.append((np.asarray(x), np.asarray(t), np.asarray(condition)))
        return fn(params, x, t, condition)

    return recording


def alphas_cumprod(schedule):
    return np.cumprod(1 - np.asarray(schedule.betas, np.float64))


class ScheduleTest(parameterized.TestCase):
    def test_linear_is_the_papers(self):
        schedule = diffusion.linear_schedule()
        betas = 1e-4 + np.arange(1000) / 999 * (0.02 - 1e-4)
        self._check(schedule, betas)
        self.assertEqual(schedule.num_steps, 1000)

    @parameterized.parameters(10, 1000)
    def test_cosine_is_the_papers(self, num_steps):
        def f(t):
            return np.cos((t / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2

        t = np.arange(1, num_steps + 1)
        betas = np.clip(1 - f(t) / f(t - 1), 0, 0.999)
        self._check(diffusion.cosine_schedule(num_steps), betas)
        # Before the clipped last step, the signal's variance is f(t) / f(0) itself.
        np.testing.assert_allclose(
            diffusion.cosine_schedule(num_steps).alphas_cumprod[:-1],
            (f(t) / f(0))[:-1],
            rtol=1e-4,
        )

    def _check(self, schedule, betas):
        product = np.cumprod(1 - betas)
        for got, wanted in [
            (schedule.betas, betas),
            (schedule.alphas_cumprod, product),
            (schedule.signal, np.sqrt(product)),
            (schedule.sigma, np.sqrt(1 - product)),
        ]:
            self.assertEqual(got.dtype, jnp.float32)
            np.testing.assert_allclose(got, wanted, rtol=3e-6)

    def test_is_a_pytree(self):
        schedule = jax.jit(lambda s: s)(SCHEDULE)
        chex.assert_trees_all_equal(schedule, SCHEDULE)
        self.assertEqual(schedule.num_steps, 200)

    @parameterized.named_parameters(
        ("no_steps", diffusion.linear_schedule, (0,)),
        ("zero_start", diffusion.linear_schedule, (10, 0.0, 0.1)),
        ("end_of_one", diffusion.linear_schedule, (10, 0.1, 1.0)),
        ("no_cosine_steps", diffusion.cosine_schedule, (0,)),
        ("negative_offset", diffusion.cosine_schedule, (10, -0.1)),
    )
    def test_refuses(self, factory, arguments):
        with self.assertRaisesRegex(ValueError, "^Got .*; give "):
            factory(*arguments)

    def test_variances(self):
        product, betas = alphas_cumprod(SCHEDULE), np.asarray(SCHEDULE.betas)
        t = np.arange(200)
        posterior = betas[1:] * (1 - product[:-1]) / (1 - product[1:])
        np.testing.assert_allclose(
            diffusion.posterior_variance(SCHEDULE, t), [0.0, *posterior], rtol=1e-5
        )
        np.testing.assert_array_equal(
            diffusion.beta_variance(SCHEDULE, t), [0.0, *betas[1:]]
        )


class NoisingTest(parameterized.TestCase):
    def test_add_noise_formula(self):
        x0, noise = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype("f")
        t = np.array([0, 7, 100, 199])
        product = alphas_cumprod(SCHEDULE)[t][:, None, None]
        np.testing.assert_allclose(
            diffusion.add_noise(SCHEDULE, jnp.asarray(x0), t, jnp.asarray(noise)),
            np.sqrt(product) * x0 + np.sqrt(1 - product) * noise,
            atol=1e-6,
        )
        np.testing.assert_allclose(  # one step for all
            diffusion.add_noise(SCHEDULE, jnp.asarray(x0), 7, jnp.asarray(noise))[1],
            diffusion.add_noise(SCHEDULE, jnp.asarray(x0), t, jnp.asarray(noise))[1],
        )

    def test_add_noise_moments(self):
        n, t = 40_000, 60
        data, noise = jax.random.normal(KEY, (2, n))
        x = diffusion.add_noise(SCHEDULE, 3 + 0.5 * data, t, noise)
        product = alphas_cumprod(SCHEDULE)[t]
        variance = 0.25 * product + 1 - product
        self.assertAlmostEqual(
            x.mean(), 3 * np.sqrt(product), delta=5 * np.sqrt(variance / n)
        )
        self.assertAlmostEqual(x.var(), variance, delta=5 * variance * np.sqrt(2 / n))

    @parameterized.parameters(1, 2, 5, 8)
    def test_antithetic_pairs_mirror(self, n):
        t = diffusion.antithetic_timesteps(KEY, n, 1000)
        half = (n + 1) // 2
        chex.assert_shape(t, (n,))
        self.assertEqual(t.dtype, jnp.int32)
        np.testing.assert_array_equal(t[: n - half] + t[half:], 999)

    def test_antithetic_steps_are_uniform(self):
        t = diffusion.antithetic_timesteps(KEY, 40_000, 10)
        counts = np.bincount(t, minlength=10)
        self.assertLen(counts, 10)
        # Mirrored draws double the variance of a count.
        np.testing.assert_allclose(counts, 4000, atol=5 * np.sqrt(2 * 4000))

    def test_drop_condition(self):
        condition = {
            "label": jnp.arange(4000),
            "text": jnp.ones((4000, 3), jnp.bfloat16),
        }
        null = {"label": -1, "text": np.array([7.0, 8.0, 9.0])}
        dropped = diffusion.drop_condition(KEY, condition, 0.1, null)
        chex.assert_trees_all_equal_shapes_and_dtypes(dropped, condition)
        gone = np.asarray(dropped["label"] == -1)
        self.assertAlmostEqual(gone.mean(), 0.1, delta=5 * np.sqrt(0.09 / 4000))
        np.testing.assert_array_equal(dropped["label"][~gone], np.arange(4000)[~gone])
        np.testing.assert_array_equal(
            np.asarray(dropped["text"], np.float32),
            np.where(gone[:, None], null["text"], 1.0),
        )

    @parameterized.parameters(0.0, 1.0)
    def test_drop_none_and_all(self, probability):
        dropped = diffusion.drop_condition(KEY, jnp.arange(50), probability, null=50)
        wanted = np.full(50, 50) if probability else np.arange(50)
        np.testing.assert_array_equal(dropped, wanted)

    def test_refuses_another_null(self):
        condition = {"label": jnp.arange(4), "text": jnp.ones((4, 3))}
        null = {"label": 4, "text": np.zeros(2)}
        with self.assertRaisesRegex(ValueError, r"null\['text'\] has shape \(2,\)"):
            diffusion.drop_condition(KEY, condition, 0.1, null)


class GuidanceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        x = jax.random.normal(KEY, (3, 4))
        self.arguments = x, jnp.array([0, 50, 199]), jnp.array([0, 1, 1])
        self.conditional = cheap(0.7, *self.arguments)
        self.null = cheap(0.7, *self.arguments[:2], jnp.full(3, 2))

    def at(self, guidance):
        return diffusion.guided(cheap, guidance, null=2)(0.7, *self.arguments)

    def test_named_values(self):
        np.testing.assert_allclose(self.at(0.0), self.conditional, rtol=1e-6)
        np.testing.assert_allclose(self.at(-1.0), self.null, rtol=1e-6)
        np.testing.assert_allclose(
            self.at(2.0), 3 * self.conditional - 2 * self.null, atol=1e-6
        )

    @hypothesis.given(st.floats(-5, 5), st.floats(-5, 5))
    @hypothesis.settings(max_examples=20, deadline=None)
    def test_linear_in_guidance(self, v, w):
        np.testing.assert_allclose(
            self.at(v) + self.at(w), 2 * self.at((v + w) / 2), atol=1e-4
        )

    def test_keeps_a_tree_and_a_dtype(self):
        def network(params, x, t, c):
            return x * c["a"][:, None].astype(x.dtype) + c["b"].astype(x.dtype)

        condition = {"a": jnp.arange(3), "b": jnp.ones((3, 4))}
        guided = diffusion.guided(network, 1.0, null={"a": 0, "b": np.zeros(4)})
        x = jnp.ones((3, 4), jnp.bfloat16)
        out = guided(None, x, jnp.zeros(3, jnp.int32), condition)
        self.assertEqual(out.dtype, jnp.bfloat16)
        np.testing.assert_allclose(
            np.asarray(out, np.float32), 2 * np.tile([[1], [2], [3]], 4)
        )


class LossTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.x0 = jax.random.normal(KEY, (6, 4, 4, 1))
        self.labels = jnp.array([0, 1, 0, 1, 1, 0])
        self.weights = jnp.array([1.0, 1.0, 2.0, 1.0, 0.5, 0.0])

    @parameterized.named_parameters(
        ("sum", jnp.sum, np.sum), ("mean", jnp.mean, np.mean), ("max", jnp.max, np.max)
    )
    def test_noise_loss_formula(self, reduction, in_numpy):
        calls = []
        loss = diffusion.noise_loss(
            record(calls), 0.7, SCHEDULE, self.x0, self.labels, KEY,
            weights=self.weights, pixel_reduction=reduction,
        )  # fmt: skip
        [(x, t, labels)] = calls
        np.testing.assert_array_equal(labels, self.labels)
        np.testing.assert_array_equal(t[:3] + t[3:], 199)
        product = alphas_cumprod(SCHEDULE)[t].reshape(-1, 1, 1, 1)
        noise = (x - np.sqrt(product) * self.x0) / np.sqrt(1 - product)
        self.assertLess(abs(noise.mean()), 5 / np.sqrt(noise.size))
        error = (noise - np.asarray(cheap(0.7, x, t, labels))).reshape(6, -1)
        wanted = np.average(in_numpy(error**2, axis=1), weights=self.weights)
        self.assertEqual(loss.dtype, jnp.float32)
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)

    @parameterized.parameters(None, 0.2)
    def test_match_loss_formula(self, teacher):
        calls, others = [], 1 - self.labels
        loss = diffusion.match_loss(
            record(calls), 0.7, SCHEDULE, self.x0, self.labels, others, KEY,
            teacher_params=teacher, weights=self.weights,
        )  # fmt: skip
        (x, t, c), (x_again, t_again, c_again) = calls
        np.testing.assert_array_equal(x, x_again)  # student and teacher see the same
        np.testing.assert_array_equal(t, t_again)
        np.testing.assert_array_equal(c + c_again, 1)
        answer = cheap(0.7 if teacher is None else teacher, x, t, others)
        error = np.asarray(cheap(0.7, x, t, self.labels) - answer)
        wanted = np.average((error**2).sum((1, 2, 3)), weights=self.weights)
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)

    def test_match_gradient_passes_through_the_student_alone(self):
        def linear(params, x, t, c):
            return params * c[:, None, None, None] * jnp.ones_like(x)

        labels, others = jnp.full(6, 2.0), jnp.full(6, 5.0)
        grad = jax.grad(
            lambda p: diffusion.match_loss(
                linear, p, SCHEDULE, self.x0, labels, others, KEY,
                pixel_reduction=jnp.mean,
            )
        )(3.0)  # fmt: skip
        self.assertAlmostEqual(grad, 2 * (3 * 2 - 3 * 5) * 2, places=4)

    def test_relabel_loss_is_each_loss_where_it_belongs(self):
        relabelled, others = jnp.array([1, 0, 1, 1, 0, 0], bool), 1 - self.labels
        calls = []
        loss = diffusion.relabel_loss(
            record(calls), 0.7, SCHEDULE, self.x0, self.labels, others, relabelled,
            KEY, weights=self.weights,
        )  # fmt: skip
        given, parts = (cheap, 0.7, SCHEDULE, self.x0, self.labels), []
        for marked in (relabelled, ~relabelled):
            weights = self.weights * marked
            loss_of_part = (
                diffusion.match_loss(*given, others, KEY, weights=weights)
                if marked is relabelled
                else diffusion.noise_loss(*given, KEY, weights=weights)
            )
            parts.append(loss_of_part * weights.sum())
        wanted = sum(parts) / np.sum(self.weights)
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        self.assertLen(calls, 2)  # one answers, one learns

    def test_relabel_gradient_passes_through_the_student_alone(self):
        def linear(params, x, t, c):
            return params * c[:, None, None, None] * jnp.ones_like(x)

        labels, others = jnp.full(6, 2.0), jnp.full(6, 5.0)
        grad = jax.grad(
            lambda p: diffusion.relabel_loss(
                linear, p, SCHEDULE, self.x0, labels, others, jnp.ones(6, bool), KEY,
                pixel_reduction=jnp.mean,
            )
        )(3.0)  # fmt: skip
        self.assertAlmostEqual(grad, 2 * (3 * 2 - 3 * 5) * 2, places=4)

    def test_erase_loss_formula(self):
        calls = []
        loss = diffusion.erase_loss(
            record(calls), 0.7, 0.4, SCHEDULE, self.x0, self.labels, 2, KEY,
            strength=1.5, weights=self.weights,
        )  # fmt: skip
        x, t, _ = calls[0]
        for other in calls[1:]:
            np.testing.assert_array_equal(x, other[0])
            np.testing.assert_array_equal(t, other[1])
        null, original = (
            np.asarray(cheap(0.4, x, t, c)) for c in (np.full(6, 2), self.labels)
        )
        target = null - 1.5 * (original - null)
        error = np.asarray(cheap(0.7, x, t, self.labels)) - target
        wanted = np.average((error**2).sum((1, 2, 3)), weights=self.weights)
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)

    def test_erase_gradient_spares_the_original(self):
        grad = jax.grad(
            lambda p: diffusion.erase_loss(
                cheap, 0.7, p, SCHEDULE, self.x0, self.labels, 2, KEY
            )
        )
        self.assertEqual(grad(0.4), 0)

    def test_padding_does_not_count(self):
        loss = functools.partial(
            diffusion.noise_loss, cheap, 0.7, SCHEDULE, condition=self.labels, key=KEY
        )
        clean = loss(self.x0, weights=self.weights)
        padded = loss(self.x0.at[5].set(1e3), weights=self.weights)
        np.testing.assert_array_equal(clean, padded)
        self.assertEqual(loss(self.x0, weights=jnp.zeros(6)), 0)
        np.testing.assert_allclose(
            loss(self.x0), loss(self.x0, weights=jnp.full(6, 3.0)), rtol=1e-6
        )

    def test_loss_of_the_exact_network(self):
        """What no network can know: the variance of the noise given x_t."""
        n = 20_000
        x0 = jax.random.multivariate_normal(KEY, MEANS[1], COVARIANCE, (n,))
        labels = jnp.ones(n, jnp.int32)
        loss = diffusion.noise_loss(predict, GAUSSIAN, SCHEDULE, x0, labels, KEY)
        signal = alphas_cumprod(SCHEDULE)[:, None] * VARIANCES
        share = signal / (signal + 1 - alphas_cumprod(SCHEDULE)[:, None])
        # A squared normal of variance v has the variance 2 v².
        moments = share.sum(1) ** 2 + 2 * (share**2).sum(1)
        wanted = share.sum(1).mean()
        error = 5 * np.sqrt((moments.mean() - wanted**2) / n)
        self.assertAlmostEqual(loss, wanted, delta=error)

    def test_refuses_a_prediction_of_another_shape(self):
        def wrong(params, x, t, c):
            return x[..., :1, 0]

        with self.assertRaisesRegex(ValueError, r"\(6, 4, 1\).*\(6, 4, 4, 1\)"):
            diffusion.noise_loss(wrong, 0.7, SCHEDULE, self.x0, self.labels, KEY)
        with self.assertRaisesRegex(ValueError, "one value for each entry"):
            diffusion.ddpm_sample(wrong, 0.7, SCHEDULE, KEY, self.labels, self.x0.shape)


def exact_moments(steps, transition):
    """Mean and covariance of a sampler on the Gaussian of class 1, in float64.

    ``transition(t, s)`` gives (a, b, c) of ``x_s = a x_t + b ε_θ(x_t) + c z``.
    """
    product, eye = alphas_cumprod(SCHEDULE), np.eye(2)
    mean, covariance = np.zeros(2), eye
    for t, s in zip(steps, [*steps[1:], -1], strict=True):
        a, b, c = transition(t, s)
        spread = product[t] * COVARIANCE + (1 - product[t]) * eye
        noise = np.sqrt(1 - product[t]) * np.linalg.inv(spread)  # ε_θ = noise (x - m)
        move = a * eye + b * noise
        mean = move @ mean - b * noise @ (np.sqrt(product[t]) * MEANS[1])
        covariance = move @ covariance @ move.T + c**2 * eye
    return mean, covariance


def ddpm_transition(t, s, kind):
    """Ho et al. (2020), algorithm 2, in the paper's variables."""
    product, beta = alphas_cumprod(SCHEDULE), float(SCHEDULE.betas[t])
    before = product[s] if s >= 0 else 1.0
    variance = {"posterior": beta * (1 - before) / (1 - product[t]), "beta": beta}[kind]
    root = np.sqrt(1 - beta)
    return 1 / root, -beta / np.sqrt(1 - product[t]) / root, (s >= 0) * variance**0.5


def ddim_transition(t, s, eta):
    """Song et al. (2021), equations 12 and 16."""
    product = alphas_cumprod(SCHEDULE)
    now, before = product[t], product[s] if s >= 0 else 1.0
    fresh = eta * np.sqrt((1 - before) / (1 - now)) * np.sqrt(1 - now / before)
    ratio = np.sqrt(before / now)
    return ratio, np.sqrt(1 - before - fresh**2) - ratio * np.sqrt(1 - now), fresh


def sampler(kind, **options):
    function = diffusion.ddpm_sample if kind == "ddpm" else diffusion.ddim_sample
    return functools.partial(function, predict, **options)


class SamplerTest(parameterized.TestCase):
    # (name, sampler, transition, steps, largest error of the covariance): the last is
    # the error of taking finitely many steps, computed exactly and stated here.
    @parameterized.named_parameters(
        ("ddpm_posterior", "ddpm", {"variance": diffusion.posterior_variance},
         functools.partial(ddpm_transition, kind="posterior"), 200, 0.04),
        ("ddpm_beta", "ddpm", {"variance": diffusion.beta_variance},
         functools.partial(ddpm_transition, kind="beta"), 200, 0.004),
        ("ddim_all_0", "ddim", {"num_steps": 200, "eta": 0.0},
         functools.partial(ddim_transition, eta=0.0), 200, 0.02),
        ("ddim_50_0", "ddim", {"num_steps": 50, "eta": 0.0},
         functools.partial(ddim_transition, eta=0.0), 50, 0.07),
        ("ddim_50_half", "ddim", {"num_steps": 50, "eta": 0.5},
         functools.partial(ddim_transition, eta=0.5), 50, 0.08),
        ("ddim_50_1", "ddim", {"num_steps": 50, "eta": 1.0},
         functools.partial(ddim_transition, eta=1.0), 50, 0.14),
    )  # fmt: skip
    def test_recovers_a_gaussian(self, kind, options, transition, steps, error):
        n = 20_000
        visited = [i * 200 // steps - 1 for i in range(steps, 0, -1)]
        mean, covariance = exact_moments(visited, transition)
        self.assertLess(np.abs(mean - MEANS[1]).max(), 0.01)
        self.assertLess(np.abs(covariance - COVARIANCE).max(), error)

        sample = jax.jit(sampler(kind, **options), static_argnames="shape")
        x = sample(GAUSSIAN, SCHEDULE, KEY, jnp.ones(n, jnp.int32), shape=(n, 2))
        x = np.asarray(x, np.float64)
        diagonal = np.diag(covariance)
        np.testing.assert_array_less(
            np.abs(x.mean(0) - mean), 5 * np.sqrt(diagonal / n)
        )
        np.testing.assert_array_less(
            np.abs(np.cov(x.T) - covariance),
            5 * np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / n),
        )

    def test_full_ddim_of_eta_1_is_ddpm(self):
        arguments = GAUSSIAN, SCHEDULE, KEY, jnp.array([0, 1, 1, 0]), (4, 2)
        np.testing.assert_allclose(
            sampler("ddim", num_steps=200, eta=1.0)(*arguments),
            sampler("ddpm", variance=diffusion.posterior_variance)(*arguments),
            atol=1e-4,
        )

    @parameterized.parameters(0.0, 0.5, 1.0)
    def test_ddim_by_hand(self, eta):
        """In float64, with noise from the documented keys."""

        def normal(step):
            return np.asarray(jax.random.normal(jax.random.fold_in(KEY, step), (3, 2)))

        x, product = normal(200), alphas_cumprod(SCHEDULE)
        for t, s in [(199, 132), (132, 65), (65, -1)]:
            a, b, c = ddim_transition(t, s, eta)
            spread = product[t] * COVARIANCE + (1 - product[t]) * np.eye(2)
            residual = x - np.sqrt(product[t]) * MEANS[[0, 1, 1]]
            noise = np.sqrt(1 - product[t]) * residual @ np.linalg.inv(spread)
            x = a * x + b * noise + c * normal(t)
        sample = sampler("ddim", num_steps=3, eta=eta)
        np.testing.assert_allclose(
            sample(GAUSSIAN, SCHEDULE, KEY, jnp.array([0, 1, 1]), (3, 2)), x, atol=1e-4
        )

    def test_visited_steps(self):
        calls = []
        with jax.disable_jit():
            diffusion.ddim_sample(
                record(calls), 0.7, SCHEDULE, KEY, jnp.zeros(2), (2, 1), num_steps=3
            )
        visited = [t.tolist() for _, t, _ in calls]
        self.assertEqual(visited, [[199, 199], [132, 132], [65, 65]])

    @parameterized.parameters(0, 201)
    def test_refuses_a_number_of_steps(self, num_steps):
        with self.assertRaisesRegex(ValueError, f"num_steps={num_steps}.*1 to 200"):
            sampler("ddim", num_steps=num_steps)(
                GAUSSIAN, SCHEDULE, KEY, jnp.zeros(2, jnp.int32), (2, 2)
            )

    @parameterized.named_parameters(
        ("ddpm", "ddpm", {}), ("ddim", "ddim", {"num_steps": 7, "eta": 0.5})
    )
    def test_clip_bounds_the_samples(self, kind, options):
        arguments = GAUSSIAN, SCHEDULE, KEY, jnp.zeros(64, jnp.int32), (64, 2)
        free = sampler(kind, **options)(*arguments)
        clipped = sampler(kind, clip=0.5, **options)(*arguments)
        self.assertGreater(jnp.abs(free).max(), 1)
        self.assertLessEqual(jnp.abs(clipped).max(), 0.5)
        loose = sampler(kind, clip=1e4, **options)(*arguments)
        np.testing.assert_allclose(loose, free, atol=1e-5)

    def test_keys(self):
        draw = sampler("ddim", num_steps=5, eta=1.0)
        sample = jax.jit(lambda k: draw(GAUSSIAN, SCHEDULE, k, jnp.arange(2), (2, 2)))
        np.testing.assert_array_equal(sample(KEY), sample(KEY))
        self.assertTrue(jnp.all(sample(KEY) != sample(jax.random.key(1))))

    def test_fresh_noise_differs_between_steps(self):
        """A network that says zero leaves a walk; equal noise would add up in line."""
        n = 4000
        zero = functools.partial(diffusion.ddpm_sample, lambda p, x, t, c: 0 * x)
        x = zero(None, SCHEDULE, KEY, None, (n,), variance=diffusion.beta_variance)
        variance = 1.0
        for t in range(199, -1, -1):
            beta = float(SCHEDULE.betas[t])
            variance = variance / (1 - beta) + beta * (t > 0)
        self.assertAlmostEqual(x.var() / variance, 1, delta=5 * np.sqrt(2 / n))


SAMPLERS = {
    "ddpm": sampler("ddpm", clip=3.0),
    "ddim": sampler("ddim", num_steps=6, eta=0.5),
    "guided": functools.partial(
        diffusion.ddim_sample, diffusion.guided(predict, 2.0, null=0), num_steps=6
    ),
}


def losses(params, schedule, x0, labels, key):
    """Every loss."""
    frozen, given = jax.tree.map(lambda p: p + 0.1, params), (schedule, x0, labels)
    return (
        diffusion.noise_loss(predict, params, *given, key),
        diffusion.match_loss(predict, params, *given, 1 - labels, key),
        diffusion.relabel_loss(predict, params, *given, 1 - labels, labels == 0, key),
        diffusion.erase_loss(predict, params, frozen, *given, 0, key),
    )


def gradients(*arguments):
    """The gradient of every loss, stacked."""
    return jax.jacrev(losses)(*arguments)


class TransformTest(parameterized.TestCase):
    """jit, vmap, export, bfloat16 and eight devices."""

    def setUp(self):
        super().setUp()
        self.labels = jnp.arange(16) % 2
        self.x0 = jax.random.normal(jax.random.key(1), (16, 2))

    def sample(self, name, params, key, labels):
        return SAMPLERS[name](params, SCHEDULE, key, labels, (16, 2))

    @parameterized.parameters(*SAMPLERS)
    def test_sampler_under_jit_and_vmap(self, name):
        sample = functools.partial(self.sample, name, GAUSSIAN, labels=self.labels)
        jitted, keys = jax.jit(sample), jax.random.split(KEY, 3)
        one_by_one = jnp.stack([jitted(key) for key in keys])
        np.testing.assert_allclose(sample(keys[0]), one_by_one[0], atol=1e-5)
        np.testing.assert_allclose(jax.vmap(sample)(keys), one_by_one, atol=1e-4)

    def test_losses_under_jit_and_vmap(self):
        function = functools.partial(losses, GAUSSIAN, SCHEDULE, self.x0, self.labels)
        jitted, keys = jax.jit(function), jax.random.split(KEY, 3)
        one_by_one = jax.tree.map(lambda *x: jnp.stack(x), *map(jitted, keys))
        first = jax.tree.map(lambda x: x[0], one_by_one)
        chex.assert_trees_all_close(function(keys[0]), first, rtol=1e-5)
        vmapped = jax.jit(jax.vmap(function))(keys)
        chex.assert_trees_all_close(vmapped, one_by_one, rtol=1e-5)

    @parameterized.product(name=[*SAMPLERS, "gradients"], platform=["tpu", "cuda"])
    def test_lowers_elsewhere(self, name, platform):
        if name == "gradients":
            function = jax.jit(gradients)
            arguments = GAUSSIAN, SCHEDULE, self.x0, self.labels, KEY
        else:
            function = jax.jit(functools.partial(self.sample, name))
            arguments = GAUSSIAN, KEY, self.labels
        exported = jax.export.export(function, platforms=[platform])(*arguments)
        self.assertEqual(exported.platforms, (platform,))

    @parameterized.named_parameters(
        ("ddpm", diffusion.ddpm_sample, {}),
        ("ddim", diffusion.ddim_sample, {"num_steps": 20, "eta": 0.5}),
    )
    def test_sampler_in_bfloat16(self, function, options):
        dtypes = []

        def network(params, x, t, labels):
            dtypes.append(x.dtype)
            return predict(params, x, t, labels)

        arguments = network, GAUSSIAN, SCHEDULE, KEY, self.labels, (16, 2)
        short = function(*arguments, dtype=jnp.bfloat16, **options)
        self.assertEqual({short.dtype, *dtypes}, {jnp.dtype(jnp.bfloat16)})
        full = function(*arguments, **options)
        np.testing.assert_allclose(short.astype(jnp.float32), full, atol=0.1)

    def test_losses_in_bfloat16(self):
        full, half = (
            jax.jit(losses)(GAUSSIAN, SCHEDULE, x0, self.labels, KEY)
            for x0 in (self.x0, self.x0.astype(jnp.bfloat16))
        )
        for loss, short in zip(full, half, strict=True):
            self.assertEqual(short.dtype, jnp.float32)
            np.testing.assert_allclose(short, loss, rtol=0.05)

    def test_eight_devices_give_what_one_gives(self):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.sharding.NamedSharding(mesh, PartitionSpec("batch"))
        whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
        params, schedule, key = jax.device_put((GAUSSIAN, SCHEDULE, KEY), whole)
        x0, labels = jax.device_put((self.x0, self.labels), split)
        chex.assert_trees_all_close(
            jax.jit(gradients)(params, schedule, x0, labels, key),
            jax.jit(gradients)(GAUSSIAN, SCHEDULE, self.x0, self.labels, KEY),
            rtol=1e-5,
            atol=1e-6,
        )
        for name in ("ddpm", "guided"):
            draw = functools.partial(self.sample, name)
            shared = jax.jit(draw, out_shardings=split)(params, key, labels)
            self.assertLen(shared.sharding.device_set, 8)
            alone = jax.jit(draw)(GAUSSIAN, KEY, self.labels)
            np.testing.assert_allclose(shared, alone, atol=1e-5)


class FrechetDistanceTest(parameterized.TestCase):
    @parameterized.named_parameters(("many", 300, 200), ("fewer_than_features", 5, 8))
    def test_scipy_formula(self, n, m):
        rng = np.random.default_rng(0)
        a = rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12))
        b = 1 + rng.normal(size=(m, 12)) @ rng.normal(size=(12, 12))
        A, B = np.cov(a.T), np.cov(b.T)
        root = scipy.linalg.sqrtm(A)
        cross = scipy.linalg.sqrtm(root @ B @ root)
        wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(A + B - 2 * cross).real
        np.testing.assert_allclose(
            diffusion.frechet_distance(a, b), wanted, rtol=1e-6 if n > 12 else 1e-4
        )

    def test_closed_form_of_axis_aligned_gaussians(self):
        """Samples with exactly the wanted moments: Σ (Δμ² + (s - s')²)."""
        rng = np.random.default_rng(1)

        def exactly(mean, deviation):
            x = rng.normal(size=(50, 3))
            x -= x.mean(0)
            white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
            return mean + deviation * white

        a = exactly(np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
        b = exactly(np.array([1.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.5]))
        self.assertAlmostEqual(diffusion.frechet_distance(a, b), 1 + 4 + 1 + 6.25)

    @hypothesis.given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 6))
    @hypothesis.settings(max_examples=50, deadline=None)
    def test_laws(self, seed, n, features):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, n, features))
        distance = diffusion.frechet_distance(a, b)
        self.assertGreaterEqual(distance, -1e-9)
        self.assertAlmostEqual(distance, diffusion.frechet_distance(b, a))
        self.assertAlmostEqual(diffusion.frechet_distance(a, a), 0)
        self.assertAlmostEqual(diffusion.frechet_distance(3 * a, 3 * b), 9 * distance)
        rotation = np.linalg.qr(rng.normal(size=(features, features)))[0]
        self.assertAlmostEqual(
            diffusion.frechet_distance(a @ rotation, b @ rotation), distance
        )

    @parameterized.named_parameters(
        ("columns", (5, 2), (5, 3)), ("one_row", (1, 2), (5, 2)), ("axes", (5,), (5, 2))
    )
    def test_refuses(self, shape_a, shape_b):
        with self.assertRaisesRegex(ValueError, "Got features of shapes"):
            diffusion.frechet_distance(np.zeros(shape_a), np.zeros(shape_b))
