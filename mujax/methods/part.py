"""Any method on a part of the parameters, chosen by name: the rest cannot move.

What is trained is a tree of its own. The optimiser keeps state for it alone, a mask's
share and SEMU's bases are taken among it, and no gradient of the rest is computed. The
rest goes along with the model's state, untouched.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax.tree_util import keystr, tree_flatten_with_path

from mujax import roles
from mujax._programs import Adapted
from mujax._trees import PyTree
from mujax.methods import base


class WithRest(NamedTuple):
    """A model's state while a part of its parameters is trained.

    Attributes:
      rest: the parameters with None in place of the trained ones.
      model_state: the model's own state.
    """

    rest: PyTree
    model_state: PyTree


def loss_on_part(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of all parameters as that of a part, for a method on :func:`on_part`.

    Args:
      loss_fn: a :class:`LossFn` or a :class:`PairLossFn`.

    Returns:
      The loss of the part, which finds the rest in the model's state.
    """
    return Adapted(_loss_on_part, loss_fn)


def on_part(method: base.Method, where: Callable[[str], bool]) -> base.Method:
    r"""A method that trains the leaves whose names fit, :math:`\theta_P`, alone.

    ``trainable_fraction`` still counts among all parameters. A mask given to ``init``
    is that of all parameters; its part is taken.

    Args:
      method: built with losses that have gone through :func:`loss_on_part`.
      where: whether a leaf of this name is trained, see
        :func:`mujax.roles.leaf_names`.

    Returns:
      The method of all parameters.

    Raises:
      ValueError: in ``init``, no name fits.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mujax import methods
      >>> def loss_fn(params, model_state, batch, key):
      ...     return jnp.mean(batch @ params["a"]["w"] + params["b"]), (model_state, 0)
      >>> tuned = methods.finetune(loss_on_part(loss_fn), optax.sgd(1.0))
      >>> method = on_part(tuned, lambda name: name.startswith("a/"))
      >>> params = {"a": {"w": jnp.ones(2)}, "b": jnp.zeros(())}
      >>> state = method.init(params)
      >>> methods.trainable_fraction(state, params)
      0.6666666666666666
      >>> method.finish(method.step(state, jnp.array([[1.0, 3.0]]))[0])[0]
      {'a': {'w': Array([ 0., -2.], dtype=float32)}, 'b': Array(0., dtype=float32)}
    """

    def init(
        params: PyTree,
        model_state: PyTree = (),
        forget_batches: Iterable[PyTree] | None = None,
        *,
        mask: PyTree | None = None,
        **options: Any,
    ) -> base.State:
        part, rest = _split(params, where)
        if mask is not None:
            mask, _ = _split(mask, where)
        around = WithRest(rest, model_state)
        return method.init(part, around, forget_batches, mask=mask, **options)

    def step(
        state: base.State, batch: PyTree, **options: Any
    ) -> tuple[base.State, base.StepInfo]:
        moved, info = method.step(state, batch, **options)
        # An average over devices would round what nothing has moved.
        around = moved.model_state._replace(rest=state.model_state.rest)
        return moved._replace(model_state=around), info

    def finish(state: base.State) -> tuple[PyTree, PyTree]:
        part, (rest, model_state) = method.finish(state)
        return _merge(part, rest), model_state

    return method._replace(init=init, step=step, finish=finish)


def _loss_on_part(loss_fn, *args):
    """The loss, of parameters that are merged first."""
    *parts, (rest, model_state), batch, key = args
    wholes = [_merge(part, rest) for part in parts]
    loss, (model_state, aux) = loss_fn(*wholes, model_state, batch, key)
    return loss, (WithRest(rest, model_state), aux)


def _split(tree: PyTree, where: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """The leaves whose names fit, as nested dictionaries, and the tree without them."""
    pairs, structure = tree_flatten_with_path(tree)
    part, rest = {}, []
    for path, leaf in pairs:
        fits = path and where(roles.leaf_name(path))
        rest.append(None if fits else leaf)
        if fits:
            inner = part
            *outer, last = _keys(path)
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[last] = leaf
    if not part:
        some = ", ".join(roles.leaf_names(tree)[:3])
        raise ValueError(
            f"No name of the {len(pairs)} leaves fits; they are named like {some}."
        )
    return part, structure.unflatten(rest)


def _merge(part: PyTree, rest: PyTree) -> PyTree:
    """The whole tree."""

    def found(path, leaf):
        if leaf is not None:
            return leaf
        inner = part
        for key in _keys(path):
            if key not in inner:
                return None  # it was none before, too
            inner = inner[key]
        return inner

    return jax.tree_util.tree_map_with_path(found, rest, is_leaf=lambda x: x is None)


def _keys(path: Iterable[Any]) -> tuple[str, ...]:
    """A path as keys of dictionaries."""
    return tuple(keystr((key,), simple=True) for key in path)
