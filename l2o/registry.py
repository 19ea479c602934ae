"""Registries of tasks, designs and estimators, which are imported when asked for.

A name stands for a path, `module:attribute`, which is also how users name things of their own.
"""

import difflib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from l2o.learned_optimizer import LearnedOptimizer
from l2o.task import Task, TaskFamily

if TYPE_CHECKING:
    from l2o.combiners.combiner import Combiner
    from l2o.estimators.estimator import Estimator
    from l2o.suite.suite_task import SuiteTask
    from l2o.weightings.weighting import Weighting

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Mapping from names to the objects at their paths; looking a name up imports its object.

    >>> Registry({"pi": "math:pi"})["pi"]
    3.141592653589793

    Args:
        paths: Path `module:attribute` of each name.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = dict(paths)

    def __getitem__(self, name: str) -> T:
        module, _, attribute = self.paths[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


NETWORKS = "mlp_28 mlp_14 mlp_8 conv_14 resnet_14 vit_14 mixer_14 autoencoder_14 vae_14"
IMAGES = [f"{data}_{network}" for data in ("mnist", "fashion") for network in NETWORKS.split()]
"""Names of families on MNIST and Fashion-MNIST, whose functions are called so."""

TASKS: Registry[Callable[..., Task | TaskFamily]] = Registry(
    {
        "digits_mlp": "l2o.tasks.digits:digits_mlp",
        "digits_tanh_mlp": "l2o.tasks.digits:digits_tanh_mlp",
        "digits_gelu_mlp": "l2o.tasks.digits:digits_gelu_mlp",
        "digits_layernorm_mlp": "l2o.tasks.digits:digits_layernorm_mlp",
        "digits_conv": "l2o.tasks.digits:digits_conv",
        "digits_batchnorm_conv": "l2o.tasks.digits:digits_batchnorm_conv",
        "digits_resnet": "l2o.tasks.digits:digits_resnet",
        "digits_vit": "l2o.tasks.digits:digits_vit",
        "digits_mixer": "l2o.tasks.digits:digits_mixer",
        "digits_autoencoder": "l2o.tasks.digits:digits_autoencoder",
        "digits_vae": "l2o.tasks.digits:digits_vae",
        "imbalanced_digits_mlp": "l2o.tasks.digits:imbalanced_digits_mlp",
        "badly_scaled_mlp": "l2o.tasks.badly_scaled:badly_scaled_mlp",
        **{name: f"l2o.tasks.mnist:{name}" for name in IMAGES},
        "emoji_conv": "l2o.tasks.emoji:emoji_conv",
        "emoji_resnet": "l2o.tasks.emoji:emoji_resnet",
        "python_mlp": "l2o.tasks.text:python_mlp",
        "python_transformer": "l2o.tasks.text:python_transformer",
        "python_lstm": "l2o.tasks.text:python_lstm",
        "python_gru": "l2o.tasks.text:python_gru",
        "union_transformer": "l2o.tasks.text:union_transformer",
        "union_lstm": "l2o.tasks.text:union_lstm",
        "union_gru": "l2o.tasks.text:union_gru",
        "moby_transformer": "l2o.tasks.text:moby_transformer",
        "moby_lstm": "l2o.tasks.text:moby_lstm",
        "moby_gru": "l2o.tasks.text:moby_gru",
        "minilm_whole": "l2o.tasks.minilm:minilm_whole",
        "minilm_lora": "l2o.tasks.minilm:minilm_lora",
        "minilm_frozen": "l2o.tasks.minilm:minilm_frozen",
        "cancer_logistic": "l2o.tasks.tabular:cancer_logistic",
        "cancer_mlp": "l2o.tasks.tabular:cancer_mlp",
        "wine_logistic": "l2o.tasks.tabular:wine_logistic",
        "wine_mlp": "l2o.tasks.tabular:wine_mlp",
        "diabetes_linear": "l2o.tasks.tabular:diabetes_linear",
        "diabetes_mlp": "l2o.tasks.tabular:diabetes_mlp",
        "factorisation": "l2o.tasks.factorisation:factorisation",
        "poisson": "l2o.tasks.poisson:poisson",
        "bbob": "l2o.tasks.bbob:bbob",
        "ppo_cartpole": "l2o.tasks.reinforcement:ppo_cartpole",
        "ppo_breakout": "l2o.tasks.reinforcement:ppo_breakout",
        "meta_training": "l2o.tasks.meta_training:meta_training",
        "quadratic": "l2o.tasks.quadratic:rotated_quadratic",
        "rosenbrock": "l2o.tasks.quadratic:rosenbrock",
    }
)
"""Tasks and families that come with l2o."""

SUITES: "Registry[Callable[..., Sequence[SuiteTask]]]" = Registry(
    {"suite-1": "l2o.tasks.suite:suite_1"}
)
"""Suites of tasks to compare optimizers on."""

POLICIES: Registry[Callable[..., LearnedOptimizer]] = Registry(
    {
        "optimizer_selector": "l2o.policies.optimizer_selector:optimizer_selector",
        "per_tensor_controller": "l2o.policies.per_tensor_controller:per_tensor_controller",
        "scheduler": "l2o.policies.scheduler:scheduler",
    }
)
"""Designs whose hyperparameters an agent controls."""

RENAMED: Mapping[str, str] = {
    "chooser": "optimizer_selector",
    "tensor_controller": "per_tensor_controller",
}
"""New names of designs that release files and users may still call by an old one."""

RENAMED_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    name: {"interval": "action_interval", "knobs": "hyperparameters"} for name in POLICIES
}
"""New names of arguments of designs that release files may still call by an old one."""

DESIGNS: Registry[Callable[..., LearnedOptimizer]] = Registry(
    {
        "adafac_mlp": "l2o.optimizers.adafac_mlp:adafac_mlp",
        "celo": "l2o.optimizers.celo:celo",
        "learnable_adam": "l2o.optimizers.learnable:learnable_adam",
        "learnable_sgd": "l2o.optimizers.learnable:learnable_sgd",
        "learnable_sgdm": "l2o.optimizers.learnable:learnable_sgdm",
        "mlp_lopt": "l2o.optimizers.mlp_lopt:mlp_lopt",
        "muon_mlp": "l2o.optimizers.muon_mlp:muon_mlp",
        "nominal_mlp": "l2o.optimizers.nominal_mlp:nominal_mlp",
        **POLICIES.paths,
    }
)
"""Constructors of learned-optimizer designs: what a release file may name."""

EVOLUTION: "Registry[Callable[..., Estimator]]" = Registry(
    {
        "full_es": "l2o.estimators.full_es:full_es",
        "truncated_es": "l2o.estimators.truncated_es:truncated_es",
        "pes": "l2o.estimators.pes:pes",
        "nres": "l2o.estimators.nres:nres",
        "es_single": "l2o.estimators.es_single:es_single",
    }
)
"""Evolution strategies as estimators; they take antithetic pairs, a std and a shaping."""

BACKPROP: "Registry[Callable[..., Estimator]]" = Registry(
    {
        "full_grad": "l2o.estimators.full_grad:full_grad",
        "truncated_grad": "l2o.estimators.truncated_grad:truncated_grad",
    }
)
"""Estimators that backpropagate through training runs; they take a number of runs."""

MIXED: "Registry[Callable[..., Estimator]]" = Registry(
    {"variance_weighted": "l2o.estimators.variance_weighted:variance_weighted"}
)
"""Estimators that combine both; they take antithetic pairs and a standard deviation."""

ESTIMATORS: "Registry[Callable[..., Estimator]]" = Registry(
    {**EVOLUTION.paths, **BACKPROP.paths, **MIXED.paths}
)
"""Meta-gradient estimators."""

COMBINERS: "Registry[Combiner]" = Registry(
    {name: f"l2o.combiners.{name}:{name}" for name in ("mgda", "pcgrad", "cagrad")}
)
"""How meta-gradients of several tasks become one, other than by their mean."""

WEIGHTINGS: "Registry[Callable[[], Weighting]]" = Registry(
    {name: f"l2o.weightings.{name}:{name}" for name in ("worst_case", "learning_progress")}
)
"""How weights of several tasks move while meta-training goes on."""


def task_family(name: str, argument: str = "task") -> TaskFamily:
    """Make the family of this name or path; a single task becomes a family of its own.

    Args:
        name: Name in `TASKS`, or `module:attribute` of a task, a family or a function.
        argument: Argument that held the name, for error messages.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    found = TASKS[name] if name in TASKS else import_by_path(argument, name, TASKS)
    found = found if isinstance(found, Task | TaskFamily) else call(argument, name, found)
    if isinstance(found, Task):
        return TaskFamily(name=found.name, train=(found,), evaluation=())
    if isinstance(found, TaskFamily):
        return found
    raise ValueError(
        f"`{argument}` must be a Task, a TaskFamily or a function that returns one; got {name}, "
        f"which gives {type(found).__name__}. Return l2o.Task(...)."
    )


def task_lines() -> dict[str, str]:
    """Return one line about each built-in task, by its name."""
    return {name: first_line(make) for name, make in TASKS.items()}


def evaluation_tasks(
    families: Sequence[TaskFamily], names: Sequence[str], argument: str
) -> tuple[Task, ...]:
    """Select evaluation tasks of families by name, or all; train tasks where a family has none.

    Args:
        families: Families to select from.
        names: Names of the tasks; all tasks without any.
        argument: Argument that held the names, for error messages.

    Raises:
        ValueError: If a name is not among them, with the nearest ones.
    """
    tasks = [task for family in families for task in family.evaluation or family.train]
    known = {task.name: task for task in tasks}
    for name in names:
        if name not in known:
            raise unknown_name_error(argument, name, known)
    return tuple(known[name] for name in names) if names else tuple(known.values())


def tasks_to_evaluate(names: Sequence[str], argument: str = "task") -> tuple[Task, ...]:
    """Find the tasks to evaluate on.

    Args:
        names: Names of families or of their evaluation tasks, or paths `module:attribute`.
        argument: Argument that held the names, for error messages.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    tasks: list[Task] = []
    for name in names:
        family = _family_name(name)
        some = [] if family == name else [name]
        tasks.extend(evaluation_tasks([task_family(family, argument)], some, argument))
    return tuple(tasks)


def families_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of the family of each task, each once."""
    return tuple(dict.fromkeys(map(_family_name, names)))


def training_task(name: str) -> Task:
    """Find one task to meta-train on.

    Args:
        name: Name of a family, for the first that it is meta-trained on, or of any of its tasks.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    family_name = _family_name(name)
    if family_name == name:
        return task_family(name).train[0]
    family = task_family(family_name)
    known = {task.name: task for task in (*family.train, *family.evaluation)}
    if name not in known:
        raise unknown_name_error("task", name, known)
    return known[name]


def _family_name(name: str) -> str:
    """Return the name of the family that a task's name begins with, or the name itself."""
    families = [family for family in TASKS if name.startswith(f"{family}_")]
    return name if name in TASKS or ":" in name or not families else families[0]


def design(name: str) -> Callable[..., LearnedOptimizer]:
    """Find the constructor of a design.

    >>> design("learnable_sgd")(learning_rate=0.2).config
    {'learning_rate': 0.2}

    Args:
        name: Name in `DESIGNS`, or `module:attribute`.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    if name in DESIGNS:
        return DESIGNS[name]
    found = import_by_path("optimizer", name, DESIGNS)
    if isinstance(found, LearnedOptimizer):

        def as_it_is(**config: Any) -> LearnedOptimizer:
            if json.dumps(config, sort_keys=True) != json.dumps(dict(found.config), sort_keys=True):
                raise ValueError(f"{name} is configured otherwise: {dict(found.config)}")
            return found

        return as_it_is
    if not callable(found):
        raise ValueError(
            f"`optimizer` must be a LearnedOptimizer or a function that returns one; got {name}, "
            f"which is {type(found).__name__}. Return l2o.LearnedOptimizer(...)."
        )
    return cast(Callable[..., LearnedOptimizer], found)


def learned_optimizer(name: str) -> LearnedOptimizer:
    """Make a design with its default configuration.

    Args:
        name: Name in `DESIGNS`, or `module:attribute`.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    found = import_by_path("optimizer", name, DESIGNS) if name not in DESIGNS else None
    lopt = found if isinstance(found, LearnedOptimizer) else call("optimizer", name, design(name))
    if not isinstance(lopt, LearnedOptimizer):
        raise ValueError(
            f"`optimizer` must be a LearnedOptimizer or a function that returns one; got {name}, "
            f"which gives {type(lopt).__name__}. Return l2o.LearnedOptimizer(...)."
        )
    return lopt


def unknown_name_error(argument: str, name: str, known: Iterable[str]) -> ValueError:
    """Make the error for a name that is not known, with the nearest ones whatever their case.

    Args:
        argument: Argument that held the name.
        name: Name that was given.
        known: Names that are known.
    """
    known = set(known)
    if (renamed := RENAMED.get(name)) in known:
        return ValueError(f"`{argument}` must be a known name; got {name}. Try {renamed}.")
    by_lower = {k.lower(): k for k in sorted(known)}
    prefix = [k for k in by_lower if name and k.startswith(name[:3].lower())]
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    nearest = [by_lower[k] for k in close or prefix or by_lower]
    return ValueError(f"`{argument}` must be a known name; got {name}. Try {', '.join(nearest)}.")


def first_line(thing: Callable[..., Any]) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0]


def import_by_path(argument: str, path: str, known: Iterable[str]) -> Any:
    """Import the object at a path.

    Args:
        argument: Argument that held the path, for error messages.
        path: Path of the object, `module:attribute`.
        known: Names that could have been given instead.

    Raises:
        ValueError: If it cannot be imported; with the nearest of the known names if it is no path.
    """
    module, _, attribute = path.partition(":")
    if not attribute or not module.strip("."):
        if path not in known and path.isidentifier() and importlib.util.find_spec(path):
            raise ValueError(
                f"`{argument}` must be a known name or module:attribute; got {path}, which is a "
                f"module. Try {path}:NAME."
            )
        raise unknown_name_error(argument, path, known)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`{argument}` must be module:attribute that can be imported; got {path} ({error}). "
            "Try it from the folder that holds the module, or install its package."
        ) from error


def call(argument: str, name: str, make: Any) -> Any:
    """Call what a path names; raise a `ValueError` if it is a class, or needs arguments."""
    if inspect.isclass(make):
        raise ValueError(
            f"`{argument}` must not be a class; got {name}. Try a function that returns what is "
            "made of it."
        )
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must be callable without arguments; got {name} ({error}). "
            "Give its arguments defaults."
        ) from error
    return make()
