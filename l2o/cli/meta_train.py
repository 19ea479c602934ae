"""The whole path of a run: resolve, meta-train, release, evaluate, report."""

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from l2o import release
from l2o.cli.plan import Plan, resolve
from l2o.cli.population import num_devices
from l2o.cli.settings import UNRECORDED, MetaTraining
from l2o.distributed import processes
from l2o.evaluation.compare import Comparison, compare
from l2o.evaluation.report import comparison_table, write_report
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import MetaState
from l2o.outer_loop import fit, stop_on_signals
from l2o.rng import stream
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import TRACKERS, Tracker, check_trackers
from l2o.runs.progress import progress
from l2o.task import Task

EXIT_ON_SIGNAL = 128


def meta_train(settings: MetaTraining, console: Console) -> int:
    """Runs, or continues, a meta-training run; returns the exit status.

    In several processes all call it; when theta is found they part, and process 0 evaluates.

    Raises:
        ValueError: for a mistake in the settings, before anything is written.
        RunError: if the run cannot go on; the last good checkpoint stays.
    """
    settings = dataclasses.replace(settings, devices=num_devices(settings))
    plan = processes.broadcast_errors(lambda: resolve(settings))
    if not processes.is_process_0():
        console = Console(quiet=True)
    with contextlib.ExitStack() as stack:
        run = processes.on_process_0(lambda: open_run(settings, console, stack))
        state = train(settings, plan, run, console)
        step = int(state.step)
        if step < settings.steps:
            console.print(
                f"stopped at step {step} of {settings.steps}; continue with --resume",
                soft_wrap=True,
            )
            return EXIT_ON_SIGNAL + signal.SIGINT
        if run:
            finish(settings, plan, run, state, console)
    return 0


def meta_trained(
    settings: MetaTraining, inner_steps: float, console: Console
) -> tuple[LearnedOptimizer, Theta, Mapping[str, Any]]:
    """What a run has found: one that is done as it is, others are begun or continued.

    Args:
        settings: but for `steps` and `resume`; they name a run folder and do not evaluate.
        inner_steps: of the whole run, about.
        console: where progress goes.

    Returns:
        The design, theta, and the summary of the release file.

    Raises:
        RunError: if it was stopped.
        ValueError: if the folder holds a run with other settings.
    """
    of_one = resolve(settings).learner.steps
    steps = max(2, round(inner_steps / of_one))
    steps = steps if steps < 100 else round(steps, -1)  # so that chunks can be of ten
    run = RunFolder(Path(settings.run_dir or "runs/custom"))
    settings = dataclasses.replace(settings, steps=steps, resume=run.config.exists())
    if run.theta.exists():
        RunFolder.open(run.path, recorded(settings), resume=True, ignored=UNRECORDED)
    elif meta_train(settings, console):
        raise RunError(f"meta-training was stopped in {run.path}. Continue with --resume.")
    lopt, theta = release.load(run.theta)
    return lopt, theta, release.summary(run.theta)


def open_run(settings: MetaTraining, console: Console, stack: contextlib.ExitStack) -> RunFolder:
    """The run folder, locked until `stack` is left."""
    check_trackers(settings.log)
    run = RunFolder.open(
        settings.run_dir or "runs/custom",
        recorded(settings),
        resume=settings.resume,
        ignored=UNRECORDED,
    )
    stack.enter_context(run.locked(lambda text: _warn(console, text)))
    return run


def train(settings: MetaTraining, plan: Plan, run: RunFolder | None, console: Console) -> MetaState:
    """Meta-trains until the last step or a signal; then the processes part.

    `run` is None in processes other than 0.
    """
    with contextlib.ExitStack() as stack:

        def start_trackers() -> list[Tracker]:
            if run is None:
                return []
            try:
                return [
                    stack.enter_context(
                        TRACKERS[name](
                            run.path,
                            recorded(settings),
                            on_warning=lambda text: _warn(console, text),
                        )
                    )
                    for name in settings.log
                ]
            except ValueError:  # a tracker that cannot start must not leave a run behind
                if not settings.resume:
                    shutil.rmtree(run.path)
                raise

        tracks = processes.broadcast_errors(start_trackers)
        show = stack.enter_context(progress(console, settings.steps, quiet=settings.quiet))
        should_stop = stack.enter_context(stop_on_signals())

        def on_metrics(line: Mapping[str, Any]) -> None:
            for track in (*tracks, show):
                track(line)

        _, k_fit = jax.random.split(stream(settings.seed, "meta_training"))
        state = fit(
            k_fit,
            plan.learner,
            plan.trained,
            num_steps=settings.steps,
            log_every=plan.log_every,
            checkpoint_every=plan.checkpoint_every,
            run=run,
            profile=settings.profile and processes.is_process_0(),
            on_metrics=on_metrics,
            on_warning=lambda text: _warn(console, text),
            should_stop=should_stop,
        )
        processes.disconnect()  # before trackers close, which can take long in process 0
        return state


def finish(
    settings: MetaTraining, plan: Plan, run: RunFolder, state: MetaState, console: Console
) -> None:
    """Writes the release file and, if the settings want them, evaluation and report."""
    theta = plan.merge(plan.learner.theta(state))
    inner_steps = int(state.step) * plan.learner.steps
    config = recorded(settings)
    summary = config | {"inner_steps": inner_steps, "trained_on": _names(plan.train)}
    release.save(run.theta, plan.lopt, theta, summary)
    if not settings.evaluate:
        console.print(str(run.theta), soft_wrap=True, markup=False)
        return
    comparisons = compare_on(
        plan.evaluation,
        plan.lopt,
        theta,
        plan.merge(plan.trained),
        seen=_names(plan.train),
        num_steps=settings.eval_steps or settings.horizon[-1],
        num_seeds=settings.eval_seeds,
        seed=settings.seed,
        baselines=settings.eval_baselines,
        console=console,
    )
    write_report(run.path, comparisons, config=config)
    console.print(comparison_table([c.summary for c in comparisons]))
    console.print(f"{run.theta}\n{run.report_html}", soft_wrap=True, markup=False)


def recorded(settings: MetaTraining) -> dict[str, Any]:
    """What of the settings determines theta: the same in every process, and when continued."""
    fields = dataclasses.asdict(settings)
    return {name: value for name, value in fields.items() if name not in UNRECORDED}


def compare_on(
    tasks: Sequence[Task],
    lopt: LearnedOptimizer,
    theta: Theta,
    theta0: Theta,
    *,
    seen: Sequence[str],
    num_steps: int,
    num_seeds: int,
    seed: int,
    baselines: Sequence[str],
    console: Console,
) -> list[Comparison]:
    """Compares a learned optimizer, and its untrained design, with tuned baselines on each task."""
    comparisons = []
    for task in tasks:
        console.print(f"evaluating on {task.name}", soft_wrap=True, markup=False)
        comparisons.append(
            compare(
                stream(seed, "evaluation"),
                task,
                lambda *, horizon: lopt.transform(theta, horizon=horizon),
                num_steps=num_steps,
                num_seeds=num_seeds,
                controls={"untrained": lambda *, horizon: lopt.transform(theta0, horizon=horizon)},
                seen=frozenset(seen),
                allow_seen=True,
                baselines=baselines,
            )
        )
    return comparisons


def _names(tasks: Sequence[Task]) -> list[str]:
    return [task.name for task in tasks]


def _warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", soft_wrap=True, markup=False)
