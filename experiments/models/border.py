"""The border between flax modules and pure functions of plain trees.

Inside the library and the loops a model is two pure functions, whoever wrote it:
``init(key)`` and ``apply(params, model_state, x, train=..., key=...)``, over nested
dictionaries of arrays. ``params`` holds what a gradient may move. ``model_state`` holds
every other number (BatchNorm's statistics). Random state is in neither: dropout draws
from the key given to each call, so that a checkpoint never stores a key and equal keys
give equal bits.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

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
        return _to_dict(nnx.to_pure_dict(params)), _to_dict(
            nnx.to_pure_dict(model_state)
        )

    # The structure is split once, without computing a number, in each of the two modes.
    skeleton = nnx.eval_shape(make, jax.random.key(0))
    layout = nnx.to_pure_dict(nnx.state(skeleton))
    streams = flatten(nnx.to_pure_dict(nnx.state(skeleton, nnx.RngState)))
    skeleton.train()
    train_graph = nnx.graphdef(skeleton)
    skeleton.eval()
    eval_graph = nnx.graphdef(skeleton)

    def apply(params, model_state, x, *, train, key=None):
        if train and streams and key is None:
            raise ModelError(
                "Got key=None in training, wanted a key: the model draws random "
                f"numbers (at {_join(streams)}); pass key=..."
            )
        key = jax.random.key(0) if key is None else key
        leaves = flatten(params) | flatten(model_state)
        leaves |= {
            path: _restart(leaf, jax.random.fold_in(key, i))
            for i, (path, leaf) in enumerate(streams.items())
        }
        tree = _lay_out(leaves, layout)
        module: Any = nnx.merge(train_graph if train else eval_graph, tree)
        _lower(module, params)
        logits = module(*x) if isinstance(x, tuple) else module(x)
        if not train:
            return logits, model_state
        _, _, _, new_model_state = nnx.split(module, *_KINDS)
        return logits, _to_dict(nnx.to_pure_dict(new_model_state))

    return Model(init, apply)


def _lower(module: nnx.Module, params: Tree) -> None:
    """Lets layers compute in half precision where all parameters have it.

    Statistics in float32 would else turn all that comes behind them into float32.
    """
    dtype = jnp.result_type(jnp.bool_, *jax.tree.leaves(params))
    if dtype in (jnp.bfloat16, jnp.float16):
        for _, part in cast(Iterable[tuple[Any, Any]], nnx.iter_modules(module)):
            if getattr(part, "dtype", dtype) is None:
                part.dtype = dtype


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

    def make(key: jax.Array) -> Tree:
        params_key, dropout_key = jax.random.split(key)
        variables = module.init(
            {"params": params_key, "dropout": dropout_key},
            jnp.zeros((1, *input_shape), jnp.float32),
            **mode(train=False),
        )
        return {"params": {}, **linen.meta.unbox(variables)}

    @jax.jit
    def init(key):
        model_state = make(key)
        return _to_dict(model_state.pop("params")), _to_dict(model_state)

    @functools.cache
    def layout() -> Tree:
        return jax.eval_shape(make, jax.random.key(0))

    def apply(params, model_state, x, *, train, key=None):
        variables = _lay_out(flatten({"params": params, **model_state}), layout())
        rngs = {} if key is None else {"dropout": key}
        mutable = [name for name in variables if name != "params"] if train else False
        try:
            out: Any = module.apply(
                variables, x, **mode(train), rngs=rngs, mutable=mutable
            )
        except errors.InvalidRngError as error:
            raise ModelError(
                "Got no key for a random number, wanted one in training for the stream "
                f"'dropout', the only one given ({error}); pass key=..."
            ) from error
        if not train:
            return out, model_state
        return out[0], _to_dict(linen.meta.unbox(out[1]))

    return Model(init, apply)


def flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """A tree's leaves by path, every key as a string.

    >>> flatten({"layers": [{"bias": 3}], "none": None})
    {('layers', '0', 'bias'): 3}
    """
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


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


def _to_dict(tree: Any) -> Tree:
    """The leaves in nested dictionaries with string keys, which every format stores.

    Lists, tuples, integer keys and what is empty become names, or nothing.
    """
    return traverse_util.unflatten_dict(flatten(tree))


def _lay_out(leaves: dict[tuple[str, ...], Any], layout: Any) -> Any:
    """The leaves in the model's own containers.

    Raises:
      ModelError: they are not the model's; it names them.
    """
    paths = list(flatten(layout))
    missing, unknown = set(paths) - set(leaves), set(leaves) - set(paths)
    if missing or unknown:
        raise ModelError(
            f"Got trees without {_join(missing)} and with unknown {_join(unknown)}; "
            "pass the params and model_state of this same model."
        )
    return jax.tree.unflatten(
        jax.tree.structure(layout), [leaves[path] for path in paths]
    )


def _restart(leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    """A random stream's key, or its counter, at the start of a call."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, leaf.shape) if leaf.shape else key
    return jnp.zeros(leaf.shape, leaf.dtype)


def _join(paths: Iterable[tuple[str, ...]]) -> str:
    """Paths as text, at most three of them."""
    names = sorted(".".join(path) for path in paths)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) or "none"


def _name(factory: Callable) -> str:
    """A factory's name for a message."""
    return getattr(factory, "__name__", type(factory).__name__)
