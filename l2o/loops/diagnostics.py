"""What an optimizer is doing, read from its state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import require_params, require_state
from l2o.leaves import is_number, require_transformation


class DiagnosedState(NamedTuple):
    """State of an optimizer whose last update is described.

    Attributes:
        inner: State of the optimizer.
        step_size: Norm of the last update over that of the gradient, of each tensor in the order of
            `jax.tree.leaves(params)`; shape (tensors,), as are the others. 0 before the first
            update and where there is no gradient.
        relative_update: Norm of the last update over that of the parameter.
        cosine: Cosine between the last update and the negative gradient, 1 for gradient descent.
    """

    inner: optax.OptState
    step_size: jax.Array
    relative_update: jax.Array
    cosine: jax.Array


def diagnosed(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer keep in its state what `l2o.diagnostics` reads; updates stay what they are.

    Args:
        tx: Any optax transformation; its `update` then needs `params`.
    """
    inner = require_transformation(tx, "tx")

    def init(params: optax.Params) -> DiagnosedState:
        nothing = lambda: jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
        return DiagnosedState(inner.init(params), nothing(), nothing(), nothing())

    def update(
        updates: optax.Updates,
        state: DiagnosedState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DiagnosedState]:
        params = require_params(params, "diagnosed")
        state = require_state(state, DiagnosedState, "diagnosed")
        steps, after = inner.update(updates, state.inner, params, **extra_args)
        leaves, treedef = jax.tree.flatten(params)
        tensors = zip(
            treedef.flatten_up_to(steps), treedef.flatten_up_to(updates), leaves, strict=True
        )
        rows = [describe(*tensor) for tensor in tensors]
        columns = jnp.array(rows, jnp.float32).reshape(-1, 3).T
        return steps, DiagnosedState(after, *columns)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def describe(step: Any, grad: Any, param: Any) -> tuple[jax.Array, ...]:
    """Compute step size, relative update and cosine of one tensor."""
    zero = jnp.float32(0.0)
    if not is_number(step) or not is_number(grad):
        return zero, zero, zero
    u, g, p = (jnp.ravel(jnp.asarray(x, jnp.float32)) for x in (step, grad, param))
    size = jnp.linalg.norm
    over = lambda x, y: jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)
    return over(size(u), size(g)), over(size(u), size(p)), over(-(u @ g), size(u) * size(g))


def diagnostics(state: optax.OptState) -> dict[str, jax.Array]:
    """Read what an optimizer is doing; inside `jit`, too.

    >>> import jax.numpy as jnp, l2o
    >>> tx = l2o.diagnosed(l2o.optimizer("digits", horizon=100))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
    >>> sorted(l2o.diagnostics(state))
    ['cosine', 'relative_update', 'step_size']

    Args:
        state: State of any optimizer, also of one inside `optax.chain` or `l2o.guarded`.

    Returns:
        What there is in the state: `step_size`, `relative_update` and `cosine` of each tensor where
        `l2o.diagnosed` is around the optimizer, see `DiagnosedState`; the hyperparameters that a
        policy, a guarded or an injected optimizer has at this step, by name (several policies'
        in the order of the state), an entry a tensor where each has an agent; `switches`,
        `last_switch` and `last_return` of a guard. Empty if there is none of these.
    """
    names = ("step_size", "relative_update", "cosine", "switches", "last_switch", "last_return")
    found: dict[str, jax.Array] = {}
    for name in names:
        for _, value in optax.tree.get_all_with_path(state, name):
            found.setdefault(name, value)
    for number, (_, values) in enumerate(optax.tree.get_all_with_path(state, "hyperparams")):
        for name, value in values.items():
            (array,) = jax.tree.leaves(value)  # a flat array of all tensors is packed
            key = f"hyperparameters/{name}"
            found[key if key not in found else f"hyperparameters/{number}/{name}"] = array
    return found
