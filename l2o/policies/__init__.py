"""Policies: optimizers whose knobs an agent turns, meta-trained by reinforcement or evolution."""

from collections.abc import Callable, Mapping

from l2o.policies.chooser import chooser
from l2o.policies.controller import scheduler, tensor_controller
from l2o.policies.policy import PolicyOptimizer

POLICIES: Mapping[str, Callable[..., PolicyOptimizer]] = {
    "chooser": chooser,
    "scheduler": scheduler,
    "tensor_controller": tensor_controller,
}
"""Constructors by name."""

__all__ = ["POLICIES", "PolicyOptimizer", "chooser", "scheduler", "tensor_controller"]
