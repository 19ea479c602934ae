"""Unstructured pruning: each layer keeps its weights of the largest magnitude.

Han et al. 2015, arXiv:1506.02626. A layer keeps at least one weight, or nothing would pass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import in_whole_units, make_budget
from l2o.compression.layers import leaves_by_name
from l2o.compression.scheme import Guide, Scheme, check_share
from l2o.compression.trained_model import Params, TrainedModel


def prune_weights(
    model: TrainedModel, *, keep: float | None = None, flops: float | None = None
) -> Scheme:
    """Prune single weights to a share of the parameters, or of the multiply-adds.

    Args:
        model: Model whose layers are pruned.
        keep: Share of all parameters that may stay, biases and norms with them.
        flops: Share of the multiply-adds that may stay; exactly one of the two is given.

    Raises:
        ValueError: If the share is out of range, or the smallest network needs more.
    """
    layers = model.layers
    names, sizes = tuple(layer.name for layer in layers), np.array([x.size for x in layers])
    if flops is None:
        assert keep is not None
        argument, unit, value = "keep", "parameters", keep
        each, fixed = np.ones(len(layers), int), model.size - int(sizes.sum())
    else:
        argument, unit, value = "flops", "multiply-adds", flops
        each, fixed = np.array([-(-x.multiply_adds // x.size) for x in layers]), 0
    check_share(argument, value)
    total = int(np.sum(each * sizes)) + fixed
    each, limit, scale = in_whole_units(each, total, int(value * total + 1e-6))
    fixed = -(-fixed // scale)
    budget = make_budget(
        names,
        unit,
        np.ones(len(layers), int),
        sizes,
        lambda counts: jnp.sum(counts * jnp.asarray(each, jnp.int32)) + jnp.int32(fixed),
        limit,
        argument=argument,
        given=value,
        share=lambda cost: cost / total,
        scale=scale,
    )
    is_pruned = frozenset(names)

    def magnitudes(params: Params) -> tuple[jax.Array, ...]:
        leaves = leaves_by_name(params)
        return tuple(jnp.abs(leaves[name]) for name in names)

    def prepare(params: Params) -> Guide:
        return dict(zip(names, map(ranks, magnitudes(params)), strict=True))

    def compress(params: Params, guide: Guide, counts: jax.Array) -> Params:
        masks = weight_masks(names, guide, counts)
        pruned = [
            leaf * masks[name].astype(leaf.dtype) if name in is_pruned else leaf
            for name, leaf in leaves_by_name(params).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(params), pruned)

    return Scheme("weights", budget, magnitudes, prepare, compress)


def weight_masks(names: tuple[str, ...], guide: Guide, counts: jax.Array) -> dict[str, jax.Array]:
    """Tell which weights of each layer stay: exactly `counts` of them, those of the first ranks."""
    return {name: guide[name] < counts[i] for i, name in enumerate(names)}


@jax.jit
def ranks(scores: jax.Array) -> jax.Array:
    """Rank scores from 0 for the largest on; of equal ones, that which comes first is ahead.

    >>> ranks(jnp.array([[0.5, 2.0], [0.5, 1.0]])).tolist()
    [[2, 0], [3, 1]]
    """
    order = jnp.argsort(-scores.ravel(), stable=True)
    places = jnp.arange(scores.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places).reshape(scores.shape)
