"""Adversarial training, and accuracy under attack.

Training minimises the loss at inputs that projected gradient ascent has moved to raise it (Madry et
al. 2018, arXiv:1706.06083), which approximates min over parameters of max over the ball.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import optax

from l2o.adversarial.ball import Norm
from l2o.adversarial.inputs import (
    ball_of,
    check_steps,
    input_gradient,
    row_scores,
)
from l2o.adversarial.pgd import ascend, strongest
from l2o.augmentation.augmented import renamed
from l2o.rng import key_of
from l2o.supervision.supervised import Batch as Rows
from l2o.task import Batch, Data, Instance, Key, Split, Task

CAP = 3.0
"""Cost of a diverged run, in units of the plain task's: losses under attack are higher."""


class AttackedBatch(NamedTuple):
    """A batch, and the key of the attack on it.

    Attributes:
        batch: Batch of the plain task, with its inputs as they are.
        key: Random key of where the attack starts; None where the loss is that of the plain inputs.
    """

    batch: Batch
    key: Key | None


def robust(
    task: Task,
    *,
    radius: float,
    norm: Norm = "linf",
    steps: int = 7,
    eval_steps: int = 20,
    restarts: int = 3,
    low: float | None = None,
    high: float | None = None,
    adversarial_training: bool = True,
) -> Task:
    """Train a task against attacks on its inputs, and measure how it withstands them.

    The loss, on every split, is that of inputs moved by `steps` steps of projected gradient ascent
    from a random start, each of 2.5 radii divided by the number of steps. Parameters have the
    gradient of the loss at those inputs, which are held constant; for "l2" that is not the
    derivative of the whole, so estimators that backpropagate through training refuse it.

    Metrics of the plain task stay, and each has another named "robust_": `robust_accuracy`, and so
    on, and `robust_loss`. These are of an attack that training never uses, with `eval_steps` steps
    from each of `restarts` other random starts; it keeps of each row the worst, which is one that
    is classified wrongly, if there is any, and of the highest loss. As the plain inputs are among
    them, robust accuracy is never above accuracy. Where rows of a batch depend on each other, as
    with batch normalisation, the worst start is that of the whole batch.

    >>> import l2o
    >>> from l2o.tasks.digits import digits_mlp
    >>> task = l2o.robust(digits_mlp().train[0], radius=0.1)
    >>> task.name, sorted(task.maximized)[-2:]
    ('digits_mlp_32_varied_robust', ['robust_accuracy', 'robust_macro_f1'])

    Args:
        task: Task to make robust, whose batches have `inputs`: one array of real numbers with an
            axis of rows, as in `l2o.supervised` and `l2o.supervised_nnx`.
        radius: Largest change of a row, in units of the inputs.
        norm: Norm of that change: "linf", of each number, or "l2", Euclidean over the row.
        steps: Steps of the attack in training.
        eval_steps: Steps of the attack of the metrics.
        restarts: Random starts of the attack of the metrics.
        low: Least value of an input; the least training input if None.
        high: Largest value of an input; the largest training input if None.
        adversarial_training: Whether training batches are attacked. If not, training is as it was,
            and the loss of the other splits says how well plain training withstands attacks.

    Raises:
        ValueError: If it is no task, or has no such inputs; or the radius is not above 0, the norm
            unknown, the range empty, or a number of steps or starts not above 0.
    """
    ball = ball_of(task, norm, radius, low, high, robust)
    check_steps(steps=steps, eval_steps=eval_steps, restarts=restarts)
    attacked, task_all_rows, task_shrink = renamed(task, "robust"), task.all_rows, task.shrink

    def key_for(key: Key, split: Split) -> Key | None:
        is_plain = split == "train" and not adversarial_training
        return None if is_plain else key_of(key, attacked.name)

    def batch(key: Key, instance: Instance, data: Data, split: Split) -> AttackedBatch:
        return AttackedBatch(task.batch(key, instance, data, split), key_for(key, split))

    def all_rows(instance: Instance, data: Data, split: Split) -> AttackedBatch:
        assert task_all_rows is not None
        key = key_for(jax.random.key(0), split)
        return AttackedBatch(task_all_rows(instance, data, split), key)

    def loss(params: optax.Params, batch: AttackedBatch, instance: Instance) -> jax.Array:
        plain, key = batch
        if key is None:
            return task.loss(params, plain, instance)
        gradient = input_gradient(task, jax.lax.stop_gradient(params), plain, instance)
        start = ball.random_start(key, plain.inputs)
        points = ascend(gradient, start, plain.inputs, ball, steps=steps)
        moved = plain._replace(inputs=jax.lax.stop_gradient(points))
        return task.loss(params, moved, instance)

    def metrics(
        params: optax.Params, batch: AttackedBatch, instance: Instance
    ) -> Mapping[str, jax.Array]:
        # A network is attacked as it is used, without what it draws while it trains.
        used = batch.batch._replace(key=None) if isinstance(batch.batch, Rows) else batch.batch
        key = jax.random.key(0) if batch.key is None else batch.key
        with_points = lambda points: used._replace(inputs=points)
        points = strongest(
            key_of(key, "robust_accuracy"),
            input_gradient(task, params, used, instance),
            lambda points: row_scores(task, params, with_points(points), instance),
            used.inputs,
            ball,
            steps=eval_steps,
            restarts=restarts,
        )
        worst = with_points(points)
        under = dict(task.metrics(params, worst, instance))
        under["loss"] = task.loss(params, worst, instance)
        plain = task.metrics(params, batch.batch, instance)
        return {**plain, **{f"robust_{name}": value for name, value in under.items()}}

    caps = {**task.metric_caps, "loss": CAP * task.loss_cap}
    return replace(
        attacked,
        batch=batch,
        loss=loss,
        loss_cap=CAP * task.loss_cap,
        metrics=metrics,
        maximized=task.maximized | {f"robust_{name}" for name in task.maximized},
        metric_caps={**task.metric_caps, **{f"robust_{name}": cap for name, cap in caps.items()}},
        all_rows=task_all_rows and all_rows,
        shrink=task_shrink
        and (lambda batch, fraction: batch._replace(batch=task_shrink(batch.batch, fraction))),
        is_differentiable=task.is_differentiable and norm == "linf",
    )
