"""From the settings of a run to the parts they name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import optax
from jax.sharding import Mesh

from l2o import lookup, parallel
from l2o.baselines import check_baselines
from l2o.estimators import Estimator, mean_of
from l2o.evolution import SCHEDULED_STD, evolution_learner
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner, gradient_learner
from l2o.objective import Objective
from l2o.partition import Merge, freeze, with_frozen
from l2o.policies import POLICIES, PolicyOptimizer
from l2o.policies.environment import training_environment
from l2o.policies.ppo import PPOSettings, check_ppo, ppo_learner, with_critic
from l2o.policies.reinforce import reinforce
from l2o.policies.reward import Reward
from l2o.problem import Problem, inner_problem
from l2o.settings import MetaTraining
from l2o.streams import check_seed, stream
from l2o.task import Key, Task, TaskFamily, check_task

if TYPE_CHECKING:
    from l2o.diagnosis.command import Diagnose


@dataclass(frozen=True, eq=False)
class Plan:
    """The parts of a run.

    Attributes:
        train: the tasks it is meta-trained on.
        evaluation: those to report on.
        lopt: the design.
        trained: the part of the first theta that is meta-trained.
        merge: from that part to a whole theta.
        learner: what takes the outer steps.
        log_every: outer steps of a chunk, the largest divisor of the steps up to the setting.
        checkpoint_every: outer steps between checkpoints, a multiple of `log_every`.
    """

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    lopt: LearnedOptimizer
    trained: Theta
    merge: Merge
    learner: Learner
    log_every: int
    checkpoint_every: int


def resolve(settings: MetaTraining) -> Plan:
    """Builds every part of a run, and so finds every mistake in its settings.

    Raises:
        ValueError: naming the setting, its value and what to type instead.
    """
    check_numbers(settings)
    lookup.check_estimator(settings.estimator)
    lopt = lookup.learned_optimizer(settings.optimizer)
    families = task_families(settings.task)
    train = tuple(task for family in families for task in family.train)
    trained, merge = freeze(lopt.init(theta_key(settings.seed)), settings.freeze)
    mesh = parallel.population_mesh(num_devices(settings))
    check_divides(settings, mesh.size)
    if settings.estimator in lookup.POLICY_GRADIENTS:
        learner = policy_learner(settings, lopt, families, merge, mesh)
    else:
        learner = problem_learner(settings, lopt, families, merge, mesh)
    jax.eval_shape(learner.init, jax.random.key(0), trained)  # whether theta suits it
    evaluation = lookup.evaluation_tasks(families, settings.eval_tasks)
    for task in evaluation:
        check_task(task)
    at_most = min(settings.log_every, settings.steps)
    log_every = max(n for n in range(1, at_most + 1) if settings.steps % n == 0)
    return Plan(
        train=train,
        evaluation=evaluation,
        lopt=lopt,
        trained=trained,
        merge=merge,
        learner=learner,
        log_every=log_every,
        checkpoint_every=max(1, settings.checkpoint_every // log_every) * log_every,
    )


def problem_learner(
    settings: MetaTraining,
    lopt: LearnedOptimizer,
    families: Sequence[TaskFamily],
    merge: Merge,
    mesh: Mesh,
) -> Learner:
    """What meta-trains by the cost of training runs."""
    check_reward_is_unused(settings)
    objective = objective_of(settings)
    problems = {
        task.name: with_frozen(
            inner_problem(
                task,
                lopt,
                horizon=(settings.horizon[0], settings.horizon[-1]),
                window=settings.window,
                objective=objective,
            ),
            merge,
        )
        for family in families
        for task in family.train
    }
    return make_learner(settings, problems, families, mesh)


def objective_of(settings: "MetaTraining | Diagnose") -> Objective:
    """What a run costs, from the settings of either command."""
    return Objective(
        summary=settings.objective,
        measure=settings.measure,
        measure_on=settings.measure_on,
        measure_batches=settings.measure_batches,
        target=settings.target,
        normalize=settings.normalize,
    )


def check_numbers(settings: MetaTraining) -> None:
    """Raises a `ValueError` that says what to type if a number is out of its range."""
    default = MetaTraining()
    positive = ("steps", "learning_rate", "clip", "log_every", "checkpoint_every", "eval_seeds")
    for name in (*positive, "num_runs", "std", "final_std", "eval_steps"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            advice = getattr(default, name) or {"final_std": 0.001, "eval_steps": 1000}[name]
            raise ValueError(
                f"`{name}` must be positive and finite; got {value}. Try {name}={advice}."
            )
    if not 0 <= settings.weight_decay < math.inf:
        raise ValueError(
            f"`weight_decay` must not be negative; got {settings.weight_decay}. Try weight_decay=0."
        )
    check_seed(settings.seed)
    check_baselines(settings.eval_baselines, "eval_baselines")
    if len(settings.horizon) not in (1, 2):
        raise ValueError(
            f"`horizon` must be one number or two; got {len(settings.horizon)}. "
            "Try horizon=200, or horizon=100 1000."
        )
    if len(settings.weights) not in (0, len(settings.task)):
        raise ValueError(
            f"`weights` must be one number for each task; got {len(settings.weights)} for "
            f"{len(settings.task)}. Leave it out for equal weights."
        )
    for weight in settings.weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"`weights` must be positive and finite; got {weight}. Try weights=1.")


def task_families(names: Sequence[str]) -> tuple[TaskFamily, ...]:
    """The families of these names, which must differ in the names of their tasks.

    Raises:
        ValueError: if there are none, one is unknown, or two hold tasks of the same name.
    """
    if not names:
        raise ValueError("`task` must name at least one task; got none. Try task=digits_mlp.")
    families = tuple(lookup.task_family(name) for name in names)
    trained = [task.name for family in families for task in family.train]
    for name in trained:
        if trained.count(name) > 1:
            raise ValueError(
                f"`task` must name tasks that differ; got {name} twice. Drop or rename one."
            )
    return families


def make_learner(
    settings: MetaTraining,
    problems: Mapping[str, Problem],
    families: Sequence[TaskFamily],
    mesh: Mesh,
) -> Learner:
    """What takes the outer steps: a meta-gradient and an optimizer on theta."""
    of_task, together = shares_of(settings, families)
    if settings.estimator in lookup.STRATEGIES:
        check_strategy(settings)
        return evolution_learner(
            problems,
            settings.estimator,
            population_size=2 * settings.num_pairs,
            num_runs=settings.num_runs,
            std=make_std(settings),
            optimizer=meta_optimizer(settings),
            averaging=settings.averaging,
            weights=of_task,
            families=together,
            mesh=mesh,
        )
    return gradient_learner(
        mean_of(
            {name: make_estimator(settings, problem, mesh) for name, problem in problems.items()},
            weights=of_task,
            families=together,
        ),
        meta_optimizer(settings),
        averaging=settings.averaging,
    )


def shares_of(
    settings: MetaTraining, families: Sequence[TaskFamily]
) -> tuple[dict[str, float], dict[str, list[str]] | None]:
    """The weight of each task, and the tasks that are reported together."""
    weights = settings.weights or (1.0,) * len(families)
    of_task = {
        task.name: weight / len(family.train)
        for family, weight in zip(families, weights, strict=True)
        for task in family.train
    }
    by_family = {family.name: [task.name for task in family.train] for family in families}
    return of_task, by_family if len(families) > 1 else None


def policy_learner(
    settings: MetaTraining,
    lopt: LearnedOptimizer,
    families: Sequence[TaskFamily],
    merge: Merge,
    mesh: Mesh,
) -> Learner:
    """What meta-trains a policy by what its actions earn."""
    if not isinstance(lopt, PolicyOptimizer):
        raise ValueError(
            f"`optimizer` must be a policy for {settings.estimator}; got {lopt.name}. "
            f"Try {', '.join(POLICIES)}."
        )
    check_objective_is_unused(settings)
    reward = Reward(
        names=settings.reward,
        weights=settings.reward_weights,
        on=settings.reward_on,
        batches=settings.reward_batches,
        penalty=settings.penalty,
    )
    tasks = [task for family in families for task in family.train]
    environments = {
        task.name: training_environment(
            task,
            lopt.policy,
            horizon=(settings.horizon[0], settings.horizon[-1]),
            window=settings.window,
            reward=reward,
            credit=settings.credit,
            privileged=tuple(float(task is other) for other in tasks),
        )
        for task in tasks
    }
    policy = lopt.policy
    actor = replace(
        policy.actor,
        apply=lambda trained, seen, carry: policy.actor.apply(merge(trained), seen, carry),
    )
    weights, together = shares_of(settings, families)
    if settings.estimator == "ppo":
        ppo = PPOSettings(
            discount=settings.discount,
            trace=settings.trace,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            clip=settings.clip_ratio,
            entropy_weight=settings.entropy_weight,
        )
        check_ppo(ppo, settings.num_pairs)
        return ppo_learner(
            environments,
            actor,
            policy.head,
            meta_optimizer(settings, updates=ppo.updates),
            num_pairs=settings.num_pairs,
            settings=ppo,
            averaging=settings.averaging,
            weights=weights,
            families=together,
            mesh=mesh,
        )
    size = group_size(settings)
    estimators = {
        name: reinforce(
            environment,
            actor,
            policy.head,
            num_groups=num_members(settings),
            group_size=size,
            baseline=settings.baseline,
            discount=settings.discount,
            entropy_weight=settings.entropy_weight,
            mesh=mesh,
        )
        for name, environment in environments.items()
    }
    return with_critic(
        gradient_learner(
            mean_of(estimators, weights=weights, families=together),
            meta_optimizer(settings),
            averaging=settings.averaging,
        ),
        policy.head,
        environments[tasks[0].name],
    )


OF_COSTS = ("objective", "measure", "measure_on", "measure_batches", "target", "normalize")
OF_REWARDS = (
    *("reward", "reward_weights", "reward_on", "reward_batches", "penalty", "credit"),
    *("discount", "baseline", "trace", "epochs", "minibatches", "clip_ratio", "entropy_weight"),
)


def check_objective_is_unused(settings: MetaTraining) -> None:
    """Raises a `ValueError` if a policy gradient is told what a run costs: it goes by rewards."""
    for name in OF_COSTS:
        if (value := getattr(settings, name)) != getattr(MetaTraining(), name):
            raise ValueError(
                f"`{name}` goes with the estimators that minimise a cost; got {value} with "
                f"{settings.estimator}, which is paid. Drop it, and set the reward."
            )
    for name in ("shaping", "final_std"):
        if (value := getattr(settings, name)) != getattr(MetaTraining(), name):
            raise ValueError(
                f"`{name}` goes with perturbations of theta; got {value} with "
                f"{settings.estimator}. Drop it."
            )
    if settings.estimator == "reinforce":
        check_unused(settings, ("trace", "epochs", "minibatches", "clip_ratio"), "ppo")
    else:
        check_unused(settings, ("baseline",), "reinforce")


def check_reward_is_unused(settings: MetaTraining) -> None:
    """Raises a `ValueError` if an estimator that goes by the cost of runs is given rewards."""
    check_unused(settings, OF_REWARDS, "reinforce and ppo")


def check_unused(settings: MetaTraining, names: Sequence[str], whose: str) -> None:
    """Raises a `ValueError` if a setting of another way to meta-train is not at its default."""
    for name in names:
        if (value := getattr(settings, name)) != getattr(MetaTraining(), name):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(
                f"`{name}` goes with {whose}; got {shown} with {settings.estimator}. Drop it."
            )


def group_size(settings: MetaTraining) -> int:
    """Runs that share all but the noise of their actions."""
    is_in_runs = settings.estimator == "reinforce" and settings.baseline == "leave_one_out"
    if is_in_runs and (settings.num_runs < 2 or 2 * settings.num_pairs % settings.num_runs):
        raise ValueError(
            f"`num_runs` must be at least 2 and divide the {2 * settings.num_pairs} runs; got "
            f"{settings.num_runs}. Try num_runs=2."
        )
    return settings.num_runs if is_in_runs else 2


def make_estimator(settings: MetaTraining, problem: Problem, mesh: Mesh) -> Estimator:
    """The estimator that the settings name; backpropagation takes two runs for each pair."""
    name, num_pairs = settings.estimator, settings.num_pairs
    if name not in lookup.EVOLUTION and settings.shaping != "none":
        raise ValueError(
            f"`shaping` goes with {', '.join(lookup.EVOLUTION)}; got {settings.shaping} with "
            f"{name}. Drop it."
        )
    if name in lookup.BACKPROP:
        if num_pairs < 1:
            raise ValueError(f"`num_pairs` must be at least 1; got {num_pairs}. Try num_pairs=16.")
        if settings.final_std is not None:
            raise ValueError(
                f"`final_std` goes with perturbations; got {settings.final_std} with {name}, which "
                "draws none. Drop it."
            )
        return lookup.BACKPROP[name](problem, num_members=2 * num_pairs, mesh=mesh)
    std = make_std(settings)
    if name in lookup.MIXED:
        return lookup.MIXED[name](problem, num_pairs=num_pairs, std=std, mesh=mesh)
    return lookup.EVOLUTION[name](
        problem, num_pairs=num_pairs, std=std, shaping=settings.shaping, mesh=mesh
    )


def check_strategy(settings: MetaTraining) -> None:
    """Raises a `ValueError` that says what to type for what an evolution strategy cannot take."""
    strategy = settings.estimator
    if settings.num_pairs < 2:
        raise ValueError(
            f"`num_pairs` must be at least 2 for {strategy}; got {settings.num_pairs}. "
            "Try num_pairs=4."
        )
    if settings.shaping != "none":
        raise ValueError(
            f"`shaping` goes with {', '.join(lookup.EVOLUTION)}; got {settings.shaping} with "
            f"{strategy}. Drop it."
        )
    if settings.final_std is not None and strategy not in SCHEDULED_STD:
        raise ValueError(
            f"`final_std` must be left to {strategy}, which adapts it; got {settings.final_std}. "
            "Drop it."
        )


def make_std(settings: MetaTraining) -> float | optax.Schedule:
    """The standard deviation of perturbations, constant or falling geometrically."""
    if settings.final_std is None:
        return settings.std
    rate = settings.final_std / settings.std
    return optax.exponential_decay(settings.std, max(settings.steps - 1, 1), rate)


def meta_optimizer(settings: MetaTraining, updates: int = 1) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with a short warm-up and a cosine down to a twentieth.

    It takes `updates` steps in each outer step.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=updates * min(50, settings.steps // 10),
        decay_steps=updates * settings.steps,
        end_value=settings.learning_rate / 20,
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )


def theta_key(seed: int) -> Key:
    """The key of a run's first theta."""
    return jax.random.split(stream(seed, "meta_training"))[0]


def num_devices(settings: MetaTraining) -> int:
    """The devices asked for, or as many as are present and divide the population.

    They count over all processes, which have equally many.
    """
    if settings.devices is not None:
        return settings.devices
    present, processes = jax.device_count(), jax.process_count()
    possible = range(processes, present + 1, processes)
    fitting = [n for n in possible if num_members(settings) % n == 0]
    return max(fitting) if settings.num_pairs > 0 and fitting else processes


def num_members(settings: MetaTraining) -> int:
    """What is spread over devices: pairs, groups, or the two runs or candidates of each."""
    if settings.estimator in lookup.POLICY_GRADIENTS:
        return 2 * settings.num_pairs // group_size(settings)
    in_pairs = (*lookup.EVOLUTION, *lookup.MIXED)
    return settings.num_pairs * (1 if settings.estimator in in_pairs else 2)


def check_divides(settings: MetaTraining, devices: int) -> None:
    """Raises a `ValueError` that says what to type if the devices cannot share the population."""
    if settings.num_pairs < 1 or num_members(settings) % devices == 0:
        return
    size = group_size(settings) if settings.estimator in lookup.POLICY_GRADIENTS else 1
    unit = next(
        n
        for n in range(1, devices * size + 1)
        if 2 * n % size == 0 and num_members(replace(settings, num_pairs=n)) % devices == 0
    )
    nearest = max(1, round(settings.num_pairs / unit)) * unit
    raise ValueError(
        f"`num_pairs` must be a multiple of {unit} on {devices} devices; got "
        f"{settings.num_pairs}. Try num_pairs={nearest}."
    )
