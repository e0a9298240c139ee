"""Machine unlearning in JAX: masks, subspaces and corrected gradients that compose.

Pure functions on pytrees (``saliency``, ``subspace``, ``correction``, ``curriculum``,
``labels``, ``gradients``, ``diffusion``), their optax transforms (``transforms``),
published methods made of both (``methods``), and how well it went (``metrics``;
``auditing``, which needs scikit-learn and is imported when it is first used).
"""

import importlib
from typing import TYPE_CHECKING, Any

from mujax import correction as correction
from mujax import curriculum as curriculum
from mujax import diffusion as diffusion
from mujax import gradients as gradients
from mujax import labels as labels
from mujax import methods as methods
from mujax import metrics as metrics
from mujax import roles as roles
from mujax import saliency as saliency
from mujax import subspace as subspace
from mujax import transforms as transforms

if TYPE_CHECKING:
    from mujax import auditing as auditing

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports ``auditing`` when it is first used: scikit-learn is an extra."""
    if name == "auditing":
        return importlib.import_module("mujax.auditing")
    raise AttributeError(f"module 'mujax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The modules, whether imported yet or not."""
    return sorted({*globals(), "auditing"})
