"""Stable Diffusion's published settings, and the memory that its U-Net takes to train.

>>> from experiments.text_to_image.pipeline import Networks
>>> shapes = Networks(SD1).shapes
>>> {name: count(tree) for name, tree in shapes.items()}
{'text_encoder': 123060480, 'unet': 859520964, 'vae': 83653863}
"""

import functools
import math
from typing import Any

import jax

from mujax import roles, subspace

_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "sample_size": 64,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
_TEXT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
}
SD1: dict[str, dict[str, Any]] = {
    "text_encoder": _TEXT,
    "unet": _UNET,
    "vae": _VAE,
    "scheduler": _SCHEDULER,
}
SD2: dict[str, dict[str, Any]] = {
    "text_encoder": {
        **_TEXT,
        "hidden_size": 1024,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
    },
    "unet": {
        **_UNET,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "vae": _VAE,
    "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"},
}


def count(tree: Any) -> int:
    """Parameters of a tree, or of its shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def memory(unet: Any, rank: int = 8) -> dict[str, dict[str, int]]:
    """Bytes that stay between two steps of unlearning with Adam, by what may move.

    In float32. What a step computes on the way comes on top: activations above all,
    and with cores the moved kernels.

    Args:
      unet: The U-Net's parameters, or their shapes.
      rank: Of SEMU's bases, in every kernel whose matrices are not smaller.

    Returns:
      For ``full``, ``attn2`` and ``cores``: how many parameters ``move``; the bytes of
      all ``weights``, of the ``original`` of those that move, of SEMU's ``bases``, of
      the ``gradient``, of ``adam``'s two moments and of the ``mask``; their ``total``,
      in which the cores themselves are counted.

    Example:
      >>> shapes = {"attn2": {"to_k": {"kernel": jax.ShapeDtypeStruct((4, 2), "f")}}}
      >>> {name: row["total"] for name, row in memory(shapes, rank=1).items()}
      {'full': 168, 'attn2': 168, 'cores': 72}
    """
    leaves = dict(zip(roles.leaf_names(unet), jax.tree.leaves(unet), strict=True))
    attn2 = count([x for name, x in leaves.items() if "attn2" in name.split("/")])
    bases = jax.eval_shape(functools.partial(subspace.svd_bases, rank=rank), unet)
    cores = count(jax.eval_shape(subspace.init_cores, bases))
    directions = jax.tree.leaves(bases, is_leaf=lambda x: hasattr(x, "left"))
    every = count(unet)

    def row(move: int, masked: int = 0, bases: int = 0) -> dict[str, int]:
        parts = {
            "weights": 4 * every,
            "original": 4 * masked,
            "bases": 4 * bases,
            "gradient": 4 * move,
            "adam": 8 * move,
            "mask": masked,
        }
        cores = 4 * move if bases else 0
        return {"move": move, **parts, "total": sum(parts.values()) + cores}

    return {
        "full": row(every, masked=every),
        "attn2": row(attn2, masked=attn2),
        "cores": row(cores, bases=count([(x.left, x.right) for x in directions])),
    }
