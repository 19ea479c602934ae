"""Training of a task by several optimizers on the same instances, inits and batches."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import optax

from l2o.evaluation.seen import check_unseen
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Curves, train_settings
from l2o.task import Key, Task

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
"""An optax transformation, or a function that makes one from `horizon=`, the number of steps."""


def evaluate(
    key: Key,
    task: Task,
    optimizers: Mapping[str, Optimizer],
    *,
    horizon: int,
    num_seeds: int,
    probe_every: int | None = None,
    seen: AbstractSet[str] = frozenset(),
    allow_seen: bool = False,
) -> dict[str, Curves]:
    """Train inner problems of a task with each of several optimizers.

    A seed's instance, init, batches and probes derive from `key` and the seed's index alone: they
    are the same for every optimizer and for any `num_seeds`.

    >>> import l2o, optax
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> optimizers = {"sgd": optax.sgd(0.1)}
    >>> key = l2o.stream(0, "evaluation")
    >>> curves = l2o.evaluate(key, rotated_quadratic(2), optimizers, horizon=4, num_seeds=3)
    >>> curves["sgd"].train_loss.shape
    (3, 4)

    Args:
        key: Random key from `stream(seed, "evaluation")`, which meta-training never draws from.
        task: Task to train.
        optimizers: Optax transformations by name, or functions that make one from `horizon=`.
        horizon: Inner steps of each run, which optimizers are told, too.
        num_seeds: Number of training runs of each optimizer.
        probe_every: Inner steps between probes; `horizon // 50` but at least 1 if None. The last
            step is always followed by a probe.
        seen: Names, signatures or both of the tasks that an optimizer was meta-trained on; see
            `l2o.evaluation.seen`.
        allow_seen: Whether to accept such a task, for instance to look at the meta-training loss.

    Raises:
        ValueError: If a number is not positive, the task is malformed or was meta-trained on.
    """
    check_unseen(task, seen, allow_seen)
    starts = draw_starts(key, task, num_seeds)
    curves = {}
    for name, optimizer in optimizers.items():
        tx = optimizer(horizon=horizon) if callable(optimizer) else optimizer
        (curves[name],) = train_settings(
            task,
            lambda setting, tx=tx: tx,
            np.zeros(1),
            starts,
            horizon=horizon,
            probe_every=probe_every,
            timed=True,
        )
    return curves
