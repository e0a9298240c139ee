"""The border between flax modules and pure functions of plain trees.

Inside the library and the loops a model is two pure functions, whoever wrote it:
``init(key)`` and ``apply(params, model_state, x, train=..., key=...)``, over nested
dictionaries of arrays. ``params`` holds what a gradient may move. ``model_state`` holds
every other number (BatchNorm's statistics). Random state is in neither: dropout draws
from the key given to each call, so that a checkpoint never stores a key and equal keys
give equal bits.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx, traverse_util

from experiments.errors import UserError

Tree = dict[str, Any]


class ModelError(UserError):
    """A model that cannot be built or applied; the message says what to do."""


class Apply(Protocol):
    """``apply`` of a ``Model``."""

    def __call__(
        self,
        params: Tree,
        model_state: Tree,
        x: jax.Array | tuple[jax.Array, ...],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Returns logits and the new model state."""
        ...


class Model(NamedTuple):
    """A classifier as two pure functions, safe under jit, vmap, scan and pmap.

    Attributes:
      init: ``init(key) -> (params, model_state)``, equal for equal keys. Under
        ``jax.vmap`` a batch of keys gives a batch of models.
      apply: ``apply(params, model_state, x, *, train, key=None) -> (logits,
        new_model_state)`` with x float32 of shape (N, H, W, C) and logits of shape
        (N, num_classes); a tuple x holds the several inputs of an NNX module. With
        ``train=False`` the model state comes back untouched. ``key`` feeds dropout; a
        model without dropout needs none.

    Example:
      >>> model = from_linen(linen.Dense(3), input_shape=(2,))
      >>> params, model_state = model.init(jax.random.key(0))
      >>> logits, _ = model.apply(params, model_state, jnp.ones((4, 2)), train=False)
      >>> logits.shape
      (4, 3)
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    apply: Apply


def from_nnx(factory: Callable[..., nnx.Module], /, **arguments) -> Model:
    """Makes a ``Model`` of a flax NNX module.

    Args:
      factory: A module class or function, called as ``factory(**arguments, rngs=...)``;
        the module's ``__call__(x)`` returns logits, and ``module.train()`` and
        ``module.eval()`` set its mode.
      **arguments: The factory's other arguments.

    Returns:
      The model. Parameters are the module's ``nnx.Param`` variables; the keys of a tree
      are the module's attribute names (a list's indices become strings).

    Raises:
      ModelError: If the factory returns anything but an NNX module; from ``apply``, for
        a tree whose leaves are not the module's, or a training call without the key
        that the module's random streams need.

    Example:
      >>> model = from_nnx(nnx.Linear, in_features=2, out_features=3)
      >>> params, model_state = model.init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params), model_state
      ({'bias': (3,), 'kernel': (2, 3)}, {})
    """

    def make(key: jax.Array) -> nnx.Module:
        module = factory(**arguments, rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ModelError(
                f"Got {type(module).__name__} from {_name(factory)}(rngs=...), wanted "
                "a flax.nnx.Module; return one, or take rngs out of the arguments."
            )
        return module

    @jax.jit  # whole: a ResNet-20's second seed takes 3 ms, op by op 155
    def init(key):
        _, params, _, model_state = nnx.split(make(key), *_KINDS)
        return _to_dict(params), _to_dict(model_state)

    # The structure is split once, without computing a number, in each of the two modes.
    skeleton = nnx.eval_shape(make, jax.random.key(0))
    paths = {_strings(path): path for path in _flatten(nnx.state(skeleton))}
    streams = _flatten(nnx.state(skeleton, nnx.RngState))
    skeleton.train()
    train_graph = nnx.graphdef(skeleton)
    skeleton.eval()
    eval_graph = nnx.graphdef(skeleton)

    def apply(params, model_state, x, *, train, key=None):
        if train and streams and key is None:
            raise ModelError(
                "Got key=None in training, wanted a key: the model draws random "
                f"numbers (at {_join(map(_strings, streams))}); pass key=..."
            )
        key = jax.random.key(0) if key is None else key
        leaves = traverse_util.flatten_dict(params)
        leaves |= traverse_util.flatten_dict(model_state)
        leaves |= {
            _strings(path): _restart(leaf, jax.random.fold_in(key, i))
            for i, (path, leaf) in enumerate(streams.items())
        }
        _check_leaves(leaves, paths)
        tree = traverse_util.unflatten_dict({paths[k]: v for k, v in leaves.items()})
        module: Any = nnx.merge(train_graph if train else eval_graph, tree)
        logits = module(*x) if isinstance(x, tuple) else module(x)
        if not train:
            return logits, model_state
        _, _, _, new_model_state = nnx.split(module, *_KINDS)
        return logits, _to_dict(new_model_state)

    return Model(init, apply)


def from_linen(module: linen.Module, input_shape: Sequence[int]) -> Model:
    """Makes a ``Model`` of a flax Linen module.

    The mode goes to whichever of the arguments ``train``, ``training``, ``is_training``
    (true in training) and ``deterministic``, ``use_running_average`` (false in
    training) the module's ``__call__`` has.

    Args:
      module: The module; ``__call__(x)`` returns logits.
      input_shape: Shape of one input, such as (H, W, C).

    Returns:
      The model. Parameters are the collection ``params``; the model state has every
      other collection under its name. Dropout reads the stream ``dropout``.

    Raises:
      ModelError: From ``apply``, for a call without the key that dropout needs.

    Example:
      >>> model = from_linen(linen.Dense(3), input_shape=(2,))
      >>> params, model_state = model.init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params), model_state
      ({'bias': (3,), 'kernel': (2, 3)}, {})
    """
    accepted = inspect.signature(type(module).__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        return {
            name: train == in_training
            for name, in_training in _LINEN_MODES.items()
            if name in accepted
        }

    @jax.jit
    def init(key):
        params_key, dropout_key = jax.random.split(key)
        variables = module.init(
            {"params": params_key, "dropout": dropout_key},
            jnp.zeros((1, *input_shape), jnp.float32),
            **mode(train=False),
        )
        model_state = dict(variables)
        return model_state.pop("params", {}), model_state

    def apply(params, model_state, x, *, train, key=None):
        variables = {"params": params, **model_state}
        rngs = {} if key is None else {"dropout": key}
        mutable = list(model_state) if train else False
        try:
            out: Any = module.apply(
                variables, x, **mode(train), rngs=rngs, mutable=mutable
            )
        except errors.InvalidRngError as error:
            raise ModelError(
                "Got no key for a random number, wanted one in training for the stream "
                f"'dropout', the only one given ({error}); pass key=..."
            ) from error
        return out if train else (out, model_state)

    return Model(init, apply)


# Parameters, random state, all the rest: the three parts of an NNX module.
_KINDS = (nnx.Param, nnx.RngState, ...)

# Names by which Linen modules take their mode, with the value that means training.
_LINEN_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def _flatten(state: nnx.State) -> dict[tuple, Any]:
    """An NNX state's leaves by path."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(state))


def _strings(path: Iterable) -> tuple[str, ...]:
    """A path with string keys, which every checkpoint format stores as they are."""
    return tuple(map(str, path))


def _to_dict(state: nnx.State) -> Tree:
    """An NNX state as nested dictionaries of arrays with string keys."""
    return traverse_util.unflatten_dict(
        {_strings(path): leaf for path, leaf in _flatten(state).items()}
    )


def _restart(leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    """A random stream's key, or its counter, at the start of a call."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, leaf.shape) if leaf.shape else key
    return jnp.zeros(leaf.shape, leaf.dtype)


def _check_leaves(leaves: Iterable, paths: Iterable) -> None:
    """Raises if a tree's leaves are not the module's, naming them."""
    missing, unknown = set(paths) - set(leaves), set(leaves) - set(paths)
    if missing or unknown:
        raise ModelError(
            f"Got trees without {_join(missing)} and with unknown {_join(unknown)}; "
            "pass the params and model_state of this same model."
        )


def _join(paths: Iterable[tuple[str, ...]]) -> str:
    """Paths as text, at most three of them."""
    names = sorted(".".join(path) for path in paths)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) or "none"


def _name(factory: Callable) -> str:
    """A factory's name for a message."""
    return getattr(factory, "__name__", type(factory).__name__)
