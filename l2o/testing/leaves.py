"""What a learned optimizer must do with the trees, gradients and losses that people have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.learned_optimizer import LearnedOptimizer
from l2o.testing.trees import Tree, difference_of, distance_of, fail, leaves, one_line

EDGE = "Decorate its constructor with l2o.design, which takes such trees"
STEPS_TO_RECOVER = 10
"""Updates after a gradient that overflowed, by when they have about their size again."""


def check_leaves(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    compiled: optax.GradientTransformationExtraArgs,
    rtol: float,
) -> None:
    """Check leaves that are no numbers, complex or empty, gradients that overflow, and losses.

    Args:
        lopt: Learned optimizer, for errors.
        tx: Its transformation.
        compiled: The same with a compiled update.
        rtol: Relative difference between updates that should be equal.
    """
    rng = np.random.default_rng(0)
    w, g = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(2))
    _check_not_numbers(lopt, tx, w, g)
    _check_complex(lopt, tx)
    _check_empty_leaves(lopt, compiled, w, g, rtol)
    _check_overflow(lopt, compiled, w, g)
    _check_losses(lopt, tx, compiled, w, g)


def _check_not_numbers(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    w: jax.Array,
    g: jax.Array,
) -> None:
    params = {"w": w, "activation": jax.nn.relu, "frozen": w, "bias": None}
    grads = {"w": g, "activation": None, "frozen": None, "bias": None}
    try:
        state = tx.init(params)
        updates, after = _update(tx, grads, state, params)
    except Exception as error:
        fail(
            f"`lopt` {lopt.name}: leaves that are no numbers fail ({one_line(error)})", EDGE, error
        )
    kept = [name for name in grads if grads[name] is None and updates[name] is not None]
    if kept or updates["w"].shape != w.shape:
        fail(f"`lopt` {lopt.name}: the update of what has no gradient is not None: {kept}", EDGE)
    if difference := difference_of(after, state):
        fail(f"`lopt` {lopt.name}: a gradient of None changes the state: {difference}", EDGE)


def _check_complex(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    params = {"z": jnp.array([1 + 2j, 3 - 1j], jnp.complex64)}
    grads = {"z": jnp.array([1j, -2j], jnp.complex64)}
    try:
        updates, _ = _update(tx, grads, tx.init(params), params)
    except Exception as error:
        if not isinstance(error, ValueError) or "complex" not in str(error):
            fail(f"`lopt` {lopt.name}: complex leaves fail ({one_line(error)})", EDGE, error)
    else:
        if not np.any(np.imag(updates["z"])):
            fail(f"`lopt` {lopt.name}: the imaginary parts of complex leaves stay", EDGE)


def _check_empty_leaves(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    w: jax.Array,
    g: jax.Array,
    rtol: float,
) -> None:
    nothing = {"none": jnp.zeros((0, 3)), "nil": jnp.zeros(0), "void": jnp.zeros((3, 0))}
    expected, _ = _steps(tx, [{"w": g}] * 3, {"w": w})
    found, state = _steps(tx, [{"w": g, **nothing}] * 3, {"w": w, **nothing})
    if not all(np.all(np.isfinite(x)) for x in leaves(state)):
        fail(f"`lopt` {lopt.name}: a leaf without elements gives a state that is not finite", EDGE)
    apart = [{"w": update["w"]} for update in found]
    if difference := distance_of(apart, expected, 10 * rtol):
        fail(f"`lopt` {lopt.name}: a leaf without elements changes others: {difference}", EDGE)


def _check_overflow(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    w: jax.Array,
    g: jax.Array,
) -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        params, usual = {"w": w.astype(dtype)}, {"w": g.astype(dtype)}
        expected, _ = _steps(tx, [usual] * (STEPS_TO_RECOVER + 2), params)
        for size in (1e20, jnp.inf, -jnp.inf, jnp.nan):
            extreme = {
                "w": jnp.full_like(usual["w"], jnp.float32(size).astype(dtype))
                .at[0, 0]
                .set(usual["w"][0, 0])
            }
            grads = [usual, extreme, *[usual] * STEPS_TO_RECOVER]
            found, state = _steps(tx, grads, params)
            what = f"a gradient of {size} in {dtype.__name__}"
            if not all(np.all(np.isfinite(x)) for x in leaves([found, state])):
                fail(f"`lopt` {lopt.name}: {what} gives updates or a state not finite", EDGE)
            now, then = (float(optax.tree.norm(x[-1])) for x in (found, expected))
            if not then / 2 <= now <= 2 * then:
                fail(
                    f"`lopt` {lopt.name}: {STEPS_TO_RECOVER} steps after {what} updates are "
                    f"{now / then:.2g} times as large as without it",
                    EDGE,
                )


def _check_losses(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    compiled: optax.GradientTransformationExtraArgs,
    w: jax.Array,
    g: jax.Array,
) -> None:
    def update(value: Any) -> tuple[Tree, Tree]:
        return _update(tx, {"w": g}, tx.init({"w": w}), {"w": w}, value)

    _, expected = update(jnp.float32(1.0))
    for value in (jnp.bfloat16(1.0), np.float64(1.0), 1.0, jnp.ones(1), jnp.ones((1, 1))):
        try:
            _, state = update(value)
        except Exception as error:
            fail(f"`lopt` {lopt.name}: a loss {value!r} fails ({one_line(error)})", EDGE, error)
        if difference := difference_of(state, expected):
            fail(f"`lopt` {lopt.name}: a loss {value!r} changes the state: {difference}", EDGE)
    try:
        _, state = update(jnp.ones(2))
    except ValueError as error:
        if "`value`" not in str(error):
            fail(
                f"`lopt` {lopt.name}: a loss of two numbers fails ({one_line(error)})", EDGE, error
            )
    else:
        if difference := difference_of(state, expected):
            fail(f"`lopt` {lopt.name}: a loss of two numbers changes the state: {difference}", EDGE)
    for value in (jnp.nan, jnp.inf, -jnp.inf, -1.0, 0.0):
        losses = [1.0, value, 1.0, 0.9]
        found, _ = _steps(compiled, [{"w": g}] * len(losses), {"w": w}, losses)
        if not all(np.all(np.isfinite(x)) for x in leaves(found)):
            fail(
                f"`lopt` {lopt.name}: a loss of {value} gives updates that are not finite",
                "Leave it out of what the state remembers",
            )


def _update(
    tx: optax.GradientTransformationExtraArgs,
    grads: Tree,
    state: Tree,
    params: Tree,
    value: Any = 1.0,
) -> tuple[Tree, Tree]:
    return tx.update(grads, state, params, value=value)


def _steps(
    tx: optax.GradientTransformationExtraArgs,
    grads: list[Tree],
    params: Tree,
    losses: list[float] | None = None,
) -> tuple[list[Tree], Tree]:
    """Updates of consecutive steps at the same parameters, and the last state."""
    state, found = tx.init(params), []
    for each, loss in zip(grads, losses or [1.0] * len(grads), strict=True):
        updates, state = _update(tx, each, state, params, jnp.float32(loss))
        found.append(updates)
    return found, state
