"""Training of a task by an optimizer, at many settings and from many starts at once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from l2o.evaluation.starts import NUM_BATCHES, Start
from l2o.evaluation.statistics import capped_losses, is_diverged
from l2o.inner_step import batch_fraction, inner_step
from l2o.task import Batch, Data, Instance, Task, batch_axes
from l2o.tree import with_dtypes_of

TIMED_STEPS = 200
"""Most inner steps of a run that is timed."""


Held = Literal["valid", "test"]
"""Split of the data that nothing is trained on."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Training runs of one optimizer on one task.

    A diverged loss (not finite, or above the task's cap) counts as the cap everywhere but in
    `train_loss`; no run is dropped.

    Attributes:
        steps: Shape (probes,), inner steps taken before each probe; the first is 0.
        probe_loss: Shape (seeds, probes), mean loss on the seed's fixed training batches.
        train_loss: Shape (seeds, horizon), loss of each step's own batch, before its update.
        diverged: Shape (seeds,), whether the last probe was not finite or above the cap.
        valid: Loss, as "loss", and the task's metrics on the validation split at the end, each of
            shape (seeds,): on all of its rows where `Task.all_rows` gives them, else means over
            `NUM_BATCHES` batches of it. Where the loss diverged, a metric counts as its worst
            value, if the task's `metric_caps` say which that is.
        test: The same on the test split.
        seconds_per_step: Wall-clock seconds per inner step and seed, with all seeds run together,
            without compilation and probes: the median of three runs of up to `TIMED_STEPS` steps
            of the compiled program. `nan` if it was not timed.
        valid_loss: Shape (seeds, probes), mean loss on the seed's fixed validation batches at each
            probe; nothing unless it was asked for.
        fractions: Shape (seeds, horizon), the fraction of each step's batch that counted; nothing
            of an optimizer that does not choose (`l2o.batch_fraction`).
    """

    steps: np.ndarray
    probe_loss: np.ndarray
    train_loss: np.ndarray
    diverged: np.ndarray
    valid: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    seconds_per_step: float
    valid_loss: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    fractions: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def final_loss(self) -> np.ndarray:
        """Shape (seeds,), the probe loss after the last step."""
        return self.probe_loss[:, -1]


Settings = np.ndarray | Mapping[str, np.ndarray]
"""Settings of an optimizer, stacked along a first axis: numbers, or numbers by name.

A tree of arrays such as theta will do as well."""


def train_settings(
    task: Task,
    make: Callable[..., optax.GradientTransformation],
    settings: Settings,
    starts: Start,
    *,
    horizon: int,
    probe_every: int | None = None,
    timed: bool = False,
) -> list[Curves]:
    """Train every start with every setting of an optimizer; see `Trainer`."""
    trainer = Trainer(task, make, horizon=horizon, probe_every=probe_every)
    return trainer.train(settings, starts, timed=timed)


class Trainer:
    """Training of a task by one optimizer at many settings, which compiles once for each shape.

    Args:
        task: Task to train.
        make: `(setting) -> transformation`; the setting is a traced float32 scalar or array, or
            such by name.
        horizon: Inner steps of each run.
        probe_every: Inner steps between probes, as in `evaluate`.

    Raises:
        ValueError: If `horizon` < 1 or `probe_every` is not between 1 and `horizon`.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[..., optax.GradientTransformation],
        *,
        horizon: int,
        probe_every: int | None = None,
    ):
        if horizon < 1:
            raise ValueError(f"`horizon` must be at least 1; got {horizon}. Try horizon=1000.")
        stride = max(1, horizon // 50) if probe_every is None else probe_every
        if not 1 <= stride <= horizon:
            raise ValueError(
                f"`probe_every` must be between 1 and horizon={horizon}; got {probe_every}. "
                f"Try probe_every={max(1, horizon // 50)}."
            )

        def begin(setting: Any, start: Start) -> Any:
            return start.params, make(setting).init(start.params)

        def train(setting, carry, start, data, first, count):
            return train_steps(task, make(setting), carry, start, data, first, count, most=stride)

        def probe(carry, start: Start) -> jax.Array:
            return mean_loss(task, judged_params(*carry), start.probes, start.instance)

        def validate(carry, start: Start) -> jax.Array:
            return mean_loss(task, judged_params(*carry), start.valids, start.instance)

        def test(carry, starts: Start, data: Data, splits: Sequence[Held]):
            judged = over_settings_and_seeds(lambda c, start: judged_params(*c), carry=True)
            params = judged(carry, starts)
            return {split: on_split(task, params, starts, data, split) for split in splits}

        self.task, self.horizon, self.stride = task, horizon, stride
        self._begin = jax.jit(over_settings_and_seeds(begin))
        # The number of steps is traced, so that a shorter last stretch compiles nothing anew.
        self._train = jax.jit(
            jax.vmap(
                jax.vmap(train, in_axes=(None, 0, 0, None, None, None)),
                in_axes=(0, 0, None, None, None, None),
            )
        )
        self._probe = jax.jit(over_settings_and_seeds(probe, carry=True))
        self._validate = jax.jit(over_settings_and_seeds(validate, carry=True))
        self._test = jax.jit(test, static_argnames="splits")

    def compile(self, settings: Settings, starts: Start, *, splits: tuple[Held, ...]) -> None:
        """Compile what `train` runs, by a run of no steps."""
        stacked = as_float32(settings)
        carry, *_ = self._steps(stacked, self._begin(stacked, starts), starts, 0, 0)
        tested = self._test(carry, starts, self.task.data, splits)
        jax.block_until_ready((self._probe(carry, starts), tested))

    def train(
        self,
        settings: Settings,
        starts: Start,
        *,
        timed: bool = False,
        splits: tuple[Held, ...] = ("valid", "test"),
        validated: bool = False,
    ) -> list[Curves]:
        """Train every start with every setting.

        Args:
            settings: Settings, stacked along a first axis.
            starts: Starts of the runs, from `draw_starts`.
            timed: Whether to measure `seconds_per_step`, which trains some more.
            splits: Which of `valid` and `test` to measure; what is not measured is empty.
            validated: Whether to measure `valid_loss` at every probe, too.

        Returns:
            Curves of each setting, in order.
        """
        stacked = as_float32(settings)
        carry = self._begin(stacked, starts)
        steps, losses, fractions, probes, valids = [0], [], [], [], []

        def probe() -> None:
            probes.append(np.asarray(self._probe(carry, starts)))
            if validated:
                valids.append(np.asarray(self._validate(carry, starts)))

        probe()
        while steps[-1] < self.horizon:
            count = min(self.stride, self.horizon - steps[-1])
            carry, step_losses, used = self._steps(stacked, carry, starts, steps[-1], count)
            steps.append(steps[-1] + count)
            losses.append(np.asarray(step_losses)[..., :count])
            fractions += [np.asarray(used)[..., :count]] if isinstance(used, jax.Array) else []
            probe()
        ends = jax.device_get(self._test(carry, starts, self.task.data, splits)) if splits else {}

        raw, train_loss = np.stack(probes, axis=-1), np.concatenate(losses, axis=-1)
        nothing = np.empty((*raw.shape[:-1], 0))
        counted = np.concatenate(fractions, axis=-1) if fractions else nothing
        cap = finite_cap(self.task)
        valid_loss = np.stack(valids, axis=-1) if validated else nothing
        timers = [self.timer(settings, starts)] * 3 if timed else []
        seconds = float(np.median([timer() for timer in timers])) if timed else np.nan

        def at_end(split: Held, i: int) -> Mapping[str, np.ndarray]:
            measured = {k: v[i] for k, v in ends.get(split, {}).items()}
            return capped_end(self.task, measured) if measured else {}

        return [
            Curves(
                steps=np.array(steps),
                probe_loss=capped_losses(raw[i], cap),
                train_loss=train_loss[i],
                diverged=is_diverged(raw[i, :, -1], cap),
                valid=at_end("valid", i),
                test=at_end("test", i),
                seconds_per_step=seconds,
                valid_loss=capped_losses(valid_loss[i], cap),
                fractions=counted[i],
            )
            for i in range(len(raw))
        ]

    def timer(self, settings: Settings, starts: Start) -> Callable[[], float]:
        """Make a function that trains for up to `TIMED_STEPS` steps, which must be compiled.

        It returns seconds per inner step, setting and seed.
        """
        stacked = as_float32(settings)
        fresh = self._begin(stacked, starts)
        runs = len(jax.tree.leaves(stacked)[0]) * len(starts.key)
        count = min(self.horizon, TIMED_STEPS)

        def seconds_per_step() -> float:
            began = time.perf_counter()
            jax.block_until_ready(self._steps(stacked, fresh, starts, 0, count))
            return (time.perf_counter() - began) / (count * runs)

        return seconds_per_step

    def _steps(self, settings: Any, carry: Any, starts: Start, first: int, count: int) -> Any:
        """Train for `count` steps after `first` ones; see `train_steps` for what comes back."""
        return self._train(
            settings, carry, starts, self.task.data, np.int32(first), np.int32(count)
        )

    def measures(self, settings: Settings, starts: Start) -> str:
        """The text of what validation losses and metrics at the end are computed by."""
        carry = jax.eval_shape(self._begin, as_float32(settings), starts)
        validate = self._validate.lower(carry, starts)
        test = self._test.lower(carry, starts, self.task.data, ("valid", "test"))
        return f"{validate.as_text()}\n{test.as_text()}"

    def program(self, settings: Settings, starts: Start) -> str:
        """The text of what training compiles to, which tells one method or task from another."""
        stacked = as_float32(settings)
        carry = jax.eval_shape(self._begin, stacked, starts)
        zero = np.int32(0)
        train = self._train.lower(stacked, carry, starts, self.task.data, zero, zero)
        begin = self._begin.lower(stacked, starts)
        probe = self._probe.lower(carry, starts)
        return "\n".join(lowered.as_text() for lowered in (begin, train, probe))


def capped_end(task: Task, end: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Count a split's loss that diverged as the cap, and its metrics as their worst values."""
    cap = finite_cap(task)
    diverged = is_diverged(end["loss"], cap)
    metrics = {
        name: np.where(diverged, task.metric_caps.get(name, values), values)
        for name, values in end.items()
    }
    return metrics | {"loss": capped_losses(end["loss"], cap)}


def as_float32(settings: Settings) -> jax.Array | dict[str, jax.Array]:
    """Settings as the compiled programs take them."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), settings)


def judged_params(params: optax.Params, opt_state: Any) -> optax.Params:
    """Parameters that are probed and tested: a schedule-free optimizer's average of them."""
    if isinstance(opt_state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(opt_state, params)
    return params


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
) -> tuple[Any, jax.Array, jax.Array | tuple[()]]:
    """Train a stretch of a run.

    Args:
        task: Task to train.
        tx: Optimizer.
        carry: Parameters and optimizer state.
        start: Start of the run.
        data: Data of the task.
        first: Number of inner steps taken before, an int32 scalar.
        count: Number of inner steps to take, an int32 scalar; traced, so that it compiles once.
        most: Largest `count`.

    Returns:
        The carry; the losses of the steps, shape (most,), with zeros after `count`; and likewise
        the fractions of their batches that counted, () if the optimizer does not choose.
    """
    extended = optax.with_extra_args_support(tx)

    def step(i, carry):
        params, opt_state, losses, fractions = carry
        fractions = jax.tree.map(lambda f: f.at[i].set(batch_fraction(opt_state)), fractions)
        k_batch = jax.random.fold_in(start.key, first + i)
        params, after, loss, _ = inner_step(
            task, extended, k_batch, params, opt_state, start.instance, data
        )
        # Optax keeps dtypes where hyperparameters are no arrays: Muon's momentum in bfloat16.
        opt_state = with_dtypes_of(opt_state, after)
        losses = jax.lax.dynamic_update_index_in_dim(losses, loss.astype(jnp.float32), i, 0)
        return params, opt_state, losses, fractions

    fractions = () if batch_fraction(carry[1]) is None else jnp.zeros(most)
    first_carry = (*carry, jnp.zeros(most), fractions)
    *carry, losses, fractions = jax.lax.fori_loop(0, count, step, first_carry)
    return tuple(carry), losses, fractions


def on_split(
    task: Task,
    params: optax.Params,
    starts: Start,
    data: Data,
    split: Held,
) -> dict[str, jax.Array]:
    """Measure loss and metrics on a split, each of shape (settings, seeds).

    One run after the other: all rows of a split, by all runs at once, may be too much.

    Args:
        task: Task that was trained.
        params: What was trained, with axes of settings and seeds.
        starts: Starts of the runs, with an axis of seeds.
        data: Data of the task.
        split: Split to measure on.
    """

    def test(run: tuple[optax.Params, Start]) -> dict[str, jax.Array]:
        params, start = run

        def measure(batch: Batch) -> dict[str, jax.Array]:
            loss = task.loss(params, batch, start.instance)
            return dict(task.metrics(params, batch, start.instance)) | {"loss": loss}

        if task.all_rows is not None:
            return measure(task.all_rows(start.instance, data, split))
        batches = start.valids if split == "valid" else start.tests
        return jax.tree.map(jnp.mean, over_batches(measure, batches))

    return jax.lax.map(lambda params: jax.lax.map(test, (params, starts)), params)


def mean_loss(task: Task, params: optax.Params, batches: Batch, instance: Instance) -> jax.Array:
    """Average the loss over `NUM_BATCHES` stacked batches."""
    return jnp.mean(over_batches(lambda batch: task.loss(params, batch, instance), batches))


def over_batches(f: Callable[[Batch], Any], batches: Batch) -> Any:
    """Apply `f` to each of the stacked batches, which may be empty trees."""
    return jax.vmap(f, in_axes=(batch_axes(batches),), axis_size=NUM_BATCHES)(batches)


def over_settings_and_seeds(f: Callable[..., Any], *, carry: bool = False) -> Callable[..., Any]:
    """Map `f(setting, start)`, or `f(carry, start)` of a run, over all settings and seeds."""
    return jax.vmap(jax.vmap(f, in_axes=(0 if carry else None, 0)), in_axes=(0, None))


def finite_cap(task: Task) -> float:
    """Loss that a diverged run counts as: the task's cap, or float32's largest number."""
    return min(float(task.loss_cap), float(np.finfo(np.float32).max))
