"""Checks of tasks and learned optimizers, for the tests of those who write one."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o import release
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.registry import DESIGNS
from l2o.task import Batch, Data, Instance, Key, Split, Task, validate_task

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NUM_DRAWS = 8
LEARNING_RATES = (0.001, 0.01, 0.1)

Tree = Any
T = TypeVar("T")


class Trial(NamedTuple):
    """Everything that a task gives for one key; the last two by split."""

    sample: Instance
    init: optax.Params
    batch: Mapping[str, Batch]
    gradient: optax.Params
    loss: Mapping[str, jax.Array]
    metrics: Mapping[str, Mapping[str, jax.Array]]


def check_task(task: Task, *, num_steps: int = 100, seed: int = 0) -> None:
    """Check that a task behaves as meta-training expects.

    Functions must depend on their arguments alone and on the key, and be right under `vmap`;
    losses and gradients must be finite at initialisation, and losses below `loss_cap`; batches of
    all splits must be alike; metrics must be finite scalars, no worse than their caps; `shrink`
    must keep shapes and leave rows out; and Adam must train all parameters to a lower loss at one
    of three learning rates.

    Args:
        task: Task to check.
        num_steps: Number of steps for which Adam trains it.
        seed: Seed of all keys.

    Raises:
        ValueError: If the task is malformed; see `Task`.
        AssertionError: If it misbehaves; one line says how, and what to do.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> l2o.testing.check_task(rotated_quadratic(dim=2), num_steps=20)
    """
    validate_task(task)
    keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
    compiled = lambda: jax.jit(lambda key, data: _trial(task, key, data))  # a new trace each time
    first, again = compiled()(keys[0], task.data), compiled()(keys[0], task.data)
    draws = jax.jit(jax.vmap(lambda key, data: _trial(task, key, data), (0, None)))(keys, task.data)
    _check_draws(task, first, again, draws)
    _check_values(task, draws)
    _check_metrics(task, draws)
    _check_shrink(task, draws)
    _check_adam(task, keys, num_steps)


def _trial(task: Task, key: Key, data: Data) -> Trial:
    k_sample, k_init, k_batch = jax.random.split(key, 3)
    instance = task.sample(k_sample)
    params = task.init(k_init, instance)
    batch: dict[str, Batch] = {
        split: task.batch(k_batch, instance, data, split) for split in SPLITS
    }
    return Trial(
        sample=instance,
        init=params,
        batch=batch,
        gradient=jax.grad(task.loss)(params, batch["train"], instance),
        loss={split: task.loss(params, batch[split], instance) for split in SPLITS},
        metrics={split: dict(task.metrics(params, batch[split], instance)) for split in SPLITS},
    )


def _check_draws(task: Task, first: Trial, again: Trial, draws: Trial) -> None:
    for name in Trial._fields:
        if not _equal(getattr(first, name), getattr(again, name)):
            _fail(
                f"`task` {task.name}: {name} differs between two calls with the same arguments",
                "Draw all that is random from the key, in `sample`, `init` or `batch`",
            )
    one, many = np.asarray(first.loss["train"]), np.asarray(draws.loss["train"])[0]
    if not np.allclose(one, many, rtol=1e-3, atol=1e-6, equal_nan=True):
        _fail(
            f"`task` {task.name}: the loss is {one} alone and {many} under vmap",
            "Use functions of jax.numpy and no shapes that depend on values",
        )
    drawn = (draws.sample, draws.init, draws.batch["train"])
    if all(np.array_equal(x, x[:1].repeat(len(x), 0)) for x in map(_numbers, _leaves(drawn))):
        _fail(
            f"`task` {task.name}: the key changes neither instance, parameters nor batch",
            "Draw initial parameters or batches from the key",
        )
    for split in SPLITS[1:]:
        if difference := _difference(first.batch[split], first.batch["train"]):
            _fail(
                f"`task` {task.name}: a {split} batch is not like a train batch: {difference}",
                "Return batches of one size from all splits",
            )


def _check_values(task: Task, draws: Trial) -> None:
    for split, losses in draws.loss.items():
        if not np.all(np.isfinite(losses)):
            _fail(
                f"`task` {task.name}: the loss on a {split} batch is not finite at initialisation",
                "Check `init` and `loss`",
            )
    typical = float(np.median(draws.loss["train"]))
    if typical >= task.loss_cap:
        _fail(
            f"`task` {task.name}: the loss at initialisation, {typical:.3g}, is not below its "
            f"`loss_cap`, {task.loss_cap:.3g}",
            f"Try loss_cap={4 * typical:.3g}",
        )
    for path, gradient in jax.tree.leaves_with_path(draws.gradient):
        if not np.all(np.isfinite(gradient)):
            _fail(
                f"`task` {task.name}: the gradient is not finite at params{_name(path)}",
                "Look for roots, logarithms and divisions at zero in `loss`",
            )


def _check_metrics(task: Task, draws: Trial) -> None:
    metrics = draws.metrics
    for argument in ("maximized", "metric_caps"):
        if unknown := sorted(set(getattr(task, argument)) - metrics["train"].keys()):
            _fail(
                f"`{argument}` of task {task.name} names {', '.join(unknown)}, which `metrics` "
                f"lacks; it has {', '.join(metrics['train']) or 'none'}",
                "Use the names of metrics",
            )
    for split in SPLITS:
        for name, values in metrics[split].items():
            if values.shape != (NUM_DRAWS,) or not np.all(np.isfinite(values)):
                _fail(
                    f"`task` {task.name}: metric {name} must be a finite scalar; got "
                    f"{values.dtype}{values.shape[1:]}, on a {split} batch at initialisation",
                    "Return its mean over the batch",
                )
            cap, value = task.metric_caps.get(name), float(np.median(values))
            if cap is not None and (value < cap if name in task.maximized else value > cap):
                _fail(
                    f"`metric_caps` of task {task.name} has {name}={cap:.3g}, which the metric "
                    f"exceeds at initialisation, {value:.3g}",
                    "Give the worst that it can cost",
                )


def _check_shrink(task: Task, draws: Trial) -> None:
    shrink, batches = task.shrink, draws.batch["train"]
    if shrink is None:
        return

    def losses(fraction: float) -> np.ndarray:
        def loss(params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
            smaller = shrink(batch, jnp.float32(fraction))
            if difference := _difference(smaller, batch):
                _fail(
                    f"`shrink` of task {task.name} must keep shapes and dtypes: {difference}",
                    "Count fewer rows instead of cutting them off",
                )
            return task.loss(params, smaller, instance)

        return np.asarray(jax.jit(jax.vmap(loss))(draws.init, batches, draws.sample))

    whole = np.asarray(draws.loss["train"])
    if not np.allclose(losses(1.0), whole, rtol=1e-4, atol=1e-6):
        _fail(
            f"`shrink` of task {task.name} changes the loss at fraction=1.0",
            "Return the whole batch there",
        )
    if np.array_equal(losses(0.3), whole):
        _fail(
            f"`shrink` of task {task.name} does not change the loss at fraction=0.3",
            "Leave out rows, or drop `shrink`",
        )
    if not np.all(np.isfinite(losses(1e-6))):
        _fail(
            f"`shrink` of task {task.name} makes the loss infinite or NaN at fraction=0.000001",
            "Keep one row at least",
        )


def _check_adam(task: Task, keys: jax.Array, num_steps: int) -> None:
    def train(rate: jax.Array, key: Key, data: Data) -> tuple[jax.Array, jax.Array, Tree]:
        k_sample, k_init, k_probe, k_train = jax.random.split(key, 4)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        tx = optax.adam(rate)

        def mean_loss(params: optax.Params) -> jax.Array:
            loss = lambda k: task.loss(params, task.batch(k, instance, data, "train"), instance)
            return jnp.mean(jax.vmap(loss)(jax.random.split(k_probe, NUM_DRAWS)))

        def step(carry: tuple[Any, Any, Tree], k_batch: Key):
            params, state, is_used = carry
            batch = task.batch(k_batch, instance, data, "train")
            grads = jax.grad(task.loss)(params, batch, instance)
            is_used = jax.tree.map(lambda used, g: used | jnp.any(g != 0), is_used, grads)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state, is_used), None

        carry = params, tx.init(params), jax.tree.map(lambda p: jnp.bool_(False), params)
        (trained, _, is_used), _ = jax.lax.scan(step, carry, jax.random.split(k_train, num_steps))
        return mean_loss(params), mean_loss(trained), is_used

    over_keys = jax.vmap(train, (None, 0, None))
    run = jax.jit(jax.vmap(over_keys, (0, None, None)))
    before, after, is_used = run(jnp.array(LEARNING_RATES), keys, task.data)
    before, after = np.mean(before[0]), np.mean(after, axis=1)
    if not np.any(after < before):
        _fail(
            f"`task` {task.name}: {num_steps} steps of Adam do not lower the loss, {before:.3g}, "
            f"at any of the learning rates {LEARNING_RATES}; got {np.array2string(after)}",
            "Check the sign of the loss, and its scale",
        )
    for path, used in jax.tree.leaves_with_path(is_used):
        if not np.any(used):
            _fail(
                f"`task` {task.name}: the gradient is always zero at params{_name(path)}",
                "Use these parameters in `loss`, or drop them",
            )


class Case(NamedTuple):
    """Arguments of one update."""

    grads: dict[str, jax.Array]
    params: dict[str, jax.Array]
    value: jax.Array


SHAPES = {"scalar": (), "vector": (3,), "matrix": (2, 3), "kernel": (1, 2, 3, 2)}
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

    Its functions must be pure; updates must be like the gradients and the state must keep its
    structure, shapes and dtypes, also for scalars, bfloat16 and trees without leaves; updates must
    be finite on zero gradients, and the same under `jit`, `vmap` over theta and `scan` and inside
    `optax.chain`, `optax.masked` and `optax.MultiSteps`; and a release file must restore it.

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
    tx = _within(lopt, "transform", lambda: lopt.transform(theta, horizon=horizon))
    _check_state(lopt, tx, theta)
    compiled = optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))
    _check_finite(lopt, compiled)
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
    _check_release(lopt, design, theta, horizon, cases, expected, rtol)


def _perturbed_theta(lopt: LearnedOptimizer, seed: int) -> Theta:
    """Theta away from its start, where some designs do nothing."""
    k_init, k_noise = jax.random.split(jax.random.key(seed))
    theta, again = lopt.init(k_init), lopt.init(k_init)
    if not _equal(theta, again):
        _fail(
            f"`lopt` {lopt.name}: `init` gives another theta for the same key",
            "Draw all that is random from the key",
        )
    for path, leaf in jax.tree.leaves_with_path(theta):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) or not np.all(np.isfinite(leaf)):
            _fail(
                f"`lopt` {lopt.name}: theta must be finite and floating point; got {dtype} at "
                f"theta{_name(path)}",
                "Keep integers in the configuration",
            )
    theta = jax.tree.map(jnp.asarray, theta)
    return jax.tree.map(lambda t, z: t + 0.3 * z, theta, optax.tree.random_like(k_noise, theta))


def _check_state(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, theta: Theta):
    for dtype in (jnp.float32, jnp.bfloat16):
        case = _case(SHAPES, dtype=dtype)
        state = _within(
            lopt, f"init of {dtype.__name__} parameters", lambda c=case: tx.init(c.params)
        )
        updates, after = _within(
            lopt,
            f"update of {dtype.__name__} parameters",
            lambda c=case, s=state: jax.eval_shape(tx.update, c.grads, s, c.params, value=c.value),
        )
        if difference := _difference(updates, case.grads):
            _fail(
                f"`lopt` {lopt.name}: updates must be like the gradients: {difference}",
                "Return them in the gradients' shapes and dtypes, as `per_tensor_transform` does",
            )
        if difference := _difference(after, state):
            _fail(
                f"`lopt` {lopt.name}: the state must stay as `init` makes it: {difference}",
                "Begin with arrays of the shapes and dtypes that `update` returns",
            )
    buffers = lambda tree: {id(x) for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)}
    pointers = lambda tree: {x.unsafe_buffer_pointer() for x in _leaves(tree) if jnp.size(x)}
    state = tx.init(_case(SMALL).params)
    if buffers(theta) & buffers(state) or pointers(theta) & pointers(state):
        _fail(
            f"`lopt` {lopt.name}: the state holds an array of theta, which a loop that donates its "
            "state would delete",
            "Copy it by jnp.array",
        )


def _check_finite(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    case = _case(SHAPES)
    (updates,), _ = _run(tx, [case])
    for path, update in jax.tree.leaves_with_path(updates):
        if not np.all(np.isfinite(update)):
            _fail(
                f"`lopt` {lopt.name}: the update of the {path[0].key} is not finite",
                "Look for roots, logarithms and divisions at zero",
            )
        if not np.any(update):
            _fail(
                f"`lopt` {lopt.name}: the update of the {path[0].key} is zero",
                "Return what optax.apply_updates should add",
            )
    zero = case._replace(grads=jax.tree.map(jnp.zeros_like, case.grads), value=jnp.float32(0.0))
    if not all(np.all(np.isfinite(x)) for x in _leaves(_run(tx, [zero] * 3))):
        _fail(
            f"`lopt` {lopt.name}: zero gradients give updates or a state that is not finite",
            "Add a small number to what is divided by, or under a root",
        )


def _check_pure(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, theta: Theta):
    case = _case(SMALL)
    state = tx.init(case.params)
    arguments = (theta, state, case)
    before = jax.tree.flatten(arguments)
    found = [tx.update(case.grads, state, case.params, value=case.value) for _ in range(2)]
    if not _equal(*found):
        _fail(
            f"`lopt` {lopt.name}: `update` differs between two calls with the same arguments",
            "Keep what it remembers in the state, random keys too",
        )
    after = jax.tree.flatten(arguments)
    if before[1] != after[1] or any(x is not y for x, y in zip(before[0], after[0], strict=True)):
        _fail(
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
    together = _within(lopt, "vmap over theta", lambda: jax.jit(jax.vmap(update))(stacked))
    apart = [jax.jit(update)(theta) for theta in thetas]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    _check_same(lopt, "under vmap over theta", together, expected, rtol)
    if all(np.allclose(x, x[:1]) for x in map(np.asarray, jax.tree.leaves(together))):
        _fail(
            f"`lopt` {lopt.name}: four random thetas give the same updates",
            "Use theta in `transform`",
        )


def _check_bfloat16(
    lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs, rtol: float
) -> None:
    half = _case(SMALL, dtype=jnp.bfloat16)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    found, expected = (_run(tx, [case] * 25)[1] for case in (half, full))
    if difference := _difference(found, expected) or _distance(found, expected, rtol):
        _fail(
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
    run = lambda name, wrapped, cases: _within(lopt, name, lambda: _run(wrapped, cases))[0]
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
    _check_same(lopt, "in optax.MultiSteps", found[1], expected, 10 * rtol)


def _check_empty(lopt: LearnedOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    for params in ({}, {"frozen": None, "b": {}}, ()):
        updates, _ = _within(
            lopt,
            f"update of {params}",
            lambda p=params: tx.update(p, tx.init(p), p, value=jnp.float32(1.0)),
        )
        if jax.tree.structure(updates) != jax.tree.structure(params):
            _fail(
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
                _fail(
                    f"`lopt` {lopt.name}: without `{argument}` it fails ({_line(error)})",
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

    loaded, weights = _within(lopt, "a release file", reload)
    if dict(loaded.config) != dict(lopt.config) or not _equal(weights, theta):
        _fail(
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
    if difference := _difference(found, expected) or _distance(found, expected, rtol):
        _fail(
            f"`lopt` {lopt.name}: updates or states {where} are others: {difference}",
            "Compute updates from theta, gradients, state, parameters and value alone",
        )


def _within(lopt: LearnedOptimizer, what: str, call: Callable[[], T]) -> T:
    """Call, and name what was called if it fails."""
    try:
        return call()
    except Exception as error:
        _fail(f"`lopt` {lopt.name}: {what} fails ({_line(error)})", "See the error above", error)


def _difference(found: Tree, expected: Tree) -> str | None:
    """How structure, shapes or dtypes of two trees differ, in words."""
    left, right = (dict(jax.tree.leaves_with_path(tree)) for tree in (found, expected))
    kind = lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    for path in {**left, **right}:
        one, other = (kind(side[path]) if path in side else "absent" for side in (left, right))
        if one != other:
            return f"{_name(path) or 'it'} is {one}, not {other}"
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return f"its structure is {jax.tree.structure(found)}"
    return None


def _distance(found: Tree, expected: Tree, rtol: float) -> str | None:
    """Where two trees of equal structure are apart by more than a relative tolerance, in words."""
    for (path, x), y in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        x, y = (np.asarray(_numbers(v), np.float64) for v in (x, y))
        atol = 0.1 * rtol * np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
        if not np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True):
            error = np.max(np.abs(x - y))
            return f"{_name(path) or 'it'} is off by {error:.2g}"
    return None


def _equal(one: Tree, other: Tree) -> bool:
    pairs = zip(map(_numbers, _leaves(one)), map(_numbers, _leaves(other)), strict=True)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def _leaves(tree: Tree) -> list[jax.Array]:
    return [jnp.asarray(x) for x in jax.tree.leaves(tree)]


def _numbers(x: Any) -> np.ndarray:
    """An array as NumPy has it, also of PRNG keys."""
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _fail(got: str, advice: str, cause: Exception | None = None) -> NoReturn:
    raise AssertionError(" ".join(f"{got}. {advice}.".split())) from cause
