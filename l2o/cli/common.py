"""What all ways to meta-train take from the settings."""

from collections.abc import Sequence

import optax

from l2o.cli.settings import MetaTraining
from l2o.task import TaskFamily

OF_COSTS = ("objective", "measure", "measure_on", "measure_batches", "target", "normalize")
"""Settings of what a run costs."""

OF_REWARDS = (
    *("reward", "reward_weights", "reward_on", "reward_batches", "penalty", "credit"),
    *("discount", "baseline", "trace", "epochs", "minibatches", "clip_ratio", "entropy_weight"),
)
"""Settings of what an action earns, and of how that is learned from."""


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


def check_unused(settings: MetaTraining, names: Sequence[str], whose: str) -> None:
    """Raises a `ValueError` if a setting of another way to meta-train is not at its default."""
    for name in names:
        if (value := getattr(settings, name)) != getattr(MetaTraining(), name):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(
                f"`{name}` goes with {whose}; got {shown} with {settings.estimator}. Drop it."
            )
