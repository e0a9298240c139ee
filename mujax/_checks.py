"""Checks of labels and numbers that several modules share."""

import operator
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_labels(labels: Any, num_classes: int) -> None:
    """Raises unless labels, NumPy's or JAX's, are integers in [0, K).

    Inside ``jit`` their values are unknown: only the type is checked.
    """
    if not jnp.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"Got {labels.dtype} labels, wanted integers; cast them.")
    if isinstance(labels, Tracer):
        return
    outside = ~in_range(labels, num_classes)
    if outside.any():
        # Not by a mask: labels may be spread over devices.
        label = labels.ravel()[outside.ravel().argmax()]
        raise ValueError(
            f"Got label {label} for {num_classes} classes, wanted labels from 0 to "
            f"{num_classes - 1}; leave such examples out."
        )


def in_range(labels: Any, num_classes: int) -> Any:
    """Whether each label is one of K classes."""
    last = min(num_classes - 1, np.iinfo(labels.dtype).max)  # K may exceed the dtype
    return (labels >= 0) & (labels <= last)


def check_count(value: SupportsIndex, name: str, least: int = 1) -> int:
    """The number as Python's, if it is a whole one that is large enough."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"Got {name}={value}, wanted a whole number known outside jit."
        ) from error
    if count < least:
        raise ValueError(f"Got {name}={value}, wanted at least {least}.")
    return count
