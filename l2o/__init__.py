"""Learned optimizers as optax transformations, and their meta-training."""

from l2o import features, nets, optimizers
from l2o.comparison import compare
from l2o.estimators import Estimator, mean_of, pes, truncated_es
from l2o.evaluate import evaluate
from l2o.fit import fit
from l2o.learned_optimizer import LearnedOptimizer
from l2o.learner import Learner, MetaState, gradient_learner
from l2o.problem import InnerState, Problem, Window, inner_problem
from l2o.release import load, optimizer, save
from l2o.run_folder import RunError, RunFolder
from l2o.streams import stream
from l2o.task import Task, TaskFamily

__all__ = [
    "Estimator",
    "InnerState",
    "LearnedOptimizer",
    "Learner",
    "MetaState",
    "Problem",
    "RunError",
    "RunFolder",
    "Task",
    "TaskFamily",
    "Window",
    "compare",
    "evaluate",
    "features",
    "fit",
    "gradient_learner",
    "inner_problem",
    "load",
    "mean_of",
    "nets",
    "optimizer",
    "optimizers",
    "pes",
    "save",
    "stream",
    "truncated_es",
]
