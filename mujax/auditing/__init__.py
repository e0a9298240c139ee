"""Audits of unlearning, as functions of arrays on the host.

With one model: SalUn's attack, Fan et al. (2024), arXiv:2310.12508, on the features of
Song and Mittal (2021), arXiv:2003.10595. With a bank of models, arrays (models,
examples): likelihood ratios, distances to Retrain, bounds on ε, memorisation, and
intervals over models. Everything is NumPy, SciPy and scikit-learn, which
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
    from mujax.auditing.behaviour import InterclassConfusion as InterclassConfusion
    from mujax.auditing.behaviour import interclass_confusion as interclass_confusion
    from mujax.auditing.behaviour import memorization as memorization
    from mujax.auditing.behaviour import poison_score as poison_score
    from mujax.auditing.behaviour import relearn_steps as relearn_steps
    from mujax.auditing.curves import roc as roc
    from mujax.auditing.curves import roc_area as roc_area
    from mujax.auditing.curves import tpr_at as tpr_at
    from mujax.auditing.distance import completeness as completeness
    from mujax.auditing.distance import gaussian_klom as gaussian_klom
    from mujax.auditing.distance import jensen_shannon as jensen_shannon
    from mujax.auditing.distance import klom as klom
    from mujax.auditing.epsilon import epsilon_lower_bound as epsilon_lower_bound
    from mujax.auditing.epsilon import forgetting_epsilon as forgetting_epsilon
    from mujax.auditing.epsilon import forgetting_score as forgetting_score
    from mujax.auditing.intervals import jackknife as jackknife
    from mujax.auditing.intervals import mean_interval as mean_interval
    from mujax.auditing.intervals import pair_swap_null as pair_swap_null
    from mujax.auditing.likelihood import likelihood_ratio as likelihood_ratio
    from mujax.auditing.likelihood import margins as margins
    from mujax.auditing.likelihood import population_attack as population_attack
    from mujax.auditing.likelihood import rmia as rmia
    from mujax.auditing.membership import MeanEfficacy as MeanEfficacy
    from mujax.auditing.membership import balanced_subsets as balanced_subsets
    from mujax.auditing.membership import forget_efficacy as forget_efficacy
    from mujax.auditing.membership import mean_forget_efficacy as mean_forget_efficacy
    from mujax.auditing.membership import svc_membership as svc_membership
    from mujax.auditing.representation import cka as cka
    from mujax.auditing.representation import linear_probe as linear_probe
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("scipy", "sklearn"):
        raise
    raise ModuleNotFoundError(
        f"mujax.auditing needs {error.name}: pip install mujax[auditing]",
        name=error.name,
    ) from error
