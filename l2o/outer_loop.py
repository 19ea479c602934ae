"""Meta-training: compiled chunks of outer steps, and Python between them to log, save and stop."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from l2o.distributed import processes, transfer
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState
from l2o.runs.checkpoint import Checkpoints
from l2o.runs.compilation import long_running
from l2o.runs.folder import DivergenceError, RunError, RunFolder
from l2o.runs.logging import MetricsLog
from l2o.task import Data, Key

__all__ = ["RunError", "chunk_of", "fit", "steps_of_chunk"]

OVERALL = ""
"""Name for all tasks together, beside those of single tasks."""

T = TypeVar("T")

ChunkFn = Callable[[Key, MetaState, Data], tuple[MetaState, dict[str, jax.Array]]]


def chunk_of(learner: Learner, num_steps: int) -> ChunkFn:
    """Make a function of several outer steps, `(key, state, data) -> (state, metrics)`.

    The key of each outer step is folded from `state.step`, so that a run that was interrupted
    continues the stream. Metrics have shape (num_steps,).

    Args:
        learner: Learner that takes the outer steps.
        num_steps: Number of outer steps.
    """

    def chunk(key: Key, state: MetaState, data: Data):
        def step(state: MetaState, _: None):
            return learner.step(jax.random.fold_in(key, state.step), state, data)

        return jax.lax.scan(step, state, length=num_steps)

    return chunk


def steps_of_chunk(num_steps: int, log_every: int) -> int:
    """The largest number of outer steps up to `log_every` that divides a run of `num_steps`.

    >>> steps_of_chunk(1000, 10), steps_of_chunk(1001, 10), steps_of_chunk(4, 10)
    (10, 7, 4)
    """
    return max(n for n in range(1, min(log_every, num_steps) + 1) if num_steps % n == 0)


def fit(
    key: Key,
    learner: Learner,
    theta: Theta,
    *,
    num_steps: int,
    until: int | None = None,
    log_every: int = 10,
    checkpoint_every: int = 100,
    patience: int = 100,
    run: RunFolder | None = None,
    profile: bool = False,
    on_metrics: Callable[[Mapping[str, Any]], None] | None = None,
    on_checkpoint: Callable[[MetaState], None] | None = None,
    on_best: Callable[[MetaState], None] | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
    should_stop: Callable[[], bool] | None = None,
) -> MetaState:
    """Meta-train for `num_steps` outer steps, or go on to them from the run's last checkpoint.

    A run that was killed and continued ends in the same bytes as one that was not, on the same
    machine. After each chunk it reports a line: `step`, `inner_steps` (so far, over all
    members), the mean of each of the learner's metrics over these steps (of `meta_loss` over
    those that had one), `seconds` and `inner_steps_per_second`. A line is durable before the
    checkpoint that covers it.

    In several processes (see `l2o.distributed.processes`) all call it alike. Process 0 alone
    reports; all write their part of a checkpoint; what one process is asked to stop, all stop.

    >>> import jax
    >>> import l2o
    >>> import optax
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> lopt = l2o.learnable_sgd()
    >>> problem = l2o.inner_problem(rosenbrock(), lopt, horizon=10, window=5)
    >>> learner = l2o.gradient_learner(l2o.pes(problem, num_pairs=2, std=0.1), optax.adam(0.01))
    >>> key, theta = jax.random.key(0), lopt.init(jax.random.key(1))
    >>> state = l2o.fit(key, learner, theta, num_steps=2, log_every=1, checkpoint_every=1)
    >>> int(state.step), sorted(learner.theta(state))
    (2, ['log_learning_rate'])

    Args:
        key: Random key for the whole run.
        learner: Learner that takes the outer steps.
        theta: Meta-parameters to start from.
        num_steps: Number of outer steps of the whole run. It may be more than it was when the run
            was begun.
        until: Outer step at which to save and return, to go on with the run later; the last if not
            given. Rates that follow the length of the run follow `num_steps`.
        log_every: Most outer steps of a chunk, which is one compiled program: chunks have the
            largest number up to it that divides the run.
        checkpoint_every: Number of outer steps between checkpoints, rounded down to whole chunks.
            While the last outer step was bad (see `patience`) none is saved, so a good one stays.
        patience: Number of consecutive bad outer steps after which to give up: those in which no
            training loss was finite, or no pair valid. If that happens on one task of several, the
            run goes on with a warning that names it.
        run: Folder for metrics and checkpoints; without it nothing is written. Only that of
            process 0 counts.
        profile: Whether the second chunk (or the first, if it is the only one) is traced to the
            run folder's `profile`.
        on_metrics: Function called with each line; the first one also holds `compile_seconds`.
        on_checkpoint: Function called with each state that has been saved, and with that of the
            checkpoint that a run continues from. Other processes wait until it returns; what it is
            given is overwritten then.
        on_best: Function called likewise, after `on_checkpoint`, if the checkpoint had the lowest
            score so far: the mean of `meta_loss` since the checkpoint before.
        on_warning: Function called with a line about each damaged checkpoint and each dead task.
        should_stop: Function called between chunks; at True, saves and returns early.

    Returns:
        The state after the last step. In several processes, theta and whatever else all devices
        hold are arrays of this process; what is spread over devices stays so.

    Raises:
        ValueError: If a number of steps is not positive, or fewer than the run has taken; if there
            is nowhere for the profile, or a process does not see the run folder.
        RunError: If the run cannot go on: a full disk, no intact checkpoint, no finite loss, or
            another process that has ended.
    """
    _check_steps(num_steps, log_every, checkpoint_every, patience)
    if until is not None and until < 1:
        raise ValueError(
            f"`until` must be at least 1; got {until}. Leave it out for the last step."
        )
    last = num_steps if until is None else min(until, num_steps)
    if not hasattr(key, "dtype"):
        raise ValueError(f"`key` must be a random key; got {key!r}. Try jax.random.key(0).")
    if isinstance(theta, MetaState):
        raise ValueError(
            "`theta` must be meta-parameters; got a MetaState. Try learner.theta(state), or go on "
            "with a run by run=RunFolder.open(..., resume=True)."
        )
    if profile and run is None and processes.is_process_0():
        raise ValueError("`run` is needed for a profile; got None. Pass a RunFolder.")
    if not processes.is_process_0():
        run = on_metrics = on_checkpoint = on_best = None
    k_init, k_steps = jax.random.split(key)
    abstract = _strong(jax.eval_shape(learner.init, k_init, theta))
    log = MetricsLog(run.metrics) if run else None

    def find_checkpoint() -> tuple[str | None, int]:
        """Where checkpoints are, and the step of the one to continue from, or 0."""
        if run is None:
            return None, 0
        step = Checkpoints(run.checkpoints).find(abstract, on_warning) or 0
        for path in (run.metrics, run.validation):
            MetricsLog(path).truncate_after(step)
        return str(run.checkpoints), step

    folder, step = processes.from_process_0(find_checkpoint)
    checkpoints = Checkpoints(Path(folder)) if folder else None
    if checkpoints:
        processes.check_shared(checkpoints.folder.parent)
    last_saved = step
    if step > num_steps:
        raise ValueError(
            f"`num_steps` must be at least {step}, where the run's last checkpoint is; got "
            f"{num_steps}. Try num_steps={step}."
        )
    log_every = steps_of_chunk(math.gcd(num_steps, step, last), log_every)
    checkpoint_every = max(1, checkpoint_every // log_every) * log_every

    def report_saved(state: MetaState, is_best: bool) -> None:
        state = transfer.local(state)
        if on_checkpoint:
            on_checkpoint(state)
        if on_best and is_best:
            on_best(state)

    def last_good() -> str:
        if not checkpoints:
            return "nothing was saved"
        at = f"the last good checkpoint is at step {last_saved}"
        return at if last_saved else "none is saved yet"

    def where() -> str:
        advice = "Continue all with --resume" if checkpoints else "Start all again"
        return f"{last_good()}. {advice}."

    def init(key: Key, theta: Theta) -> MetaState:
        # Copies, because `theta` may sit in the state twice, and belongs to the caller.
        return jax.tree.map(jnp.copy, learner.init(key, theta))

    with processes.peer_guard(where):
        if checkpoints and step >= last:
            state = checkpoints.read(step, abstract)
            if run:
                report_saved(state, checkpoints.is_best(step))
            return state

        program = jax.jit(chunk_of(learner, log_every), donate_argnums=1)
        lower = lambda: program.lower(*_strong((k_steps, abstract, learner.data)))
        state = lowered = None
        started = time.perf_counter()
        if not step and jax.process_count() == 1:
            first = beside(jax.jit(init).lower(k_init, theta).compile)
            lowered = lower()  # JAX traces one program while XLA compiles the other
            state = first.result()(k_init, theta)
        # Ahead of time: nothing can compile a second time.
        compiled = beside((lowered or lower()).compile, long_running()).result()
        layout = compiled.input_shardings[0]
        if checkpoints and step:
            state = checkpoints.read(step, _placed(abstract, layout[1]))
            if run:
                report_saved(state, checkpoints.is_best(step))
        elif state is None:  # no process need hold the population whole
            theta = transfer.broadcast(theta)
            state = jax.jit(init, out_shardings=layout[1])(k_init, theta)
        k_steps, state, data = transfer.place((k_steps, state, learner.data), layout)
        extra = {"compile_seconds": time.perf_counter() - started}

        bad_steps: Mapping[str, int] = {}
        dead: set[str] = set()
        losses: list[float] = []
        is_due = False
        saving = last_saved
        traced = min(step + 2 * log_every, last)
        while step < last:
            started = time.perf_counter()
            is_traced = profile and step + log_every == traced
            with traced_to(run.profile) if run and is_traced else contextlib.nullcontext():
                state, metrics = compiled(k_steps, state, data)
                metrics = jax.device_get(transfer.gather(metrics))
            state = transfer.place(state, layout[1])
            seconds = time.perf_counter() - started
            step += log_every

            line = {
                "step": step,
                "inner_steps": step * learner.steps,
                **{name: _mean(values) for name, values in metrics.items()},
                "seconds": seconds,
                "inner_steps_per_second": log_every * learner.steps / seconds,
            }
            if log:
                log.write(line)
            if on_metrics:
                on_metrics(line | extra)
            extra = {}

            losses.append(line.get("meta_loss", np.nan))
            bad_steps = _bad_steps(metrics, bad_steps)
            is_bad = bad_steps.get(OVERALL, 0)
            is_stopped = processes.any_process(should_stop is not None and should_stop())
            last_saved = saving  # process 0 has answered, so it is on the disk
            if is_bad >= patience or (is_bad and step == last):
                processes.disconnect()  # all of them stop here
                raise DivergenceError(
                    f"no member had a finite loss in the last {is_bad} outer steps: stopped at "
                    f"step {step}; {last_good()}. Try a smaller --std or --learning-rate."
                )
            for task in sorted(t for t, n in bad_steps.items() if n >= patience and t not in dead):
                dead.add(task)
                if processes.is_process_0():
                    on_warning(
                        f"no member had a finite loss on {task} in the last {bad_steps[task]} "
                        f"outer steps, up to step {step}; the run goes on with the other tasks."
                    )
            is_due |= step % checkpoint_every == 0 or step == last or is_stopped
            if is_due and not is_bad:
                if checkpoints:
                    saving = step
                    is_best = checkpoints.save(step, state, score=_mean(np.array(losses)))
                    if run:
                        last_saved = step
                        report_saved(state, is_best)
                losses, is_due = [], False
            if is_stopped:
                break
        return transfer.local(state)


def beside(f: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a thread of its own, so that signals reach this one meanwhile."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(f, *arguments)
    finally:
        pool.shutdown(wait=False)


def traced_to(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Trace what is done inside, on the host and on devices, to a file for ui.perfetto.dev."""
    return jax.profiler.trace(folder, create_perfetto_trace=True)


def _check_steps(num_steps: int, log_every: int, checkpoint_every: int, patience: int) -> None:
    steps = {
        "log_every": log_every,
        "num_steps": num_steps,
        "checkpoint_every": checkpoint_every,
        "patience": patience,
    }
    for name, value in steps.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}. Try {name}=100.")


def _strong(tree: Any) -> Any:
    """Shapes and dtypes of a tree, without weak types, which a checkpoint would not keep."""
    shapes = jax.eval_shape(lambda x: x, tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _mean(values: np.ndarray) -> float:
    """The mean over what is not NaN, or NaN."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if values.size else float("nan")


def _bad_steps(metrics: Mapping[str, np.ndarray], before: Mapping[str, int]) -> dict[str, int]:
    """Count the outer steps in a row, up to the last one, that had no finite or no valid member.

    Args:
        metrics: Metrics of a chunk, by name; `finite` and `valid` are those of the whole
            population, `digits/finite` and `digits/valid` those on a task.
        before: Result for the chunk before.

    Returns:
        The numbers of steps by task, and that of the whole population as `OVERALL`.
    """
    is_good: dict[str, np.ndarray] = {}
    for name, values in metrics.items():
        task, _, field = name.rpartition("/")
        if field in ("finite", "valid"):
            is_good[task] = is_good.get(task, np.bool_(True)) & (np.asarray(values) > 0)
    counts = {}
    for task, good in is_good.items():
        at = np.flatnonzero(good)
        counts[task] = len(good) - 1 - int(at[-1]) if at.size else before.get(task, 0) + len(good)
    return counts
