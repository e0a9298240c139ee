"""Saliency scores of parameters and the masks made from them (SalUn).

SalUn: Fan et al. (2024), *SalUn: Empowering Machine Unlearning via Gradient-based
Weight Saliency in Both Image Classification and Generation*, arXiv:2310.12508.

A score says how much each parameter matters to the data that must be forgotten; a
mask keeps the highest scores. Masks are trees of booleans for
:func:`mujax.transforms.mask_updates`. Selection is exact and made of sums, counts and
compares of the floats' bits alone, so it neither sorts nor gathers parameters, under
``jit``, ``vmap`` and any sharding. It passes over them a few times on CPU, once for
each of 32 bits elsewhere, and as often again to settle scores that tie.

Outside ``jit`` a score that is not finite is an error that names its leaf. Inside,
where nothing can be raised, such scores give a mask that is false everywhere: nothing
moves, and :func:`density` is 0.
"""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mujax import gradients
from mujax._meshes import zeros_along
from mujax._trees import (
    PyTree,
    array_leaves,
    check_finite,
    check_fraction,
    check_real,
    is_array,
    is_traced,
    size,
)


def gradient_saliency(
    loss_fn: gradients.LossFn, params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""SalUn's score, the magnitude of the summed forget gradient.

    .. math:: s = \left| \sum_b \nabla_\theta \ell(\theta; b) \right|

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean loss of a batch in evaluation
        mode; its sign does not matter.
      params: the original parameters.
      batches: batches of the forget set.

    Returns:
      A float32 tree of the structure and shapes of ``params``, all entries >= 0; a
      complex gradient counts by its magnitude.

    Raises:
      ValueError: there is no batch, a parameter is an integer, a boolean or a key, or,
        outside ``jit``, a gradient is not finite; the message names the leaf.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x @ w)
      >>> gradient_saliency(loss_fn, jnp.zeros(2), [jnp.array([[1.0, -3.0]])])
      Array([1., 3.], dtype=float32)

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 3.
    """
    total = gradients.sum_gradients(loss_fn, params, batches)
    return jax.tree.map(jnp.abs, total)


def absolute_saliency(
    loss_fn: gradients.LossFn, params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Sum over batches of the gradient's magnitude, so that signs do not cancel.

    .. math:: s = \sum_b \left| \nabla_\theta \ell(\theta; b) \right|

    Args, returns and errors as in :func:`gradient_saliency`.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> absolute_saliency(loss_fn, jnp.float32(0), [jnp.ones(1), -jnp.ones(1)])
      Array(2., dtype=float32)
    """
    return gradients.sum_gradients(loss_fn, params, batches, transform=jnp.abs)


def fisher_saliency(
    loss_fn: gradients.LossFn, params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Mean squared gradient of single examples: the diagonal empirical Fisher.

    .. math:: s = \frac{1}{n} \sum_i \left( \nabla_\theta \ell(\theta; x_i) \right)^2

    It does not depend on how the examples are divided into batches.

    Args:
      loss_fn: ``(params, batch) -> scalar``; it is given batches of one example.
      params: the original parameters.
      batches: batches whose leaves lead with the example axis.

    Returns:
      A float32 tree of the structure and shapes of ``params``, all entries >= 0.

    Raises:
      ValueError: as :func:`gradient_saliency`.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> fisher_saliency(loss_fn, jnp.float32(0), [jnp.array([1.0, 3.0])])
      Array(5., dtype=float32)
    """
    return gradients.mean_squared_gradient(loss_fn, params, batches)


def top_fraction_mask(
    saliency: PyTree, fraction: float | np.floating | jax.Array
) -> PyTree:
    r"""Keeps the :math:`\lfloor \rho N \rfloor` largest scores of the whole tree.

    One global ranking over all leaves. The count is exact; equal scores are kept in
    the order of the tree's leaves and, within a leaf, of its row-major index. Scores
    rank as float32, subnormals included.

    Args:
      saliency: a tree of real scores.
      fraction: the share :math:`\rho` in [0, 1] to keep; a traced one is multiplied
        in float32.

    Returns:
      A boolean tree of the same structure and shapes.

    Raises:
      ValueError: the fraction is outside [0, 1], a score is complex or a key, or,
        outside ``jit``, one is not finite; the message names the leaf.

    Example:
      >>> top_fraction_mask({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0])}, 0.7)
      {'a': Array([ True, False], dtype=bool), 'b': Array([ True], dtype=bool)}

    Reference:
      `Fan et al. (2024) <https://arxiv.org/abs/2310.12508>`_, equation 4.
    """
    _check_scores(saliency)
    return _top_fraction_mask(saliency, fraction)


def top_fraction_mask_by_leaf(
    saliency: PyTree, fraction: float | np.floating | jax.Array
) -> PyTree:
    r"""Keeps the :math:`\lfloor \rho N_l \rfloor` largest scores of every leaf.

    The ablation of the global ranking. Args, returns and errors as in
    :func:`top_fraction_mask`.

    Example:
      >>> top_fraction_mask_by_leaf({"a": jnp.array([3.0, 1.0]), "b": jnp.ones(1)}, 0.5)
      {'a': Array([ True, False], dtype=bool), 'b': Array([False], dtype=bool)}
    """
    _check_scores(saliency)
    return jax.tree.map(lambda leaf: _top_fraction_mask(leaf, fraction), saliency)


def threshold_mask(saliency: PyTree, threshold: jax.typing.ArrayLike) -> PyTree:
    r"""Keeps the scores :math:`s \ge \gamma`, the hard threshold of the paper.

    Returns and errors as in :func:`top_fraction_mask`; the threshold may be traced.

    Example:
      >>> threshold_mask(jnp.array([0.1, 0.5, 0.9]), 0.5)
      Array([False,  True,  True], dtype=bool)
    """
    _check_scores(saliency)
    if not is_traced(threshold) and np.isnan(threshold):
        raise ValueError(f"Got threshold={threshold}, wanted a number.")
    sound = _sound(saliency)
    return jax.tree.map(lambda s: (s >= threshold) & sound, saliency)


def random_mask(
    key: jax.Array, like: PyTree, fraction: float | np.floating | jax.Array
) -> PyTree:
    r"""A uniformly random mask of exactly :math:`\lfloor \rho N \rfloor` entries.

    The control for :func:`top_fraction_mask`: the same density without saliency.

    Args:
      key: a typed PRNG key.
      like: a tree of arrays that gives the structure and the shapes.
      fraction: the share :math:`\rho` in [0, 1] to keep.

    Returns:
      A boolean tree of the same structure and shapes.

    Raises:
      ValueError: the fraction is outside [0, 1].

    Example:
      >>> random_mask(jax.random.key(0), jnp.zeros(6), 0.5).sum()
      Array(3, dtype=int32)
    """
    leaves, structure = jax.tree.flatten(like)
    scores = [
        _uniform_like(zeros_along(leaf, jnp.float32), jax.random.fold_in(key, i))
        if is_array(leaf)
        else None
        for i, leaf in enumerate(leaves)
    ]
    return _top_fraction_mask(structure.unflatten(scores), fraction)


def density(mask: PyTree) -> jax.Array:
    """Share of true entries, in [0, 1].

    Example:
      >>> density({"a": jnp.array([True, False]), "b": jnp.array([True, False])})
      Array(0.5, dtype=float32)
    """
    kept = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(mask))
    return jnp.asarray(kept) / size(mask)


def kth_smallest(tree: PyTree, k: jax.typing.ArrayLike) -> jax.Array:
    """The k-th smallest value of all leaves together, exactly; 0 for k = 0.

    Args:
      tree: a tree of real arrays, ranked as float32; a NaN ranks below every number.
      k: rank from 1 to N, may be traced; clipped to N.

    Returns:
      A float32 scalar.

    Example:
      >>> kth_smallest([jnp.array([4.0, 1.0]), jnp.array([3.0])], 2)
      Array(3., dtype=float32)
    """
    check_real(tree, "tree")
    total = jnp.uint32(_check_size(tree))
    k = jnp.maximum(k, 0).astype(jnp.uint32)
    return _kth_smallest(tree, jnp.minimum(k, total))


@jax.jit
def _uniform_like(zeros: jax.Array, key: jax.Array) -> jax.Array:
    """Uniform numbers, made where they lie on the devices."""
    return zeros + jax.random.uniform(key, zeros.shape, zeros.dtype)


def _top_fraction_mask(
    saliency: PyTree, fraction: float | np.floating | jax.Array
) -> PyTree:
    """The mask of scores that have been looked at; false where one is not finite."""
    check_fraction(fraction)
    total = _check_size(saliency)
    if is_traced(fraction):
        count = jnp.floor(fraction * jnp.float32(total)).astype(jnp.uint32)
        return _top_count_mask(saliency, count, _on_one_device(saliency))
    count = math.floor(float(fraction) * total)
    if count in (0, total):
        kept = _sound(saliency) & (count == total)
        return jax.tree.map(lambda s: zeros_along(s, bool) | kept, saliency)
    return _top_count_mask(saliency, jnp.uint32(count), _on_one_device(saliency))


def _on_one_device(tree: PyTree) -> bool:
    """Whether all leaves are known to lie on one device, so that they can be joined."""
    return not any(
        is_traced(leaf)
        or (isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1)
        for leaf in jax.tree.leaves(tree)
    )


def _check_scores(saliency: PyTree) -> None:
    """Raises unless all are real and, outside jit, finite."""
    check_real(saliency, "saliency")
    check_finite(saliency, "saliency")


def _sound(saliency: PyTree) -> jax.Array:
    """Whether every score is finite."""
    finite = [jnp.all(jnp.isfinite(leaf)) for _, leaf in array_leaves(saliency)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))


@jax.jit
def _kth_smallest(tree: PyTree, k: jax.Array) -> jax.Array:
    """The k-th smallest value: the largest that N − k + 1 values reach."""
    keys = [_ordered_bits(leaf) for leaf in jax.tree.leaves(tree)]
    found = _bar(keys, jnp.uint32(size(tree)) - k + 1)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(found >= sign, found ^ sign, ~found)
    value = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(k == 0, 0.0, value)


_SMALL = 1 << 20
"""Entries of a leaf that is worth a loop of its own."""


@functools.partial(jax.jit, static_argnames="join")
def _top_count_mask(saliency: PyTree, wanted: jax.Array, join: bool) -> PyTree:
    """Marks the ``wanted`` largest entries; ties go to the lower flat index."""
    leaves, structure = jax.tree.flatten(saliency)
    sizes = [int(np.prod(jnp.shape(leaf))) for leaf in leaves]
    starts = np.cumsum([0, *sizes])[:-1]
    # Each leaf costs time to compile, and most leaves of a large network are small.
    small = [i for i, count in enumerate(sizes) if join and count < _SMALL]
    large = [i for i in range(len(leaves)) if i not in set(small)]
    scores = [leaves[i] for i in large]
    if small:
        scores.append(jnp.concatenate([jnp.ravel(leaves[i]) for i in small]))
    keys = [_ordered_bits(score) for score in scores]
    bar = _bar(keys, wanted)
    ties_wanted = wanted - _count(keys, lambda key: key > bar)

    # Equal scores are settled by position: an index turned round is the larger the
    # earlier it stands, and none is 0.
    def earliness():
        indices = [_flat_index(jnp.shape(leaves[i]), starts[i]) for i in large]
        if small:
            parts = [_flat_index((sizes[i],), starts[i]) for i in small]
            indices.append(jnp.concatenate(parts))
        return [~index for index in indices]

    def least_earliness():
        pairs = zip(keys, earliness(), strict=True)
        return _bar([jnp.where(k == bar, early, 0) for k, early in pairs], ties_wanted)

    all_ties = _count(keys, lambda key: key == bar) == ties_wanted
    least = jax.lax.cond(all_ties, lambda: jnp.uint32(0), least_earliness)
    sound = _sound(scores)
    chosen = [
        sound & ((key > bar) | ((key == bar) & (early >= least)))
        for key, early in zip(keys, earliness(), strict=True)
    ]
    masks = dict(zip(large, chosen, strict=False))
    if small:
        stops = np.cumsum([sizes[i] for i in small])[:-1]
        for i, part in zip(small, jnp.split(chosen[-1], stops), strict=True):
            masks[i] = part.reshape(jnp.shape(leaves[i]))
    return structure.unflatten([masks[i] for i in range(len(leaves))])


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Maps reals to uint32 so that order is kept; both zeros agree, NaN is least."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)
    sign, infinity = jnp.uint32(1 << 31), jnp.uint32(0x7F800000)
    # Compared as bits throughout: float comparisons flush subnormals to zero on CPU.
    ordered = jnp.where(bits > sign, ~bits, bits | sign)
    return jnp.where((bits & ~sign) > infinity, jnp.uint32(0), ordered)


def _bar(keys: list[jax.Array], wanted: jax.Array) -> jax.Array:
    """The largest uint32 that at least ``wanted`` keys reach, by what is fast here."""
    if any(not jax.typeof(key).sharding.mesh.empty for key in keys):
        return _bar_by_bisection(keys, wanted)  # counts have no axes of a mesh
    return jax.lax.platform_dependent(
        keys, wanted, cpu=_bar_by_counts, default=_bar_by_bisection
    )


def _bar_by_counts(keys: list[jax.Array], wanted: jax.Array) -> jax.Array:
    """Counts of the upper 16 bits, then of the lower ones of keys that share them."""
    high, wanted = _digit([key >> 16 for key in keys], wanted)
    beyond = jnp.uint32(1 << 16)  # is not counted
    rest = [jnp.where(key >> 16 == high, key & 0xFFFF, beyond) for key in keys]
    return (high << 16) | _digit(rest, wanted)[0]


def _digit(digits: list[jax.Array], wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of 16 bits that ``wanted`` reach, and how many must equal it."""
    counts = jnp.zeros(1 << 16, jnp.uint32)
    for digit in digits:
        counts = counts.at[digit].add(1, mode="drop")
    reach = jnp.cumsum(counts[::-1], dtype=jnp.uint32)[::-1]
    found = jnp.sum(reach >= wanted, dtype=jnp.uint32) - 1
    above = jnp.max(jnp.where(reach < wanted, reach, 0))
    return found, wanted - above


def _bar_by_bisection(keys: list[jax.Array], wanted: jax.Array) -> jax.Array:
    """A pass over the keys for each bit: adding to counts is slow on accelerators."""
    return _largest(lambda bar: _count(keys, lambda key: key >= bar) >= wanted)


def _largest(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest uint32 for which a predicate holds that is true at 0 and monotone."""

    def body(i, low):
        candidate = low | (jnp.uint32(1 << 31) >> jnp.asarray(i, jnp.uint32))
        return jnp.where(holds(candidate), candidate, low)

    return jax.lax.fori_loop(0, 32, body, jnp.uint32(0))


def _count(keys: list[jax.Array], test: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Number of entries that pass, over all leaves, without moving any."""
    return jnp.asarray(sum(jnp.sum(test(key), dtype=jnp.uint32) for key in keys))


def _flat_index(shape: tuple[int, ...], start: int) -> jax.Array:
    """Row-major index of every entry of a leaf whose first one has this."""
    index, stride = jnp.full(shape, start, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + position * jnp.uint32(stride)
        stride *= shape[axis]
    return index


def _check_size(tree: PyTree) -> int:
    """Number of entries; counts are uint32, so there is a limit."""
    total = size(tree)
    if total >= 1 << 32:
        raise ValueError(
            f"Got {total} entries, can count fewer than 2**32; split them."
        )
    return total
