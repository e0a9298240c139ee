"""Classification models by name, and anyone's own by ``module:factory``.

``border`` splits a flax module, once, into a pair of pure functions on trees;
``convolution`` makes convolutions fast on CPUs; every other file is a network.

>>> import jax
>>> model = build("small_cnn", num_classes=10, input_shape=(8, 8, 1))
>>> params, model_state = model.init(jax.random.key(0))
>>> sum(leaf.size for leaf in jax.tree.leaves(params))
24058
"""

import functools
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from experiments.models.border import Model, ModelError, flatten, from_linen, from_nnx
from experiments.models.fast_cnn import FastCNN
from experiments.models.resnet import resnet18, resnet20
from experiments.models.small_cnn import SmallCNN
from experiments.models.vgg import VGG16
from experiments.models.vit import ViT

__all__ = ("FACTORIES", "Model", "ModelError", "build", "from_linen", "from_nnx")

FACTORIES: dict[str, Callable[..., Any]] = {
    "small_cnn": SmallCNN,
    "fast_cnn": FastCNN,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet20_strided": functools.partial(resnet20, stem_stride=2),
    "vgg16_bn": VGG16,
    "vit_tiny": ViT,
}


def build(
    name: str, num_classes: int, input_shape: tuple[int, int, int], **options
) -> Model:
    """Builds a classification model.

    Args:
      name: One of ``FACTORIES``, or ``module:factory`` for one's own (the current
        directory is searched first). A factory with an argument ``rngs`` is called as
        ``factory(num_classes=..., input_shape=..., rngs=...)`` and returns a flax NNX
        module; one without it returns a flax Linen module.
      num_classes: Number of logits.
      input_shape: Shape (H, W, C) of one image.
      **options: Further arguments of the factory, such as ``width=16``.

    Returns:
      The model as a pair of pure functions.

    Raises:
      ModelError: For an unknown name, a module that does not import, a factory that
        fails or returns something else, or logits of another shape.

    Example:
      >>> model = build("resnet20", 10, (32, 32, 3))
      >>> params, _ = jax.eval_shape(model.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      269722
    """
    factory = FACTORIES[name] if name in FACTORIES else _import_factory(name)
    arguments = dict(num_classes=num_classes, input_shape=input_shape, **options)
    try:
        model = _to_model(name, factory, arguments)
        _check_logits(name, model, num_classes, input_shape)
    except ModelError:
        raise
    except Exception as error:  # whatever a stranger's code raises, one line goes out
        raise ModelError(
            f"Got {type(error).__name__} from model {name} on images of shape "
            f"{input_shape}: {_first_line(error)}"
        ) from error
    return model


def _import_factory(name: str) -> Callable[..., Any]:
    """The object that ``module:factory`` names."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ModelError(
            f"Got unknown model {name!r}, wanted one of {', '.join(FACTORIES)}, or "
            "module:factory for your own."
        )
    here = str(pathlib.Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as ``python -m`` does; a console script does not
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"Got model {name!r}, but importing {module_name} from {here} raised "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(
            f"Got model {name!r}, but {module_name} ({module.__file__}) has no "
            f"callable {attribute!r}; name a function or class of that file."
        )
    return factory


def _to_model(name: str, factory: Callable[..., Any], arguments: dict) -> Model:
    """A factory as a model: NNX if it takes ``rngs``, else Linen."""
    # A class is read through its initialiser: NNX's metaclass hides the signature.
    signed = factory.__init__ if isinstance(factory, type) else factory
    if "rngs" in inspect.signature(signed).parameters:
        return from_nnx(factory, **arguments)
    module = factory(**arguments)
    if not isinstance(module, linen.Module):
        raise ModelError(
            f"Got {type(module).__name__} from model {name}, wanted a "
            "flax.linen.Module; a factory of flax.nnx modules takes an argument rngs."
        )
    return from_linen(module, arguments["input_shape"])


def _check_logits(name, model, num_classes, input_shape) -> None:
    """Traces the model in both modes; raises for other logits or a changed state."""
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    params, model_state = jax.eval_shape(model.init, key)
    for train in (False, True):

        def apply(params, model_state, x, train=train):
            return model.apply(params, model_state, x, train=train, key=key)

        out, moved = jax.eval_shape(apply, params, model_state, x)
        if getattr(out, "shape", None) != (2, num_classes):
            raise ModelError(
                f"Got {getattr(out, 'shape', type(out).__name__)} from model {name} on "
                f"2 images of shape {input_shape}, wanted logits of shape "
                f"{(2, num_classes)}; check its last layer."
            )
        before, after = flatten(model_state), flatten(moved)
        for path in before.keys() | after.keys():
            was, now = (_form(tree.get(path)) for tree in (before, after))
            if was != now:
                raise ModelError(
                    f"Got model {name}, whose {'.'.join(path)} is {was} before a "
                    f"training step and {now} after it; keep the form of its state."
                )


def _form(leaf: Any) -> str:
    """Dtype and shape of a leaf, if there is one."""
    return "absent" if leaf is None else f"{leaf.dtype} {leaf.shape}"


def _first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or ["no message"])[0]
