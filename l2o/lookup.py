"""From the names a user types to tasks, designs and estimators."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from jax.sharding import Mesh

from l2o.estimators import Estimator, pes, truncated_es
from l2o.learned_optimizer import LearnedOptimizer
from l2o.optimizers import DESIGNS
from l2o.problem import Problem
from l2o.task import Task, TaskFamily

TASKS: Mapping[str, str] = {
    "digits_mlp": "l2o.tasks.digits:digits_mlp",
    "mnist_mlp_28": "l2o.tasks.mnist:mnist_mlp_28",
    "mnist_mlp_14": "l2o.tasks.mnist:mnist_mlp_14",
    "mnist_mlp_8": "l2o.tasks.mnist:mnist_mlp_8",
    "fashion_mlp_28": "l2o.tasks.mnist:fashion_mlp_28",
    "fashion_mlp_14": "l2o.tasks.mnist:fashion_mlp_14",
    "fashion_mlp_8": "l2o.tasks.mnist:fashion_mlp_8",
    "quadratic": "l2o.tasks.quadratic:rotated_quadratic",
    "rosenbrock": "l2o.tasks.quadratic:rosenbrock",
}
"""Built-in tasks and families, imported when asked for."""


class EstimatorFn(Protocol):
    """`(problem, *, num_pairs, std, mesh) -> Estimator`."""

    def __call__(
        self, problem: Problem, *, num_pairs: int, std: float, mesh: Mesh | None = None
    ) -> Estimator:
        """The estimator for one problem."""
        ...


ESTIMATORS: Mapping[str, EstimatorFn] = {"pes": pes, "truncated_es": truncated_es}
"""Meta-gradient estimators by name."""


def task_family(name: str) -> TaskFamily:
    """A family by name or `module:attribute`; a single task becomes a family of its own.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    found = _attribute("task", TASKS.get(name, name), TASKS)
    found = found if isinstance(found, Task | TaskFamily) else _call("task", name, found)
    if isinstance(found, Task):
        return TaskFamily(name=found.name, train=(found,), evaluation=())
    if isinstance(found, TaskFamily):
        return found
    raise ValueError(
        f"`task` must be a Task, a TaskFamily or a function that returns one; got {name}, "
        f"which gives {type(found).__name__}. Return l2o.Task(...)."
    )


def task_lines() -> dict[str, str]:
    """Each built-in task with one line about it."""
    return {name: first_line(_attribute("task", path, ())) for name, path in TASKS.items()}


def evaluation_tasks(
    family: TaskFamily, names: Sequence[str] = (), argument: str = "eval_tasks"
) -> tuple[Task, ...]:
    """A family's evaluation tasks of these names, or all; its train tasks if it has none.

    Raises:
        ValueError: if a name is not among them, with the nearest ones.
    """
    known = {task.name: task for task in family.evaluation or family.train}
    for name in names:
        if name not in known:
            raise unknown(argument, name, known)
    return tuple(known[name] for name in names) if names else tuple(known.values())


def tasks_to_evaluate(names: Sequence[str]) -> tuple[Task, ...]:
    """Tasks by the name of a family, of one of its evaluation tasks, or `module:attribute`.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    tasks: list[Task] = []
    for name in names:
        families = [family for family in TASKS if name.startswith(f"{family}_")]
        if name in TASKS or ":" in name or not families:
            tasks.extend(evaluation_tasks(task_family(name)))
        else:
            tasks.extend(evaluation_tasks(task_family(families[0]), [name], "task"))
    return tuple(tasks)


def design(name: str) -> Callable[..., LearnedOptimizer]:
    """The constructor of a design by name or `module:attribute`.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    if name in DESIGNS:
        return DESIGNS[name]
    found = _attribute("optimizer", name, DESIGNS)
    if isinstance(found, LearnedOptimizer):
        return lambda: found
    if not callable(found):
        raise ValueError(
            f"`optimizer` must be a LearnedOptimizer or a function that returns one; got {name}, "
            f"which is {type(found).__name__}. Return l2o.LearnedOptimizer(...)."
        )
    return cast(Callable[..., LearnedOptimizer], found)


def learned_optimizer(name: str) -> LearnedOptimizer:
    """A design with its default configuration, by name or `module:attribute`.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    lopt = _call("optimizer", name, design(name))
    if not isinstance(lopt, LearnedOptimizer):
        raise ValueError(
            f"`optimizer` must be a LearnedOptimizer or a function that returns one; got {name}, "
            f"which gives {type(lopt).__name__}. Return l2o.LearnedOptimizer(...)."
        )
    return lopt


def estimator(name: str) -> EstimatorFn:
    """An estimator's constructor by name.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


def unknown(argument: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known, with the nearest ones."""
    known = sorted(known)
    prefix = [k for k in known if name and k.startswith(name[:3])]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or prefix or known
    return ValueError(f"`{argument}` must be a known name; got {name}. Try {', '.join(nearest)}.")


def first_line(thing: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0]


def _attribute(argument: str, path: str, known: Iterable[str]) -> Any:
    module, _, attribute = path.partition(":")
    if not attribute or not module.strip("."):
        raise unknown(argument, path, known)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`{argument}` must be module:attribute that can be imported; got {path} ({error}). "
            "Try it from the folder that holds the module, or install its package."
        ) from error


def _call(argument: str, name: str, make: Any) -> Any:
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must be callable without arguments; got {name} ({error}). "
            "Give its arguments defaults."
        ) from error
    return make()
