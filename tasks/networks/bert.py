"""BERT's encoder (Devlin et al. 2019, arXiv:1810.04805) as functions of its weights.

Weights are nested dicts: "embeddings" has "word", "position", "type" and a "norm"; "layers" has, by
number, the linear maps "query", "key", "value", "attended", "up" and "down" and the norms
"attention_norm" and "output_norm". A linear map is a "kernel" of shape (inputs, outputs) and a
"bias", a norm a "scale" and a "bias". A linear map may have low-rank factors besides, "a" of shape
(inputs, rank) and "b" of shape (rank, outputs): their product is added to the kernel, as in LoRA
(Hu et al. 2021, arXiv:2106.09685).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = Mapping[str, Any]
"""Nested mappings of arrays."""

EPSILON = 1e-12
"""What BERT's layer norms add to a variance."""

LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
"""Hugging Face's names of the linear maps of a layer."""

NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
"""Hugging Face's names of the norms of a layer."""


def bert_weights(arrays: Mapping[str, np.ndarray], length: int) -> dict[str, Any]:
    """Arrange Hugging Face's arrays of a BERT, without those that its hidden states do not need.

    Args:
        arrays: Arrays by name; kernels are of shape (outputs, inputs).
        length: Most tokens of a text; the embeddings of later positions are left out.
    """

    def norm(name: str) -> dict[str, jax.Array]:
        return {
            "scale": jnp.asarray(arrays[f"{name}.weight"]),
            "bias": jnp.asarray(arrays[f"{name}.bias"]),
        }

    def linear(name: str) -> dict[str, jax.Array]:
        return {
            "kernel": jnp.asarray(arrays[f"{name}.weight"].T),
            "bias": jnp.asarray(arrays[f"{name}.bias"]),
        }

    def layer(i: int) -> dict[str, dict[str, jax.Array]]:
        of = f"encoder.layer.{i}"
        linears = {name: linear(f"{of}.{theirs}") for name, theirs in LINEAR.items()}
        return linears | {name: norm(f"{of}.{theirs}") for name, theirs in NORMS.items()}

    depth = sum(name.endswith(f"{LINEAR['up']}.bias") for name in arrays)
    return {
        "embeddings": {
            "word": jnp.asarray(arrays["embeddings.word_embeddings.weight"]),
            "position": jnp.asarray(arrays["embeddings.position_embeddings.weight"][:length]),
            "type": jnp.asarray(arrays["embeddings.token_type_embeddings.weight"][0]),
            "norm": norm("embeddings.LayerNorm"),
        },
        "layers": {str(i): layer(i) for i in range(depth)},
    }


def bert(weights: Weights, tokens: jax.Array, *, heads: int) -> jax.Array:
    """Map texts of one length to their hidden states, without dropout.

    Args:
        weights: Weights, as of `bert_weights`.
        tokens: Tokens, shape (rows, length), with those that begin and end a text; none is padding.
        heads: Heads of the attention.

    Returns:
        Hidden states of the last layer, shape (rows, length, width).
    """
    table = weights["embeddings"]
    x = table["word"][tokens.astype(jnp.int32)] + table["position"][: tokens.shape[1]]
    x = _norm(table["norm"], x + table["type"])
    for i in range(len(weights["layers"])):
        x = _layer(weights["layers"][str(i)], x, heads)
    return x


def _layer(layer: Weights, x: jax.Array, heads: int) -> jax.Array:
    """A post-norm block, of hidden states (rows, length, width)."""
    split = lambda y: y.reshape(*y.shape[:2], heads, -1)
    query, key, value = (split(_linear(layer[name], x)) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = _norm(layer["attention_norm"], x + _linear(layer["attended"], mixed))
    inner = jax.nn.gelu(_linear(layer["up"], x), approximate=False)
    return _norm(layer["output_norm"], x + _linear(layer["down"], inner))


def _linear(maps: Weights, x: jax.Array) -> jax.Array:
    y = x @ maps["kernel"] + maps["bias"]
    # The product of the factors is never made: members of a population share the large kernel.
    return y + (x @ maps["a"]) @ maps["b"] if "a" in maps else y


def _norm(norm: Weights, x: jax.Array) -> jax.Array:
    return norm["scale"] * jax.nn.standardize(x, axis=-1, epsilon=EPSILON) + norm["bias"]
