"""Mixtures of plain and of noisy instances that recipes of docs/pretrained.md were tried on.

`PYTHONPATH=benchmarks l2o meta-train --task plain_tasks:plain ...`; the mixture of the preset is
`l2o.tasks.general:general`, of varied instances.
"""

import l2o
from l2o import Task, TaskFamily
from l2o.tasks.digits import (
    digits_autoencoder,
    digits_conv,
    digits_layernorm_mlp,
    digits_mixer,
    digits_mlp,
    digits_resnet,
    digits_tanh_mlp,
    digits_vit,
)
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic
from l2o.tasks.tabular import wine_mlp
from l2o.tasks.text import python_gru, python_lstm, python_transformer

Parts = dict[str | Task | TaskFamily, float]


def common() -> Parts:
    """Parts of both mixtures."""
    return {
        digits_mlp().evaluation[2]: 0.5,
        digits_tanh_mlp().train[0]: 0.3,
        digits_layernorm_mlp().train[0]: 0.3,
        l2o.noisy_labels(digits_conv().evaluation[1]): 1.0,
        digits_resnet().evaluation[0]: 1.0,
        python_transformer().evaluation[0]: 6.0,
        wine_mlp().train[0]: 0.3,
        rotated_quadratic(): 0.3,
        rosenbrock(noise=0.1): 0.3,
    }


def plain() -> TaskFamily:
    """Plain instances, two of them with noisy labels, too, and a few varied ones."""
    parts = common() | {
        l2o.noisy_labels(digits_mlp().evaluation[3]): 0.5,
        digits_conv().evaluation[1]: 1.0,
        digits_mixer().evaluation[0]: 0.5,
        digits_autoencoder().evaluation[0]: 3.0,
        l2o.reduced_batch(python_gru().evaluation[0], low=0.25): 6.0,
        python_lstm().evaluation[0]: 6.0,
    }
    return l2o.mixture(parts, name="plain")


def noisy() -> TaskFamily:
    """The same with noisy labels wherever there are classes, and a vision transformer."""
    parts = common() | {
        l2o.noisy_labels(digits_mlp().evaluation[3]): 1.0,
        digits_mlp().train[-1]: 0.3,
        digits_conv().train[-1]: 0.5,
        l2o.noisy_labels(digits_mixer().evaluation[0]): 0.5,
        l2o.noisy_labels(digits_vit().evaluation[0]): 1.0,
        digits_autoencoder().evaluation[0]: 2.0,
        l2o.reduced_batch(python_gru().evaluation[0], low=0.25): 4.0,
        python_lstm().evaluation[0]: 4.0,
    }
    return l2o.mixture(parts, name="noisy")


def fresh() -> TaskFamily:
    """Images with noise that is new in every batch, which nothing learns by heart, and text."""

    def noisy(task: Task, std: float) -> Task:
        return l2o.noisy_inputs(task, low=std, high=std)

    parts: Parts = {
        noisy(digits_mlp().evaluation[2], 0.93): 3.0,
        noisy(digits_mlp().evaluation[3], 1.6): 3.0,
        noisy(digits_tanh_mlp().evaluation[2], 1.6): 1.5,
        noisy(digits_layernorm_mlp().evaluation[2], 1.6): 1.5,
        noisy(digits_conv().evaluation[1], 0.93): 4.0,
        noisy(digits_resnet().evaluation[0], 0.93): 4.0,
        noisy(digits_mixer().evaluation[0], 1.6): 3.0,
        digits_autoencoder().evaluation[0]: 2.0,
        digits_mlp().evaluation[2]: 0.3,
        python_transformer().evaluation[0]: 6.0,
        l2o.reduced_batch(python_gru().evaluation[0], low=0.25): 5.0,
        python_lstm().evaluation[0]: 5.0,
        rotated_quadratic(): 0.3,
    }
    return l2o.mixture(parts, name="fresh")
