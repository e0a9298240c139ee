"""A model's leaves in a tree that somebody else has kept.

People keep a ``TrainState``, all of a module's state, its parts, variables in their
boxes or PyTorch's ``state_dict``: the same numbers at other places. :func:`find` says
where they are, :func:`take` makes the model of them, :func:`put_back` puts new ones
there.
"""

import collections
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.models import torch_names
from experiments.models.border import flatten

Path = tuple[str, ...]
PARTS = ("params", "model_state")


class Place(NamedTuple):
    """Where a leaf of the model lies.

    Attributes:
      name: path of the leaf, as the tree has it.
      axes: transposition that lays the leaf out as the model does; None for none.
    """

    name: Path
    axes: tuple[int, ...] | None = None


class Match(NamedTuple):
    """How a tree holds a model.

    Attributes:
      places: of each leaf, by its path, which starts with ``params`` or
        ``model_state``.
      notes: what a person should know: parameters at an unusual place, and what is
        left out beside the model, such as ``opt_state``.
    """

    places: dict[Path, Place]
    notes: tuple[str, ...]


def find(tree: Any, model: Mapping[str, Any]) -> Match:
    """Finds a model's leaves by name, and checks their shapes and kinds of number.

    Args:
      tree: nested containers of arrays, or a flat dictionary of dotted names.
      model: ``params`` and ``model_state`` of the model, or their shapes.

    Returns:
      The place of every leaf of the model. Optimiser state, counters and random
      streams are no part of it.

    Raises:
      ValueError: a leaf is missing, of another shape or kind, nobody's, or at several
        places; the message names the first, how it came and what the model has.

    Example:
      >>> shape = jax.ShapeDtypeStruct((2,), jnp.float32)
      >>> kept = {"params": {"bias": np.zeros(2)}, "opt_state": {"count": 3}}
      >>> find(kept, {"params": {"bias": shape}, "model_state": {}}).notes
      ('left out: opt_state',)
    """
    leaves, wanted = _filled(tree), _filled({part: model[part] for part in PARTS})
    params = [_split(path[1:]) for path in wanted if path[0] == "params"]
    places = {_split(name): Place(name) for name in leaves}
    prefix, count = _prefix(_unboxed(places), params)
    if count < len(params) and _is_torch(places) and not _is_torch(params):
        places = _from_torch(leaves)
        prefix, count = _prefix(places, params)
    if not count:
        raise ValueError(f"it holds {_some(leaves)}, the model has {_some(wanted)}")
    known = _unboxed(places)
    found = {path: _place(known, prefix, path) for path in wanted}
    faults = {
        ".".join(path): f"{_came(leaves, place)} in it and {_form(leaf)}"
        for path, leaf in wanted.items()
        if (place := found[path]) is None
        or _kind(leaves, place) != _kind({(): leaf}, Place(()))
    }
    extra, left_out = _rest(places, prefix, found)
    faults |= {
        name: f"{_came(leaves, place)} in it and absent"
        for name, place in extra.items()
    }
    if faults:
        name = min(faults)
        others = f" ({len(faults) - 1} more leaves differ)" if len(faults) > 1 else ""
        raise ValueError(f"{name} is {faults[name]} in the model{others}")
    notes = []
    if prefix not in ((), ("params",)):
        notes.append(f"the parameters are those at {'.'.join(prefix)}")
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}")
    return Match({p: place for p, place in found.items() if place}, tuple(notes))


def take(
    tree: Any, match: Match, model: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The model that a tree holds, with the model's dtypes.

    Args:
      tree: as it was given to :func:`find`.
      match: what that found.
      model: ``params`` and ``model_state`` of the model, or their shapes.

    Returns:
      ``{"params": …, "model_state": …}`` of NumPy arrays, and the changes of dtype in
      words.

    Raises:
      ValueError: a number does not fit the model's dtype, or a parameter is not finite.
    """
    leaves, wanted = flatten(tree), flatten({part: model[part] for part in PARTS})
    taken = {p: np.zeros(x.shape, x.dtype) for p, x in wanted.items() if not x.size}
    changes = collections.Counter()
    for path, place in match.places.items():
        came, dtype = numbers(leaves[place.name]), wanted[path].dtype
        if is_key(wanted[path]):
            impl = _key_kind(wanted[path])
            taken[path] = jax.random.wrap_key_data(jnp.asarray(came), impl=impl)
            continue
        with np.errstate(over="ignore"):
            array = came.astype(dtype)
        if came.dtype != dtype:
            changes[f"{came.dtype} to {dtype}"] += 1
            _check_cast(".".join(path), came, array)
        if path[0] == "params" and not np.isfinite(array).all():
            raise ValueError(f"{'.'.join(path)} has values that are not finite")
        if place.axes is not None:
            array = np.ascontiguousarray(array.transpose(place.axes))
        taken[path] = array
    said = [f"{n} leaves from {what}" for what, n in changes.items()]
    return {part: {} for part in PARTS} | traverse_util.unflatten_dict(taken), said


def put_back(tree: Any, match: Match, model: Mapping[str, Any]) -> Any:
    """The tree with a model's numbers in the places of those that it held.

    Args:
      tree: as it was given to :func:`find`.
      match: what that found.
      model: the new ``params`` and ``model_state``.

    Returns:
      The same containers, names, layouts and dtypes; all else is as it was.

    Example:
      >>> kept, new = {"fc.weight": np.zeros((1, 2))}, np.array([[3.0], [4.0]])
      >>> model = {"params": {"dense": {"kernel": new}}, "model_state": {}}
      >>> put_back(kept, find(kept, model), model)
      {'fc.weight': array([[3., 4.]])}
    """
    new = flatten({part: model[part] for part in PARTS})
    leaves = flatten(tree)
    for path, place in match.places.items():
        kept = leaves[place.name]
        if is_key(kept):
            leaves[place.name] = new[path]
            continue
        array = numbers(new[path]).astype(np.asarray(kept).dtype)
        if place.axes is not None:
            array = array.transpose(np.argsort(place.axes))
        leaves[place.name] = array
    return jax.tree.unflatten(jax.tree.structure(tree), list(leaves.values()))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key)


def numbers(leaf: Any) -> np.ndarray:
    """A leaf as an array on the host; of a random key, what it is made of."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


# Parts of a tree that are the model's; of others a note is enough.
_MODELS = ("model_state", "batch_stats")


def _filled(tree: Any) -> dict[Path, Any]:
    """The leaves that have an entry: not every format holds others."""
    return {path: leaf for path, leaf in flatten(tree).items() if np.size(leaf)}


def _split(path: Iterable[str]) -> Path:
    """A path whose keys have no separator: files of flat names join them by either."""
    return tuple(part for key in path for part in re.split(r"[./]", key))


def _unboxed(places: Mapping[Path, Place]) -> dict[Path, Place]:
    """The places, those of boxed leaves by the box's name too."""
    boxes = ("value", "raw_value")
    inner = {
        path[:-1]: p for path, p in places.items() if path[-1:] and path[-1] in boxes
    }
    return {**inner, **places}


def _is_torch(paths: Collection[Path]) -> bool:
    """Whether the names look like PyTorch's, which flax does not use."""
    return any(path[-1:] == ("weight",) for path in paths)


def _from_torch(leaves: Mapping[Path, Any]) -> dict[Path, Place]:
    """The places by their names here, where the names are PyTorch's."""
    dotted = {".".join(path): path for path in leaves}
    renamed = torch_names.rename({name: leaves[path] for name, path in dotted.items()})
    return {
        tuple(ours.split(".")): Place(dotted[name], axes)
        for ours, (name, axes) in renamed.items()
    }


def _prefix(places: Collection[Path], params: Collection[Path]) -> tuple[Path, int]:
    """Where the parameters begin, and how many of them are there."""
    prefixes = {
        path[:i]
        for path in places
        for i in range(min(len(path), 4))
        # an optimiser's momentum has the names of the parameters
        if not any(key.startswith("opt") for key in path[:i])
    }

    def rank(prefix):
        count = sum(prefix + path in places for path in params)
        return -count, len(prefix), prefix[-1:] not in (("params",), ("model",))

    ranks = sorted((rank(prefix), prefix) for prefix in prefixes)
    if not ranks:
        return (), 0
    first, *others = [prefix for place, prefix in ranks if place == ranks[0][0]]
    if others and -ranks[0][0][0] == len(params):
        raise ValueError(
            f"it holds the parameters at {'.'.join(first)} and at "
            f"{'.'.join(others[0])}; keep those that are meant under 'params'"
        )
    return first, -ranks[0][0][0]


def _place(places: Mapping[Path, Place], prefix: Path, path: Path) -> Place | None:
    """Where a leaf of the model lies: beside the parameters, or among them."""
    part, name, root = path[0], _split(path[1:]), prefix[:-1]
    roots = [prefix]
    if part == "model_state":
        roots += [root, *((*root, group) for group in _MODELS)]
    for start in roots:
        if start + name in places:
            return places[start + name]
    if part == "params":
        return None
    # in a part by a name of its own, as those of nnx.split
    ends = {
        p: place
        for p, place in places.items()
        if p[len(root) + 1 :] == name and p[: len(root)] == root
    }
    if len(ends) > 1:
        raise ValueError(
            f"it holds {'.'.join(path)} as {' and '.join(map('.'.join, ends))}; keep "
            "those that are meant under 'model_state'"
        )
    return next(iter(ends.values()), None)


def _rest(
    places: Mapping[Path, Place], prefix: Path, found: Mapping[Path, Place | None]
) -> tuple[dict[str, Place], list[str]]:
    """What is nobody's: leaves among the model's, and groups beside it."""
    known, root = _unboxed(places), prefix[:-1]
    used = {place.name for place in found.values() if place}
    for path, place in known.items():  # a random stream of NNX: a key and a count
        if path[-1:] == ("count",) and (*path[:-1], "key") in known:
            used |= {place.name, known[*path[:-1], "key"].name}
    extra: dict[str, Place] = {}
    left_out: dict[str, None] = {}
    for path, place in places.items():
        if place.name in used:
            continue
        beside = path[: len(root) + 1] if path[: len(root)] == root else path[:1]
        if path[: len(prefix)] == prefix:
            extra[".".join((*(prefix and ("params",)), *path[len(prefix) :]))] = place
        elif beside[-1] in _MODELS:
            extra[".".join(path[len(root) :])] = place
        else:
            left_out[".".join(beside)] = None
    return extra, list(left_out)


def _key_kind(leaf: Any) -> str:
    """The implementation of a random key, or of its shape."""
    kinds = []
    jax.eval_shape(lambda key: kinds.append(str(jax.random.key_impl(key))), leaf)
    return kinds[0]


def _kind(leaves: Mapping[Path, Any], place: Place) -> tuple[Any, tuple[int, ...]]:
    """What must agree: the kind of number, and the shape in the model's layout."""
    leaf = leaves[place.name]
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    shape = np.shape(leaf)
    if place.axes is not None:
        shape = tuple(shape[axis] for axis in place.axes)
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((k for k in kinds if jnp.issubdtype(dtype, k)), dtype), shape


def _came(leaves: Mapping[Path, Any], place: Place | None) -> str:
    """Dtype and shape of a leaf as it came, in words."""
    if place is None:
        return "missing"
    form = _form(leaves[place.name])
    return form if place.axes is None else f"{form} ({'.'.join(place.name)})"


def _form(leaf: Any) -> str:
    """Dtype and shape of a leaf."""
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)} {np.shape(leaf)}"


def _some(paths: Collection[Path]) -> str:
    """A few leaves' names."""
    names = sorted(map(".".join, paths))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" * (len(names) > 3))


def _check_cast(name: str, came: np.ndarray, cast: np.ndarray) -> None:
    """Raises where another dtype does not hold the number."""
    if jnp.issubdtype(came.dtype, jnp.integer):
        lost = came != cast
    else:
        lost = np.isfinite(came) & ~np.isfinite(cast)
    if np.any(lost):
        raise ValueError(
            f"{name} holds {came[lost][0]} as {came.dtype}, which is too large for the "
            f"model's {cast.dtype}"
        )
