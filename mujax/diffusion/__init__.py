r"""Diffusion models as pure functions: schedules, losses, guidance, samplers.

DDPM (Ho et al., 2020, arXiv:2006.11239), DDIM (Song et al., 2021, arXiv:2010.02502).

The network is the user's ``predict(params, x_t, t, condition) -> noise``: ``x_t`` and
noise have the shape (N, ...), ``t`` is int32 (N,) in [0, T), ``condition`` a pytree of
arrays (N, ...) such as class indices. Bind the key of a network's own dropout inside
``predict``: the two networks that a loss compares then share their masks. Nothing is
jitted here: jit the step that calls it. Sums are float32, whatever the data's dtype.
"""

from mujax.diffusion.editing import edit_projection as edit_projection
from mujax.diffusion.losses import Predict as Predict
from mujax.diffusion.losses import Reduction as Reduction
from mujax.diffusion.losses import Target as Target
from mujax.diffusion.losses import Timesteps as Timesteps
from mujax.diffusion.losses import erase_loss as erase_loss
from mujax.diffusion.losses import from_velocity as from_velocity
from mujax.diffusion.losses import guided as guided
from mujax.diffusion.losses import match_loss as match_loss
from mujax.diffusion.losses import noise_loss as noise_loss
from mujax.diffusion.losses import relabel_loss as relabel_loss
from mujax.diffusion.losses import true_noise as true_noise
from mujax.diffusion.multistep import plms_sample as plms_sample
from mujax.diffusion.sampling import ddim_sample as ddim_sample
from mujax.diffusion.sampling import ddpm_sample as ddpm_sample
from mujax.diffusion.sampling import frechet_distance as frechet_distance
from mujax.diffusion.sampling import leading_steps as leading_steps
from mujax.diffusion.schedule import Schedule as Schedule
from mujax.diffusion.schedule import add_noise as add_noise
from mujax.diffusion.schedule import antithetic_timesteps as antithetic_timesteps
from mujax.diffusion.schedule import beta_variance as beta_variance
from mujax.diffusion.schedule import cosine_schedule as cosine_schedule
from mujax.diffusion.schedule import drop_condition as drop_condition
from mujax.diffusion.schedule import linear_schedule as linear_schedule
from mujax.diffusion.schedule import noise_of_velocity as noise_of_velocity
from mujax.diffusion.schedule import posterior_variance as posterior_variance
from mujax.diffusion.schedule import scaled_linear_schedule as scaled_linear_schedule
from mujax.diffusion.schedule import uniform_timesteps as uniform_timesteps
from mujax.diffusion.schedule import velocity as velocity
