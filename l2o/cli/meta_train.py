"""A meta-training run from its settings to its report: read this first.

Settings build their parts; `fit` takes the outer steps; theta is released, evaluated beside tuned
baselines, and reported.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from l2o import registry, release
from l2o.cli.arguments import RENAMED, baselines_named, check_renamed, parse
from l2o.cli.evaluate import compare_on
from l2o.cli.methods.table import METHODS, alike
from l2o.cli.presets import PRESETS
from l2o.cli.recorded import recorded_settings
from l2o.cli.settings import MetaTraining, Output, Parts, first_theta
from l2o.cli.topology import connected
from l2o.cli.validation import about_validation, best_of_validation
from l2o.distributed import processes
from l2o.evaluation.report import comparison_table, write_report
from l2o.evaluation.seen import names_and_signatures
from l2o.evaluation.validation import ValidationCurve, validation_cost
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import MetaState
from l2o.outer_loop import fit
from l2o.rng import stream
from l2o.runs.folder import EARLIER_STEPS, RunError, RunFolder
from l2o.runs.logging import TRACKERS, Tracker, check_trackers, compute_seconds
from l2o.runs.progress import progress
from l2o.runs.provenance import record_provenance
from l2o.runs.signals import stop_on_signals

EXIT_ON_SIGNAL = 128


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o meta-train [PRESET] [options] [METHOD [options]]`."""
    settings = parse_settings(arguments)
    with connected(settings.processes, settings.recorded()):
        return meta_train(settings, console)


def parse_settings(arguments: Sequence[str]) -> MetaTraining:
    """The settings of a run from the words of a command line.

    A method that is named has the options that it shares with the preset's. Without a preset,
    --resume goes on with what the run folder has recorded.

    Raises:
        ValueError: for an unknown preset, and for options that have other names now.
    """
    words, preset = list(arguments), "custom"
    check_renamed(words, RENAMED)
    default = MetaTraining()
    if words and not words[0].startswith("-") and words[0] not in METHODS:
        preset = words.pop(0)
        if preset not in PRESETS:
            raise registry.unknown_name_error("PRESET", preset, (*PRESETS, *METHODS))
        default = PRESETS[preset]
    else:
        default = recorded_settings(words)
    methods = {name: alike(method, default.method) for name, method in METHODS.items()}
    union = tyro.extras.subcommand_type_from_defaults(
        methods,
        {name: registry.first_line(method) for name, method in METHODS.items()},
        prefix_names=False,
    )
    given = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    given["output"] = Output(run_dir=f"runs/{preset}")
    options = dataclasses.make_dataclass(
        "MetaTraining",
        [("method", union, dataclasses.field(default=default.method))],
        bases=(MetaTraining,),
        frozen=True,
        namespace={"__doc__": MetaTraining.__doc__},
    )
    found = parse(options, f"meta-train [{'|'.join(PRESETS)}]", words, options(**given))
    return MetaTraining(**{name: getattr(found, name) for name in given})


def meta_train(
    settings: MetaTraining,
    console: Console,
    *,
    parts: Parts | None = None,
    until: int | None = None,
) -> int:
    """Run, or continue, a meta-training run; returns the exit status.

    In several processes all call it; when theta is found they part, and process 0 evaluates.

    Args:
        settings: Settings of the run.
        console: Console for the progress and the results.
        parts: What the settings build, if that has been built.
        until: Outer step at which to stop, to go on later; the last if not given.

    Raises:
        ValueError: for a mistake in the settings, before anything is written.
        RunError: if the run cannot go on; the last good checkpoint stays.
    """
    parts = parts or processes.broadcast_errors(settings.build)
    if not processes.is_process_0():
        console = Console(quiet=True)
    with contextlib.ExitStack() as stack:
        run = processes.on_process_0(lambda: open_run(settings, console, stack))
        about = about_run(settings, parts, run, console) if run else {}
        trackers = processes.broadcast_errors(lambda: start_trackers(settings, run, stack, console))
        state, is_stopped = train(settings, parts, run, about, trackers, console, until)
        step = int(state.step)
        if step == until and step < settings.steps and not is_stopped:
            return 0
        if step < settings.steps:
            console.print(
                f"stopped at step {step} of {settings.steps}; continue with --resume",
                soft_wrap=True,
            )
            return EXIT_ON_SIGNAL + signal.SIGINT
        if run:
            theta = save_theta(run.theta, parts, run, about, state)
            if settings.evaluate and is_stopped:
                console.print("stopped before the evaluation; continue with --resume")
                return EXIT_ON_SIGNAL + signal.SIGINT
            if settings.evaluate:
                evaluate(settings, parts, run, theta, about, trackers, console)
            elif run.report_html.exists():
                console.print(f"the report is of an earlier theta; try l2o evaluate {run.path}")
            if parts.validator:
                console.print(best_of_validation(run), soft_wrap=True, markup=False)
            console.print(str(run.theta), soft_wrap=True, markup=False)
    # Who trains in stretches is to hear of a signal in the last of them, too.
    return EXIT_ON_SIGNAL + signal.SIGINT if is_stopped and until is not None else 0


def open_run(settings: MetaTraining, console: Console, stack: contextlib.ExitStack) -> RunFolder:
    """The run folder, locked until `stack` is left."""
    output = settings.output
    check_trackers(output.log)
    folder = output.run_dir or "runs/custom"
    was_there = Path(folder).exists()
    run = RunFolder.open(folder, settings.recorded(), resume=output.resume)
    stack.enter_context(run.locked(warn_on(console)))
    if not output.resume:
        stack.push(functools.partial(remove_unless_begun, run, was_there))
    elif before := run.make_longer(settings.recorded()):
        console.print(
            f"going on to {settings.steps} steps from {before}; rates and a std that follow the "
            "length of the run follow the new one from here on",
            soft_wrap=True,
        )
    return run


def remove_unless_begun(
    run: RunFolder, was_there: bool, kind: type[BaseException] | None, *_: object
) -> None:
    """Remove a new run that a mistake has ended before its first step, so that it can be mended."""
    is_mistake = kind is not None and issubclass(kind, Exception)
    if is_mistake and not (run.metrics.exists() and run.metrics.stat().st_size):
        shutil.rmtree(run.path, ignore_errors=True)
        if was_there:
            run.path.mkdir(exist_ok=True)


def about_run(
    settings: MetaTraining, parts: Parts, run: RunFolder, console: Console
) -> dict[str, Any]:
    """What the release files of a run say of it, but for how far it has come."""
    seen = names_and_signatures(parts.train)
    about = {
        **settings.recorded(),
        "trained_on": seen,
        "provenance": record_provenance(run, user_modules(settings), on_warning=warn_on(console)),
    }
    if earlier := run.recorded().get(EARLIER_STEPS):
        about[EARLIER_STEPS] = earlier
    if settings.init_from is not None:
        before = settings.before()
        about["trained_on"] = list(dict.fromkeys([*before.get("trained_on", []), *seen]))
        if "validated_on" in before:
            about["validated_on"] = before["validated_on"]
        about["init_from_sha256"] = release.checksum(settings.init_from)
    return about


def user_modules(settings: MetaTraining) -> list[str]:
    """Modules of the user's own that the settings name, as `module:attribute`."""
    paths = (*settings.task, *settings.validation.validate_on, settings.optimizer[0])
    return sorted({path.partition(":")[0] for path in paths if ":" in path})


def start_trackers(
    settings: MetaTraining, run: RunFolder | None, stack: contextlib.ExitStack, console: Console
) -> list[Tracker]:
    """The trackers of a run, closed when `stack` is left; none in processes other than 0."""
    output = settings.output
    if run is None:
        return []
    return [
        stack.enter_context(
            TRACKERS[name](run.path, settings.recorded(), on_warning=warn_on(console))
        )
        for name in output.log
    ]


def train(
    settings: MetaTraining,
    parts: Parts,
    run: RunFolder | None,
    about: Mapping[str, Any],
    trackers: Sequence[Tracker],
    console: Console,
    until: int | None = None,
) -> tuple[MetaState, bool]:
    """Meta-train to the last step, to `until` or to a signal, and whether there was one.

    Then processes part. `run` is None in processes other than 0.
    """
    output = settings.output
    curve = ValidationCurve(run.validation, parts.validator) if run and parts.validator else None
    scores: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress(console, settings.steps, quiet=output.quiet))
        should_stop = stack.enter_context(stop_on_signals(say_stopping))

        def save_if_possible(path: Path, about: Mapping[str, Any], state: MetaState) -> None:
            assert run is not None
            try:
                save_theta(path, parts, run, about, state)
            except ValueError as error:  # the run itself can go on
                warn_on(console)(str(error))

        def on_best(state: MetaState) -> None:
            """Write theta of the checkpoint with the lowest meta-loss so far, if it can be."""
            assert run is not None
            save_if_possible(run.best, about, state)

        def on_checkpoint(state: MetaState) -> None:
            """Validate theta when that is due, and write the best so far."""
            assert run is not None and curve is not None
            step = int(state.step)
            every = parts.validate_every
            is_due = step % every == 0 or step in (settings.steps, until)
            # Checkpoints of a run that was made longer may miss the multiples.
            if not is_due and step // every == curve.last_step // every:
                return
            row, is_best = curve.add(step, parts.unravel(parts.learner.theta(state)))
            if is_best:
                found = about_validation(about, curve.validator.tasks, row)
                save_if_possible(run.validated, found, state)
            for track in trackers:
                track({"step": step, **{f"validation/{k}": row[k] for k in row if k != "step"}})
            scores.update(validation_score=row["score"], validation_step=step)

        def on_metrics(line: Mapping[str, Any]) -> None:
            for track in trackers:
                track(line)
            show({**line, **scores})

        _, k_fit = jax.random.split(stream(settings.seed, "meta_training"))
        state = fit(
            k_fit,
            parts.learner,
            parts.theta,
            num_steps=settings.steps,
            until=until,
            log_every=parts.log_every,
            checkpoint_every=parts.checkpoint_every,
            run=run,
            profile=output.profile and processes.is_process_0(),
            on_metrics=on_metrics,
            on_checkpoint=on_checkpoint if curve else None,
            on_best=on_best,
            on_warning=warn_on(console),
            should_stop=should_stop,
        )
        processes.disconnect()  # before trackers close, which can take long in process 0
        return state, should_stop()


def say_stopping() -> None:
    """Say that a signal was heard; not by a stream, which may be in the middle of a line."""
    text = "stopping when this chunk, or what is being compiled, is done; again to stop at once"
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def save_theta(
    path: Path, parts: Parts, run: RunFolder, about: Mapping[str, Any], state: MetaState
) -> Theta:
    """Write a release file; returns its theta."""
    theta = parts.unravel(parts.learner.theta(state))
    summary = {
        **about,
        "inner_steps": int(state.step) * parts.learner.steps,
        "compute_seconds": compute_seconds(run.metrics),
        **validation_cost(run.validation),
    }
    release.save(path, parts.lopt, theta, summary)
    return theta


def evaluate(
    settings: MetaTraining,
    parts: Parts,
    run: RunFolder,
    theta: Theta,
    about: Mapping[str, Any],
    trackers: Sequence[Tracker],
    console: Console,
) -> None:
    """Compare what was found with tuned baselines on every evaluation task; write the report."""
    comparisons = compare_on(
        parts.evaluation,
        parts.lopt,
        theta,
        first_theta(parts.lopt, settings.seed),
        seen=about["trained_on"],
        validated=about.get("validated_on", []),
        horizon=settings.eval.horizon or settings.horizon[-1],
        num_seeds=settings.eval.seeds,
        seed=settings.seed,
        baselines=baselines_named(settings.eval.baselines, "eval.baselines"),
        trials=settings.eval.trials,
        console=console,
    )
    write_report(run.path, comparisons, config=settings.recorded())
    rows = [comparison.summary for comparison in comparisons]
    results = {
        f"{row['task']}/{k}": v
        for row in rows
        for k, v in row.items()
        if isinstance(v, str | int | float)
    }
    for tracker in trackers:
        tracker.summary(results)
    console.print(comparison_table([c.summary for c in comparisons]))
    console.print(str(run.report_html), soft_wrap=True, markup=False)


def meta_trained(
    settings: MetaTraining, inner_steps: float, console: Console
) -> tuple[LearnedOptimizer, Theta, Mapping[str, Any]]:
    """What a run has found: one that is done as it is, others are begun or continued.

    Args:
        settings: Settings of the run but for `steps` and `resume`; they name a run folder.
        inner_steps: Inner steps of the whole run, about.
        console: Console for the progress.

    Returns:
        The design, theta, and the summary of the release file.

    Raises:
        RunError: if it was stopped.
        ValueError: if the folder holds a run with other settings.
    """
    steps = max(2, round(inner_steps / settings.build().learner.steps))
    steps = steps if steps < 100 else round(steps, -1)  # so that chunks can be of ten
    run = RunFolder(Path(settings.output.run_dir or "runs/custom"))
    output = dataclasses.replace(settings.output, resume=run.config.exists())
    settings = dataclasses.replace(settings, steps=steps, output=output)
    if run.theta.exists():
        RunFolder.open(run.path, settings.recorded(), resume=True)
    elif meta_train(settings, console):
        raise RunError(f"meta-training was stopped in {run.path}. Continue with --resume.")
    lopt, theta = release.load(run.theta)
    return lopt, theta, release.summary(run.theta)


def warn_on(console: Console) -> Callable[[str], None]:
    """A function that shows a line as a warning."""
    return lambda text: console.print(f"warning: {text}", soft_wrap=True, markup=False)
