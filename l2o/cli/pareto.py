"""`l2o pareto`: fronts of several objectives, and their hypervolumes."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import optax
import tyro
from rich.console import Console

from l2o import registry, release
from l2o.cli.arguments import Names, Numbers, check_writable, parse
from l2o.cli.methods.method import check_positive
from l2o.evaluation.front import Measured, check_objectives, costs, preferences
from l2o.evaluation.front_report import FrontOf, front_table, write_front_report
from l2o.evaluation.seen import is_seen
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import check_seeds
from l2o.evaluation.training import Trainer
from l2o.policies.policy import PolicyOptimizer, as_learned_optimizer
from l2o.release_file import given_as
from l2o.rng import check_seed, stream
from l2o.task import Task


@dataclass(frozen=True)
class Pareto:
    """Measures optimizers by several objectives, and what of them is not dominated."""

    optimizer: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, release files, pretrained optimizers, or module:attribute of a pair (make,
    settings); NAME=RUN,RUN names several that make one front."""
    task: str = "digits_mlp"
    """Family, of which all evaluation tasks are trained, or module:attribute."""
    tasks: Names = ()
    """Evaluation tasks of the family; all if none."""
    horizon: int = 200
    """Inner steps of each run."""
    objectives: Names = ("log_loss", "examples")
    """Objectives: log_loss, loss, examples, or metrics of the task."""
    on: Measured = "test"
    """Split of final losses and metrics."""
    preferences: int = 11
    """Preferences of a policy that is told them, for two objectives."""
    reference: Numbers = ()
    """Cost of each objective from which on a point is worth nothing; the worst of anybody if none
    are given. A metric to be maximised has negative costs."""
    seeds: int = 16
    """Runs of each point."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/pareto"
    """Folder for pareto.json, report.html and pareto.csv."""


Make = Callable[..., optax.GradientTransformation]
"""From a setting, which is traced, and `horizon=` to an optimizer."""


@dataclass(frozen=True)
class Part:
    """Points of a front that one function makes.

    Attributes:
        make: Function of a setting and the horizon.
        settings: A setting for each point, shape (points, ...).
        labels: What the points are called.
        seen: Names and signatures of the tasks that it was meta-trained on.
    """

    make: Make
    settings: np.ndarray
    labels: tuple[str, ...]
    seen: frozenset[str] = frozenset()


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o pareto RUN ... --task NAME`."""
    options = parse(Pareto, "pareto", arguments)
    check_positive(horizon=options.horizon)
    check_seeds(options.seeds, "seeds")
    check_seed(options.seed)
    if options.preferences < 2:
        raise ValueError(
            f"`preferences` must be at least 2; got {options.preferences}. Try preferences=11."
        )
    if len(options.reference) not in (0, len(options.objectives)):
        raise ValueError(
            f"`reference` must be a cost for each of {', '.join(options.objectives)}; got "
            f"{len(options.reference)}. Leave it out for the worst of anybody."
        )
    check_writable(options.out, "out", "runs/pareto")
    fronts = find_fronts(options)
    family = registry.task_family(options.task)
    tasks = registry.evaluation_tasks([family], options.tasks, "tasks")
    seen = frozenset().union(*(part.seen for parts in fronts.values() for part in parts))
    for task in tasks:
        check_objectives(options.objectives, task, options.on)
    rows = []
    for task in tasks:
        console.print(f"training on {task.name}", soft_wrap=True, markup=False)
        starts = draw_starts(stream(options.seed, "evaluation"), task, options.seeds)
        found = {
            name: np.concatenate([measure(part, task, starts, options) for part in parts])
            for name, parts in fronts.items()
        }
        labels = {
            name: [x for part in parts for x in part.labels] for name, parts in fronts.items()
        }
        rows.append(FrontOf(task.name, is_seen(task, seen), labels, found))
    config = asdict(options)
    page = write_front_report(
        options.out, rows, options.objectives, options.reference or None, config=config
    )
    console.print(front_table(json.loads((page.parent / "pareto.json").read_text())))
    console.print(str(page), soft_wrap=True, markup=False)
    return 0


def measure(part: Part, task: Task, starts: Start, options: Pareto) -> np.ndarray:
    """Costs of the points that a function makes, shape (points, seeds, objectives)."""
    make = lambda setting: part.make(setting, options.horizon)
    trainer = Trainer(task, make, horizon=options.horizon, probe_every=options.horizon)
    splits = () if options.on == "train" else (options.on,)
    curves = trainer.train(part.settings, starts, splits=splits)
    return np.stack([costs(c, task, options.objectives, options.on) for c in curves])


def find_fronts(options: Pareto) -> dict[str, list[Part]]:
    """The optimizers that the command line names, each as what its front is made of.

    Raises:
        ValueError: if there are none, one is unknown, or two have one name.
    """
    if not options.optimizer:
        raise ValueError("`RUN` must name at least one optimizer; got none. Try runs/told.")
    fronts: dict[str, list[Part]] = {}
    for word in options.optimizer:
        label, equals, rest = word.partition("=")
        is_labelled = bool(equals) and not Path(word).exists()
        name = label if is_labelled else word.rstrip("/")
        if name in fronts:
            raise ValueError(
                f"`RUN` must name each once; got {name} twice. Drop one, or try other_{name}=..."
            )
        parts = (rest if is_labelled else word).split(",")
        fronts[name] = [find_part(part, options) for part in parts if part]
        if not fronts[name]:
            raise ValueError(f"`RUN` must name an optimizer; got {word}. Try {name}=runs/told.")
    return fronts


def find_part(word: str, options: Pareto) -> Part:
    """What a word of the command line stands for."""
    if ":" in word and not word.endswith(".safetensors") and not Path(word).exists():
        return from_settings(word)
    with given_as("RUN"):
        lopt, theta = release.load(word)
    seen = frozenset(release.summary(word).get("trained_on", ()))
    if not isinstance(lopt, PolicyOptimizer) or not lopt.policy.objectives:
        make = lambda setting, horizon: lopt.transform(theta, horizon=horizon)
        return Part(make, np.zeros(1), (Path(word).name,), seen)
    policy = lopt.policy

    def told(preference: Any, horizon: int) -> optax.GradientTransformation:
        chosen = as_learned_optimizer(dataclasses.replace(policy, preference=preference))
        return chosen.transform(theta, horizon=horizon)

    shares = preferences(len(policy.objectives), options.preferences)
    labels = tuple(
        ", ".join(f"{share:.2g} {n}" for n, share in zip(policy.objectives, row, strict=True))
        for row in shares
    )
    return Part(told, shares, labels, seen)


def from_settings(word: str) -> Part:
    """Points of a user's own: a function of a setting and `horizon`, and an array of settings.

    Raises:
        ValueError: if that is not what is there.
    """
    thing = registry.import_by_path("RUN", word, release.names())
    make, settings = thing if isinstance(thing, tuple) and len(thing) == 2 else (None, None)
    try:
        settings = np.asarray(settings, np.float32)
    except (TypeError, ValueError):
        settings = np.empty(0)
    if not takes_two(make) or settings.ndim == 0 or len(settings) == 0:
        raise ValueError(
            "`RUN` must be a pair (make, settings), with make(setting, horizon) -> optimizer and "
            f"numbers, a setting in each row; got {word}. Try "
            "RATES = (lambda rate, horizon: optax.adam(rate), [0.01, 0.1])."
        )
    return Part(cast(Make, make), settings, tuple(str(i) for i in range(len(settings))))


def takes_two(make: object) -> bool:
    """Whether something can be called with a setting and a horizon."""
    try:
        inspect.signature(cast(Make, make)).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
