"""Quantization of weights to 2 to 8 bits, symmetric, with a scale for each output channel.

With b bits and the largest magnitude m of a channel,

    scale = r m / (2^(b-1) - 1/2),    q = clip(round(w / scale), -2^(b-1), 2^(b-1) - 1),

as `qwix.quantize` does for r = 1. Here r is that of `RATIOS` with the least squared error of the
channel, which matters at few bits. Bits may be traced, which qwix's types cannot be. Gradients pass
the rounding as if it were not there (straight-through, Bengio et al. 2013, arXiv:1308.3432).
"""

from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import in_whole_units, make_budget
from l2o.compression.layers import leaves_by_name
from l2o.compression.scheme import Guide, Scheme
from l2o.compression.trained_model import Params, TrainedModel

FEWEST_BITS, MOST_BITS = 2, 8

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Ratios r that are tried: the share of the largest magnitude up to which values are told apart."""


def quantize_weights(model: TrainedModel, *, bits: float) -> Scheme:
    """Quantize layers to an average of so many bits a weight.

    Biases and norms stay as they are; they and the scales are no part of the average, but of the
    size of the file.

    Args:
        model: Model whose layers are quantized.
        bits: Average number of bits of the weights of all layers.

    Raises:
        ValueError: If there is no such width.
    """
    if not isinstance(bits, Real) or not FEWEST_BITS <= bits <= MOST_BITS:
        raise ValueError(
            f"`bits` must be between {FEWEST_BITS} and {MOST_BITS}; got {bits!r}. Try bits=4."
        )
    layers = model.layers
    names, sizes = tuple(layer.name for layer in layers), np.array([x.size for x in layers])
    total = MOST_BITS * int(sizes.sum())
    each, limit, scale = in_whole_units(sizes, total, int(bits * sizes.sum() + 1e-6))
    budget = make_budget(
        names,
        "bits",
        np.full(len(layers), FEWEST_BITS),
        np.full(len(layers), MOST_BITS),
        lambda counts: jnp.sum(counts * jnp.asarray(each, jnp.int32)),
        limit,
        argument="bits",
        given=bits,
        share=lambda cost: cost / int(sizes.sum()),
        scale=scale,
    )
    place = {name: i for i, name in enumerate(names)}

    def compress(params: Params, guide: Guide, counts: jax.Array) -> Params:
        del guide
        quantized = [
            fake_quantize(leaf, counts[place[name]]) if name in place else leaf
            for name, leaf in leaves_by_name(params).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(params), quantized)

    return Scheme("bits", budget, lambda params: (), lambda params: (), compress)


def fake_quantize(weights: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Round weights to what so many bits can hold; their gradient is that of the identity.

    >>> fake_quantize(jnp.array([[1.0, 8.0], [-0.4, 2.0], [0.1, 0.0]]), 2).shape
    (3, 2)
    """
    values, scale = quantize(jax.lax.stop_gradient(weights), bits)
    rounded = (values * scale).astype(weights.dtype)
    return rounded + (weights - jax.lax.stop_gradient(weights))


def quantize(
    weights: jax.Array, bits: jax.Array | int, ratios: Sequence[float] = RATIOS
) -> tuple[jax.Array, jax.Array]:
    """Quantize weights, each channel at the ratio that loses least.

    Args:
        weights: Weights, shape (..., channels).
        bits: Number of bits, which may be traced.
        ratios: Ratios that are tried, see above.

    Returns:
        Whole numbers as float32, shape (..., channels), and scales, shape (channels,).
    """
    weights = weights.astype(jnp.float32)
    axes = tuple(range(weights.ndim - 1))
    half = jnp.exp2(jnp.asarray(bits, jnp.float32) - 1.0)
    largest = jnp.max(jnp.abs(weights), axis=axes)

    def at(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = ratio * largest / (half - 0.5)
        scale = jnp.where(scale > 0.0, scale, 1.0)
        return jnp.clip(jnp.round(weights / scale), -half, half - 1.0), scale

    def error(ratio: jax.Array) -> jax.Array:
        values, scale = at(ratio)
        return jnp.sum(jnp.square(values * scale - weights), axis=axes)

    tried = jnp.asarray(ratios, jnp.float32)
    errors = jax.lax.map(error, tried)
    return at(tried[jnp.argmin(errors, axis=0)])
