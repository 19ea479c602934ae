"""The settings of a meta-training run, in groups that build their parts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import tyro

from l2o import registry, release
from l2o.cli.arguments import (
    Flag,
    Flat,
    Name,
    Names,
    Number,
    Numbers,
    Steps,
    baselines_named,
    parse_option,
)
from l2o.cli.methods.estimators import PES
from l2o.cli.methods.method import Ingredients, Method, check_positive
from l2o.cli.methods.strategies import Evosax
from l2o.cli.validation import Validation
from l2o.distributed import launchers
from l2o.distributed.mesh import population_mesh
from l2o.evaluation.baselines import DEFAULT_BASELINES
from l2o.evaluation.statistics import check_seeds
from l2o.evaluation.tuning import check_trials
from l2o.evaluation.validation import Validator
from l2o.freeze import Unravel, freeze
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner
from l2o.outer_loop import steps_of_chunk
from l2o.problem import check_can_train
from l2o.release_file import given_as
from l2o.rng import check_seed, stream
from l2o.rollback import with_rollback
from l2o.task import Key, Task, TaskFamily, validate_task
from l2o.tree import named_leaves

Tracker = Literal["tensorboard", "wandb"]
_NAMES = tyro.conf.arg(metavar="NAMES", help_behavior_hint="")


@dataclass(frozen=True)
class Evaluation:
    """Options of the comparison with tuned baselines at the end."""

    tasks: Names = ()
    """Evaluation tasks of the families; all if none."""
    horizon: Number = None
    """Inner steps of a run; the longest horizon if none."""
    seeds: int = 16
    """Runs of each on a task, at least 8."""
    baselines: Names = DEFAULT_BASELINES
    """Rivals, each tuned for each task: names from `l2o list`, or all."""
    trials: int = 0
    """Random settings of each rival, too."""


@dataclass(frozen=True)
class Output:
    """Options of the run folder and of what is shown; they do not change the result."""

    run_dir: Name = None
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in the run folder."""
    log: Annotated[tuple[Tracker, ...], _NAMES] = ()
    """Trackers: tensorboard, wandb."""
    profile: Flag = False
    """Trace the second chunk, for ui.perfetto.dev."""
    quiet: Flag = False
    """Print plain lines."""


@dataclass(frozen=True)
class Processes:
    """Options of devices, processes and hosts; they change the result by rounding at most."""

    devices: Number = None
    """Devices, CPU cores included; all that fit if none."""
    distributed: Flag = False
    """Be one of several processes of a run."""
    coordinator: Name = None
    """HOST:PORT of process 0, if no launcher says it."""
    num_processes: Number = None
    """Number of processes, likewise."""
    process_id: Number = None
    """Number of this process, from 0, likewise."""
    connect_timeout: int = 60
    """Seconds to wait for the others."""

    def process(self) -> launchers.ProcessSpec | None:
        """Which process this one is, or None if it is alone.

        Raises:
            ValueError: if the options do not say, or do not fit each other.
        """
        given = {
            "coordinator": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }
        for name, value in given.items():
            if value is not None and not self.distributed:
                raise ValueError(
                    f"`{name}` goes with --distributed; got {value}. Add --distributed."
                )
        if self.connect_timeout < 1:
            raise ValueError(
                f"`connect_timeout` must be at least 1 s; got {self.connect_timeout}. Try 60."
            )
        if not self.distributed:
            return None
        return launchers.detect_process(
            coordinator=self.coordinator,
            num_processes=self.num_processes,
            process_id=self.process_id,
        )


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a run.

    Attributes:
        train: Tasks that it is meta-trained on.
        evaluation: Tasks to report on.
        lopt: Design whose theta is found.
        theta: Vector that is meta-trained, where it begins.
        unravel: Function from such a vector to a whole theta.
        learner: Learner that takes the outer steps.
        log_every: Outer steps of a chunk.
        checkpoint_every: Outer steps between checkpoints, a multiple of `log_every`.
        validator: Scores of theta on validation tasks, or None.
        validate_every: Outer steps between these, a multiple of `checkpoint_every`.
    """

    train: Sequence[Task]
    evaluation: Sequence[Task]
    lopt: LearnedOptimizer
    theta: Theta
    unravel: Unravel
    learner: Learner
    log_every: int
    checkpoint_every: int
    validator: Validator | None
    validate_every: int


@dataclass(frozen=True)
class MetaTraining:
    """Meta-trains a learned optimizer, compares it with tuned baselines and writes a report."""

    task: Names = ("digits_mlp",)
    """Families, or module:attribute."""
    weights: Numbers = ()
    """Weight of each task; equal if none."""
    optimizer: Names = ("nominal_mlp",)
    """Design, then its options as name=value, for instance scheduler core=gru."""
    init_from: Name = None
    """Run or release file whose theta is the first."""
    freeze: Names = ()
    """Leaves of theta to keep, or patterns: layers/0/*."""
    horizon: Steps = (200,)
    """Inner steps of a run, or its range."""
    window: int = 50
    """Inner steps between two outer steps."""
    curriculum: int = 0
    """Outer steps in which runs grow."""
    steps: int = 1000
    """Outer steps."""
    ema_decay: float = 0.98
    """Decay rate of the released average."""
    rollback: Flag = False
    """Undo outer steps that make the population diverge."""
    seed: int = 0
    """Seed of everything random."""
    log_every: int = 10
    """Most outer steps of a chunk."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints."""
    evaluate: Flag = True
    """Do not compare with the baselines at the end."""
    validation: Flat[Validation] = field(default_factory=Validation)
    eval: Evaluation = Evaluation()
    output: Flat[Output] = Output()
    processes: Flat[Processes] = Processes()
    method: Method = field(default_factory=PES)

    def recorded(self) -> dict[str, Any]:
        """What of the settings determines theta: the same in every process, and when continued."""
        config = dataclasses.asdict(self)
        for name in ("output", "processes", "evaluate"):
            del config[name]
        if not self.validation.validate_on:
            del config["validation"]
        for name in ("rollback", "curriculum"):
            if not config[name]:
                del config[name]
        if config["method"].get("weighting") == "fixed":
            del config["method"]["weighting"]
        config["method"] = {"name": self.method.name, **config["method"]}
        return config

    def build(self) -> Parts:
        """Builds every part of a run, and so finds every mistake in its settings.

        Raises:
            ValueError: naming the setting, its value and what to type instead.
        """
        self._check()
        lopt = design(self.optimizer)
        families = task_families(self.task)
        theta, unravel = freeze(self._first_theta(lopt), self.freeze)
        learner = self.method.build(
            Ingredients(
                families=families,
                weights=self.weights or (1.0,) * len(families),
                lopt=lopt,
                unravel=unravel,
                horizon=(self.horizon[0], self.horizon[-1]),
                window=self.window,
                curriculum=self.curriculum,
                steps=self.steps,
                ema_decay=self.ema_decay,
                mesh=population_mesh(self.num_devices()),
            )
        )
        if self.rollback:
            learner = with_rollback(learner)
        jax.eval_shape(learner.init, jax.random.key(0), theta)  # whether theta suits it
        evaluation = registry.evaluation_tasks(families, self.eval.tasks, "eval.tasks")
        for task in evaluation:
            validate_task(task)
            if self.evaluate:
                check_can_train(lopt, task, self.eval.horizon or self.horizon[-1])
        log_every = steps_of_chunk(self.steps, self.log_every)
        checkpoint_every = max(1, self.checkpoint_every // log_every) * log_every
        train = [task for family in families for task in family.train]
        return Parts(
            train=train,
            evaluation=evaluation,
            lopt=lopt,
            theta=theta,
            unravel=unravel,
            learner=learner,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            validator=self.validation.build(
                lopt,
                train,
                frozenset(self.before().get("trained_on", ())),
                horizon=self.horizon[-1],
                seed=self.seed,
            ),
            validate_every=self.validation.steps_between(checkpoint_every),
        )

    def before(self) -> dict[str, Any]:
        """What is known of the meta-training of the first theta; empty if it was drawn."""
        if self.init_from is None:
            return {}
        with given_as("init_from"):
            return release.summary(self.init_from)

    def num_devices(self) -> int:
        """The devices asked for, or as many as are present and divide the population.

        They count over all processes, which have equally many.
        """
        if self.processes.devices is not None:
            return self.processes.devices
        present, processes = jax.device_count(), jax.process_count()
        members = self.method.population
        possible = range(processes, present + 1, processes)
        fitting = [n for n in possible if members > 0 and members % n == 0]
        return max(fitting, default=processes)

    def _first_theta(self, lopt: LearnedOptimizer) -> Theta:
        theta = first_theta(lopt, self.seed)
        if self.init_from is None:
            return theta
        with given_as("init_from"):
            header, arrays = release.read(self.init_from)
        leaves = named_leaves(theta)
        if {k: x.shape for k, x in arrays.items()} != {k: x.shape for k, x in leaves.items()}:
            shown = lambda value: ",".join(map(str, value)) if isinstance(value, list) else value
            options = [f"{key}={shown(value)}" for key, value in header["config"].items()]
            raise ValueError(
                f"`init_from` must hold a theta of {' '.join(self.optimizer)}; got "
                f"{self.init_from}, which does not. It is of --optimizer {header['design']} "
                f"{' '.join(options)}"
            )
        return jax.tree.structure(theta).unflatten(jax.numpy.asarray(arrays[k]) for k in leaves)

    def _check(self) -> None:
        """Raises a `ValueError` that says what to type if a number is out of its range."""
        check_positive(
            steps=self.steps,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            **{"eval.seeds": self.eval.seeds, "eval.horizon": self.eval.horizon},
        )
        check_seed(self.seed)
        baselines_named(self.eval.baselines, "eval.baselines")
        if self.evaluate:
            check_seeds(self.eval.seeds, "eval.seeds")
            check_trials(self.eval.trials, "eval.trials")
        if self.rollback and isinstance(self.method, Evosax):
            raise ValueError(
                f"`rollback` goes with estimators and policy gradients; got {self.method.name}, "
                "which keeps its mean to itself. Drop --rollback."
            )
        if len(self.horizon) not in (1, 2):
            raise ValueError(
                f"`horizon` must be one number or two; got {len(self.horizon)}. "
                "Try horizon=200, or horizon=100 1000."
            )
        if len(self.weights) not in (0, len(self.task)):
            raise ValueError(
                f"`weights` must be one number for each task; got {len(self.weights)} for "
                f"{len(self.task)}. Leave it out for equal weights."
            )
        for weight in self.weights:
            check_positive(weights=weight)


def task_families(names: Sequence[str]) -> tuple[TaskFamily, ...]:
    """The families of these names, which must differ in the names of their tasks.

    Raises:
        ValueError: if there are none, one is unknown, or two hold tasks of the same name.
    """
    if not names:
        raise ValueError("`task` must name at least one task; got none. Try task=digits_mlp.")
    families = tuple(registry.task_family(name) for name in names)
    trained = [task.name for family in families for task in family.train]
    for name in trained:
        if trained.count(name) > 1:
            raise ValueError(
                f"`task` must name tasks that differ; got {name} twice. Drop or rename one."
            )
    return families


def design(words: Sequence[str]) -> LearnedOptimizer:
    """A design from its name and options: `["scheduler", "core=gru", "hidden_size=16"]`.

    A value is JSON where it can be, else a string; commas separate the items of a list.

    Raises:
        ValueError: if there is no such design, or it does not take these options.
    """
    if not words:
        raise ValueError("`optimizer` must name a design; got none. Try optimizer=nominal_mlp.")
    name, *options = words
    if not options:
        return registry.learned_optimizer(name)
    constructor = registry.design(name)
    config = {}
    for option in options:
        key, equals, text = option.partition("=")
        renamed = registry.RENAMED_ARGUMENTS.get(name, {})
        if key in renamed:
            raise ValueError(
                f"`optimizer` {name} has another name for {key}; got {option}. "
                f"Type {renamed[key]}={text}."
            )
        if not equals:
            raise ValueError(
                f"`optimizer` must be one design and options as name=value; got {option}. "
                f"Try {name} {option}=..."
            )
        config[key] = parse_option(constructor, key, text)
    if problem := release.config_problem(constructor, config):
        raise ValueError(f"`optimizer` {name} cannot be made from {' '.join(options)}: {problem}.")
    return constructor(**config)


def first_theta(lopt: LearnedOptimizer, seed: int) -> Theta:
    """Where a run of this seed starts."""

    def init(key: Key) -> Theta:
        return lopt.init(jax.random.split(key)[0])

    return jax.jit(init)(stream(seed, "meta_training"))  # one program, not one a draw
