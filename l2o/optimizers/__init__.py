"""Learned-optimizer designs, one a file; policies, which are designs too, have their own folder."""

from collections.abc import Callable, Mapping

from l2o.learned_optimizer import LearnedOptimizer
from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.optimizers.celo import celo
from l2o.optimizers.learnable import learnable_adam, learnable_sgd, learnable_sgdm
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.policies import POLICIES

DESIGNS: Mapping[str, Callable[..., LearnedOptimizer]] = {
    "adafac_mlp": adafac_mlp,
    "celo": celo,
    "learnable_adam": learnable_adam,
    "learnable_sgd": learnable_sgd,
    "learnable_sgdm": learnable_sgdm,
    "mlp_lopt": mlp_lopt,
    "nominal_mlp": nominal_mlp,
    **POLICIES,
}
"""Constructors by name: what a release file may name."""

__all__ = [
    "DESIGNS",
    "adafac_mlp",
    "celo",
    "learnable_adam",
    "learnable_sgd",
    "learnable_sgdm",
    "mlp_lopt",
    "nominal_mlp",
]
