"""Auditing one's own models by their logits, as the README shows it."""

# ruff: noqa: E402
import numpy as np

labels, rng = np.arange(40) % 4, np.random.default_rng(0)
# 32 models in pairs, each trained on one half; they lean to what they were trained on.
halves = [rng.permutation(np.arange(40) % 2 == 0) for _ in range(16)]
member = np.stack([half for first in halves for half in (first, ~first)])
logits = rng.normal(size=(32, 40, 4))
logits[..., np.arange(40), labels] += 2.0 * member

# The README shows what stands below.
from mujax import auditing

scores = auditing.likelihood_ratio(auditing.margins(logits, labels), member)
print(auditing.roc_area(scores, member))  # 0.5 where nothing is remembered
