"""Trains a task with several optimizers on the same instances, inits and batches."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.batches import batch_fraction, training_batch
from l2o.evaluation.statistics import capped_losses, is_diverged
from l2o.task import Batch, Data, Instance, Key, Split, Task, validate_task

NUM_BATCHES = 8
"""Batches of a probe of the training loss, and of the test at the end."""

TIMED_STEPS = 200
"""Most inner steps of a run that is timed."""

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
"""An optax transformation, or a function that makes one from `horizon=` (number of steps)."""


class Start(NamedTuple):
    """What a seed gives to every optimizer alike.

    Attributes:
        instance: the sampled problem.
        params: its initial parameters.
        probes: `NUM_BATCHES` fixed training batches, stacked.
        tests: `NUM_BATCHES` test batches, stacked.
        key: what the batches of the training run derive from, step by step.
    """

    instance: Instance
    params: optax.Params
    probes: Batch
    tests: Batch
    key: Key


@dataclass(frozen=True, eq=False)
class Curves:
    """Training runs of one optimizer on one task.

    A diverged loss (not finite, or above the task's cap) counts as the cap everywhere but in
    `train_loss`; no run is dropped.

    Attributes:
        steps: shape (probes,), inner steps taken before each probe; the first is 0.
        probe_loss: shape (seeds, probes), mean loss on the seed's fixed training batches.
        train_loss: shape (seeds, num_steps), loss of each step's own batch, before its update.
        diverged: shape (seeds,), whether the last probe was not finite or above the cap.
        test: "loss" and the task's metrics on the test split at the end, each of shape (seeds,).
        seconds_per_step: wall-clock seconds per inner step and seed, with all seeds run together,
            without compilation and probes: the median of three runs of up to `TIMED_STEPS` steps
            of the compiled program. `nan` if it was not timed.
    """

    steps: np.ndarray
    probe_loss: np.ndarray
    train_loss: np.ndarray
    diverged: np.ndarray
    test: Mapping[str, np.ndarray]
    seconds_per_step: float

    @property
    def final_loss(self) -> np.ndarray:
        """Shape (seeds,), the probe loss after the last step."""
        return self.probe_loss[:, -1]


def evaluate(
    key: Key,
    task: Task,
    optimizers: Mapping[str, Optimizer],
    *,
    num_steps: int,
    num_seeds: int,
    probe_every: int | None = None,
    seen: AbstractSet[str] = frozenset(),
    allow_seen: bool = False,
) -> dict[str, Curves]:
    """Trains `num_seeds` inner problems of `task` with each optimizer.

    A seed's instance, init, batches and probes derive from `key` and the seed's index alone: they
    are the same for every optimizer and for any `num_seeds`.

    Args:
        key: from `stream(seed, "evaluation")`, which meta-training never draws from.
        task: what to train.
        optimizers: by name; optax transformations, or functions that make one from `horizon=`.
        num_steps: inner steps of each run, also the horizon.
        num_seeds: training runs of each optimizer.
        probe_every: steps between probes; `num_steps // 50` but at least 1 if None. The last step
            is always followed by a probe.
        seen: names of the meta-trained tasks.
        allow_seen: accept a task among them, for instance to look at the meta-training loss.

    Raises:
        ValueError: if a number is not positive, the task is malformed or was meta-trained on.
    """
    check_unseen(task, seen, allow_seen)
    starts = draw_starts(key, task, num_seeds)
    curves = {}
    for name, optimizer in optimizers.items():
        tx = optimizer(horizon=num_steps) if callable(optimizer) else optimizer
        (curves[name],) = train_settings(
            task,
            lambda setting, tx=tx: tx,
            [0.0],
            starts,
            num_steps=num_steps,
            probe_every=probe_every,
            timed=True,
        )
    return curves


def check_unseen(task: Task, seen: AbstractSet[str], allow_seen: bool) -> None:
    """Raises a `ValueError` if the task was meta-trained on, unless that is allowed."""
    if task.name in seen and not allow_seen:
        raise ValueError(
            f"`task` must not be one that was meta-trained on; got {task.name}. "
            "Try a held-out variant, or allow_seen=True to have it marked as seen."
        )


def draw_starts(key: Key, task: Task, num_seeds: int) -> Start:
    """The starts of `num_seeds` runs, stacked along a first axis.

    Raises:
        ValueError: if `num_seeds` < 1 or the task is malformed.
    """
    if num_seeds < 1:
        raise ValueError(f"`num_seeds` must be at least 1; got {num_seeds}. Try num_seeds=16.")
    validate_task(task)

    return compiled_draw(task)(key, jnp.arange(num_seeds), task.data)


@functools.lru_cache(maxsize=4)
def compiled_draw(task: Task) -> Callable[[Key, jax.Array, Data], Start]:
    """`(key, seeds, data) -> starts`; kept, since tuning and reporting draw from the same task."""

    def draw(key: Key, seed: jax.Array, data: Data) -> Start:
        k_instance, k_params, k_probes, k_tests, k_train = jax.random.split(
            jax.random.fold_in(key, seed), 5
        )
        instance = task.sample(k_instance)

        def batches(key: Key, split: Split) -> Batch:
            keys = jax.random.split(key, NUM_BATCHES)
            return jax.vmap(lambda k: task.batch(k, instance, data, split))(keys)

        return Start(
            instance=instance,
            params=task.init(k_params, instance),
            probes=batches(k_probes, "train"),
            tests=batches(k_tests, "test"),
            key=k_train,
        )

    return jax.jit(jax.vmap(draw, in_axes=(None, 0, None)))


def train_settings(
    task: Task,
    make: Callable[[jax.Array], optax.GradientTransformation],
    settings: Sequence[float] | np.ndarray,
    starts: Start,
    *,
    num_steps: int,
    probe_every: int | None = None,
    timed: bool = False,
) -> list[Curves]:
    """Trains every start with every setting of an optimizer, all in one compiled program.

    Args:
        task: what to train.
        make: `(setting) -> transformation`; the setting is a traced float32 scalar or array.
        settings: for instance learning rates, stacked along a first axis.
        starts: from `draw_starts`.
        num_steps: inner steps of each run.
        probe_every: as in `evaluate`.
        timed: whether to measure `seconds_per_step`, which trains some more.

    Returns:
        Curves of each setting, in order.

    Raises:
        ValueError: if `num_steps` < 1 or `probe_every` is not between 1 and `num_steps`.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}. Try num_steps=1000.")
    stride = max(1, num_steps // 50) if probe_every is None else probe_every
    if not 1 <= stride <= num_steps:
        raise ValueError(
            f"`probe_every` must be between 1 and num_steps={num_steps}; got {probe_every}. "
            f"Try probe_every={max(1, num_steps // 50)}."
        )

    def begin(setting: jax.Array, start: Start) -> Any:
        return start.params, make(setting).init(start.params)

    def train(setting, carry, start, data, first, count):
        return train_steps(task, make(setting), carry, start, data, first, count, most=stride)

    def probe(carry, start: Start) -> jax.Array:
        return mean_loss(task, carry[0], start.probes, start.instance)

    def test(carry, start: Start) -> dict[str, jax.Array]:
        params = carry[0]
        metrics = over_batches(
            lambda batch: dict(task.metrics(params, batch, start.instance)), start.tests
        )
        loss = mean_loss(task, params, start.tests, start.instance)
        return jax.tree.map(jnp.mean, metrics) | {"loss": loss}

    stacked = jnp.asarray(settings, jnp.float32)
    carry = jax.jit(over_settings_and_seeds(begin))(stacked, starts)
    over_runs = jax.vmap(
        jax.vmap(train, in_axes=(None, 0, 0, None, None, None)),
        in_axes=(0, 0, None, None, None, None),
    )
    probe_all = jax.jit(over_settings_and_seeds(probe, carry=True))
    # The number of steps is traced, so that a shorter last stretch compiles nothing anew.
    compiled = jax.jit(over_runs)

    def train_all(carry: Any, first: int, count: int) -> Any:
        return compiled(stacked, carry, starts, task.data, np.int32(first), np.int32(count))

    def seconds_per_step(carry: Any) -> float:
        count = min(num_steps, TIMED_STEPS)
        began = time.perf_counter()
        jax.block_until_ready(train_all(carry, 0, count))
        return (time.perf_counter() - began) / (count * raw[..., 0].size)

    fresh = carry
    steps, probes, losses = [0], [np.asarray(probe_all(carry, starts))], []
    while steps[-1] < num_steps:
        count = min(stride, num_steps - steps[-1])
        carry, of_steps = train_all(carry, steps[-1], count)
        steps.append(steps[-1] + count)
        losses.append(np.asarray(of_steps)[..., :count])
        probes.append(np.asarray(probe_all(carry, starts)))
    tests = jax.device_get(jax.jit(over_settings_and_seeds(test, carry=True))(carry, starts))

    raw, train_loss = np.stack(probes, axis=-1), np.concatenate(losses, axis=-1)
    seconds = float(np.median([seconds_per_step(fresh) for _ in range(3)])) if timed else np.nan
    cap = finite_cap(task)
    return [
        Curves(
            steps=np.array(steps),
            probe_loss=capped_losses(raw[i], cap),
            train_loss=train_loss[i],
            diverged=is_diverged(raw[i, :, -1], cap),
            test={k: v[i] for k, v in tests.items()}
            | {"loss": capped_losses(tests["loss"][i], cap)},
            seconds_per_step=seconds,
        )
        for i in range(len(settings))
    ]


def train_steps(
    task: Task,
    tx: optax.GradientTransformation,
    carry: Any,
    start: Start,
    data: Data,
    first: jax.Array,
    count: jax.Array,
    *,
    most: int,
) -> tuple[Any, jax.Array]:
    """A stretch of a training run.

    Args:
        task: what to train.
        tx: the optimizer.
        carry: parameters and optimizer state.
        start: of the run.
        data: the task's.
        first: inner steps taken before, an int32 scalar.
        count: how many to take, an int32 scalar; traced, so that it compiles once for all.
        most: the largest `count`.

    Returns:
        The carry, and the losses of the steps, shape (most,), with zeros after `count`.
    """
    extended = optax.with_extra_args_support(tx)

    def step(i, carry):
        params, opt_state, losses = carry
        k_batch = jax.random.fold_in(start.key, first + i)
        batch = training_batch(task, k_batch, start.instance, data, batch_fraction(opt_state))
        loss, grads = jax.value_and_grad(task.loss)(params, batch, start.instance)
        updates, opt_state = extended.update(grads, opt_state, params, value=loss)
        losses = jax.lax.dynamic_update_index_in_dim(losses, loss.astype(jnp.float32), i, 0)
        return optax.apply_updates(params, updates), opt_state, losses

    *carry, losses = jax.lax.fori_loop(0, count, step, (*carry, jnp.zeros(most)))
    return tuple(carry), losses


def mean_loss(task: Task, params: optax.Params, batches: Batch, instance: Instance) -> jax.Array:
    """The mean over `NUM_BATCHES` stacked batches, a scalar."""
    return jnp.mean(over_batches(lambda batch: task.loss(params, batch, instance), batches))


def over_batches(f: Callable[[Batch], Any], batches: Batch) -> Any:
    """`f` of each of the stacked batches, which may be empty trees."""
    return jax.vmap(f, axis_size=NUM_BATCHES)(batches)


def over_settings_and_seeds(f: Callable[..., Any], *, carry: bool = False) -> Callable[..., Any]:
    """`f(setting, start)`, or `f(carry, start)` of a run, over all settings and seeds."""
    return jax.vmap(jax.vmap(f, in_axes=(0 if carry else None, 0)), in_axes=(0, None))


def finite_cap(task: Task) -> float:
    """What a diverged run counts as: the task's cap, or float32's largest number if it has none."""
    return min(float(task.loss_cap), float(np.finfo(np.float32).max))
