"""The mixture that general-purpose optimizers are meta-trained on."""

from collections.abc import Callable
from dataclasses import replace

import l2o
from l2o import SuiteTask, Task, TaskFamily
from l2o.tasks.badly_scaled import badly_scaled_mlp
from l2o.tasks.digits import (
    digits_autoencoder,
    digits_batchnorm_conv,
    digits_conv,
    digits_gelu_mlp,
    digits_layernorm_mlp,
    digits_mixer,
    digits_mlp,
    digits_resnet,
    digits_tanh_mlp,
    digits_vae,
    digits_vit,
)
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic
from l2o.tasks.tabular import wine_logistic, wine_mlp
from l2o.tasks.text import python_gru, python_lstm, python_transformer

PLAIN = {
    digits_mlp: ((2, 3), 1.0),
    digits_tanh_mlp: ((0,), 0.5),
    digits_layernorm_mlp: ((1,), 0.5),
    digits_conv: ((1,), 1.0),
    digits_resnet: ((0,), 1.0),
    digits_mixer: ((0,), 1.0),
    digits_autoencoder: ((0,), 3.0),
    python_transformer: ((2,), 6.0),
    python_gru: ((0,), 6.0),
    python_lstm: ((0,), 6.0),
    wine_mlp: ((0,), 0.3),
}
"""Sizes of each family, as indices of its plain instances, and weight of each family."""

IN_SMALLER_BATCHES = (digits_tanh_mlp, digits_layernorm_mlp, digits_conv, python_gru)
"""Families whose batches are a quarter to the whole of what they are."""


def general() -> TaskFamily:
    """Small networks of eight kinds, on digits, source text and a table, and two functions.

    There are MLPs of widths from 32 to 128 and of three kinds, a convolutional network, a residual
    one, a mixer, an autoencoder, a transformer and two recurrent networks, all as they are: of
    instances that vary in the scale of all parameters, in that of the initial ones and in their
    batches down to an eighth, most want rates so much smaller that plain ones are trained at half
    of theirs or less. Some have batches of varied size. Reports are on a larger MLP and on kinds
    that it lacks, a vision transformer and a convolutional network with batch normalisation.

    Weights are for the mean logarithm of the loss: about one over how many times it falls in the
    logarithm of the number of steps (2 for MLPs on digits, 0.1 for a transformer on text), so that
    a factor in speed counts alike on all, within bounds.

    >>> len(general().train)
    14
    """
    parts: dict[str | Task | TaskFamily, float] = {
        rotated_quadratic(): 0.3,
        rosenbrock(noise=0.1): 0.3,
    }
    for family, (sizes, weight) in PLAIN.items():
        for i in sizes:
            task = family().evaluation[i]
            if family in IN_SMALLER_BATCHES:
                task = l2o.reduced_batch(task, low=0.25)
            parts[task] = weight / len(sizes)
    shown = (digits_mlp().evaluation[-1],)
    shown += tuple(family().evaluation[0] for family in (digits_vit, digits_batchnorm_conv))
    return replace(l2o.mixture(parts, name="general"), evaluation=shown)


def held_out() -> tuple[SuiteTask, ...]:
    """Kinds of networks that `general` lacks, to choose between recipes by.

    They are on the data of the mixture, so that none of the data that reports are on is looked at:
    `l2o suite --suite l2o.tasks.general:held_out`.

    >>> len(held_out())
    6
    """

    def task(family: Callable[[], TaskFamily], i: int, horizon: int, solved: float) -> SuiteTask:
        name = family.__name__
        make = lambda: family().evaluation[i]
        return SuiteTask(name, make, kind=name, horizon=horizon, solved=solved, is_quick=True)

    return (
        task(digits_gelu_mlp, 4, 500, 0.01),
        task(digits_batchnorm_conv, 1, 300, 0.01),
        task(digits_vae, 0, 500, 0.1),
        task(digits_vit, 0, 200, 0.01),
        task(wine_logistic, 0, 200, 0.01),
        task(badly_scaled_mlp, 0, 200, 0.01),
    )
