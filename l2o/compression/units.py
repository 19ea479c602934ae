"""Pruning of whole units and channels, after which arrays are really smaller.

A unit of a layer is an index of its last axis. It is one with what belongs to it elsewhere: its
entry in biases, norms and running statistics, and the inputs of the next layer that come from it.
In a plain chain of layers that is found from the order in which the network uses its arrays, and
then checked: of each layer every second unit is removed, and the smaller network must compute what
the network with these units at zero does. Elsewhere a user tells what belongs together.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import in_whole_units, make_budget
from l2o.compression.layers import leaves_by_name, nearest, uses
from l2o.compression.pruning import ranks
from l2o.compression.scheme import Guide, Scheme, check_share
from l2o.compression.trained_model import Params, TrainedModel, Units
from l2o.supervision.supervised import take

TOLERANCE = 1e-3
"""Largest difference between outputs that should be the same, over the largest output."""


class Member(NamedTuple):
    """Axis on which units of a group lie; the last axis of flattened images has several of each."""

    name: str
    axis: int


class Group(NamedTuple):
    """Units of a layer, with all that belongs to them.

    Attributes:
        layer: Name of the layer.
        size: Number of units.
        members: Axes on which they lie; index i of an axis belongs to unit i modulo `size`.
    """

    layer: str
    size: int
    members: tuple[Member, ...]


def prune_units(
    model: TrainedModel,
    *,
    keep: float | None = None,
    flops: float | None = None,
) -> tuple[Scheme, tuple[Group, ...]]:
    """Prune whole units to a share of the parameters, or of the multiply-adds.

    Units go by the product of the norms of the weights that lead to them and away from them.

    Args:
        model: Model whose units are pruned; what belongs to them is found, unless it says so.
        keep: Share of all parameters that may stay.
        flops: Share of the multiply-adds that may stay; exactly one of the two is given.

    Returns:
        The scheme, and its groups.

    Raises:
        ValueError: If the share is out of range, the smallest network needs more, or it is not
            clear what belongs to a layer's units.
    """
    argument, value = ("keep", keep) if flops is None else ("flops", flops)
    assert value is not None
    check_share(argument, value)
    groups = find_groups(model) if model.units is None else told_groups(model, model.units)
    for group in groups:
        check_group(model, group)
    leaves = leaves_by_name(model.params)
    if flops is None:
        each = {name: 1 for name in leaves}
    else:
        each = {x.name: -(-x.multiply_adds // x.size) for x in model.layers if x.multiply_adds}
    total = sum(each[name] * leaves[name].size for name in each)
    costs, limit, scale = in_whole_units(
        np.array(list(each.values())), total, int(value * total + 1e-6)
    )

    def cost(counts: jax.Array) -> jax.Array:
        spent = jnp.int32(0)
        for name, price in zip(each, costs, strict=True):
            size = jnp.int32(int(price))
            for axis, length in enumerate(leaves[name].shape):
                size = size * axis_length(groups, counts, Member(name, axis), length)
            spent = spent + size
        return spent

    sizes = np.array([group.size for group in groups])
    budget = make_budget(
        tuple(group.layer for group in groups),
        "parameters" if flops is None else "multiply-adds",
        np.ones(len(groups), int),
        sizes,
        cost,
        limit,
        argument=argument,
        given=value,
        share=lambda cost: cost / total,
        scale=scale,
    )

    def magnitudes(params: Params) -> tuple[jax.Array, ...]:
        arrays = leaves_by_name(params)
        return tuple(importance(arrays, group) for group in groups)

    def prepare(params: Params) -> Guide:
        return tuple(map(ranks, magnitudes(params)))

    def compress(params: Params, guide: Guide, counts: jax.Array) -> Params:
        return mask_units(params, groups, [r < counts[i] for i, r in enumerate(guide)])

    return Scheme("units", budget, magnitudes, prepare, compress), groups


def find_groups(model: TrainedModel) -> tuple[Group, ...]:
    """Find what belongs to the units of every layer of a chain but the last.

    Raises:
        ValueError: If there is no layer after another.
    """
    leaves = leaves_by_name(model.params)
    order = uses(model.apply, model.params, model.row).order
    chain = [layer for layer in model.layers if layer.multiply_adds]
    groups = []
    for layer, following in itertools.pairwise(chain):
        size = layer.shape[-1]
        axis = len(following.shape) - 2
        if following.shape[axis] % size:
            raise _unclear(
                model, layer.name, f"{following.name} has {following.shape[axis]} inputs"
            )
        between = order[order.index(layer.name) + 1 : order.index(following.name)]
        members = [Member(name, 0) for name in between if leaves[name].shape == (size,)]
        ends = Member(layer.name, len(layer.shape) - 1), Member(following.name, axis)
        groups.append(Group(layer.name, size, (ends[0], *members, ends[1])))
    if not groups:
        raise ValueError(
            f"`units` of {model.name} must have a layer before another; got one layer. Try keep= "
            "without units."
        )
    return tuple(groups)


def told_groups(model: TrainedModel, units: Units) -> tuple[Group, ...]:
    """Make groups of what a user says belongs together.

    Raises:
        ValueError: If there is no such array or axis, or its length does not fit.
    """
    leaves, layers = leaves_by_name(model.params), [layer.name for layer in model.layers]
    check_units(units)
    groups = []
    for layer, others in units.items():
        if layer not in layers:
            raise ValueError(
                f"`units` must be of layers of {model.name}; got {layer}. Try "
                f"{', '.join(nearest(layer, layers))}."
            )
        for name, _ in others:
            if name not in leaves:
                raise ValueError(
                    f"`units` must name arrays of {model.name}; got {name}. Try "
                    f"{', '.join(nearest(name, leaves))}."
                )
        size = leaves[layer].shape[-1]
        for name, axis in others:
            shape = leaves[name].shape
            if not 0 <= axis < len(shape) or shape[axis] % size:
                raise ValueError(
                    f"`units` of {layer} must name axes of {size} units, or a multiple; got axis "
                    f"{axis} of {name}, which has shape {shape}. Try another axis."
                )
        members = Member(layer, leaves[layer].ndim - 1), *(Member(*other) for other in others)
        groups.append(Group(layer, size, members))
    if not groups:
        raise ValueError("`units` must name at least one layer; got none. Leave it out.")
    return tuple(groups)


def check_units(units: Units) -> None:
    """Raise a `ValueError` that says what to type unless units are pairs of arrays and axes."""
    try:
        pairs = [(name, axis) for others in units.values() for name, axis in others]
        is_right = all(isinstance(name, str) and isinstance(axis, int) for name, axis in pairs)
    except (AttributeError, TypeError, ValueError):  # no mapping, no list, no pair
        is_right = False
    if not is_right:
        raise ValueError(
            f"`units` must be a mapping from layers to lists of pairs; got {units!r}. "
            'Try units={"up": [("bias", 0), ("down", 0)]}.'
        )


def check_group(model: TrainedModel, group: Group) -> None:
    """Check that without every second unit the smaller network computes what it should.

    Raises:
        ValueError: If it does not, or does not run.
    """
    kept = np.arange(group.size) % 2 == 0
    inputs = take(model.data["train"], jnp.arange(4) % len(jax.tree.leaves(model.data["train"])[0]))
    params = model.params
    masked = model.apply(mask_units(params, (group,), [jnp.asarray(kept)]), inputs.inputs)
    try:
        smaller = model.apply(remove_units(params, (group,), [kept]), inputs.inputs)
    except Exception as error:  # whatever a user's function does not like about other shapes
        what = str(error).strip().partition("\n")[0][:120]
        raise _unclear(
            model, group.layer, f"a network without some does not run ({what})"
        ) from error
    for wanted, got in zip(jax.tree.leaves(masked), jax.tree.leaves(smaller), strict=True):
        scale = float(jnp.max(jnp.abs(wanted))) + 1e-12
        is_alike = wanted.shape == got.shape  # NaN is like nothing
        if not (is_alike and float(jnp.max(jnp.abs(wanted - got))) <= TOLERANCE * scale):
            raise _unclear(model, group.layer, "a network without some computes something else")


def _unclear(model: TrainedModel, layer: str, why: str) -> ValueError:
    advice = (
        "Try units={layer: [(array, axis), ...]} of l2o.trained_model or l2o.trained_model_nnx for "
        "the layers that can be pruned, or prune weights."
    )
    if model.units is not None:
        advice = (
            "Name every array that has an axis of these units, biases and what reads them, too; a "
            "width that is normalised cannot be pruned."
        )
    return ValueError(f"`units` of {layer} are not clear: {why}. {advice}")


def axis_length(
    groups: Sequence[Group], counts: jax.Array, member: Member, length: int
) -> jax.Array | int:
    """Length of an axis when groups have these numbers of units."""
    for i, group in enumerate(groups):
        if member in group.members:
            return counts[i] * (length // group.size)
    return length


def importance(arrays: Mapping[str, Any], group: Group) -> jax.Array:
    """Product of the norms of the weights at each unit, over its mean in the layer."""
    found = jnp.ones(group.size)
    for name, axis in group.members:
        array = arrays[name]
        if array.ndim > 1:
            rows = jnp.moveaxis(array, axis, 0)
            squares = jnp.sum(jnp.square(rows.reshape(rows.shape[0], -1)), axis=1)
            found = found * jnp.sqrt(jnp.sum(squares.reshape(-1, group.size), axis=0))
    return found / jnp.maximum(jnp.mean(found), 1e-30)


def mask_units(params: Params, groups: Sequence[Group], kept: Sequence[jax.Array]) -> Params:
    """Set what belongs to units that are not kept to zero; traceable."""
    leaves = leaves_by_name(params)
    for group, stays in zip(groups, kept, strict=True):
        for name, axis in group.members:
            leaf = leaves[name]
            shape = [1] * leaf.ndim
            shape[axis] = leaf.shape[axis]
            mask = jnp.tile(stays, leaf.shape[axis] // group.size).reshape(shape)
            leaves[name] = leaf * mask.astype(leaf.dtype)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))


def remove_units(params: Params, groups: Sequence[Group], kept: Sequence[np.ndarray]) -> Params:
    """Remove units that are not kept: arrays without them."""
    leaves = leaves_by_name(params)
    for group, stays in zip(groups, kept, strict=True):
        for name, axis in group.members:
            repeats = leaves[name].shape[axis] // group.size
            indices = np.flatnonzero(np.tile(np.asarray(stays), repeats))
            leaves[name] = jnp.take(leaves[name], indices, axis=axis)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
