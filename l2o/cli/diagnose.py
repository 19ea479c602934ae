"""The whole path of `l2o diagnose`: resolve, measure, write."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import jax
from rich.console import Console

from l2o import registry, release
from l2o.cli.arguments import Flat, check_renamed, check_writable, parse
from l2o.cli.methods.method import LOG_LOSS
from l2o.cli.settings import first_theta
from l2o.diagnosis.report import NOTE, diagnosis_table, write_diagnosis
from l2o.diagnosis.sampling import MakeEstimator, diagnose
from l2o.diagnosis.summary import Job, ReferenceChoice, Replicates
from l2o.distributed import processes
from l2o.estimators.population import check_pairs
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.objective import Objective
from l2o.problem import Problem, inner_problem, is_differentiable
from l2o.release_file import given_as
from l2o.rng import check_seed, stream

SEVERAL_PAIRS = 8
"""Pairs of an estimator that measures a variance over its population; all others have one."""


@dataclass(frozen=True)
class Diagnose:
    """Measures bias, variance, cosine and cost of meta-gradient estimators at one theta."""

    # Which meta-gradient
    task: str = "digits_mlp_32"
    """A task, or a family for the first that it trains on: names, or module:attribute."""
    optimizer: str | None = None
    """Design: a name from `l2o list`, or module:attribute; learnable_adam if not given."""
    theta: str | None = None
    """Run folder, release file or name of one whose theta it is; the design's first if not
    given."""
    objective: Flat[Objective] = LOG_LOSS

    # Which estimators
    estimator: tuple[str, ...] = ()
    """Names from `l2o list`; all but variance_weighted that the objective allows if not given.
    Full ES, and full backpropagation where there is a gradient, are always there."""
    horizon: tuple[int, ...] = (50, 100, 200)
    """Inner steps of a training run; each is measured at the shortest window."""
    window: tuple[int, ...] = (5, 20, 100)
    """Inner steps of an estimate; each is measured at the longest horizon."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""

    # How precisely
    num_replicates: int = 256
    """Independent replicates of each estimator, each a whole training run of its members."""
    reference: ReferenceChoice = "auto"
    """The gradient to hold them against: by backpropagation, by full ES, or the less noisy."""
    seed: int = 0
    """Of everything random."""
    out: str = "runs/diagnosis"
    """Folder for diagnosis.json and diagnosis.png; replaced if there are any."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o diagnose [options]`."""
    check_renamed(arguments, {"--objective": "--summary", "--num-runs": "--num-replicates"})
    settings = parse(Diagnose, "diagnose", arguments)
    processes.use_cpu_cores(len(processes.cores()))
    return run_diagnosis(settings, console)


def run_diagnosis(settings: Diagnose, console: Console) -> int:
    """Measures, and writes what was found; returns the exit status.

    Raises:
        ValueError: for a mistake in the settings, before anything is compiled.
    """
    begun = time.perf_counter()
    check_seed(settings.seed)
    check_pairs(1, settings.std, "none")
    for name in settings.estimator:
        if name not in registry.ESTIMATORS:
            raise registry.unknown_name_error("estimator", name, registry.ESTIMATORS)
    check_writable(settings.out, "out", "runs/diagnosis")
    lopt, theta = design_and_theta(settings)
    task = registry.training_task(settings.task)
    objective = settings.objective

    def make_problem(horizon: int, window: int) -> Problem:
        return inner_problem(task, lopt, horizon=horizon, window=window, objective=objective)

    def show(job: Job, found: Replicates) -> None:
        window = f", window {job.window}" if job.window else ""
        console.print(
            f"{job.estimator}, horizon {job.horizon}{window}: {len(found.valid)} replicates in "
            f"{found.seconds * len(found.valid):.1f} s, compiled in {found.compile_seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    diagnosis = diagnose(
        stream(settings.seed, "diagnosis"),
        make_problem,
        theta,
        estimators_of(settings, is_differentiable(objective, task)),
        horizons=settings.horizon,
        windows=settings.window,
        std=settings.std,
        num_replicates=settings.num_replicates,
        reference=settings.reference,
        on_replicates=show,
    )
    seconds = time.perf_counter() - begun
    config = asdict(settings) | {"task": task.name, "optimizer": lopt.name}
    del config["out"]
    paths = write_diagnosis(settings.out, diagnosis, config=config, seconds=seconds)
    for reference in diagnosis.references:
        if reference.is_used:
            console.print(diagnosis_table(diagnosis, reference.horizon))
    console.print(NOTE, highlight=False)
    for path in paths:
        console.print(str(path), soft_wrap=True, markup=False)
    console.print(f"{seconds:.0f} s on {jax.local_device_count()} devices", highlight=False)
    return 0


def design_and_theta(settings: Diagnose) -> tuple[LearnedOptimizer, Theta]:
    """The learned optimizer and the theta to measure at."""
    if settings.theta is None:
        lopt = registry.learned_optimizer(settings.optimizer or "learnable_adam")
        return lopt, first_theta(lopt, settings.seed)
    design = registry.design(settings.optimizer) if settings.optimizer else None
    with given_as("theta"):
        return release.load(settings.theta, design=design)


def estimators_of(settings: Diagnose, with_backprop: bool) -> Mapping[str, MakeEstimator]:
    """The estimators that are asked for; all that compile fast and fit the problem if none is."""
    makers: dict[str, MakeEstimator] = {}
    for name, make in registry.EVOLUTION.items():
        makers[name] = partial(make, num_pairs=1, std=settings.std)
    for name, make in registry.BACKPROP.items():
        makers[name] = partial(make, num_members=1)
    for name, make in registry.MIXED.items():
        makers[name] = partial(make, num_pairs=SEVERAL_PAIRS, std=settings.std)
    default = (*registry.EVOLUTION, *(registry.BACKPROP if with_backprop else ()))
    return {name: makers[name] for name in settings.estimator or default}
