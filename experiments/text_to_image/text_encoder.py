"""CLIP's text encoder, whose states tell the U-Net what to draw.

A causal transformer over 77 tokens; Stable Diffusion reads the states of all of them
behind the last norm. Every attribute has the name that the weight files give it.

Reference: Radford et al. (2021), Learning Transferable Visual Models From Natural
Language Supervision, https://arxiv.org/abs/2103.00020.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.border import ModelError
from experiments.text_to_image.layers import Make, Numbered, need

WHERE = "text_encoder/config.json"


def _quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation, x σ(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def _exact_gelu(x: jax.Array) -> jax.Array:
    """The GELU by the error function."""
    return nnx.gelu(x, approximate=False)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _exact_gelu}


class TextEncoder(nnx.Module):
    """States of a prompt's tokens.

    Args:
      config: The settings of a file ``text_encoder/config.json``.
      make: What makes the layers.

    Raises:
      ModelError: For settings that are not built here.
    """

    def __init__(self, config: Mapping[str, Any], make: Make):
        kind = config.get("model_type", "clip_text_model")
        if kind != "clip_text_model":
            raise ModelError(
                f"{WHERE} has model_type = {kind!r}; wanted 'clip_text_model'."
            )
        self.text_model = Transformer(config, make)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """States (P, L, D) of tokens, int (P, L)."""
        return self.text_model(tokens)


class Transformer(nnx.Module):
    """Embeddings, layers, and a norm."""

    def __init__(self, config: Mapping[str, Any], make: Make):
        width, layers = need(config, WHERE, "hidden_size", "num_hidden_layers")
        names = "vocab_size", "max_position_embeddings"
        entries, places = need(config, WHERE, *names)
        self.embeddings = Embeddings(entries, places, width, make)
        self.encoder = Layers(config, width, layers, make)
        epsilon = config.get("layer_norm_eps", 1e-5)
        self.final_layer_norm = make.layer_norm(width, epsilon)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """States (P, L, D)."""
        x = self.embeddings(tokens)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class Embeddings(nnx.Module):
    """A row for each token, plus one for its place."""

    def __init__(self, entries: int, places: int, width: int, make: Make):
        options: dict[str, Any] = dict(dtype=make.dtype, rngs=make.rngs)
        self.token_embedding = nnx.Embed(entries, width, **options)
        self.position_embedding = nnx.Embed(places, width, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeddings (P, L, D)."""
        places = self.position_embedding.num_embeddings
        if tokens.ndim != 2 or tokens.shape[1] > places:
            raise ModelError(
                f"Got tokens of shape {tokens.shape}, wanted (P, L) with L up to "
                f"{places}."
            )
        place = self.position_embedding(jnp.arange(tokens.shape[1]))
        return self.token_embedding(tokens) + place


class Layers(nnx.Module):
    """The encoder's layers by number."""

    def __init__(self, config, width: int, layers: int, make: Make):
        self.layers = Numbered([Layer(config, width, make) for _ in range(layers)])


class Layer(nnx.Module):
    """Causal self-attention, then a perceptron, each added to its input."""

    def __init__(self, config: Mapping[str, Any], width: int, make: Make):
        heads, inside = need(config, WHERE, "num_attention_heads", "intermediate_size")
        activation = config.get("hidden_act", "quick_gelu")
        epsilon = config.get("layer_norm_eps", 1e-5)
        self.layer_norm1 = make.layer_norm(width, epsilon)
        self.self_attn = CausalAttention(width, heads, make)
        self.layer_norm2 = make.layer_norm(width, epsilon)
        self.mlp = Perceptron(width, inside, activation, make)

    def __call__(self, x: jax.Array) -> jax.Array:
        """States of the shape of ``x``, (P, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CausalAttention(nnx.Module):
    """Attention of each token to itself and those before it."""

    def __init__(self, width: int, heads: int, make: Make):
        if width % heads:
            raise ModelError(
                f"{WHERE} has {heads} attention heads for {width} entries; give a "
                "divisor."
            )
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            make.dense(width, width) for _ in range(4)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens of the shape of ``x``."""
        q, k, v = (
            project(x).reshape(*x.shape[:2], self.heads, -1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.reshape(x.shape))


class Perceptron(nnx.Module):
    """Two dense layers around a GELU."""

    def __init__(self, width: int, inside: int, activation: str, make: Make):
        if activation not in _ACTIVATIONS:
            raise ModelError(
                f"{WHERE} has hidden_act = {activation!r}, which is not built here; "
                f"wanted {' or '.join(map(repr, _ACTIVATIONS))}."
            )
        self.activation = activation
        self.fc1 = make.dense(width, inside)
        self.fc2 = make.dense(inside, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens of the shape of ``x``."""
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))
