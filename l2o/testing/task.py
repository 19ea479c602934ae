"""What a task must do for meta-training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.task import Batch, Data, Instance, Key, Split, Task, validate_task
from l2o.testing.trees import Tree, difference_of, fail, is_equal, leaves, numbers, path_name

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NUM_DRAWS = 8
BATCHES_A_SPLIT = 32
LEARNING_RATES = (0.001, 0.01, 0.1)
MOST_NUMBERS = 4_000_000
"""Size of the largest split that is evaluated whole, which happens for `NUM_DRAWS` keys at once."""


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
    all splits must be alike; metrics must be finite scalars, no worse than their caps; the loss of
    `all_rows` must be what batches have in the mean, in splits of up to four million numbers and
    not where a network draws in training; `shrink` must keep shapes and leave rows out; and Adam
    must train all parameters to a lower loss at one of three learning rates.

    It compiles a dozen programs: seconds for a small MLP, minutes for deep networks.

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
    _check_all_rows(task, keys, is_stochastic=holds_keys(first.batch["train"]))
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
        if not is_equal(getattr(first, name), getattr(again, name)):
            fail(
                f"`task` {task.name}: {name} differs between two calls with the same arguments",
                "Draw all that is random from the key, in `sample`, `init` or `batch`",
            )
    one, many = np.asarray(first.loss["train"]), np.asarray(draws.loss["train"])[0]
    if not np.allclose(one, many, rtol=1e-3, atol=1e-6, equal_nan=True):
        fail(
            f"`task` {task.name}: the loss is {one} alone and {many} under vmap",
            "Use functions of jax.numpy and no shapes that depend on values",
        )
    drawn = (draws.sample, draws.init, draws.batch["train"])
    if all(np.array_equal(x, x[:1].repeat(len(x), 0)) for x in map(numbers, leaves(drawn))):
        fail(
            f"`task` {task.name}: the key changes neither instance, parameters nor batch",
            "Draw initial parameters or batches from the key",
        )
    for split in SPLITS[1:]:
        batches = first.batch[split], first.batch["train"]
        if difference := difference_of(*map(without_keys, batches)):
            fail(
                f"`task` {task.name}: a {split} batch is not like a train batch: {difference}",
                "Return batches of one size from all splits",
            )


def is_key(x: jax.Array) -> bool:
    """Whether it is a random key."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def without_keys(batch: Batch) -> Batch:
    """A batch without what a network draws from while it trains, which other splits lack."""
    return jax.tree.map(lambda x: None if is_key(x) else x, batch)


def holds_keys(batch: Batch) -> bool:
    """Whether a network draws from the batch while it trains."""
    return any(is_key(x) for x in jax.tree.leaves(batch))


def _check_values(task: Task, draws: Trial) -> None:
    for split, losses in draws.loss.items():
        if not np.all(np.isfinite(losses)):
            fail(
                f"`task` {task.name}: the loss on a {split} batch is not finite at initialisation",
                "Check `init` and `loss`",
            )
    typical = float(np.median(draws.loss["train"]))
    if typical >= task.loss_cap:
        fail(
            f"`task` {task.name}: the loss at initialisation, {typical:.3g}, is not below its "
            f"`loss_cap`, {task.loss_cap:.3g}",
            f"Try loss_cap={4 * typical:.3g}",
        )
    for path, gradient in jax.tree.leaves_with_path(draws.gradient):
        if not np.all(np.isfinite(gradient)):
            fail(
                f"`task` {task.name}: the gradient is not finite at params{path_name(path)}",
                "Look for roots, logarithms and divisions at zero in `loss`",
            )


def _check_metrics(task: Task, draws: Trial) -> None:
    metrics = draws.metrics
    for argument in ("maximized", "metric_caps"):
        if unknown := sorted(set(getattr(task, argument)) - metrics["train"].keys()):
            fail(
                f"`{argument}` of task {task.name} names {', '.join(unknown)}, which `metrics` "
                f"lacks; it has {', '.join(metrics['train']) or 'none'}",
                "Use the names of metrics",
            )
    for split in SPLITS:
        for name, values in metrics[split].items():
            if values.shape != (NUM_DRAWS,) or not np.all(np.isfinite(values)):
                fail(
                    f"`task` {task.name}: metric {name} must be a finite scalar; got "
                    f"{values.dtype}{values.shape[1:]}, on a {split} batch at initialisation",
                    "Return its mean over the batch",
                )
            cap, value = task.metric_caps.get(name), float(np.median(values))
            if cap is not None and (value < cap if name in task.maximized else value > cap):
                fail(
                    f"`metric_caps` of task {task.name} has {name}={cap:.3g}, which the metric "
                    f"exceeds at initialisation, {value:.3g}",
                    "Give the worst that it can cost",
                )


def _check_all_rows(task: Task, keys: jax.Array, *, is_stochastic: bool) -> None:
    all_rows = task.all_rows
    if all_rows is None:
        return

    def measure(key: Key, data: Data, split: Split):
        k_sample, k_init, k_batches = jax.random.split(key, 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        on = lambda batch: (
            task.loss(params, batch, instance),
            dict(task.metrics(params, batch, instance)),
        )
        drawn = lambda k: on(task.batch(k, instance, data, split))[0]
        whole = on(all_rows(instance, data, split))
        return whole, jax.vmap(drawn)(jax.random.split(k_batches, BATCHES_A_SPLIT))

    def is_small(split: Split) -> bool:
        rows = lambda key, data: all_rows(task.sample(key), data, split)
        shapes = jax.tree.leaves(jax.eval_shape(rows, keys[0], task.data))
        return sum(leaf.size for leaf in shapes) <= MOST_NUMBERS

    over_keys = jax.jit(jax.vmap(measure, (0, None, None)), static_argnums=2)
    for split in filter(is_small, SPLITS):
        (loss, metrics), drawn = over_keys(keys, task.data, split)
        mean, spread = np.mean(drawn, axis=1), np.std(drawn, axis=1)
        # Six standard errors, and rounding.
        allowed = 6.0 * spread / BATCHES_A_SPLIT**0.5 + 1e-3 * np.abs(mean) + 1e-6
        # What a network draws from a batch, all rows do not hold: that is another loss.
        is_alike = (is_stochastic and split == "train") or np.abs(loss - mean) <= allowed
        if loss.shape != (NUM_DRAWS,) or not np.all(is_alike):
            fail(
                f"`all_rows` of task {task.name}: the loss of all {split} rows is not that of "
                f"batches in the mean: {np.mean(loss):.3g}, not {np.mean(mean):.3g}",
                "Return each row that `batch` draws from once",
            )
        for name, values in metrics.items():
            if values.shape != (NUM_DRAWS,) or not np.all(np.isfinite(values)):
                fail(
                    f"`all_rows` of task {task.name}: metric {name} of all {split} rows must be a "
                    f"finite scalar; got {values.dtype}{values.shape[1:]}",
                    "Take the number of rows from the batch",
                )


def _check_shrink(task: Task, draws: Trial) -> None:
    shrink, batches = task.shrink, draws.batch["train"]
    if shrink is None:
        return

    # Rows have equal losses where all weights are zero, so these are others.
    drawn = jax.random.split(jax.random.key(0), NUM_DRAWS)
    noise = jax.vmap(lambda key, params: optax.tree.random_like(key, params))(drawn, draws.init)
    beside = jax.tree.map(lambda x, n: x + 0.1 * n, draws.init, noise)

    def losses(fraction: float) -> np.ndarray:
        def loss(params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
            smaller = shrink(batch, jnp.float32(fraction))
            if difference := difference_of(smaller, batch):
                fail(
                    f"`shrink` of task {task.name} must keep shapes and dtypes: {difference}",
                    "Count fewer rows instead of cutting them off",
                )
            return task.loss(params, smaller, instance)

        return np.asarray(jax.jit(jax.vmap(loss))(beside, batches, draws.sample))

    whole = np.asarray(jax.jit(jax.vmap(task.loss))(beside, batches, draws.sample))
    if not np.allclose(losses(1.0), whole, rtol=1e-4, atol=1e-6):
        fail(
            f"`shrink` of task {task.name} changes the loss at fraction=1.0",
            "Return the whole batch there",
        )
    if np.array_equal(losses(0.3), whole):
        fail(
            f"`shrink` of task {task.name} does not change the loss at fraction=0.3",
            "Leave out rows, or drop `shrink`",
        )
    if not np.all(np.isfinite(losses(1e-6))):
        fail(
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
        fail(
            f"`task` {task.name}: {num_steps} steps of Adam do not lower the loss, {before:.3g}, "
            f"at any of the learning rates {LEARNING_RATES}; got {np.array2string(after)}",
            "Check the sign of the loss, and its scale",
        )
    for path, used in jax.tree.leaves_with_path(is_used):
        if not np.any(used):
            fail(
                f"`task` {task.name}: the gradient is always zero at params{path_name(path)}",
                "Use these parameters in `loss`, or drop them",
            )
