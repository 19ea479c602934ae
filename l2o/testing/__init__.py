"""Checks of tasks and learned optimizers, for the tests of those who write one."""

from l2o.testing.optimizer import check_optimizer
from l2o.testing.task import check_task

__all__ = ["check_optimizer", "check_task"]
