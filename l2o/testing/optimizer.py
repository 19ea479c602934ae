"""What a learned optimizer must do as an optax transformation, and in meta-training."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o import release
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.registry import DESIGNS
from l2o.testing.leaves import check_leaves
from l2o.testing.states import SHAPES, check_states, check_types
from l2o.testing.trees import (
    Tree,
    difference_of,
    distance_of,
    fail,
    is_equal,
    leaves,
    one_line,
    path_name,
    within,
)


class Case(NamedTuple):
    """Arguments of one update."""

    grads: dict[str, jax.Array]
    params: dict[str, jax.Array]
    value: jax.Array


SMALL = {"a": (2, 3), "b": (2,)}


def check_optimizer(
    lopt: LearnedOptimizer,
    *,
    design: Callable[..., LearnedOptimizer] | None = None,
    horizon: int = 10,
    rtol: float = 1e-4,
    seed: int = 0,
) -> None:
    """Check that a learned optimizer behaves as optax and meta-training expect.

    Its functions must be pure; updates must be like the gradients, also for scalars, bfloat16 and
    trees without leaves; the state must keep its structure, shapes and dtypes, hold no array twice
    or of somebody else's, and what belongs to a parameter must be of its shape, where
    `optax.tree.map_params` finds it; counters must not overflow; updates must
    be finite on zero gradients, and the same under `jit`, `vmap` over theta and `scan` and inside
    `optax.chain`, `optax.masked` and `optax.MultiSteps`; and a release file must restore it.
    Leaves may be None, functions, empty or frozen by a gradient of None; complex ones must be
    trained or refused; one gradient that overflows and a loss that is not finite must leave
    updates and state finite; and a loss that is no scalar must be taken as one or refused.

    Args:
        lopt: Learned optimizer to check.
        design: Constructor by which a release file rebuilds it; without one, a design that does
            not come with l2o is not rebuilt from its configuration.
        horizon: Number of training steps that the optimizer is told.
        rtol: Relative difference between updates that should be equal. Compiled and interpreted
            updates may differ by ten times as much.
        seed: Seed of all keys.

    Raises:
        AssertionError: If it misbehaves; one line says how, and what to do.

    >>> import l2o
    >>> l2o.testing.check_optimizer(l2o.learnable_sgd())
    """
    thetas = [_perturbed_theta(lopt, seed + i) for i in range(4)]
    theta = thetas[0]
    tx = within(lopt, "transform", lambda: lopt.transform(theta, horizon=horizon))
    check_types(lopt, tx)
    compiled = optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))
    _check_finite(lopt, compiled)
    check_states(lopt, tx, theta)
    _check_pure(lopt, tx, theta)
    cases = [_case(SMALL, seed) for seed in range(2)]
    expected = _run(compiled, cases)
    plain = _run(tx, cases, is_last=jnp.zeros(2))  # an argument that no optimizer knows
    _check_same(lopt, "under jit", expected, plain, 10 * rtol)
    _check_same(lopt, "in a scan", _scan(tx, cases), expected, rtol)
    _check_vmap(lopt, thetas, cases[0], horizon, rtol)
    _check_bfloat16(lopt, compiled, rtol)
    _check_wrappers(lopt, compiled, cases, rtol)
    _check_empty(lopt, tx)
    _check_missing(lopt, theta, horizon, cases[0])
    check_leaves(lopt, tx, compiled, rtol)
    _check_release(lopt, design, theta, horizon, cases, expected, rtol)


def _perturbed_theta(lopt: LearnedOptimizer, seed: int) -> Theta:
    """Theta away from its start, where some designs do nothing."""
    k_init, k_noise = jax.random.split(jax.random.key(seed))
    theta, again = lopt.init(k_init), lopt.init(k_init)
    if not is_equal(theta, again):
        fail(
            f"`lopt` {lopt.name}: `init` gives another theta for the same key",
            "Draw all that is random from the key",
        )
    for path, leaf in jax.tree.leaves_with_path(theta):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) or not np.all(np.isfinite(leaf)):
            fail(
                f"`lopt` {lopt.name}: theta must be finite and floating point; got {dtype} at "
                f"theta{path_name(path)}",
                "Keep integers in the configuration",
            )
    theta = jax.tree.map(jnp.asarray, theta)
    return jax.tree.map(lambda t, z: t + 0.3 * z, theta, optax.tree.random_like(k_noise, theta))


def _check_finite(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    case = _case(SHAPES)
    (updates,), _ = _run(tx, [case])
    for path, update in jax.tree.leaves_with_path(updates):
        if not np.all(np.isfinite(update)):
            fail(
                f"`lopt` {lopt.name}: the update of the {path[0].key} is not finite",
                "Look for roots, logarithms and divisions at zero",
            )
        if not np.any(update):
            fail(
                f"`lopt` {lopt.name}: the update of the {path[0].key} is zero",
                "Return what optax.apply_updates should add",
            )
    zero = case._replace(grads=jax.tree.map(jnp.zeros_like, case.grads), value=jnp.float32(0.0))
    if not all(np.all(np.isfinite(x)) for x in leaves(_run(tx, [zero] * 3))):
        fail(
            f"`lopt` {lopt.name}: zero gradients give updates or a state that is not finite",
            "Add a small number to what is divided by, or under a root",
        )


def _check_pure(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, theta: Theta):
    case = _case(SMALL)
    state = tx.init(case.params)
    arguments = (theta, state, case)
    before = jax.tree.flatten(arguments)
    found = [tx.update(case.grads, state, case.params, value=case.value) for _ in range(2)]
    if not is_equal(*found):
        fail(
            f"`lopt` {lopt.name}: `update` differs between two calls with the same arguments",
            "Keep what it remembers in the state, random keys too",
        )
    after = jax.tree.flatten(arguments)
    if before[1] != after[1] or any(x is not y for x, y in zip(before[0], after[0], strict=True)):
        fail(
            f"`lopt` {lopt.name}: `update` changes its arguments in place",
            "Return new containers",
        )


def _check_vmap(
    lopt: LearnedOptimizer, thetas: list[Theta], case: Case, horizon: int, rtol: float
) -> None:
    def update(theta: Theta) -> Tree:
        tx = lopt.transform(theta, horizon=horizon)
        return tx.update(case.grads, tx.init(case.params), case.params, value=case.value)[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)
    together = within(lopt, "vmap over theta", lambda: jax.jit(jax.vmap(update))(stacked))
    apart = [jax.jit(update)(theta) for theta in thetas]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    _check_same(lopt, "under vmap over theta", together, expected, rtol)
    if all(np.allclose(x, x[:1]) for x in map(np.asarray, jax.tree.leaves(together))):
        fail(
            f"`lopt` {lopt.name}: four random thetas give the same updates",
            "Use theta in `transform`",
        )


def _check_bfloat16(
    lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, rtol: float
) -> None:
    half = _case(SMALL, dtype=jnp.bfloat16)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    found, expected = (_run(tx, [case] * 25)[1] for case in (half, full))
    if difference := difference_of(found, expected) or distance_of(found, expected, rtol):
        fail(
            f"`lopt` {lopt.name}: bfloat16 parameters give another state than the same in float32 "
            f"after 25 steps: {difference}",
            "Keep accumulators in float32, as `per_tensor_transform` does",
        )


def _check_wrappers(
    lopt: LearnedOptimizer,
    tx: optax.GradientTransformationExtraArgs,
    cases: list[Case],
    rtol: float,
) -> None:
    run = lambda name, wrapped, cases: within(lopt, name, lambda: _run(wrapped, cases))[0]
    bare, _ = _run(tx, cases)
    chain = optax.chain(optax.clip_by_global_norm(1e6), tx, optax.scale(0.5))
    halves = jax.tree.map(lambda u: 0.5 * u, bare)
    _check_same(lopt, "in optax.chain", run("optax.chain", chain, cases), halves, rtol)

    masked = run("optax.masked", optax.masked(tx, {"a": True, "b": False}), cases)
    only = lambda tree: {"a": tree["a"]}
    alone, _ = _run(tx, [c._replace(grads=only(c.grads), params=only(c.params)) for c in cases])
    expected = [{**u, "b": c.grads["b"]} for u, c in zip(alone, cases, strict=True)]
    _check_same(lopt, "in optax.masked", masked, expected, rtol)

    first, second = cases[0], cases[1]._replace(params=cases[0].params)
    multi = optax.MultiSteps(tx, every_k_schedule=2)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, first.grads, second.grads)
    (expected,), _ = _run(tx, [second._replace(grads=mean)])
    found = run("optax.MultiSteps", multi, [first, second])
    nothing = jax.tree.map(jnp.zeros_like, first.grads)
    _check_same(lopt, "in optax.MultiSteps", found[0], nothing, rtol)
    _check_same(lopt, "in optax.MultiSteps", found[1], expected, 10 * rtol)


def _check_empty(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    for params in ({}, {"frozen": None, "b": {}}, ()):
        updates, _ = within(
            lopt,
            f"update of {params}",
            lambda p=params: tx.update(p, tx.init(p), p, value=jnp.float32(1.0)),
        )
        if jax.tree.structure(updates) != jax.tree.structure(params):
            fail(
                f"`lopt` {lopt.name}: the update of {params} is {updates}",
                "Return a tree like the parameters, whatever their number",
            )


def _check_missing(lopt: LearnedOptimizer, theta: Theta, horizon: int, case: Case) -> None:
    """What is not passed must not be needed, or be asked for."""

    def call(argument: str) -> None:
        tx = lopt.transform(theta, **({} if argument == "horizon" else {"horizon": horizon}))
        params = None if argument == "params" else case.params
        value = {} if argument == "value" else {"value": case.value}
        tx.update(case.grads, tx.init(case.params), params, **value)

    for argument in ("horizon", "params", "value"):
        try:
            call(argument)
        except Exception as error:
            if not isinstance(error, ValueError) or f"`{argument}`" not in str(error):
                fail(
                    f"`lopt` {lopt.name}: without `{argument}` it fails ({one_line(error)})",
                    f"Do without it, or call l2o.learned_optimizer.require_{argument}",
                    error,
                )


def _check_release(
    lopt: LearnedOptimizer,
    design: Callable[..., LearnedOptimizer] | None,
    theta: Theta,
    horizon: int,
    cases: list[Case],
    expected: tuple[Tree, Tree],
    rtol: float,
) -> None:
    if design is None and lopt.name not in DESIGNS:
        design = lambda **config: lopt

    def reload() -> tuple[LearnedOptimizer, Theta]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "theta.safetensors"
            release.save(path, lopt, theta)
            return release.load(path, design=design)

    loaded, weights = within(lopt, "a release file", reload)
    if dict(loaded.config) != dict(lopt.config) or not is_equal(weights, theta):
        fail(
            f"`lopt` {lopt.name}: a release file restores another theta or configuration",
            "Make `config` the arguments of the constructor",
        )
    tx = loaded.transform(weights, horizon=horizon)
    found = _run(optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update)), cases)
    _check_same(lopt, "from a release file", found, expected, rtol)


def _case(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: Any = jnp.float32) -> Case:
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return Case(
        grads={name: draw(shape) for name, shape in shapes.items()},
        params={name: draw(shape) for name, shape in shapes.items()},
        value=jnp.float32(1.5 + seed),
    )


def _run(tx: Any, cases: list[Case], **extra: Any) -> tuple[list[Tree], Tree]:
    """Updates of consecutive steps, and the last state."""
    state, found = tx.init(cases[0].params), []
    for case in cases:
        updates, state = tx.update(case.grads, state, case.params, value=case.value, **extra)
        found.append(updates)
    return found, state


def _scan(tx: optax.GradientTransformationExtraArgs, cases: list[Case]) -> tuple[list[Tree], Tree]:
    """The same as `_run`, by `jax.lax.scan`."""

    def step(state: Tree, case: Case) -> tuple[Tree, Tree]:
        updates, state = tx.update(case.grads, state, case.params, value=case.value)
        return state, updates

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    state, updates = jax.jit(lambda s, c: jax.lax.scan(step, s, c))(
        tx.init(cases[0].params), stacked
    )
    return [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(len(cases))], state


def _check_same(lopt: LearnedOptimizer, where: str, found: Tree, expected: Tree, rtol: float):
    if difference := difference_of(found, expected) or distance_of(found, expected, rtol):
        fail(
            f"`lopt` {lopt.name}: updates or states {where} are others: {difference}",
            "Compute updates from theta, gradients, state, parameters and value alone",
        )
