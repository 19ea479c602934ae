"""The whole path of `l2o compare-hpo`: meta-train policies, compare on each task, write."""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from l2o import registry
from l2o.cli.arguments import check_renamed, parse
from l2o.cli.hpo_policies import check_ways, settings_of, train_policy
from l2o.cli.settings import MetaTraining, first_theta
from l2o.distributed import processes
from l2o.hpo.engines import ENGINES, INSTALL, check_engines
from l2o.hpo.report import NOTE, break_even_table, loss_table, write_results
from l2o.hpo.task_comparison import SHORTEST, Budget, compare_on_task
from l2o.hpo.trained_policy import TrainedPolicy, released_policy
from l2o.problem import check_can_train
from l2o.rng import check_seed
from l2o.runs.folder import RunError, RunFolder
from l2o.task import Task

BudgetName = Literal["small", "medium", "large"]


@dataclass(frozen=True)
class CompareHPO:
    """Compares learning-rate policies with engines for hyperparameter optimization."""

    # What is compared, on what
    task: tuple[str, ...] = ("digits_mlp",)
    """Families, their evaluation tasks, or module:attribute of your own."""
    engines: tuple[str, ...] = ()
    """cosine, random, optuna_tpe, optuna_cmaes, hyperopt_tpe, ray_pbt; those installed if not
    given."""
    policies: tuple[str, ...] = ("ppo", "nres", "CMA_ES")
    """Ways to meta-train a policy for this comparison, at equal inner steps; may be none."""
    released: tuple[str, ...] = ()
    """Run folders or release files of policies and other learned optimizers, besides."""

    # How much
    budget: BudgetName = "small"
    """small: two tasks of a family at most, minutes; medium: hours; large: a day. It sets what
    follows."""
    horizon: int | None = None
    """Inner steps of a run."""
    runs: int | None = None
    """Whole runs that a search may spend on a task."""
    searches: int | None = None
    """Repetitions of every search, each on a training problem of its own."""
    seeds: int | None = None
    """Evaluation runs of each schedule and policy."""
    inner_steps: float | None = None
    """Of the meta-training of each policy, about."""
    seed: int = 0
    """Of everything random."""

    # Where it goes
    out: str = "runs/hpo"
    """Folder for hpo.json, hpo.png, the searches and the runs of policies."""
    resume: bool = False
    """Continue the comparison in that folder."""


BUDGETS: Mapping[BudgetName, Budget] = {
    "small": Budget(400, 16, 3, 8, 1.5e6, tasks=2),
    "medium": Budget(1000, 48, 8, 16, 1e7),
    "large": Budget(1000, 128, 16, 32, 1e8),
}


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o compare-hpo [options]`."""
    check_renamed(arguments, {"--steps": "--horizon"})
    options = parse(CompareHPO, "compare-hpo", arguments)
    processes.use_cpu_cores(len(processes.cores()))
    return run_comparison(options, console)


def run_comparison(options: CompareHPO, console: Console) -> int:
    """Compare, and write what was found; returns the exit status.

    Raises:
        ValueError: for a mistake in the options, before anything is run.
        RunError: if a meta-training run or a search cannot go on.
    """
    begun = time.perf_counter()
    budget = resolve(options)
    check_seed(options.seed)
    check_seed(options.seed + budget.searches - 1)  # each search has its own
    check_names(options)
    engines = options.engines or recorded_engines(options) or installed(console)
    check_engines(engines)
    check_ways(options.policies)
    released = [released_policy(source) for source in options.released]
    tasks = chosen(options.task, budget.tasks, console)
    families = registry.families_of(options.task)
    ways = [
        settings_of(
            way,
            families,
            budget.meta_training_horizon,
            options.seed,
            Path(options.out) / "policies",
        )
        for way in options.policies
    ]
    # Mistakes are found before anything is written.
    designs = [settings.build().lopt for settings in ways]
    for lopt in (*designs, *(policy.lopt for policy in released)):
        for task in tasks:
            check_can_train(lopt, task, budget.horizon)
    config = asdict(options) | asdict(budget) | {"engines": sorted(engines)}
    del config["out"], config["resume"]
    with opened(options, config, console) as folder:
        if ways and budget.horizon < SHORTEST:
            console.print(
                f"warning: policies are meta-trained on runs of {SHORTEST} steps, longer than "
                f"--horizon {budget.horizon}",
                soft_wrap=True,
            )
        policies = []
        for settings in ways:
            console.print(f"meta-training by {settings.method.name}", highlight=False)
            policies.append(trained(settings, budget.inner_steps, console))
        controls = before(policies, options.seed)
        results = []
        for task in tasks:
            result = compare_on_task(
                task,
                engines,
                [*policies, *released, *controls],
                budget,
                options.seed,
                folder,
                console,
            )
            results.append(result)
            console.print(loss_table(result))
            if table := break_even_table(result):
                console.print(table)
        console.print(NOTE, highlight=False)
        seconds = None if options.resume else time.perf_counter() - begun
        for path in write_results(folder, results, config, seconds):
            console.print(str(path), soft_wrap=True, markup=False)
    return 0


@contextlib.contextmanager
def opened(options: CompareHPO, config: Mapping[str, Any], console: Console) -> Iterator[Path]:
    """The folder of the comparison, new or continued, kept from other processes.

    Raises:
        ValueError: if it cannot be, in this command's words.
    """
    with contextlib.ExitStack() as stack:
        try:
            run = RunFolder.open(options.out, config, resume=options.resume)
            stack.enter_context(
                run.locked(lambda text: console.print(f"warning: {text}", soft_wrap=True))
            )
        except ValueError as error:
            told = str(error).replace("`run_dir`", "`out`").replace("--run-dir", "--out")
            raise ValueError(told) from error
        yield run.path


def trained(settings: MetaTraining, inner_steps: float, console: Console) -> TrainedPolicy:
    """A policy, meta-trained or read.

    Raises:
        RunError: if it cannot be, in words that are not about flags of another command.
    """
    try:
        return train_policy(settings, inner_steps, console)
    except ValueError as error:  # its settings were found right before
        told = re.sub(r",? or another --run-dir|--run-dir", "", str(error))
        raise RunError(
            f"{settings.output.run_dir} cannot be used or gone on with: {told} If it is damaged "
            "or of another version of l2o, delete it, and go on with --resume."
        ) from error


def recorded_engines(options: CompareHPO) -> list[str]:
    """Engines of the comparison that is to be continued; none if there is none."""
    path = RunFolder(Path(options.out)).config
    if not options.resume or not path.is_file():
        return []
    with contextlib.suppress(ValueError):  # told when it is opened
        found = json.loads(path.read_bytes())
        names = found.get("engines") if isinstance(found, dict) else None
        return [name for name in ENGINES if name in names] if isinstance(names, list) else []
    return []


def check_names(options: CompareHPO) -> None:
    """Raises a `ValueError` that says what to type if no task is named, or a release twice."""
    if not options.task:
        raise ValueError("`task` must name at least one task; got none. Try task=digits_mlp.")
    if len(set(options.released)) < len(options.released):
        raise ValueError(f"`released` must differ; got {' '.join(options.released)}. Drop one.")


def resolve(options: CompareHPO) -> Budget:
    """The budget, with what the options say otherwise."""
    found = asdict(BUDGETS[options.budget])
    for name in ("horizon", "runs", "searches", "seeds", "inner_steps"):
        value = getattr(options, name)
        least = 2 if name == "runs" else 1
        if value is not None and not least <= value < math.inf:
            raise ValueError(
                f"`{name}` must be at least {least} and finite; got {value}. "
                f"Try {name}={found[name]}."
            )
        found[name] = found[name] if value is None else value
    return Budget(**found)


def installed(console: Console) -> list[str]:
    """Engines that can be used; says which are left out."""
    for name, engine in ENGINES.items():
        if engine.missing:
            needs = " and ".join(engine.missing)
            console.print(
                f"{name} is left out: {needs} not installed. {INSTALL}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return [name for name, engine in ENGINES.items() if not engine.missing]


def chosen(names: Sequence[str], most: int | None, console: Console) -> list[Task]:
    """The evaluation tasks of these names, of a family at most so many; says which are left out.

    Raises:
        ValueError: if a name is unknown.
    """
    kept: dict[str, Task] = {}
    for name in names:
        tasks = registry.tasks_to_evaluate([name])
        few = [*tasks[: most - 1], tasks[-1]] if most and len(tasks) > most else tasks
        kept |= {task.name: task for task in few}
    named = [task.name for task in registry.tasks_to_evaluate(names)]
    if left_out := [name for name in named if name not in kept]:
        console.print(
            f"not compared on {', '.join(left_out)}; name them, or take --budget medium",
            highlight=False,
            soft_wrap=True,
        )
    return list(kept.values())


def before(policies: Sequence[TrainedPolicy], seed: int) -> list[TrainedPolicy]:
    """The first policy before its meta-training, as a control."""
    lopts = [policy.lopt for policy in policies[:1]]
    return [TrainedPolicy("untrained", x, first_theta(x, seed), 0, []) for x in lopts]
