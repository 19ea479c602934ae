"""Meta-training: compiled chunks of outer steps, and Python between them to log, save and stop."""

import contextlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2o.distributed import processes, transfer
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState
from l2o.runs.checkpoint import Checkpoints
from l2o.runs.compilation import long_running
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import MetricsLog
from l2o.task import Data, Key

__all__ = ["RunError", "chunk_of", "fit", "stop_on_signals"]

ChunkFn = Callable[[Key, MetaState, Data], tuple[MetaState, dict[str, jax.Array]]]


def chunk_of(learner: Learner, num_steps: int) -> ChunkFn:
    """`(key, state, data) -> (state, metrics)` of `num_steps` outer steps, to be compiled.

    The key of each outer step is folded from `state.step`, so that a run that was interrupted
    continues the stream. Metrics have shape (num_steps,).
    """

    def chunk(key: Key, state: MetaState, data: Data):
        def step(state: MetaState, _: None):
            return learner.step(jax.random.fold_in(key, state.step), state, data)

        return jax.lax.scan(step, state, length=num_steps)

    return chunk


def fit(
    key: Key,
    learner: Learner,
    theta: Theta,
    *,
    num_steps: int,
    log_every: int = 10,
    checkpoint_every: int = 100,
    patience: int = 100,
    run: RunFolder | None = None,
    profile: bool = False,
    on_metrics: Callable[[Mapping[str, Any]], None] | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
    should_stop: Callable[[], bool] | None = None,
) -> MetaState:
    """Meta-trains for `num_steps` outer steps, or goes on to them from the run's last checkpoint.

    A run that was killed and continued ends in the same bytes as one that was not, on the same
    machine. Every `log_every` steps it reports a line: `step`, `inner_steps` (so far, over all
    members), the mean of each of the learner's metrics over these steps (of `meta_loss` over
    those that had one), `seconds` and `inner_steps_per_second`. A line is durable before the
    checkpoint that covers it.

    In several processes (see `l2o.distributed.processes`) all call it alike. Process 0 alone
    reads and writes the run folder and reports; what one process is asked to stop, all stop.

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
        key: of the whole run.
        learner: what takes the outer steps.
        theta: where to start.
        num_steps: outer steps of the whole run, a multiple of `log_every`.
        log_every: outer steps of a chunk, which is one compiled program.
        checkpoint_every: outer steps between checkpoints, a multiple of `log_every`. While the
            last outer step was bad (see `patience`) none is saved, so a good one stays.
        patience: consecutive bad outer steps after which to give up: those in which no training
            loss was finite, or no pair valid.
        run: where metrics and checkpoints go; without it, nowhere.
        profile: whether the second chunk (or the first, if it is the only one) is traced to the
            run folder's `profile`.
        on_metrics: takes each line; the first one also holds `compile_seconds`.
        on_warning: takes a line about each damaged checkpoint; by default `warnings.warn`.
        should_stop: asked between chunks; at True, saves and returns early.

    Raises:
        ValueError: if the numbers of steps do not fit, or there is nowhere for the profile.
        RunError: if the run cannot go on: a full disk, no intact checkpoint, no finite loss, or
            another process that has ended.
    """
    _check_steps(num_steps, log_every, checkpoint_every, patience)
    if profile and run is None and processes.is_main():
        raise ValueError("`run` is needed for a profile; got None. Pass a RunFolder.")
    if not processes.is_main():
        run = on_metrics = None
    k_init, k_steps = jax.random.split(key)
    abstract = _strong(jax.eval_shape(learner.init, k_init, theta))
    log = MetricsLog(run.metrics) if run else None
    checkpoints = Checkpoints(run.checkpoints) if run else None

    def restore() -> MetaState | None:
        step, state = (checkpoints and checkpoints.restore(abstract, on_warning)) or (0, None)
        if log:
            log.truncate_after(step)
        return state

    def init(key: Key, theta: Theta) -> MetaState:
        # Copies, because `theta` may sit in the state twice, and belongs to the caller.
        return jax.tree.map(jnp.copy, learner.init(key, theta))

    program = jax.jit(chunk_of(learner, log_every), donate_argnums=1)
    lower = lambda: program.lower(*_strong((k_steps, abstract, learner.data)))
    state, lowered = processes.on_main(restore), None
    started = time.perf_counter()
    if state is None:
        with ThreadPoolExecutor(1) as pool:  # XLA compiles one program while JAX traces the other
            compiling = pool.submit(jax.jit(init).lower(k_init, theta).compile)
            lowered = lower()
        state = compiling.result()(k_init, theta)
    with processes.all_present():
        state, is_saved = transfer.from_main((state, jnp.bool_(run is not None)))
    step, is_saved = int(state.step), bool(is_saved)
    last_saved = step
    if step > num_steps or (num_steps - step) % log_every:
        raise ValueError(
            f"`num_steps` must be the step of the run's checkpoint plus a multiple of `log_every`; "
            f"got num_steps={num_steps}, a checkpoint at {step}, log_every={log_every}. "
            f"Try num_steps={step + max(1, (num_steps - step) // log_every) * log_every}."
        )
    if step == num_steps:
        return state

    def last_good() -> str:
        if not is_saved:
            return "nothing was saved"
        at = f"the last good checkpoint is at step {last_saved}"
        return at if last_saved else "none is saved yet"

    def where() -> str:
        advice = "Continue all with --resume" if is_saved else "Start all again"
        return f"{last_good()}. {advice}."

    bad_steps = 0
    losses: list[float] = []
    is_due = False
    saving = last_saved
    with processes.all_present(where):
        # Ahead of time: nothing can compile a second time.
        compiled = (lowered or lower()).compile(long_running())
        layout = compiled.input_shardings[0]
        k_steps, state, data = transfer.place((k_steps, state, learner.data), layout)
        extra = {"compile_seconds": time.perf_counter() - started}

        traced = min(step + 2 * log_every, num_steps)
        while step < num_steps:
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
            is_stopped = processes.any_process(should_stop is not None and should_stop())
            last_saved = saving  # process 0 has answered, so it is on the disk
            if bad_steps >= patience or (bad_steps and step == num_steps):
                processes.disconnect()  # all of them stop here
                raise RunError(
                    f"no member had a finite loss in the last {bad_steps} outer steps: stopped at "
                    f"step {step}; {last_good()}. Try a smaller --std or --learning-rate."
                )
            is_due |= step % checkpoint_every == 0 or step == num_steps or is_stopped
            if is_due and not bad_steps:
                if is_saved:
                    whole, saving = transfer.gather(state), step
                    if checkpoints:
                        checkpoints.save(step, whole, score=_mean(np.array(losses)))
                        last_saved = step
                losses, is_due = [], False
            if is_stopped:
                break
        return transfer.gather(state)


def traced_to(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Traces what is done inside, on the host and on devices, to a file for ui.perfetto.dev."""
    return jax.profiler.trace(folder, create_perfetto_trace=True)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A `should_stop` that turns True at SIGINT or SIGTERM.

    A second signal does what it does by default: Ctrl-C raises `KeyboardInterrupt`. Only in the
    main thread.
    """
    is_stopped = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopped
        del number, frame
        is_stopped = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: is_stopped
    finally:
        restore()


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
    for name in ("num_steps", "checkpoint_every"):
        if steps[name] % log_every:
            nearest = -(-steps[name] // log_every) * log_every
            raise ValueError(
                f"`{name}` must be a multiple of `log_every`; got {name}={steps[name]}, "
                f"log_every={log_every}. Try {name}={nearest}."
            )


def _strong(tree: Any) -> Any:
    """Shapes and dtypes of a tree, without weak types, which a checkpoint would not keep."""
    shapes = jax.eval_shape(lambda x: x, tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def _mean(values: np.ndarray) -> float:
    """The mean over what is not NaN, or NaN."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if values.size else float("nan")


def _bad_steps(metrics: Mapping[str, np.ndarray], before: int) -> int:
    """How many outer steps in a row, up to the last one, had no finite member."""
    is_good = [
        np.asarray(values) > 0
        for name, values in metrics.items()
        if name.rpartition("/")[2] in ("finite", "valid")
    ]
    if not is_good:
        return 0
    good = np.flatnonzero(np.all(is_good, axis=0))
    length = len(is_good[0])
    return before + length if not good.size else length - 1 - int(good[-1])
