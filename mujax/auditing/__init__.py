"""Membership attacks on a classifier, and intervals over seeds; on the host.

SalUn's attack, Fan et al. (2024), arXiv:2310.12508, on the features of Song and Mittal
(2021), arXiv:2003.10595. Everything is NumPy and scikit-learn, which
``pip install mujax[auditing]`` brings.
"""

from mujax.auditing.features import FEATURES as FEATURES
from mujax.auditing.features import Feature as Feature
from mujax.auditing.features import confidence as confidence
from mujax.auditing.features import correctness as correctness
from mujax.auditing.features import entropy as entropy
from mujax.auditing.features import modified_entropy as modified_entropy
from mujax.auditing.features import probabilities as probabilities

try:
    from mujax.auditing.intervals import mean_interval as mean_interval
    from mujax.auditing.membership import MeanEfficacy as MeanEfficacy
    from mujax.auditing.membership import balanced_subsets as balanced_subsets
    from mujax.auditing.membership import forget_efficacy as forget_efficacy
    from mujax.auditing.membership import mean_forget_efficacy as mean_forget_efficacy
    from mujax.auditing.membership import svc_membership as svc_membership
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("scipy", "sklearn"):
        raise
    raise ModuleNotFoundError(
        f"mujax.auditing needs {error.name}: pip install mujax[auditing]",
        name=error.name,
    ) from error
