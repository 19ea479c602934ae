"""An optax transformation from a rule for one tensor."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import require_params, require_state
from l2o.optimizers.layout import (
    axes_of,
    check_accumulators,
    in_stack,
    join_leaves,
    map_packed,
    raveled,
    sharding_of,
    split_leaves,
    start,
    unraveled,
)
from l2o.stacks import Stack, is_stack, untagged


def as_float32(tree: Any) -> Any:
    """Cast every array of a tree to float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


Rule = Callable[..., tuple[jax.Array, Any]]
"""Function `(grad, param, accumulators, *shared) -> (update, accumulators)`."""


class PerTensorState(NamedTuple):
    """State of a design whose rule sees one tensor at a time.

    Attributes:
        count: Number of updates so far, an int32 scalar.
        accumulators: The rule's accumulators, in which a tree like the parameters takes the place
            of each float32 array, and one flat array that of what is `Packed`.
        run_state: What the design remembers of the whole training run.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    accumulators: Any
    run_state: Any = ()


def per_tensor_transform(
    design: str,
    init_accumulators: Callable[[jax.Array], Any],
    update_tensor: Rule,
    shared: Callable[[jax.Array, Any], Sequence[Any]] = lambda count, run_state: (),
    *,
    run_state: Any = (),
    update_run_state: Callable[[Any, jax.Array, Any], Any] = lambda run_state, count, value: (
        run_state
    ),
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation from a rule for one tensor.

    Every tensor is float32 to the rule, whatever its dtype: accumulators with a decay of 0.999 do
    not move in bfloat16. Updates come back in the gradient's own dtype.

    A learned optimizer is such a rule and a theta that it takes by way of `shared`:

    >>> import jax, jax.numpy as jnp, l2o
    >>> @l2o.design
    ... def momentum_mlp(hidden_size: int = 16) -> l2o.LearnedOptimizer:
    ...     def init(key):
    ...         return l2o.nets.mlp_init(key, (5, hidden_size, 1))
    ...
    ...     def init_accumulators(p):
    ...         return tuple(jnp.zeros_like(p) for _ in range(3))
    ...
    ...     def update_tensor(g, p, momenta, theta):
    ...         momenta = l2o.features.moving_averages(momenta, g, (0.5, 0.9, 0.99))
    ...         inputs = l2o.features.rms_normalize([g, p, *momenta])
    ...         (direction,) = l2o.nets.mlp_per_parameter(theta, inputs)
    ...         return -0.01 * direction, momenta
    ...
    ...     def transform(theta, *, horizon=None):
    ...         return l2o.per_tensor_transform(
    ...             "momentum_mlp", init_accumulators, update_tensor, lambda count, run: (theta,)
    ...         )
    ...
    ...     return l2o.LearnedOptimizer("momentum_mlp", init, transform)
    >>> lopt = momentum_mlp()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> jax.tree.map(jnp.shape, state.accumulators)
    ({'b': (3,), 'w': (2, 3)}, {'b': (3,), 'w': (2, 3)}, {'b': (3,), 'w': (2, 3)})

    Args:
        design: Name of the design, for error messages.
        init_accumulators: `(param) -> accumulators`, a pytree of the same structure for every
            tensor, of arrays of the parameter's shape; others are `Packed`. It is asked for those
            of a vector of one number, too.
        update_tensor: `(grad, param, accumulators, *shared(count, run_state)) -> (update,
            accumulators)`, where `optax.apply_updates` adds the update. To share its compilation
            between trees it should be the same function for every theta, which it takes by way of
            `shared`.
        shared: `(count, run_state) -> arguments`, computed once for all tensors: the rule's part of
            theta, and what follows from the number of updates before this one and from the run.
        run_state: What the design remembers of the whole training run, at its start.
        update_run_state: `(run_state, count, loss) -> run_state`, called ahead of each update; the
            loss is None if the caller passed no `value`.
    """

    template = init_accumulators(jnp.zeros(1, jnp.float32))

    def init(params: optax.Params) -> PerTensorState:
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_stack)
        starts = [start(init_accumulators, p) for p in as_float32(leaves)]
        return PerTensorState(
            count=jnp.zeros((), jnp.int32),
            accumulators=join_leaves(
                treedef, template, [map_packed(raveled, found) for found in starts]
            ),
            run_state=jax.tree.map(jnp.array, run_state),  # copies, which a caller may donate
        )

    def update(
        updates: optax.Updates,
        state: PerTensorState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PerTensorState]:
        del extra_args
        state = require_state(state, PerTensorState, design)
        run_state = update_run_state(state.run_state, state.count, value)
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_stack)
        leaves = treedef.flatten_up_to(require_params(params, design))
        begin = lambda p: start(init_accumulators, as_float32(p))
        shapes = [jax.eval_shape(begin, p) for p in leaves]
        check_accumulators(treedef, template, state.accumulators, shapes, design)
        new_updates, accumulators = update_leaves(
            update_tensor,
            grads,
            leaves,
            split_leaves(treedef, template, state.accumulators, shapes),
            shapes,
            *shared(state.count, run_state),
        )
        return treedef.unflatten(new_updates), PerTensorState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            accumulators=join_leaves(treedef, template, accumulators),
            run_state=run_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


SMALL = 2**14
"""Equal-shaped tensors of up to so many numbers are updated as one."""

MANY = 3
"""From so many on: two are stacked and taken apart again by as many kernels as they save."""

CROWD = 8
"""From so many on in two halves, by a loop: without its boundary XLA would copy the rule into each
tensor that is taken out again."""


def update_leaves(
    update_tensor: Rule,
    grads: Sequence[jax.Array],
    params: Sequence[jax.Array],
    accumulators: Sequence[Any],
    shapes: Sequence[Any],
    *shared: Any,
) -> tuple[list[jax.Array], list[Any]]:
    """Apply a rule for one tensor to each of them.

    What a program takes to trace and to compile grows with the number of different shapes, and that
    of large tensors, not with the number of tensors: those of equal shape share a trace, in this
    tree and in any other that the same rule has updated, and small ones of equal shape are stacked
    and updated as one.

    Args:
        update_tensor: `(grad, param, accumulators, *shared) -> (update, accumulators)`.
        grads: Gradient of each tensor, of any floating-point dtype.
        params: Each tensor.
        accumulators: Accumulators of each tensor, with what is packed `raveled`.
        shapes: The same as the rule knows them, of which only the shapes matter.
        *shared: Arguments that are the same for all tensors.

    Returns:
        The updates, in the dtypes of the gradients, and the accumulators.
    """
    rule = jax.jit(update_tensor)
    axes = [g.axis if isinstance(g, Stack) else None for g in grads]
    grads, params, accumulators, shapes = map(untagged, (grads, params, accumulators, shapes))
    # Under explicit mesh axes a sharding is part of a type, and only equal types can be stacked.
    kind = lambda i: (jnp.shape(grads[i]), axes[i], *map(sharding_of, (grads[i], params[i])))
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for i in range(len(grads)):
        by_kind.setdefault(kind(i), []).append(i)
    found: dict[int, tuple[jax.Array, Any]] = {}
    for (shape, axis, *_), group in by_kind.items():
        apply = partial(apply_rule, rule, shapes[group[0]], axis, shared)
        tensors = [(as_float32(grads[i]), as_float32(params[i]), accumulators[i]) for i in group]
        if math.prod(shape) == 0:  # means over nothing would be NaN
            results = [(g, found) for g, _, found in tensors]
        elif len(group) < MANY or math.prod(shape) > SMALL:
            results = map(apply, tensors)
        else:
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *tensors)
            if len(group) < CROWD:
                result = jax.vmap(apply)(stacked)
            else:
                result = jax.lax.map(apply, stacked, batch_size=len(group) // 2)
            results = [jax.tree.map(lambda x, k=k: x[k], result) for k in range(len(group))]
        found |= dict(zip(group, results, strict=True))
    updates = [found[i][0].astype(jnp.result_type(g)) for i, g in enumerate(grads)]
    new = [found[i][1] for i in range(len(grads))]
    back = lambda axis, x, as_stack: x if axis is None else as_stack(x, axis)
    return (
        [back(axis, x, Stack) for axis, x in zip(axes, updates, strict=True)],
        [back(axis, x, in_stack) for axis, x in zip(axes, new, strict=True)],
    )


def apply_rule(
    rule: Rule,
    shapes: Any,
    axis: int | None,
    shared: Sequence[Any],
    tensor: tuple[jax.Array, jax.Array, Any],
) -> tuple[jax.Array, Any]:
    """Apply a rule to a tensor, or to each of those along an axis."""
    g, p, found = tensor
    found = map_packed(unraveled, found, shapes)
    if axis is not None:
        axes = axes_of(found, axis)
        in_axes = (axis, axis, axes, *[None] * len(shared))
        rule = jax.vmap(rule, in_axes, (axis, axes))
        if any(sharding_of(x).spec[axis] for x in (g, p)):  # vmap and explicit axes do not agree
            like = jax.tree.map(sharding_of, (g, found))
            rule = cast(Rule, jax.sharding.auto_axes(rule, out_sharding=like))
    update, found = rule(g, p, found, *shared)
    return update, map_packed(raveled, found)
