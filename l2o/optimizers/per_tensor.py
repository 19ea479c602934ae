"""An optax transformation from a rule for one tensor."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import require_params


def as_float32(tree: Any) -> Any:
    """The tree in float32, whatever the parameters' dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def join_leaves(treedef: Any, template: Any, leaves: Sequence[Any]) -> Any:
    """From the accumulators of each tensor to accumulators that are trees like the parameters.

    This is how optax lays out its states, and what sharding rules and Flax's NNX expect.

    Args:
        treedef: structure of the parameters.
        template: the accumulators of any one tensor, for their structure.
        leaves: the accumulators of each tensor, all of that structure.
    """
    structure = jax.tree.structure(template)
    rows = [structure.flatten_up_to(leaf) for leaf in leaves]
    columns = [[row[i] for row in rows] for i in range(structure.num_leaves)]
    return structure.unflatten([treedef.unflatten(column) for column in columns])


def split_leaves(treedef: Any, template: Any, accumulators: Any) -> list[Any]:
    """The accumulators of each tensor; undoes `join_leaves`."""
    structure = jax.tree.structure(template)
    columns = [treedef.flatten_up_to(tree) for tree in structure.flatten_up_to(accumulators)]
    return [structure.unflatten(row) for row in zip(*columns, strict=True)]


SMALL = 2**14
"""Equal-shaped tensors of up to so many numbers are updated as one."""

MANY = 3
"""From so many on: two are stacked and taken apart again by as many kernels as they save."""

CROWD = 8
"""From so many on in two halves, by a loop: without its boundary XLA would copy the rule into each
tensor that is taken out again."""


def update_leaves(
    update_leaf: Callable[..., tuple[jax.Array, Any]],
    grads: Sequence[jax.Array],
    params: Sequence[jax.Array],
    leaves: Sequence[Any],
    *shared: Any,
) -> tuple[list[jax.Array], list[Any]]:
    """A rule for one tensor, applied to each: updates, and accumulators, of every tensor.

    What a program takes to trace and to compile grows with the number of different shapes, and that
    of large tensors, not with the number of tensors: those of equal shape share a trace, in this
    tree and in any other that the same rule has updated, and small ones of equal shape are stacked
    and updated as one.

    Args:
        update_leaf: `(grad, param, accumulators, *shared) -> (update, accumulators)`. To share its
            traces it must be the same function each time, so it takes what it needs of theta as an
            argument.
        grads: of each tensor, of any floating-point dtype; the rule sees float32.
        params: likewise.
        leaves: accumulators of each tensor.
        *shared: what is the same for all.

    Returns:
        Updates in the dtypes of the gradients, and accumulators.
    """
    rule = jax.jit(update_leaf)
    of_stacked = lambda of_one: rule(*of_one, *shared)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, g in enumerate(grads):
        by_shape.setdefault(jnp.shape(g), []).append(i)
    found: dict[int, tuple[jax.Array, Any]] = {}
    for shape, group in by_shape.items():
        of_group = [(as_float32(grads[i]), as_float32(params[i]), leaves[i]) for i in group]
        if len(group) < MANY or math.prod(shape) > SMALL:
            results = [rule(*of_one, *shared) for of_one in of_group]
        else:
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *of_group)
            if len(group) < CROWD:
                result = jax.vmap(of_stacked)(stacked)
            else:
                result = jax.lax.map(of_stacked, stacked, batch_size=len(group) // 2)
            results = [jax.tree.map(lambda x, k=k: x[k], result) for k in range(len(group))]
        found |= dict(zip(group, results, strict=True))
    updates = [found[i][0].astype(jnp.result_type(g)) for i, g in enumerate(grads)]
    return updates, [found[i][1] for i in range(len(grads))]


class PerLeafState(NamedTuple):
    """State of a design whose rule sees one tensor at a time.

    Attributes:
        count: number of updates so far, int32 scalar.
        accumulators: as the design's rule for one tensor has them, with a tree like the
            parameters in the place of each float32 array.
        run: what the design remembers of the whole run.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    accumulators: Any
    run: Any = ()


def per_leaf_transform(
    design: str,
    init_leaf: Callable[[jax.Array], Any],
    update_leaf: Callable[..., tuple[jax.Array, Any]],
    shared: Callable[[jax.Array, Any], Sequence[Any]],
    *,
    run: Any = (),
    advance: Callable[[Any, jax.Array, Any], Any] = lambda run, count, value: run,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from a rule for one tensor.

    Scalars are seen by the rule as shape (1,), and every dtype as float32: accumulators with a
    decay of 0.999 do not move in bfloat16. Updates come back in the gradient's own dtype.

    Args:
        design: name for error messages.
        init_leaf: `(param) -> accumulators`, of the same structure for every tensor.
        update_leaf: `(grad, param, accumulators, *shared(count, run)) -> (update, accumulators)`;
            `update` is what `optax.apply_updates` adds. See `update_leaves`.
        shared: what the rule needs of theta, of the number of updates, 0 at the first, and of
            the run; computed once for all tensors.
        run: what is remembered of the whole run, at its start.
        advance: `(run, count, loss) -> run`, ahead of each update; the loss is None if the caller
            passed no `value`.
    """

    template = init_leaf(jnp.zeros(1))

    def at_least_1d(x: jax.Array) -> jax.Array:
        return jnp.atleast_1d(jnp.asarray(x, jnp.float32))

    def init(params: optax.Params) -> PerLeafState:
        leaves, treedef = jax.tree.flatten(params)
        return PerLeafState(
            count=jnp.zeros((), jnp.int32),
            accumulators=join_leaves(
                treedef, template, [init_leaf(at_least_1d(p)) for p in leaves]
            ),
            run=jax.tree.map(jnp.array, run),  # copies, which a caller may donate
        )

    def update(
        updates: optax.Updates,
        state: PerLeafState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PerLeafState]:
        del extra_args
        run = advance(state.run, state.count, value)
        grads, treedef = jax.tree.flatten(updates)
        new_updates, new_leaves = update_leaves(
            update_leaf,
            [jnp.atleast_1d(g) for g in grads],
            [jnp.atleast_1d(p) for p in treedef.flatten_up_to(require_params(params, design))],
            split_leaves(treedef, template, state.accumulators),
            *shared(state.count, run),
        )
        steps = [jnp.reshape(u, jnp.shape(g)) for u, g in zip(new_updates, grads, strict=True)]
        return treedef.unflatten(steps), PerLeafState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            accumulators=join_leaves(treedef, template, new_leaves),
            run=run,
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
