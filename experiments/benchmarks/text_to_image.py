"""Steps of unlearning in Stable Diffusion 1's U-Net, full size, of random weights."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.cases import Scale
from experiments.benchmarks.measuring import OURS, Row, guarded, in_turns
from experiments.text_to_image import sizes
from experiments.text_to_image.pipeline import Networks
from mujax import diffusion, roles, subspace, transforms

BATCH, SIDE, LENGTH, RANK = 4, 64, 77, 8
TINY: dict[str, dict[str, Any]] = {
    **sizes.SD1,
    "text_encoder": {
        **sizes.SD1["text_encoder"],
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    },
    "unet": {
        **sizes.SD1["unet"],
        "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "vae": {
        **sizes.SD1["vae"],
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}


def sd(scale: Scale) -> Iterator[Row]:
    """Steps of SalUn, of SEMU's cores and of the attention to the prompt.

    The loss asks the network twice: for the answer that is to be matched, and the own.
    """
    if scale.unet is None:
        what = "Stable Diffusion 1's U-Net of 860 M parameters"
        yield Row("sd", what, note="skipped: there is no accelerator here")
        return
    config, side = (sizes.SD1, SIDE) if scale.unet == "full" else (TINY, 8)
    model = Networks(config, dtype=jnp.bfloat16, remat=True)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"unet": random_weights(model.shapes["unet"], keys[0])}
    width = config["unet"]["cross_attention_dim"]
    batch = (
        jax.random.normal(keys[1], (BATCH, side, side, 4)),
        *jax.random.normal(keys[2], (2, BATCH, LENGTH, width)),
        keys[3],
    )

    def loss_fn(params, batch):
        images, said, instead, key = batch
        return diffusion.match_loss(
            model.predict,
            params,
            model.schedule,
            images,
            said,
            instead,
            key,
            pixel_reduction=jnp.mean,
            timesteps=diffusion.uniform_timesteps,
        )

    count = sizes.count(params)
    for name, make in (("SalUn", salun), ("SEMU", cores), ("attn2", attention)):
        what = f"{name} with Adam, {count:,} parameters, batch of {BATCH}, bfloat16"

        def rows(what=what, make=make):
            step, carry, fixed = make(loss_fn, params)
            yield measured(scale, what, step, carry, fixed, batch)

        yield from guarded("sd", what, rows)


def measured(scale: Scale, what: str, step, carry, fixed, batch) -> Row:
    """Times a step that is compiled ahead, so that its memory is known."""
    compiled = jax.jit(step, donate_argnums=0).lower(carry, fixed, batch).compile()
    used = compiled.memory_analysis()
    held = [jax.tree.map(jnp.copy, carry)]

    def run():
        held[0] = jax.block_until_ready(compiled(held[0], fixed, batch))

    timings = in_turns({OURS: run}, scale.effort)
    note = f"{BATCH / timings[OURS].median:.3g} images/s"
    if used is not None:
        peak = used.argument_size_in_bytes + used.temp_size_in_bytes
        peak += used.output_size_in_bytes - used.alias_size_in_bytes
        note += f", {peak / 1e9:.3g} GB at the most"
    return Row("sd", what, timings, note)


def salun(loss_fn, params):
    """All weights under a mask of half of them."""
    optimizer = optax.adam(1e-5)
    mask = jax.tree.map(lambda p: p > 0, params)

    def step(carry, mask, batch):
        params, state = carry
        masked = optax.chain(optimizer, transforms.mask_updates(mask))
        updates, state = masked.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optax.chain(optimizer, transforms.mask_updates(mask)).init(params)
    return step, (params, state), mask


def cores(loss_fn, params):
    """SEMU's cores alone, in bases of the weights themselves."""
    optimizer = optax.adam(1e-5)
    bases = subspace.svd_bases(params, rank=RANK, max_rank=RANK)
    start = subspace.init_cores(bases)

    def step(carry, fixed, batch):
        moving, state = carry
        params, bases = fixed

        def loss(moving):
            return loss_fn(subspace.apply_cores(params, bases, moving), batch)

        updates, state = optimizer.update(jax.grad(loss)(moving), state, moving)
        return optax.apply_updates(moving, updates), state

    return step, (start, optimizer.init(start)), (params, bases)


def attention(loss_fn, params):
    """The attention to the prompt alone."""
    optimizer = optax.adam(1e-5)
    leaves, structure = jax.tree.flatten(params)
    moves = ["attn2" in name.split("/") for name in roles.leaf_names(params)]
    start = [x for x, move in zip(leaves, moves, strict=True) if move]
    rest = [x for x, move in zip(leaves, moves, strict=True) if not move]

    def whole(moving, rest):
        moving, rest = iter(moving), iter(rest)
        return structure.unflatten([next(moving if m else rest) for m in moves])

    def step(carry, rest, batch):
        moving, state = carry
        grads = jax.grad(lambda own: loss_fn(whole(own, rest), batch))(moving)
        updates, state = optimizer.update(grads, state, moving)
        return optax.apply_updates(moving, updates), state

    return step, (start, optimizer.init(start)), rest


@functools.partial(jax.jit, static_argnums=0)
def _normal(shape, key):
    return 0.02 * jax.random.normal(key, shape)


def random_weights(shapes: Any, key: jax.Array) -> Any:
    """Small normal numbers, leaf by leaf: making a U-Net's own start compiles long."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [_normal(x.shape, k) for x, k in zip(leaves, keys, strict=True)]
    )
