"""What the state of a learned optimizer must be, to be kept, donated and sharded like optax's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.testing.trees import Tree, difference_of, fail, is_equal, leaves, path_name, within

SHAPES = {"scalar": (), "vector": (3,), "matrix": (2, 3), "kernel": (1, 2, 3, 2)}
LARGE = {"matrix": (48, 64), "bias": (64,)}


def check_states(
    lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, theta: Theta
) -> None:
    """Check what becomes of a state in a training loop.

    Args:
        lopt: Learned optimizer, for errors.
        tx: Its transformation.
        theta: Theta of the transformation.
    """
    _check_buffers(lopt, tx, theta)
    _check_placement(lopt, tx)
    _check_counters(lopt, tx)
    _check_serialization(lopt, tx)


def check_types(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    """Check that updates are like gradients, and a state stays what `init` makes it.

    Args:
        lopt: Learned optimizer, for errors.
        tx: Its transformation.
    """
    for dtype in (jnp.float32, jnp.bfloat16):
        params = _draw(SHAPES, dtype)
        state = within(lopt, f"init of {dtype.__name__} parameters", lambda p=params: tx.init(p))
        updates, after = within(
            lopt,
            f"update of {dtype.__name__} parameters",
            lambda p=params, s=state: jax.eval_shape(tx.update, p, s, p, value=jnp.float32(1.5)),
        )
        if difference := difference_of(updates, params):
            fail(
                f"`lopt` {lopt.name}: updates must be like the gradients: {difference}",
                "Return them in the gradients' shapes and dtypes, as `per_tensor_transform` does",
            )
        if difference := difference_of(after, state):
            fail(
                f"`lopt` {lopt.name}: the state must stay as `init` makes it: {difference}",
                "Begin with arrays of the shapes and dtypes that `update` returns",
            )


def _check_buffers(
    lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, theta: Theta
) -> None:
    """A loop that donates its state must delete nothing else, and can donate nothing twice."""
    params = _draw({"a": (2, 3), "b": (2,)})
    state = tx.init(params)
    pointers = lambda tree: [x.unsafe_buffer_pointer() for x in leaves(tree) if jnp.size(x)]
    for name, other in (("theta", theta), ("the parameters", params)):
        if set(pointers(other)) & set(pointers(state)):
            fail(
                f"`lopt` {lopt.name}: the state holds an array of {name}, which a loop that "
                "donates its state would delete",
                "Copy it by jnp.array",
            )
    if len(set(pointers(state))) < len(pointers(state)):
        fail(
            f"`lopt` {lopt.name}: the state holds an array twice, which cannot be donated",
            "Make an array for each leaf in `init`",
        )


def _check_placement(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    """What belongs to a parameter must be of its shape, in a tree like the parameters."""
    params = _draw(LARGE)
    advice = "Keep an array of the parameter's shape for each accumulator, and the rest l2o.Packed"

    def placed(x: Any, p: jax.Array) -> Any:
        if jnp.shape(x) != p.shape:
            fail(
                f"`lopt` {lopt.name}: an accumulator of a parameter of shape {p.shape} has shape "
                f"{jnp.shape(x)}, and cannot be sharded like it",
                advice,
            )
        return x

    def not_placed(x: Any) -> Any:
        if jnp.size(x) >= params["matrix"].size:
            fail(
                f"`lopt` {lopt.name}: an array of shape {jnp.shape(x)} grows with the parameters "
                "and belongs to none of them",
                advice,
            )
        return x

    within(
        lopt,
        "optax.tree.map_params",
        lambda: optax.tree.map_params(
            tx, placed, tx.init(params), params, transform_non_params=not_placed
        ),
    )


def _check_counters(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    params = _draw(SHAPES)
    is_counter = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.signedinteger)
    last = lambda x: jnp.full_like(x, jnp.iinfo(x.dtype).max) if is_counter(x) else x
    state = jax.tree.map(last, tx.init(params))
    updates, after = tx.update(params, state, params, value=jnp.float32(1.5))
    for path, x in jax.tree.leaves_with_path(after):
        if is_counter(x) and jnp.any(x < 0):
            fail(
                f"`lopt` {lopt.name}: the counter at state{path_name(path)} overflows",
                "Count by optax.safe_increment",
            )
    if not all(np.all(np.isfinite(x)) for x in leaves(updates)):
        fail(
            f"`lopt` {lopt.name}: updates are not finite once a counter is at its largest value",
            "Bound what grows with the count",
        )


def _check_serialization(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    params = _draw(SHAPES)
    _, state = tx.update(params, tx.init(params), params, value=jnp.float32(1.5))
    stored = within(lopt, "flax.serialization", lambda: serialization.to_bytes(state))
    found = within(
        lopt, "flax.serialization", lambda: serialization.from_bytes(tx.init(params), stored)
    )
    if difference_of(found, state) or not is_equal(found, state):
        fail(
            f"`lopt` {lopt.name}: flax.serialization restores another state",
            "Keep arrays in dictionaries, lists and named tuples",
        )


def _draw(shapes: Mapping[str, tuple[int, ...]], dtype: Any = jnp.float32) -> Tree:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
