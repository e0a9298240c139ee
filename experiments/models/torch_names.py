"""PyTorch's names and layouts for the networks that are here.

A ``state_dict`` says ``layer1.0.conv1.weight`` where a model here has
``blocks.layers.0.conv1.kernel``. Known are torchvision's ResNets with a 3×3 stem and
their kin for CIFAR (``shortcut`` for ``downsample``, ``linear`` for ``fc``), VGG with
BatchNorm and one dense layer, and the ViTs of timm and of torchvision. Convolutions
turn from OIHW to HWIO and dense kernels are transposed. Every network here classifies
an average or a token, so that no order of flattening is at stake.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# What wraps a model leaves these in front of its names.
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|state_dict)\.)+")
_STAGE_BLOCK = re.compile(r"^layer(\d+)\.(\d+)\.")
_BLOCK = re.compile(r"^(?:blocks|encoder\.layers)\.(?:encoder_layer_)?(\d+)\.(.+)$")
_FEATURE = re.compile(r"^features\.(\d+)$")

_MODULES = {
    "conv1": "stem",
    "bn1": "norm",
    "norm": "norm",
    "encoder.ln": "norm",
    "conv_proj": "embed",
    "patch_embed.proj": "embed",
    "fc": "dense",
    "linear": "dense",
    "head": "dense",
    "heads.head": "dense",
    "classifier": "dense",
}
_IN_BLOCKS = {
    "conv1": "conv1",
    "conv2": "conv2",
    "bn1": "norm1",
    "bn2": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "downsample.0": "shortcut.layers.0",
    "downsample.1": "shortcut.layers.1",
    "shortcut.0": "shortcut.layers.0",
    "shortcut.1": "shortcut.layers.1",
    "attn.qkv": "queries_keys_values",
    "attn.proj": "mix",
    "self_attention.in_proj": "queries_keys_values",
    "self_attention.out_proj": "mix",
    "mlp.fc1": "expand",
    "mlp.fc2": "contract",
    "mlp.0": "expand",
    "mlp.3": "contract",
    "mlp.linear_1": "expand",
    "mlp.linear_2": "contract",
}
_TOKENS = {
    "cls_token": "token",
    "class_token": "token",
    "pos_embed": "positions",
    "encoder.pos_embedding": "positions",
}
_LEAVES = {"bias": "bias", "running_mean": "mean", "running_var": "var"}
_WEIGHTS = {  # by the number of axes: the name here, and the axes in its order
    1: ("scale", (0,)),
    2: ("kernel", (1, 0)),
    4: ("kernel", (2, 3, 1, 0)),
}


def rename(arrays: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where each leaf of a model here lies in a ``state_dict``.

    Args:
      arrays: the state dict, with dots in its names.

    Returns:
      For each leaf, by its dotted name here, the name there and the axes to transpose
      it by. BatchNorm's counts of batches have no place.

    Raises:
      ValueError: a name is not one of these networks', or two stand for one leaf.

    Example:
      >>> rename({"module.fc.weight": np.zeros((10, 64))})
      {'dense.kernel': ('module.fc.weight', (1, 0))}
    """
    plain = {name: _WRAPPERS.sub("", name) for name in arrays}
    stages = [match for name in plain.values() if (match := _STAGE_BLOCK.match(name))]
    order = sorted({(int(stage[1]), int(stage[2])) for stage in stages})
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, short in plain.items():
        if short.endswith("num_batches_tracked"):
            continue
        short = _STAGE_BLOCK.sub(
            lambda m: f"blocks.{order.index((int(m[1]), int(m[2])))}.", short
        )
        short = re.sub(r"^classifier\.\d+\.", "classifier.", short)
        ours, axes = _leaf(short, np.ndim(arrays[name]))
        if ours is None:
            raise ValueError(
                f"its names are PyTorch's, and {name} {np.shape(arrays[name])} has no "
                "place in a ResNet, VGG or ViT here; rename the leaves to the model's "
                "own, with kernels as flax lays them out"
            )
        if ours in places:
            raise ValueError(
                f"its {places[ours][0]} and {name} would both be {ours}; the model "
                "here has one such layer"
            )
        places[ours] = (name, axes)
    return places


def _leaf(name: str, ndim: int) -> tuple[str | None, tuple[int, ...]]:
    """The name here and the order of the axes; None for a stranger."""
    axes = tuple(range(ndim))
    if name in _TOKENS:
        return _TOKENS[name], axes
    name = name.replace("in_proj_", "in_proj.")  # a packed leaf, not a module's
    module, _, leaf = name.rpartition(".")
    leaf, axes = (
        _WEIGHTS.get(ndim, (None, axes))
        if leaf == "weight"
        else (
            _LEAVES.get(leaf),
            axes,
        )
    )
    if match := _BLOCK.match(module):
        ours = _IN_BLOCKS.get(match[2])
        module = ours and f"blocks.layers.{match[1]}.{ours}"
    elif match := _FEATURE.match(module):
        module = f"features.layers.{match[1]}"
    else:
        module = _MODULES.get(module)
    return (f"{module}.{leaf}" if module and leaf else None), axes
