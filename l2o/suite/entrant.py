"""An optimizer that takes part in a suite: a rival that is tuned, or a learned one as it is."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optax

from l2o import registry, release
from l2o.evaluation.baseline import Baseline, Config, Number
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.seen import shares_source
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.release_file import given_as
from l2o.task import Task


@dataclass(frozen=True)
class Entrant:
    """An optimizer that takes part in a suite.

    Attributes:
        name: Name in reports.
        baseline: How it is made, and what is tuned for each task; nothing of a learned optimizer.
        seen: Names and signatures of the tasks that a learned optimizer was meta-trained on, or
            chosen by in validation (`l2o.evaluation.seen`).
        families: Names of their families, for reports.
        is_learned: Whether it is a learned optimizer.
    """

    name: str
    baseline: Baseline
    seen: frozenset[str] = frozenset()
    families: tuple[str, ...] = ()
    is_learned: bool = False


def as_it_is(
    name: str, description: str, optimizer: Callable[..., optax.GradientTransformation]
) -> Baseline:
    """Make a baseline of which nothing is tuned.

    Args:
        name: Name of the optimizer, for headings.
        description: What it is, in a sentence.
        optimizer: Function that makes it from `horizon=`, the number of steps.
    """

    def make(config: Config, horizon: Number) -> optax.GradientTransformation:
        del config
        return optimizer(horizon=horizon)

    return Baseline(name, description, make, learning_rates=(1.0,))


def learned_entrant(
    name: str, lopt: LearnedOptimizer, theta: Theta, summary: Mapping[str, Any]
) -> Entrant:
    """Enter a learned optimizer, which is told the horizon and of which nothing is tuned.

    Args:
        name: Name in reports.
        lopt: Its design.
        theta: Its weights.
        summary: What its release file says of its meta-training (`l2o.release.summary`).
    """

    task = summary.get("task", ())
    families = (task,) if isinstance(task, str) else tuple(task)
    about = f"{lopt.name}, meta-trained on {', '.join(families) or 'nothing that it says'}"
    return Entrant(
        name,
        as_it_is(name, f"Learned: {about}.", functools.partial(lopt.transform, theta)),
        seen=frozenset([*summary.get("trained_on", ()), *summary.get("validated_on", ())]),
        families=families,
        is_learned=True,
    )


def find_entrants(words: Sequence[str]) -> tuple[Entrant, ...]:
    """The optimizers of these names.

    Args:
        words: Names of baselines; names of optimizers that come with the package, release files and
            run folders; or paths `module:attribute` of a `Baseline` or `Entrant`. `NAME=WORD` gives
            one a name of its own, unless there is a file or folder of the whole name.

    Raises:
        ValueError: If there is none of a name, or two have the same.
    """
    found = []
    for word in words:
        label, equals, rest = word.partition("=")
        is_labelled = equals and not Path(word).exists()
        found.append(_find_entrant(rest, label) if is_labelled else _find_entrant(word, ""))
    names = [entrant.name for entrant in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`optimizer` must name each once; got {name} twice. Drop one, or try "
                f"other_{name}=..."
            )
    return tuple(found)


def _find_entrant(word: str, label: str) -> Entrant:
    if word in BASELINES:
        return Entrant(label or word, BASELINES[word])
    if ":" in word and not word.endswith(".safetensors"):
        thing = registry.import_by_path("optimizer", word, BASELINES)
        if isinstance(thing, Entrant):
            return replace(thing, name=label or thing.name)
        if isinstance(thing, Baseline):
            return Entrant(label or word.partition(":")[2], thing)
        raise ValueError(
            f"`optimizer` must be a Baseline or an Entrant; got {word}, which is "
            f"{type(thing).__name__}. Try l2o.Baseline(...), or the run folder of a design."
        )
    if word not in release.names() and not Path(word).exists():
        if "/" in word or word.endswith(".safetensors"):
            raise ValueError(
                f"`optimizer` must be a release file or a run folder; got {word}, which is not "
                "there. Check the path."
            )
        raise registry.unknown_name_error("optimizer", word, (*BASELINES, *release.names()))
    with given_as("optimizer"):
        lopt, theta = release.load(word)
    return learned_entrant(label or word.rstrip("/"), lopt, theta, release.summary(word))


def has_seen(entrant: Entrant, task: Task) -> bool:
    """Tell whether an optimizer was meta-trained on, or chosen by, a task's family and data."""
    return bool(entrant.seen) and shares_source(task, entrant.seen)


def check_disjoint(
    entrants: Sequence[Entrant], tasks: Mapping[str, Task], *, allow_seen: bool
) -> None:
    """Raise a `ValueError` if a learned optimizer has seen a task's family and data.

    Args:
        entrants: Who takes part.
        tasks: Tasks of the suite by their names in it.
        allow_seen: Whether such tasks are accepted, and marked in reports.
    """
    for entrant in entrants:
        for name, task in tasks.items():
            if not allow_seen and has_seen(entrant, task):
                raise ValueError(
                    f"`optimizer` must not have been meta-trained on, or chosen by, the family and "
                    f"data of a task of the suite; got {entrant.name}, which was by {name}'s. "
                    "Leave the task out with --tasks, or try --allow-seen to have it marked."
                )
