"""The whole path of a run: resolve, meta-train, release, evaluate, report."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from rich.console import Console

from l2o import lookup, parallel, release
from l2o.comparison import Comparison, compare
from l2o.estimators import mean_of
from l2o.fit import fit, stop_on_signals
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner, gradient_learner
from l2o.metrics import TRACKERS, check_trackers
from l2o.problem import inner_problem
from l2o.progress import progress
from l2o.report import comparison_table, write_report
from l2o.run_folder import RunFolder
from l2o.settings import UNRECORDED, MetaTraining
from l2o.streams import check_seed, stream
from l2o.task import Key, Task, TaskFamily, check_task

EXIT_ON_SIGNAL = 128


@dataclass(frozen=True, eq=False)
class Plan:
    """Settings resolved to the parts they name.

    Attributes:
        family: the tasks.
        evaluation: those to report on.
        lopt: the design.
        learner: what takes the outer steps.
        log_every: outer steps of a chunk, a divisor of the steps.
        checkpoint_every: outer steps between checkpoints, a multiple of `log_every`.
    """

    family: TaskFamily
    evaluation: tuple[Task, ...]
    lopt: LearnedOptimizer
    learner: Learner
    log_every: int
    checkpoint_every: int


def resolve(settings: MetaTraining) -> Plan:
    """Builds every part of a run, and so finds every mistake in its settings.

    Raises:
        ValueError: naming the setting, its value and what to type instead.
    """
    for name in ("steps", "learning_rate", "clip", "log_every", "checkpoint_every", "eval_seeds"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(
                f"`{name}` must be positive and finite; got {getattr(settings, name)}. "
                f"Try {name}={getattr(MetaTraining(), name)}."
            )
    if not 0 < settings.std < math.inf:
        raise ValueError(
            f"`std` must be positive and finite; got {settings.std}. Try std={MetaTraining().std}."
        )
    if not 0 <= settings.weight_decay < math.inf:
        raise ValueError(
            f"`weight_decay` must not be negative; got {settings.weight_decay}. Try weight_decay=0."
        )
    check_seed(settings.seed)
    if len(settings.horizon) not in (1, 2):
        raise ValueError(
            f"`horizon` must be one number or two; got {len(settings.horizon)}. "
            "Try horizon=200, or horizon=100 1000."
        )
    horizon = (settings.horizon[0], settings.horizon[-1])
    if settings.eval_steps is not None and settings.eval_steps < 1:
        raise ValueError(
            f"`eval_steps` must be at least 1; got {settings.eval_steps}. "
            f"Try eval_steps={horizon[1]}."
        )
    make_estimator = lookup.estimator(settings.estimator)
    lopt = lookup.learned_optimizer(settings.optimizer)
    family = lookup.task_family(settings.task)
    mesh = parallel.population_mesh(_num_devices(settings))
    learner = gradient_learner(
        mean_of(
            {
                task.name: make_estimator(
                    inner_problem(
                        task,
                        lopt,
                        horizon=horizon,
                        window=settings.window,
                        meta_loss=settings.meta_loss,
                    ),
                    num_pairs=settings.num_pairs,
                    std=settings.std,
                    mesh=mesh,
                )
                for task in family.train
            }
        ),
        meta_optimizer(settings),
        averaging=settings.averaging,
    )
    evaluation = lookup.evaluation_tasks(family, settings.eval_tasks)
    for task in evaluation:
        check_task(task)
    log_every = math.gcd(settings.log_every, settings.steps)
    return Plan(
        family=family,
        evaluation=evaluation,
        lopt=lopt,
        learner=learner,
        log_every=log_every,
        checkpoint_every=max(1, settings.checkpoint_every // log_every) * log_every,
    )


def meta_optimizer(settings: MetaTraining) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with a short warm-up and a cosine down to a twentieth."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(50, settings.steps // 10),
        decay_steps=settings.steps,
        end_value=settings.learning_rate / 20,
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )


def meta_train(settings: MetaTraining, console: Console) -> int:
    """Runs, or continues, a meta-training run; returns the exit status.

    Raises:
        ValueError: for a mistake in the settings, before anything is written.
        RunError: if the run cannot go on; the last good checkpoint stays.
    """
    settings = dataclasses.replace(settings, devices=_num_devices(settings))
    plan = resolve(settings)
    config = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in UNRECORDED
    }
    check_trackers(settings.log)
    run = RunFolder.open(
        settings.run_dir or "runs/custom", config, resume=settings.resume, ignored=UNRECORDED
    )
    with contextlib.ExitStack() as stack:
        try:
            tracks = [stack.enter_context(TRACKERS[name](run.path)) for name in settings.log]
        except ValueError:  # a tracker that cannot start must not leave a run behind
            if not settings.resume:
                shutil.rmtree(run.path)
            raise
        show = stack.enter_context(progress(console, settings.steps, quiet=settings.quiet))
        should_stop = stack.enter_context(stop_on_signals())

        def on_metrics(line: Mapping[str, Any]) -> None:
            for track in (*tracks, show):
                track(line)

        theta0 = plan.lopt.init(theta_key(settings.seed))
        _, k_fit = jax.random.split(stream(settings.seed, "meta_training"))
        state = fit(
            k_fit,
            plan.learner,
            theta0,
            num_steps=settings.steps,
            log_every=plan.log_every,
            checkpoint_every=plan.checkpoint_every,
            run=run,
            on_metrics=on_metrics,
            on_warning=lambda text: console.print(f"warning: {text}", soft_wrap=True, markup=False),
            should_stop=should_stop,
        )
    step = int(state.step)
    if step < settings.steps:
        console.print(
            f"stopped at step {step} of {settings.steps}; continue with --resume", soft_wrap=True
        )
        return EXIT_ON_SIGNAL + signal.SIGINT
    theta = plan.learner.theta(state)
    inner_steps = step * plan.learner.steps
    summary = config | {"inner_steps": inner_steps, "trained_on": _names(plan.family.train)}
    release.save(run.theta, plan.lopt, theta, summary)
    comparisons = compare_on(
        plan.evaluation,
        plan.lopt,
        theta,
        theta0,
        seen=_names(plan.family.train),
        num_steps=settings.eval_steps or settings.horizon[-1],
        num_seeds=settings.eval_seeds,
        seed=settings.seed,
        console=console,
    )
    write_report(run.path, comparisons, config=config)
    console.print(comparison_table([c.summary for c in comparisons]))
    console.print(f"{run.theta}\n{run.report_html}", soft_wrap=True, markup=False)
    return 0


def theta_key(seed: int) -> Key:
    """The key of a run's first theta."""
    return jax.random.split(stream(seed, "meta_training"))[0]


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
    console: Console,
) -> list[Comparison]:
    """Compares a learned optimizer, and its untrained design, with tuned Adam on each task."""
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
            )
        )
    return comparisons


def _names(tasks: Sequence[Task]) -> list[str]:
    return [task.name for task in tasks]


def _num_devices(settings: MetaTraining) -> int:
    if settings.devices is not None:
        return settings.devices
    if settings.num_pairs < 1:  # an error, but not one about devices
        return 1
    present = jax.device_count()
    return max(n for n in range(1, present + 1) if settings.num_pairs % n == 0)


def use_cpu_cores(num_devices: int | None) -> None:
    """Makes each CPU core a device; without effect once JAX has been used."""
    is_linux = hasattr(os, "sched_getaffinity")
    cores = num_devices or (len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(cores, 1))
