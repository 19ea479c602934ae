"""The mixture that general-purpose optimizers are meta-trained on."""

from dataclasses import replace

import l2o
from l2o import Task, TaskFamily
from l2o.tasks.digits import (
    digits,
    digits_autoencoder,
    digits_conv,
    digits_layernorm_mlp,
    digits_mlp,
    digits_tanh_mlp,
    digits_vit,
)
from l2o.tasks.image_mlp import image_mlp
from l2o.tasks.tabular import wine_mlp
from l2o.tasks.text import python_gru, python_lstm, python_transformer

SMALLEST_OF = (
    digits_tanh_mlp,
    digits_layernorm_mlp,
    digits_autoencoder,
    python_transformer,
    python_gru,
    wine_mlp,
)
"""Families of which the smallest variant is a part."""


def general() -> TaskFamily:
    """Small networks of five kinds, on digits, source text and a table, all of equal weight.

    There are MLPs of three widths and of three kinds, a convolutional network, an autoencoder, a
    transformer and a recurrent network: varied instances of one size each, as an outer step costs
    as much as its largest networks. Reports are on three of them as they are, and on a vision
    transformer and an LSTM, kinds that it lacks, as it does mixers and residual networks.

    >>> len(general().train)
    9
    """
    wide = image_mlp(
        "digits_mlp_96x96_varied", digits(), (96, 96), varied=True, family="digits_mlp"
    )
    parts = [digits_mlp().train[-1], wide, digits_conv().train[-1]]
    parts += [family().train[0] for family in SMALLEST_OF]
    mixed: dict[str | Task | TaskFamily, float] = dict.fromkeys(parts, 1.0)
    shown = (digits_mlp().evaluation[2], digits_conv().evaluation[1])
    shown += tuple(
        family().evaluation[0] for family in (python_transformer, python_lstm, digits_vit)
    )
    return replace(l2o.mixture(mixed, name="general"), evaluation=shown)
