"""The mixture that general-purpose optimizers are meta-trained on."""

from collections.abc import Callable
from dataclasses import replace

import l2o
from l2o import SuiteTask, Task, TaskFamily
from l2o.tasks.badly_scaled import badly_scaled_mlp
from l2o.tasks.digits import (
    digits,
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
from l2o.tasks.image_mlp import image_mlp
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic
from l2o.tasks.tabular import wine_logistic, wine_mlp
from l2o.tasks.text import python_gru, python_lstm, python_transformer

SMALLEST_OF = {
    digits_tanh_mlp: 0.5,
    digits_layernorm_mlp: 0.5,
    digits_autoencoder: 3.0,
    python_transformer: 8.0,
    python_gru: 8.0,
    wine_mlp: 0.3,
}
"""Weights of the families of which the smallest variant is a part."""


def general() -> TaskFamily:
    """Small networks of five kinds, on digits, source text and a table, and two functions.

    There are MLPs of three widths and of three kinds, a convolutional network, an autoencoder, a
    transformer and a recurrent network: varied instances of one size each, as an outer step costs
    as much as its largest networks. Reports are on three of them as they are, and on a vision
    transformer and an LSTM, kinds that it lacks, as it does mixers and residual networks.

    Weights are for the mean logarithm of the loss: about one over how many times it falls in the
    logarithm of the number of steps (2 for MLPs on digits, 0.1 for a transformer on text), so that
    a factor in speed counts alike on all, within bounds.

    >>> len(general().train)
    11
    """
    wide = image_mlp(
        "digits_mlp_96x96_varied", digits(), (96, 96), varied=True, family="digits_mlp"
    )
    parts: dict[str | Task | TaskFamily, float] = {
        digits_mlp().train[-1]: 0.5,
        wide: 0.5,
        digits_conv().train[-1]: 1.0,
        rotated_quadratic(): 0.3,
        rosenbrock(noise=0.1): 0.3,
    }
    parts |= {family().train[0]: weight for family, weight in SMALLEST_OF.items()}
    shown = (digits_mlp().evaluation[2], digits_conv().evaluation[1])
    shown += tuple(
        family().evaluation[0] for family in (python_transformer, python_lstm, digits_vit)
    )
    return replace(l2o.mixture(parts, name="general"), evaluation=shown)


def held_out() -> tuple[SuiteTask, ...]:
    """Kinds of networks that `general` lacks, to choose between recipes by.

    They are on the data of the mixture, so that none of the suite's data is looked at; three have
    noise on their inputs that is new in every batch, so that none is learned by heart. Use it by
    `l2o suite --suite l2o.tasks.general:held_out`.

    >>> len(held_out())
    11
    """

    def task(
        family: Callable[[], TaskFamily],
        i: int,
        horizon: int,
        solved: float,
        *,
        is_noisy: bool = False,
    ) -> SuiteTask:
        kind = family.__name__

        def make() -> Task:
            plain = family().evaluation[i]
            return l2o.noisy_inputs(plain, low=1.0, high=1.0) if is_noisy else plain

        name = f"noisy_{kind}" if is_noisy else kind
        return SuiteTask(name, make, kind=kind, horizon=horizon, solved=solved, is_quick=True)

    return (
        task(digits_gelu_mlp, 4, 500, 0.01),
        task(digits_mixer, 0, 300, 0.01),
        task(digits_resnet, 0, 200, 0.01),
        task(digits_vae, 0, 500, 0.1),
        task(digits_vit, 0, 200, 0.01),
        task(python_lstm, 0, 200, 1.0),
        task(wine_logistic, 0, 200, 0.01),
        task(badly_scaled_mlp, 0, 200, 0.01),
        task(digits_gelu_mlp, 4, 300, 0.01, is_noisy=True),
        task(digits_vit, 0, 300, 0.01, is_noisy=True),
        task(digits_batchnorm_conv, 0, 500, 0.01, is_noisy=True),
    )
